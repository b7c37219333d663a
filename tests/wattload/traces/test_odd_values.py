"""Values that JSON can hold and columns cannot: ids over 63 bits, names of text, halves of characters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wattload import traces
from wattload.errors import InputError
from wattload.schedule.build import build_schedule

BIG = 2**64 - 1
SECONDS = {"seconds": 0, "prompt_tokens": 40, "output_tokens": 5}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mooncake(path: Path, ids: list[list[Any]]) -> Path:
    rows = [
        {"timestamp": i * 1000, "input_length": 512 * len(blocks), "output_length": 5, "hash_ids": blocks}
        for i, blocks in enumerate(ids)
    ]
    return jsonl(path, rows)


def shape(lists: list[list[Any]]) -> list[list[int]]:
    """Which entries are equal, whatever they are called."""
    known: dict[Any, int] = {}
    return [[known.setdefault(entry, len(known)) for entry in row] for row in lists]


NAMES: dict[str, list[list[Any]]] = {
    "unsigned": [[BIG, 12], [BIG, 13], [BIG - 1, 12]],
    "128 bits": [[2**127 + 1, 5], [2**127 + 1, 6]],
    "signed": [[-(2**63), -1], [-(2**63), -2], [-1, -2]],
    "near the limit": [[2**63 - 1, 2**63 - 2], [2**63 - 1, 7]],
    "text": [["aa", "b0"], ["aa", "c1"]],
    "text and numbers": [[1, "a"], [1, "b"]],
    "none": [[BIG], []],
}


@pytest.mark.parametrize("ids", NAMES.values(), ids=NAMES)
def test_blocks_may_have_any_name(ids: list[list[Any]], tmp_path: Path) -> None:
    rows = [row or [0] for row in ids]
    trace = traces.load(mooncake(tmp_path / "m.jsonl", rows))
    assert trace.prefix is not None
    assert shape([list(trace.prefix[i]) for i in range(len(trace))]) == shape(rows)
    assert trace.prefix.ids.min() >= 0
    # Played again, every copy has ids of its own.
    twice = build_schedule(trace, "constant", rate=1, requests=2 * len(trace), repeat=True, seed=1)
    assert twice.prefix_hashes is not None
    first, second = np.split(np.arange(2 * len(trace)), 2)
    again = {i for row in second for i in twice.prefix_hashes[int(row)]}
    assert not again & {i for row in first for i in twice.prefix_hashes[int(row)]}


@pytest.mark.parametrize("kind", [pa.uint64(), pa.int64(), pa.string(), pa.large_string()])
@pytest.mark.parametrize("large", [False, True])
def test_blocks_in_parquet_may_have_any_name(kind: Any, large: bool, tmp_path: Path) -> None:
    text = kind in (pa.string(), pa.large_string())
    ids: list[list[Any]] = [["x", "y"], ["x", "z"]] if text else [[2**63 - 1, 1], [2**63 - 1, 2]]
    if kind == pa.uint64():
        ids[1][1] = BIG
    lists = pa.large_list(kind) if large else pa.list_(kind)
    columns = {"seconds": [0.0, 1.0], "prompt_tokens": [1024, 1024], "output_tokens": [5, 5]}
    pq.write_table(pa.table({**columns, "hash_ids": pa.array(ids, lists)}), tmp_path / "p.parquet")
    trace = traces.load(tmp_path / "p.parquet")
    assert trace.prefix is not None
    assert shape([list(trace.prefix[i]) for i in range(2)]) == shape(ids)


@pytest.mark.parametrize("ids", [[1.5], [True], [None], [5, None], "a", None, [[1]], [{"a": 1}]])
@pytest.mark.parametrize("first", [BIG, 7], ids=["line by line", "by Arrow"])
def test_what_is_no_name_of_a_block_is_refused_with_its_line(ids: Any, first: int, tmp_path: Path) -> None:
    path = mooncake(tmp_path / "m.jsonl", [[first]])
    row = {"timestamp": 9000, "input_length": 512, "output_length": 5, "hash_ids": ids}
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(InputError, match="line 2: hash_ids"):
        traces.load(path)


@pytest.mark.parametrize(
    ("sessions", "expected"),
    [
        ([BIG, BIG - 1, BIG], [0, 1, 0]),
        ([7, "seven", 7], [0, 1, 0]),
        ([2**70, -1, 2**70], [0, -1, 0]),
        (["a", "\ud83d", "a"], [0, 1, 0]),
    ],
)
def test_sessions_may_have_any_name(sessions: list[Any], expected: list[int], tmp_path: Path) -> None:
    rows = [{**SECONDS, "seconds": i, "session": name} for i, name in enumerate(sessions)]
    trace = traces.load(jsonl(tmp_path / "s.jsonl", rows))
    same = trace.session[:, None] == trace.session[None, :]
    wanted = np.array(expected)
    assert (same == (wanted[:, None] == wanted[None, :])).all()
    assert ((trace.session < 0) == (wanted < 0)).all()


def test_chats_of_unsigned_ids_are_linked(tmp_path: Path) -> None:
    base = {"input_length": 16, "output_length": 3, "type": "text"}
    rows = [
        {**base, "chat_id": BIG, "parent_chat_id": -1, "timestamp": 0},
        {**base, "chat_id": BIG - 5, "parent_chat_id": -1, "timestamp": 1},
        {**base, "chat_id": BIG - 1, "parent_chat_id": BIG, "timestamp": 2},
    ]
    trace = traces.load(jsonl(tmp_path / "b.jsonl", rows))
    assert trace.session[0] == trace.session[2] >= 0
    assert trace.session[1] == -1


def test_a_tag_with_half_a_character_is_whole_again(tmp_path: Path) -> None:
    rows = [{**SECONDS, "tag": "a\ud83d"}, {**SECONDS, "seconds": 1, "tag": "b\ud83d\ude00"}]
    trace = traces.load(jsonl(tmp_path / "t.jsonl", rows))
    assert [trace.tags[i] for i in trace.tag] == ["a\ufffd", "b\U0001f600"]


def talk(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": who, "content": what} for who, what in said]}


def conversations(path: Path, entries: list[Any]) -> traces.Trace:
    path.write_text(json.dumps(entries))
    return traces.load(path)


HIGH, LOW = chr(0xD83D), chr(0xDE00)


@pytest.mark.parametrize("half", [HIGH, LOW, f"a{LOW}{HIGH}"], ids=["high", "low", "both"])
def test_half_a_character_in_a_text_is_replaced_with_a_note(half: str, tmp_path: Path) -> None:
    good, bad = talk(("user", "hi"), ("assistant", "ho")), talk(("user", f"x{half}y"), ("assistant", half))
    trace = conversations(tmp_path / "s.json", [good, bad])
    assert trace.texts is not None
    assert trace.texts[0] == "hi"
    assert "\ufffd" in trace.texts[1]
    for text in trace.texts:
        text.encode()
    assert any("entry 2" in note and "half a character" in note for note in trace.notes)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}}, "two"],
        {"content_type": "text", "parts": ["one", "two"]},
        {"text": "one\n\ntwo"},
        ["one", None, {"text": None}, {"text": "two"}],
    ],
)
def test_a_text_may_come_in_parts(content: Any, tmp_path: Path) -> None:
    trace = conversations(tmp_path / "s.json", [talk(("user", content), ("assistant", "ho"))])
    assert trace.texts == ["one\n\ntwo"]
    assert any("no text (as a picture)" in note for note in trace.notes) == ("image" in str(content))


@pytest.mark.parametrize("nothing", [None, "", " ", [], [{"type": "image_url"}], {"other": 1}, 7])
def test_a_message_without_text_is_passed_over_with_a_note(nothing: Any, tmp_path: Path) -> None:
    entry = talk(("user", "look"), ("assistant", nothing), ("tool", "17"), ("assistant", "it is 17"))
    trace = conversations(tmp_path / "s.json", [talk(("user", "a"), ("assistant", "b")), entry])
    assert trace.texts == ["a", "look\n\n17"], "the call of a tool is no answer; what follows is"
    assert any("without text" in note and "entry 2" in note for note in trace.notes)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"conversations": None},
        {"messages": "text"},
        {"messages": [7]},
        {"messages": [{"content": "no one"}]},
        {"messages": []},
    ],
)
def test_one_odd_conversation_does_not_refuse_the_file(entry: dict[str, Any], tmp_path: Path) -> None:
    trace = conversations(tmp_path / "s.json", [entry, talk(("user", "a"), ("assistant", "b"))])
    assert trace.texts == ["a"]
    assert any("entry 1" in note for note in trace.notes) == (entry != {"messages": []})


def test_a_file_of_nothing_but_odd_conversations_is_refused_with_the_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s\.json holds no question.*the first in entry 1"):
        conversations(tmp_path / "s.json", [{"messages": [7]}, {"messages": [8]}])
