"""An absurd value in one response costs that row's field, and nothing else: not the row, not the others."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gevent
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import ask, client_of
from scripted_server import DONE, END, HEAD, Script, chunk, event, good, scripted, token
from wattload.client.readable import readable, readable_json
from wattload.client.record import Outcome, RequestRecord
from wattload.rundir.directory import RequestWriter, RunDir, request_batch

BIG = 10**400


def answered(body: bytes) -> Script:
    """A whole answer of three tokens with `body` as the JSON of its last event."""
    tokens = [chunk(token()), chunk(token()), chunk(token("a", "length"))]
    return [HEAD, *tokens, chunk(event(body)), chunk(DONE) + END]


def rows_of(folder: Path, odd: Script) -> list[dict[str, Any]]:
    """The rows of nine good requests and one, the fifth, that is answered with `odd`."""
    number = 0

    def script(request: dict[str, Any]) -> Script:
        nonlocal number
        number += 1
        return odd if number == 5 else good(request)

    run = RunDir.create(folder)
    records: list[RequestRecord] = []
    with scripted(script) as (url, _), RequestWriter(run) as writer:
        client = client_of(url)
        for index in range(10):
            record = RequestRecord(index, f"r-{index}", -1, "", time.time(), 3, 3)
            client.send(record, client.prepare(record, b"[1,2,3]"), records.append)
            while len(records) <= index:
                gevent.sleep(0.001)
        client.close()
        writer.append(records)
    run.write_requests(lambda rows: rows)
    rows: list[dict[str, Any]] = pq.read_table(run.requests_path).to_pylist()
    assert [row["index"] for row in rows] == list(range(10))
    assert [row["outcome"] for row in rows if row["index"] != 4] == ["completed"] * 9
    return rows


GOOD: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 3}
PROMPTS: list[Any] = [2**31, 2**63, BIG, -1, 1.5, "9" * 15, "x", True, [1], None]
CACHED: list[Any] = [2**31, BIG, -1, "x", {}, float("nan")]
JOULES: list[Any] = [BIG, -1e308, -5.0, 1e308, float("nan"), float("inf"), "5", True, [], None]
USAGES = [
    *(({**GOOD, "prompt_tokens": value}, "prompt_tokens") for value in PROMPTS),
    *(({**GOOD, "prompt_tokens_details": {"cached_tokens": value}}, "cached_tokens") for value in CACHED),
    *(({**GOOD, "energy": {"joules": value, "status": "settled"}}, "energy_joules") for value in JOULES),
]


@pytest.mark.parametrize(("usage", "column"), USAGES)
def test_a_number_that_cannot_be_is_null(tmp_path: Path, usage: dict[str, Any], column: str) -> None:
    rows = rows_of(tmp_path / "run", answered(json.dumps({"choices": [], "usage": usage}).encode()))
    row = rows[4]
    assert row[column] is None
    assert row["outcome"] == "completed"
    assert row["output_tokens"] == 3


@pytest.mark.parametrize("tokens", [2**31, 2**63, BIG, -3, 1.5, "9" * 15, "x", True])
def test_output_tokens_that_cannot_be_are_not_counted(tmp_path: Path, tokens: Any) -> None:
    usage = {"choices": [], "usage": {**GOOD, "completion_tokens": tokens}}
    row = rows_of(tmp_path / "run", answered(json.dumps(usage).encode()))[4]
    assert (row["output_tokens"], row["prompt_tokens"], row["outcome"]) == (None, 3, "completed")


@pytest.mark.parametrize(
    ("usage", "column"),
    [
        ({**GOOD, "completion_tokens": 30}, "output_tokens"),
        ({**GOOD, "completion_tokens": 2_000_000_000}, "output_tokens"),
        ({**GOOD, "prompt_tokens": 2_000_000_000}, "prompt_tokens"),
        ({**GOOD, "prompt_tokens_details": {"cached_tokens": 4}}, "cached_tokens"),
        ({**GOOD, "completion_tokens_details": {"reasoning_tokens": 4}}, "reasoning_tokens"),
    ],
)
def test_a_count_beyond_what_was_asked_for_is_not_believed(
    tmp_path: Path, usage: dict[str, Any], column: str
) -> None:
    """One such count made the energy per token of a whole run a millionth. Three tokens were asked for."""
    row = rows_of(tmp_path / "run", answered(json.dumps({"choices": [], "usage": usage}).encode()))[4]
    others = {"prompt_tokens": 3, "output_tokens": 3, "cached_tokens": None, "reasoning_tokens": None}
    assert {name: row[name] for name in others} == {**others, column: None}
    assert row["outcome"] == "completed"
    assert row["unread"].startswith("usage: ")
    assert "are possible" in row["unread"]


@pytest.mark.parametrize(
    ("chunks", "options", "counted", "kept"),
    [
        (30, {}, 30, 30),  # it generates more than it was asked for, and streams it
        (3, {"body": {"n": 4}}, 12, 12),
        (3, {"body": {"n": True}}, 12, None),
        (3, {"natural_lengths": 40}, 40, 40),
    ],
)
def test_counts_that_can_be_are_believed(
    chunks: int, options: dict[str, Any], counted: int, kept: int | None
) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": counted}}
    tokens = [chunk(token()) for _ in range(chunks - 1)]
    record = ask(
        [HEAD, *tokens, chunk(token("a", "length")), chunk(event(usage)), chunk(DONE) + END], **options
    )
    assert record.output_tokens == kept
    assert record.outcome is Outcome.COMPLETED


def test_a_stream_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk's time is kept: a server that never stops would fill the memory for half an hour."""
    monkeypatch.setattr("wattload.client.client.MOST_CHUNKS", 50)
    endless: Script = [chunk(token()), 0.002]
    record = ask([HEAD, *(endless * 3000)])
    assert record.outcome is Outcome.MALFORMED_RESPONSE
    assert "does not end" in str(record.error)
    assert record.chunks < 3000


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity"])
def test_an_encoding_that_was_not_asked_for_is_named(coding: str) -> None:
    head = HEAD.replace(b"\r\n\r\n", f"\r\nContent-Encoding: {coding}\r\n\r\n".encode())
    record = ask([head, chunk(b"\x1f\x8b\x00"), END])
    assert record.outcome is Outcome.MALFORMED_RESPONSE
    assert record.error == f"the response is encoded as {coding}, which was not asked for"


