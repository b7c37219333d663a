"""Prompts that hold what the server said: what is sent turn by turn, in texts and in messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattload import traces
from wattload.errors import InputError
from wattload.schedule.build import build_schedule
from wattload.schedule.content import prompt_token_ids, safe_ids
from wattload.schedule.conversation import Conversations
from wattload.schedule.parquet import load, save
from wattload.schedule.table import Schedule
from wattload.schedule.tenants import superposed
from wattload.traces.parents import of_lists

WORDS = tuple(f"w{a}{b}x" for a in "abcdefghijklmnop" for b in "abcdefgh")


def planned(turns: int = 3, **settings: Any) -> Schedule:
    """Sessions of `turns` turns that say 10 words each and are answered with 5."""
    trace = traces.load(f"random:prompt=10,output=5,turns={turns},think=1")
    schedule = build_schedule(trace, "constant", rate=1, requests=turns * 4, history="server", **settings)
    return replace(schedule, words=WORDS)


def rows_of(schedule: Schedule, session: int) -> list[int]:
    return np.flatnonzero(schedule.session == session).tolist()


def answer(told: Conversations, row: int, text: str, *, tokens: int | None = 15) -> None:
    told.answered(row, json.dumps(text)[1:-1].encode(), tokens=tokens)


def test_a_text_goes_on_from_what_was_sent_and_said() -> None:
    schedule = planned()
    told = Conversations(schedule, chat=False, salt=1)
    first, second, third = rows_of(schedule, 0)
    one = json.loads(told.prompt(first))
    assert len(one.split()) == 10
    answer(told, first, ' said "this"\nand é')
    two = json.loads(told.prompt(second))
    assert two.startswith(one + ' said "this"\nand é ')
    assert len(two[len(one) :].split()) == 4 + 10
    answer(told, second, "")
    three = json.loads(told.prompt(third))
    assert three.startswith(one + ' said "this"\nand é '), "a turn without an answer is as if it had not been"
    assert two not in three


def test_messages_alternate() -> None:
    schedule = planned()
    told = Conversations(schedule, chat=True, salt=1)
    first, second, third = rows_of(schedule, 0)
    one = json.loads(told.prompt(first))
    answer(told, first, "yes")
    two = json.loads(told.prompt(second))
    assert two[:2] == [*one, {"role": "assistant", "content": "yes"}]
    assert [message["role"] for message in two] == ["user", "assistant", "user"]
    answer(told, second, "no")
    three = json.loads(told.prompt(third))
    assert three[:4] == [*two, {"role": "assistant", "content": "no"}]
    for message in three:
        assert message["content"] == message["content"].strip()


def test_what_is_new_is_as_long_as_planned_and_no_word_is_said_twice() -> None:
    schedule = planned(turns=6)
    told = Conversations(schedule, chat=True, salt=1)
    new = []
    for row in rows_of(schedule, 0):
        new.append(json.loads(told.prompt(row))[-1]["content"].split())
        answer(told, row, "x")
    assert [len(words) for words in new] == [10] * 6
    assert len({tuple(words) for words in new}) == 6


def test_a_chat_templates_own_tokens_are_part_of_what_is_planned() -> None:
    schedule = replace(planned(), extra_tokens=4)
    told = Conversations(schedule, chat=True, salt=1)
    first, second, _ = rows_of(schedule, 0)
    assert len(json.loads(told.prompt(first))[0]["content"].split()) == 6
    answer(told, first, "x")
    assert len(json.loads(told.prompt(second))[-1]["content"].split()) == 6


def test_sessions_do_not_hear_each_other_and_salts_differ() -> None:
    schedule = planned()
    told, salted = (Conversations(schedule, chat=False, salt=salt) for salt in (1, 2))
    a, b = rows_of(schedule, 0)[:2], rows_of(schedule, 1)[:2]
    prompts = [told.prompt(a[0]), told.prompt(b[0]), salted.prompt(a[0])]
    assert len(set(prompts)) == 3
    answer(told, a[0], "of a")
    answer(told, b[0], "of b")
    assert b"of a" in told.prompt(a[1])
    assert b"of a" not in told.prompt(b[1])


def test_the_history_is_counted_as_the_server_counts() -> None:
    schedule = planned()
    told = Conversations(schedule, chat=False, salt=1)
    first, second, third = rows_of(schedule, 0)
    told.prompt(first)
    assert told.history_tokens(first) is None
    answer(told, first, "x", tokens=17)
    told.prompt(second)
    assert told.history_tokens(second) == 17
    answer(told, second, "x", tokens=None)
    assert told.history_tokens(third) is None


def test_a_session_that_is_over_leaves_nothing_in_memory() -> None:
    schedule = planned()
    told = Conversations(schedule, chat=False, salt=1)
    *_, last = rows = rows_of(schedule, 0)
    for row in rows:
        told.prompt(row)
        answer(told, row, "x" * 1000)
    assert told.history_tokens(last) is None
    assert not any(map(told.wanted, rows))


def test_branches_go_on_from_one_turn_and_a_join_from_its_own_conversation() -> None:
    whole = planned(turns=5)
    graph = of_lists([[], [0], [0], [1, 2], [0]])
    plan = replace(
        whole.take(np.array(rows_of(whole, 0))), parents=graph, agent=np.array([0, 0, 0, 0, 1], np.int32)
    )
    told = Conversations(plan, chat=True, salt=1)
    said = []
    for row in range(5):
        messages = json.loads(told.prompt(row))
        said.append([m["content"] for m in messages if m["role"] == "assistant"])
        assert [m["role"] for m in messages[::2]] == ["user"] * (len(messages) // 2 + 1)
        answer(told, row, f"A{row}", tokens=100 + row)
    assert said == [[], ["A0"], ["A0"], ["A0", "A1"], []], "a sub-agent has a conversation of its own"
    assert not any(map(told.wanted, range(5)))
    assert [told.history_tokens(row) for row in range(5)] == [None] * 5, "nothing is kept that nobody needs"


TALK = [
    ("human", "one"),
    ("gpt", "two"),
    ("human", "three"),
    ("gpt", "four"),
    ("human", "five"),
    ("gpt", "six"),
]


def test_a_traces_own_questions_meet_the_servers_answers(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"conversations": [{"from": who, "value": text} for who, text in TALK]}]))
    trace = traces.load(path)
    schedule = build_schedule(trace, "constant", rate=1, history="server")
    told = Conversations(schedule, chat=True, salt=1)
    text = Conversations(schedule, chat=False, salt=1)
    for row in range(2):
        told.prompt(row)
        text.prompt(row)
        answer(told, row, f"A{row}")
        answer(text, row, f"A{row}")
    messages = json.loads(told.prompt(2))
    assert [message["content"] for message in messages] == ["one", "A0", "three", "A1", "five"]
    assert json.loads(text.prompt(2)) == "one\n\nA0\n\nthree\n\nA1\n\nfive"
    fresh = Conversations(schedule, chat=False, salt=1)
    fresh.prompt(0)
    answer(fresh, 0, "A0")
    assert json.loads(fresh.prompt(1)) == "one\n\nA0\n\nthree"


def test_a_schedule_keeps_it_on_disk_in_shards_and_beside_other_tenants(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps([{"conversations": [{"from": who, "value": text} for who, text in TALK]}] * 4))
    schedule = build_schedule(traces.load(path), "constant", rate=1, history="server", tag="a")
    save(schedule, tmp_path / "schedule.parquet")
    back = load(tmp_path / "schedule.parquet")
    assert back.own_answers
    for other in (back, schedule.shard(0, 1), superposed([schedule])):
        assert other.text_starts is not None
        assert other.text_starts.tolist() == schedule.text_starts.tolist()  # type: ignore[union-attr]
    shard = schedule.shard(1, 3)
    assert shard.own_answers
    assert shard.text_starts is not None
    assert shard.texts is not None
    assert len(shard) in (3, 6)
    new = [text[start:] for text, start in zip(shard.texts, shard.text_starts, strict=True)]
    assert new == ["one", "three", "five"] * (len(shard) // 3)
    two = superposed([schedule, replace(schedule, tags=("b",))])
    assert two.own_answers
    assert two.text_starts is not None
    assert len(two.text_starts) == 24


def test_turns_before() -> None:
    schedule = planned()
    before = schedule.before
    for session in range(3):
        rows = rows_of(schedule, session)
        assert before[rows].tolist() == [-1, *rows[:-1]]


@pytest.mark.parametrize(
    ("trace", "settings", "said"),
    [
        ("conv", {}, "no sessions"),
        ("random:prompt=5,output=5,turns=1", {}, "no sessions"),
        ("random:prompt=5,output=5,turns=3", {"sessions": "trace-times"}, "after-answer"),
    ],
)
def test_what_has_no_answers_to_go_on_from_is_refused(trace: str, settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        build_schedule(traces.load(trace), "constant", rate=1, requests=9, history="server", **settings)
    assert refused.value.field == "history"


def test_a_chat_of_token_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="needs text"):
        Conversations(replace(planned(), words=()), chat=True, salt=1)


def by_ids(**settings: Any) -> Schedule:
    return replace(planned(**settings), words=())


def test_token_ids_go_on_from_what_was_sent_and_generated() -> None:
    schedule = by_ids()
    told = Conversations(schedule, chat=False, salt=1, vocab_size=5000)
    assert told.by_ids
    first, second, third = rows_of(schedule, 0)
    one = json.loads(told.prompt(first))
    assert one == prompt_token_ids(schedule, first, 5000, 1).tolist(), "a first turn is as planned"
    told.answered(first, b",7,31999", tokens=12)
    two = json.loads(told.prompt(second))
    assert two[:12] == [*one, 7, 31_999]
    assert len(two) == 12 + 10
    assert told.history_tokens(second) == 12
    told.answered(second, b"", tokens=None)
    three = json.loads(told.prompt(third))
    assert three[:12] == two[:12], "a turn without an answer is as if it had not been"
    assert len(three) == 12 + 10
    assert not set(three[12:]) & set(two[12:])
    low, high = safe_ids(5000)
    assert all(low <= one < high for one in two[12:])


def test_a_first_turn_that_failed_leaves_the_next_to_begin() -> None:
    schedule = by_ids()
    told = Conversations(schedule, chat=False, salt=1)
    first, second, _ = rows_of(schedule, 0)
    told.prompt(first)
    told.answered(first, b"", tokens=None)
    assert len(json.loads(told.prompt(second))) == schedule.prompt_tokens[second]


def test_lengths_by_ids_are_those_planned_where_answers_are() -> None:
    schedule = by_ids(turns=6)
    told = Conversations(schedule, chat=False, salt=1)
    rows = rows_of(schedule, 1)
    for row in rows:
        assert len(json.loads(told.prompt(row))) == schedule.prompt_tokens[row]
        told.answered(row, b",1" * int(schedule.output_tokens[row]), tokens=None)
    assert not any(map(told.wanted, rows))
