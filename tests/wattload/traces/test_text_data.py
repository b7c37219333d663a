"""Data sets of text: formats of vLLM's benchmarks, LMSYS, WildChat, arXiv, and Hugging Face's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wattload import traces
from wattload.errors import InputError
from wattload.traces import ReadOptions
from wattload.traces.huggingface import cached, hub_of, is_name, revision_of

REVISION = "0123456789abcdef0123456789abcdef01234567"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def talk(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


LMSYS = [
    {"conversation_id": "a", "model": "m", "conversation": talk("one", "two words", "three", "four")},
    {"conversation_id": "b", "model": "m", "conversation": talk("five", "six")},
]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_conversations_as_lmsys_and_wildchat_have_them(kind: str, tmp_path: Path) -> None:
    write = parquet if kind == "parquet" else jsonl
    trace = traces.load(write(tmp_path / f"t.{kind}", LMSYS))
    assert trace.texts == ["one", "one\n\ntwo words\n\nthree", "five"]
    assert trace.session.tolist() == [0, 0, 1]
    assert trace.turn.tolist() == [0, 1, 0]
    assert not trace.timed


def test_vllms_custom_benchmark(tmp_path: Path) -> None:
    rows = [{"prompt": "What is up?", "output_tokens": 17}, {"prompt": "And down?", "output_tokens": 3}]
    trace = traces.load(jsonl(tmp_path / "c.jsonl", rows))
    assert trace.format == "text"
    assert trace.texts == ["What is up?", "And down?"]
    assert trace.output_tokens.tolist() == [17, 3]
    assert (trace.session == -1).all()


def test_without_lengths_the_user_says_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"prompt": "What is up?"}])
    with pytest.raises(InputError, match="output_tokens"):
        traces.load(path)
    assert traces.load(path, ReadOptions(output_tokens=64)).output_tokens.tolist() == [64]


def test_a_length_for_every_request_takes_the_place_of_any_traces(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("seconds,prompt_tokens,output_tokens\n0,5,6\n1,7,8\n")
    assert traces.load(path, ReadOptions(output_tokens=9)).output_tokens.tolist() == [9, 9]
    with pytest.raises(InputError, match="draws its own lengths"):
        traces.load("conv", ReadOptions(output_tokens=9))


@pytest.mark.parametrize(
    ("row", "prompt", "output"),
    [
        ({"article": "x" * 400, "abstract": "y" * 80}, "x" * 400, 20),
        ({"article": "x" * 400, "highlights": "y" * 80, "id": "1"}, "x" * 400, 20),
        ({"document": "x" * 40, "summary": "y" * 8}, "x" * 40, 2),
        ({"instruction": "do", "input": "this", "output": "y" * 40}, "do\n\nthis", 10),
        ({"instruction": "do", "input": "", "output": "y" * 40}, "do", 10),
        ({"question": "why", "answer": "y" * 40}, "why", 10),
        ({"prompt": "why", "completion": "y" * 40}, "why", 10),
    ],
)
def test_pairs_of_texts(row: dict[str, Any], prompt: str, output: int, tmp_path: Path) -> None:
    for path in (parquet(tmp_path / "p.parquet", [row]), jsonl(tmp_path / "p.jsonl", [row])):
        trace = traces.load(path)
        assert trace.texts == [prompt]
        assert trace.output_tokens.tolist() == [output]
        assert any("estimated" in note for note in trace.notes)


def test_rows_without_text_are_passed_over_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "output_tokens": 3},
        {"prompt": "", "output_tokens": 3},
        {"prompt": None, "output_tokens": 3},
        {"prompt": "b", "output_tokens": 0},
        {"prompt": "c\ud83d", "output_tokens": 4},
    ]
    trace = traces.load(jsonl(tmp_path / "c.jsonl", rows))
    assert trace.texts == ["a", "c\ufffd"]
    assert any("passed over: 3" in note for note in trace.notes)
    with pytest.raises(InputError, match="holds no prompt with an output"):
        traces.load(jsonl(tmp_path / "e.jsonl", rows[1:4]))


@pytest.mark.parametrize("tokens", [10**9, 2**63, 10**30])
def test_an_output_longer_than_any_is_refused_with_its_line(tmp_path: Path, tokens: int) -> None:
    rows = [{"prompt": "a", "output_tokens": 3}, {"prompt": "b", "output_tokens": tokens}]
    with pytest.raises(InputError, match=r"line 2: output_tokens .* is longer than any model's context"):
        traces.load(jsonl(tmp_path / "c.jsonl", rows))


def test_a_large_data_set_is_read_in_part(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "output_tokens": 3} for i in range(50)]
    assert len(traces.load(jsonl(tmp_path / "c.jsonl", rows), ReadOptions(text_rows=7))) == 7
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b", "c"):
        jsonl(folder / f"{name}.jsonl", rows[:4])
    for most, expected in ((3, 3), (4, 4), (6, 6), (100, 12)):
        assert len(traces.load(folder, ReadOptions(text_rows=most))) == expected


def snapshot(hub: Path, name: str, revision: str = REVISION, *, main: bool = True) -> Path:
    folder = hub / f"datasets--{name.replace('/', '--')}"
    if main:
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    return folder / "snapshots" / revision


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_data_set_of_the_cache_by_its_name(hub: Path) -> None:
    files = snapshot(hub, "lmsys/lmsys-chat-1m")
    parquet(files / "data" / "train-00001-of-00002.parquet", LMSYS[1:])
    parquet(files / "data" / "train-00000-of-00002.parquet", LMSYS[:1])
    parquet(files / "data" / "test-00000-of-00001.parquet", LMSYS)
    (files / "README.md").write_text("card")
    trace = traces.load("lmsys/lmsys-chat-1m")
    assert trace.texts == ["one", "one\n\ntwo words\n\nthree", "five"]
    assert trace.session.tolist() == [0, 0, 1]
    assert (trace.name, trace.revision) == ("lmsys/lmsys-chat-1m", REVISION)
    assert len(trace.sha256) == 64
    test = traces.load("lmsys/lmsys-chat-1m:data/test-*")
    assert len(test) == 3
    by_path = traces.load(files / "data" / "test-00000-of-00001.parquet")
    assert by_path.revision == REVISION


def test_several_configurations_are_named(hub: Path) -> None:
    files = snapshot(hub, "ccdv/arxiv-summarization")
    for config in ("document", "section"):
        row = {"article": config, "abstract": "short"}
        parquet(files / config / "train-00000-of-00001.parquet", [row])
    with pytest.raises(InputError, match=r"name one, as ccdv/arxiv-summarization:document/\*"):
        traces.load("ccdv/arxiv-summarization")
    assert traces.load("ccdv/arxiv-summarization:section/*").texts == ["section"]


def test_a_json_array_of_the_cache(hub: Path) -> None:
    files = snapshot(hub, "anon8231489123/ShareGPT_Vicuna_unfiltered", main=False)
    entry = {"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    (files / "ShareGPT_V3_unfiltered_cleaned_split.json").write_text(json.dumps([entry]))
    trace = traces.load("anon8231489123/ShareGPT_Vicuna_unfiltered")
    assert (trace.texts, trace.revision) == (["hi"], REVISION)


@pytest.mark.parametrize("name", ["org/none", "org/empty", "org/two", "org/full:nothing*"])
def test_what_the_cache_does_not_have_is_refused_in_a_sentence(name: str, hub: Path) -> None:
    snapshot(hub, "org/empty")
    snapshot(hub, "org/two", "a" * 40, main=False)
    snapshot(hub, "org/two", "b" * 40, main=False)
    parquet(snapshot(hub, "org/full") / "train.parquet", LMSYS)
    with pytest.raises(InputError) as refused:
        traces.load(name)
    assert refused.value.field == "trace"
    said = {"org/none": "hf download", "org/two": "revisions"}.get(name, "no file of")
    assert said in str(refused.value)


def test_times_and_several_files_do_not_go_together(hub: Path) -> None:
    files = snapshot(hub, "org/timed")
    for part in range(2):
        rows = [{"seconds": 1.0, "prompt_tokens": 5, "output_tokens": 5}]
        parquet(files / f"train-{part}.parquet", rows)
    with pytest.raises(InputError, match="only text, and sessions without times"):
        traces.load("org/timed")
    assert len(traces.load("org/timed:train-0*")) == 1


def test_where_the_cache_is() -> None:
    assert hub_of({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}) == Path("/c")
    assert hub_of({"HF_HOME": "/h"}) == Path("/h/hub")
    assert hub_of({"XDG_CACHE_HOME": "/x", "HOME": "/u"}) == Path("/x/huggingface/hub")
    assert hub_of({"HOME": "/u"}) == Path("/u/.cache/huggingface/hub")


def test_names_and_paths_are_told_apart(tmp_path: Path) -> None:
    assert is_name("org/name")
    assert is_name("org/name:data/*.parquet")
    assert not is_name("name")
    assert not is_name("/org/name")
    assert not is_name("a/b/c.csv")
    assert revision_of(tmp_path / "t.csv") is None
    with pytest.raises(InputError, match="no such file"):
        traces.load("missing.csv")
    with pytest.raises(InputError, match="ORG/NAME"):
        cached("name")