@pytest.mark.parametrize("status", [7, ["settled"], {}, "final \ud800", "x" * 1_000_000, None])
def test_a_status_that_is_none_is_no_final_one(tmp_path: Path, status: Any) -> None:
    usage = {"choices": [], "usage": {**GOOD, "energy": {"joules": 5.0, "status": status}}}
    row = rows_of(tmp_path / "run", answered(json.dumps(usage).encode()))[4]
    assert (row["energy_joules"], row["energy_status"]) == (5.0, "provisional")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"error": {"message": "half \\ud800 pair"}}', "half pair"),
        (b'{"error": {"message": "nul \\u0000 and \\u001b[31mred"}}', "nul and [31mred"),
        (b'{"error": {"message": "' + b"x" * 200_000 + b'"}}', "xxx"),
        (b'{"error": ' * 100_000, "error"),
        (b"\xff\xfe\x00garbage\x9b", "garbage"),
    ],
)
def test_a_text_that_cannot_be_is_made_readable(tmp_path: Path, body: bytes, told: str) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    row = rows_of(tmp_path / "run", [head % len(body), body])[4]
    assert row["outcome"] == "http_4xx"
    assert told in row["error"]
    assert len(row["error"]) <= 300
    assert row["error"].isprintable()


def test_a_nested_event_is_malformed_and_the_row_is_there(tmp_path: Path) -> None:
    row = rows_of(tmp_path / "run", answered(b'{"choices":' + b"[" * 100_000))[4]
    assert row["outcome"] == "malformed_response"


@given(st.text(st.characters(codec=None), max_size=60))
@settings(deadline=None)
def test_any_text_can_be_written(text: str) -> None:
    shown = readable(text)
    shown.encode()
    assert not any(character < " " for character in shown)
    assert readable(shown) == shown


def test_a_deep_answer_is_cut_and_its_texts_are_readable() -> None:
    deep: Any = "end"
    for _ in range(900):
        deep = [deep]
    told = readable_json({"a\ud800": deep, "b": ["\x1b", 1, None]})
    assert set(told) == {"a", "b"}
    assert told["b"] == ["", 1, None]
    json.dumps(told).encode()


RECORD = RequestRecord(0, "r", -1, "", 0.0, 1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_tokens", 2**31),
        ("status_code", 40_000),
        ("error", "half \ud800"),
        ("energy_joules", "many"),
        ("energy_status", 7),
        ("energy_joules", BIG),
    ],
)
def test_what_a_column_cannot_hold_costs_its_field_alone(name: str, value: Any) -> None:
    """Whatever reaches the writer: the values are bounded before, and this is where a new one would show."""
    odd = RequestRecord(1, "odd", -1, "", 0.0, 1, 1, outcome=Outcome.COMPLETED)
    setattr(odd, name, value)
    rows = request_batch([RECORD, odd, RECORD]).to_pylist()
    assert [row["request_id"] for row in rows] == ["r", "odd", "r"]
    assert rows[1][name] is None
    assert rows[1]["outcome"] == "completed"
