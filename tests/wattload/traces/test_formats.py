# ruff: noqa: E501 - rows of traces as they are
"""Each format is known by its header and read to the number; the real files too, where present."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import shared_file
from wattload import traces
from wattload.errors import InputError
from wattload.traces import ReadOptions

AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:00.017335+00:00,2399,6\n"
    "2024-05-10 00:00:02+00:00,76,15\n"
)
BURST_1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,GPT-4,1087,230,1317,API log\n"
    "45,ChatGPT,417,0,417,API log\n"
)
BURST_3 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "19440110.0,aa-1,43,GPT-4,906,446,1352,Conversation log\n"
    "19440161.0,bb-2,2,ChatGPT,36,29,65,Conversation log\n"
    "19440192.0,aa-1,8,GPT-4,1779,123,1902,Conversation log\n"
    "19440193.0,,,GPT-4,17,12,29,API log\n"
)
BURST_BARE = "Timestamp,Request tokens,Response tokens\n1,10,20\n1,11,21\n"
BAILIAN = [
    {"chat_id": 7, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 3, "type": "text",
     "turn": 1, "hash_ids": [1, 2]},
    {"chat_id": 8, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 40, "output_length": 3, "type": "search",
     "turn": 1, "hash_ids": [4, 5, 6]},
    {"chat_id": 9, "parent_chat_id": 7, "timestamp": 9.5, "input_length": 36, "output_length": 3, "type": "text",
     "turn": 2, "hash_ids": [1, 2, 3]},
]  # fmt: skip


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_azure_2023(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    trace = traces.load(write(tmp_path / "t.csv", text))
    assert trace.format == "azure"
    np.testing.assert_allclose(trace.seconds, [0, 4.314579], atol=1e-9)
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert "Splitwise" in trace.citation
    assert trace.prompt_tokens.dtype == np.int32
    assert (trace.session == -1).all()
    assert trace.prefix is None


def test_azure_2024_has_zones_and_times_without_a_fraction(tmp_path: Path) -> None:
    trace = traces.load(write(tmp_path / "t.csv", AZURE_2024))
    np.testing.assert_allclose(trace.seconds, [0, 0.007405, 1.99007], atol=1e-9)
    assert "DynamoLLM" in trace.citation


def test_crlf_bom_and_gzip_change_nothing(tmp_path: Path) -> None:
    plain = traces.load(write(tmp_path / "t.csv", AZURE_2024))
    (tmp_path / "w.csv").write_bytes(b"\xef\xbb\xbf" + AZURE_2024.replace("\n", "\r\n").encode())
    with gzip.open(tmp_path / "t.csv.gz", "wt") as packed:
        packed.write(AZURE_2024)
    for name in ("w.csv", "t.csv.gz"):
        other = traces.load(tmp_path / name)
        np.testing.assert_array_equal(other.seconds, plain.seconds)
        np.testing.assert_array_equal(other.prompt_tokens, plain.prompt_tokens)


def test_burstgpt_first_columns_leaves_failed_requests_out_and_says_so(tmp_path: Path) -> None:
    trace = traces.load(write(tmp_path / "b.csv", BURST_1))
    assert trace.format == "burstgpt"
    assert trace.seconds.tolist() == [0, 40]
    assert trace.output_tokens.tolist() == [18, 230]
    assert [trace.tags[i] for i in trace.tag] == ["Conversation log", "API log"]
    assert any("1 of 3 rows" in note for note in trace.notes)


def test_burstgpt_with_sessions_takes_the_answer_off_the_think_time(tmp_path: Path) -> None:
    trace = traces.load(write(tmp_path / "b.csv", BURST_3))
    assert trace.session[0] == trace.session[2] >= 0
    assert trace.session[1] not in (trace.session[0], -1)
    assert trace.session[3] == -1
    assert trace.turn.tolist() == [0, 0, 1, 0]
    assert trace.think_seconds[2] == 82 - 43
    assert np.isnan(trace.think_seconds[[0, 1, 3]]).all()


def test_burstgpt_without_the_columns_it_can_do_without(tmp_path: Path) -> None:
    trace = traces.load(write(tmp_path / "b.csv", BURST_BARE))
    assert trace.seconds.tolist() == [0, 0]
    assert trace.prompt_tokens.tolist() == [10, 11]


def test_mooncake(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": list(range(14))},
        {"timestamp": 3000, "input_length": 600, "output_length": 4, "hash_ids": [0, 14]},
    ]
    trace = traces.load(jsonl(tmp_path / "m.jsonl", rows))
    assert trace.format == "mooncake"
    assert trace.seconds.tolist() == [0, 3]
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 512
    assert trace.prefix[1] == (0, 14)


def test_bailian_links_turns_and_finds_its_block_size(tmp_path: Path) -> None:
    trace = traces.load(jsonl(tmp_path / "q.jsonl", BAILIAN))
    assert trace.format == "bailian"
    assert trace.seconds.tolist() == [0, 1, 9]
    assert trace.session[0] == trace.session[2] >= 0
    assert trace.session[1] == -1
    assert trace.turn.tolist() == [0, 0, 1]
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 16
    assert set(trace.tags) == {"text", "search"}


def test_servegen_csv_and_offline(tmp_path: Path) -> None:
    text = "request_id,timestamp,input_tokens,output_tokens\n0,0.5,100,20\n1,0.75,50,10\n"
    assert traces.load(write(tmp_path / "s.csv", text)).seconds.tolist() == [0, 0.25]
    rows = [{"request_id": 0, "type": "text", "input_length": 61, "output_length": 2370, "duration": 14000}]
    offline = traces.load(jsonl(tmp_path / "d.jsonl", rows))
    assert offline.format == "servegen-offline"
    assert not offline.timed


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_plain_in_three_files_is_the_same_trace(tmp_path: Path, kind: str) -> None:
    rows = [
        {"seconds": 1.0, "prompt_tokens": 10, "output_tokens": 5, "session": "a", "tag": "x"},
        {"seconds": 2.5, "prompt_tokens": 11, "output_tokens": 6, "session": "", "tag": "y"},
        {"seconds": 4.0, "prompt_tokens": 30, "output_tokens": 7, "session": "a", "tag": "x"},
    ]
    path = tmp_path / f"p.{kind}"
    if kind == "csv":
        write(path, ",".join(rows[0]) + "\n" + "".join(",".join(map(str, r.values())) + "\n" for r in rows))
    elif kind == "jsonl":
        jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    trace = traces.load(path)
    assert trace.format == "plain"
    assert trace.seconds.tolist() == [0, 1.5, 3]
    assert trace.session[0] == trace.session[2] >= 0
    assert trace.session[1] == -1
    assert trace.turn.tolist() == [0, 0, 1]
    assert trace.think_seconds[2] == 3.0
    assert [trace.tags[i] for i in trace.tag] == ["x", "y", "x"]


def test_column_map_with_a_unit_and_a_constant(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "when,in\n1000,12\n2500,13\n")
    mapping = traces.parse_column_map("seconds=when:ms,prompt_tokens=in,output_tokens==64")
    trace = traces.load(path, ReadOptions(column_map=mapping))
    assert trace.seconds.tolist() == [0, 1.5]
    assert trace.output_tokens.tolist() == [64, 64]


def test_column_map_reads_dates_of_parquet(tmp_path: Path) -> None:
    table = pa.table({"t": pa.array([10**18, 10**18 + 10**9], pa.timestamp("ns")), "p": [1, 2], "o": [3, 4]})
    pq.write_table(table, tmp_path / "d.parquet")
    mapping = traces.parse_column_map("seconds=t,prompt_tokens=p,output_tokens=o")
    assert traces.load(tmp_path / "d.parquet", ReadOptions(column_map=mapping)).seconds.tolist() == [0, 1]


def test_sharegpt_turns_carry_the_conversation(tmp_path: Path) -> None:
    talk = [("human", "one two"), ("gpt", "three"), ("human", "four"), ("gpt", "five six")]
    entries = [{"id": "a", "conversations": [{"from": who, "value": text} for who, text in talk]}]
    path = write(tmp_path / "s.json", json.dumps(entries))
    trace = traces.load(path)
    assert trace.format == "sharegpt"
    assert trace.texts == ["one two", "one two\n\nthree\n\nfour"]
    assert trace.turn.tolist() == [0, 1]
    assert not trace.timed
    same = jsonl(
        tmp_path / "s.jsonl",
        [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}],
    )
    assert traces.load(same).texts == ["hi"]


@pytest.mark.parametrize(
    ("name", "rows", "prompt", "output"),
    [("conv", 19366, (1155, 1020), (211, 129)), ("code", 8819, (2048, 1469), (28, 13))],
)
def test_the_real_azure_traces(
    name: str, rows: int, prompt: tuple[int, int], output: tuple[int, int]
) -> None:
    trace = traces.load(shared_file("traces", f"AzureLLMInferenceTrace_{name}.csv"))
    assert len(trace) == rows
    for values, (mean, median) in ((trace.prompt_tokens, prompt), (trace.output_tokens, output)):
        assert abs(values.mean() - mean) <= 0.5
        assert np.median(values) == median


def test_the_real_mooncake_trace() -> None:
    trace = traces.load(shared_file("traces", "mooncake_conversation_trace.jsonl"))
    assert len(trace) == 12031
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 512
    assert trace.seconds[-1] == 3536.999


def test_a_name_that_is_neither_file_nor_workload() -> None:
    with pytest.raises(InputError, match="no such file"):
        traces.load("nothing-here")
