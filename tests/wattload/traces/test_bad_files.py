# ruff: noqa: E501 - tables of cases
"""Every kind of bad trace is one sentence that names file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wattload import traces
from wattload.errors import BadInput
from wattload.traces import ReadOptions

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PLAIN = "seconds,prompt_tokens,output_tokens\n"
MOON = '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n'


def refused(
    tmp_path: Path, content: str | bytes, options: ReadOptions | None = None, name: str = "bad.csv"
) -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as caught:
        traces.load(path, options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("  \n\n", "is empty"),
        (AZURE, "a header and no rows"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.1,5\n", "line 1: GeneratedTokens missing"),
        ("a,b,c\n1,2,3\n", "line 1: no known trace"),
        (
            AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,-4,5\n",
            "line 3: ContextTokens -4 is negative",
        ),
        (
            AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,x,5\n",
            "line 3: ContextTokens 'x' is not a whole",
        ),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,5.5,5\n", "line 3: ContextTokens '5.5'"),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,,5\n", "line 3: ContextTokens ''"),
        (
            AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,5\n",
            "line 3: 2 fields, the header has 3",
        ),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:45.1,5,5\n", "line 3: TIMESTAMP is earlier"),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:46.1,6,5\n", "line 3: the same TIMESTAMP"),
        (AZURE + "2023-11-16 18:15:46.1,5,5\nyesterday,6,5\n", "line 3: TIMESTAMP 'yesterday'"),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-46 18:15:46.1,6,5\n", "line 3: TIMESTAMP"),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1+00:00,6,5\n", "line 3"),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,5,0\n", "line 3: GeneratedTokens is 0"),
        (
            AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,5,999999999999\n",
            "line 3: GeneratedTokens 99999",
        ),
        (
            AZURE + "2023-11-16 18:15:46.1,5,5\n2023-11-16 18:15:47.1,5,99999999999999999999\n",
            "line 3: GeneratedT",
        ),
        (
            AZURE + "2023-11-16 18:15:46.1,5,5\n" + AZURE + "2023-11-16 18:15:47.1,5,5\n",
            "line 3: TIMESTAMP 'TIMES",
        ),
        (AZURE + "2023-11-16 18:15:46.1,5,5\n" + MOON, "line 3"),
        (PLAIN + "0,1,1\n0,1,1\n1,1,1\n", "line 3: the same seconds"),
        (PLAIN + "0,1,1\nnan,1,1\n", "line 3: seconds nan is not a time"),
        (PLAIN + "0,1,1\ninf,1,1\n", "line 3: seconds inf"),
        (PLAIN + "-1,1,1\n0,1,1\n", "line 2: seconds -1 is negative"),
        (PLAIN + "0,1,1\n1700000000000,1,1\n", "line 3: seconds 1700000000000 is after the year 5000"),
        (
            "seconds,prompt_tokens,output_tokens,prompt_tokens\n0,1,1,9\n",
            "line 1: 2 columns are named prompt_t",
        ),
        (PLAIN + "0,1,1\n\n\n1,-1,1\n", "line 5: prompt_tokens -1"),
        (PLAIN.replace(",", "\t") + "0\t1\t1\n", "line 1: tabs stand between the columns; commas are needed"),
        (PLAIN.replace(",", ";") + "0;1;1\n", "line 1: semicolons stand between"),
        (PLAIN.replace(",", "|") + "0|1|1\n", "line 1: bars stand between"),
        (PLAIN.replace(",", " , ") + "0, 1, x\n", "line 2: output_tokens ' x' is not a whole"),
        (
            "seconds,prompt_tokens,output_tokens, prompt_tokens\n0,1,1,9\n",
            "line 1: 2 columns are named prompt_t",
        ),
        (b"\xff\xfe" + PLAIN.encode("utf-16-le"), "UTF-16"),
        (PLAIN.encode() + b"0,1,1\n1,\x00,1\n", "line 3: holds a NUL byte"),
        (b"seconds,prompt_tokens,output_tokens,tag\n0,1,1,caf\xe9\n", "line 2: not UTF-8"),
        ((PLAIN + "0,1,1\n" * 1 + "1,2,3\n").encode() + b"\x80\x81\n", "line 4"),
    ],
)
def test_bad_csv(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (MOON + "{not json}\n", "line 2: not JSON"),
        (MOON + "[1]\n", "line 2: not a JSON object"),
        (MOON + '{"timestamp": 1, "input_length": 5, "hash_ids": [1]}\n', "line 2: output_length is missing"),
        (
            MOON + '{"timestamp": 1, "input_length": "5", "output_length": 5, "hash_ids": []}\n',
            "line 2: input_length",
        ),
        (
            MOON + '{"timestamp": 1, "input_length": 5.5, "output_length": 5, "hash_ids": []}\n',
            "line 2: input_length",
        ),
        (
            MOON + '{"timestamp": 1, "input_length": 5, "output_length": -5, "hash_ids": []}\n',
            "line 2: output_length -5",
        ),
        (
            MOON + '{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": "a"}\n',
            "line 2: hash_ids",
        ),
        (
            MOON + '{"timestamp": 1, "input_length": null, "output_length": 5, "hash_ids": []}\n',
            "line 2: input_length",
        ),
        (
            MOON + "\n" + '{"timestamp": -9, "input_length": 5, "output_length": 5, "hash_ids": []}\n',
            "line 3",
        ),
        ('{"timestamp": 9}\n' + MOON, "line 1: input_length and output_length missing"),
        ('{\n "timestamp": 9\n}\n', "one object a line"),
        ("[1, 2]", "entry 1: not a JSON object"),
        ("[{]", "line 1: not JSON"),
        ("[]", "holds no question"),
        (
            '[{"conversations": [{"from": "human"}]}]',
            "messages without text (as a tool call), passed over: 1, the first in entry 1",
        ),
        ('[{"other": 1}]', "neither conversations nor messages, passed over: 1, the first in entry 1"),
    ],
)
def test_bad_json(tmp_path: Path, content: str, said: str) -> None:
    assert said in refused(tmp_path, content, name="bad.jsonl")


def test_parquet_cut_off_and_with_gaps(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert "no whole Parquet file" in refused(tmp_path, b"PAR1 and then nothing", name="x.parquet")
    table = pa.table({"seconds": [0.0, 1.0], "prompt_tokens": [1, None], "output_tokens": [1, 1]})
    pq.write_table(table, tmp_path / "y.parquet")
    with pytest.raises(BadInput, match="row 2: prompt_tokens is missing"):
        traces.load(tmp_path / "y.parquet")


def test_sort_keep_and_drop_accept_what_is_otherwise_refused(tmp_path: Path) -> None:
    path = tmp_path / "u.csv"
    path.write_text(PLAIN + "5,10,1\n1,20,2\n1,30,0\n")
    with pytest.raises(BadInput, match="line 4: output_tokens is 0"):
        traces.load(path)
    options = ReadOptions(sort=True, duplicate_times="keep", empty_requests="drop")
    trace = traces.load(path, options)
    assert trace.prompt_tokens.tolist() == [20, 10]
    assert trace.seconds.tolist() == [0, 4]
    assert any("1 of 3 rows" in note for note in trace.notes)
    assert trace.lines is not None
    assert trace.lines(1) == "line 2"


@pytest.mark.parametrize("header", [PLAIN, PLAIN.replace(",", ", "), " " + PLAIN.replace(",", " ,\t")])
def test_names_of_columns_may_stand_between_blanks(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(header + "0, 7, 1\n1.5, 8, 2\n")
    trace = traces.load(path)
    assert (trace.format, trace.prompt_tokens.tolist()) == ("plain", [7, 8])
    assert trace.seconds.tolist() == [0.0, 1.5]


def test_times_that_a_coarse_clock_explains_are_kept_and_copies_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, 20_000, 20_000)).round(3)
    assert (np.diff(times) == 0).any(), "the case needs times that coincide by chance"
    rows = "".join(f"{t:.3f},5,5\n" for t in times)
    path = tmp_path / "chance.csv"
    path.write_text(PLAIN + rows)
    assert len(traces.load(path)) == 20_000
    lines = rows.splitlines(keepends=True)
    path.write_text(PLAIN + "".join(line * 2 if i % 40 == 0 else line for i, line in enumerate(lines)))
    with pytest.raises(BadInput, match="line 3: the same seconds"):
        traces.load(path)


@pytest.mark.parametrize(
    "text", ["prompt_tokens", "x=y", "seconds==5", "prompt_tokens=", "prompt_tokens=a,output_tokens==many"]
)
def test_bad_column_maps(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match="column_map"):
        traces.load(path, ReadOptions(column_map=traces.parse_column_map(text)))


def test_a_directory_a_missing_column_and_a_bad_unit(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a directory"):
        traces.load(tmp_path)
    path = tmp_path / "c.csv"
    path.write_text("a,b,t\n1,2,3\n")
    with pytest.raises(BadInput, match="line 1: no column 'z'"):
        traces.load(path, ReadOptions(column_map={"prompt_tokens": "a", "output_tokens": "z"}))
    with pytest.raises(BadInput, match="the unit is one of"):
        traces.load(
            path, ReadOptions(column_map={"prompt_tokens": "a", "output_tokens": "b", "seconds": "t:weeks"})
        )


STARTS = [
    "", AZURE, PLAIN, MOON, '[{"conversations": [', "PAR1",
    "Timestamp,Session ID,Elapsed time,Request tokens,Response tokens\n1,a,3,5,5\n",
    '{"chat_id": 7, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 3, "hash_ids": [1]}\n',
]  # fmt: skip
PIECES = st.one_of(
    st.binary(max_size=30).map(lambda b: b.decode("latin-1")),
    st.text(max_size=20),
    st.sampled_from([",", "\n", "\r\n", '"', "nan", "-1", "1e400", "2023-11-16 18:15:47", "{", "}", "[", "]", "null",
                     '"timestamp"', ":", "0", "\x00", "\x1c", "\ufeff", "9" * 20, MOON, AZURE, PLAIN]),
)  # fmt: skip


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(STARTS), st.lists(PIECES, max_size=8), st.booleans())
def test_any_bytes_are_a_trace_or_a_sentence(
    tmp_path: Path, start: str, pieces: list[str], lenient: bool
) -> None:
    path = tmp_path / "fuzz"
    path.write_bytes((start + "".join(pieces)).encode("utf-8", "surrogatepass"))
    options = (
        ReadOptions(sort=True, duplicate_times="keep", empty_requests="drop") if lenient else ReadOptions()
    )
    try:
        lines = ["a trace"] if len(traces.load(path, options)) else []
    except BadInput as error:
        lines = str(error).splitlines()
    assert len(lines) == 1


@pytest.mark.parametrize("name", ["t.csv", "t.CSV.GZ", "t"])
def test_a_packed_file_is_known_by_how_it_begins(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress((PLAIN + "0,5,6\n1,7,8\n").encode()))
    assert traces.load(path).prompt_tokens.tolist() == [5, 7]
    path.write_bytes(gzip.compress((MOON * 1).encode()))
    assert len(traces.load(path)) == 1


def test_control_characters_end_no_lines_and_a_long_first_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("seconds,prompt_tokens,output_tokens,tag\n0,1,1,a\x1cb\n1,1,1,c\x85d\n")
    assert traces.load(path).tags == ("a\x1cb", "c\x85d")
    assert "is empty" in refused(tmp_path, b"\r\n \t")
    assert "'a\\nb', c" in refused(tmp_path, '"a\nb",c\n1,2\n')
    long = [{"from": "human", "value": "x" * 1_100_000}, {"from": "gpt", "value": "y"}]
    path.write_text(json.dumps({"conversations": long}) + "\n")
    assert traces.load(path).prompt_tokens.tolist() == [275_000]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(1, 10**5)),
        min_size=1, max_size=50, unique_by=lambda row: row[0],
    )
)  # fmt: skip
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[int, int, int]]) -> None:
    rows.sort()
    csv, lines = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv.write_text(PLAIN + "".join(f"{t / 1000},{p},{o}\n" for t, p, o in rows))
    lines.write_text(
        "".join(
            json.dumps({"timestamp": t, "input_length": p, "output_length": o}) + "\n" for t, p, o in rows
        )
    )
    for path in (csv, lines):
        trace = traces.load(path)
        np.testing.assert_allclose(trace.seconds, [(t - rows[0][0]) / 1000 for t, _, _ in rows], atol=1e-9)
        assert trace.prompt_tokens.tolist() == [p for _, p, _ in rows]
        assert trace.output_tokens.tolist() == [o for _, _, o in rows]
