"""Messages come out as they went in, and what is not a message is refused with a sentence."""

from __future__ import annotations

import contextlib
import json
from array import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattmeter.steps.batch import ENTRY_COLUMNS, STEP_COLUMNS
from wattserve.protocol import messages
from wattserve.protocol.messages import (
    Answer,
    EnergyQuestion,
    EngineGoodbye,
    EngineHello,
    HttpQuestion,
    Message,
    MeterQuestion,
    ProtocolError,
    Refused,
    RequestFinished,
    RequestStarted,
    StepRecords,
    VersionError,
)

HELLO = EngineHello("e", "s", "m", "boot", 2, 1, 7, ("0", "GPU-1"), 1, 2, "vllm 1", 100, {"experts": 64})
EACH: list[Message] = [
    HELLO,
    EngineGoodbye("e"),
    RequestStarted("s", "r\u00e9", "shop"),
    RequestFinished("s", "r", None, 5, True),
    RequestFinished("s", "r", aborted=True, refused=True, group="shop"),
    EnergyQuestion("s", 4, "r", 0.15),
    HttpQuestion("s", 5, "POST", "/energy/requests", "a=b", b'{"ids": []}'),
    MeterQuestion(9),
    Answer(3, {"energy": None}, b"body"),
    Refused("because", "e"),
]


def steps(count: int = 3, requests: int = 2) -> list[bytes]:
    entries = count * requests
    return messages.encode_steps(
        engine="e",
        next_step=count,
        columns={
            "index": np.arange(count),
            "launch_ns": np.arange(count) * 10,
            "end_ns": np.arange(count) * 10 + 9,
            "step": np.repeat(np.arange(count), requests),
            "request": np.tile(np.arange(requests), count),
            "prefill_tokens": np.zeros(entries),
            "decode_tokens": np.ones(entries),
        },
        request_ids=[f"r{number}" for number in range(requests)],
        prompts=[(0, "r0", 17)],
        complete_ns=123,
    )


@pytest.mark.parametrize("message", EACH, ids=lambda message: message.TYPE)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert messages.decode(messages.encode(message)) == message


@pytest.mark.parametrize("server", ["s", 'a "quoted" 100 % server'])
def test_a_template_makes_the_header_that_a_message_has(server: str) -> None:
    for message, fixed, others in (
        (RequestStarted(server, "r\u00e9 %s", "shop"), {"server": server}, ("id", "group")),
        (
            EnergyQuestion(server, 4, "r", 0.15, True, None, 7, 2),
            {"server": server, "wait_seconds": 0.15, "ended": True},
            ("number", "id", "prompt_tokens", "output_tokens", "lost"),
        ),
    ):
        texts = tuple(json.dumps(getattr(message, name)) for name in others)
        text = messages.template(message.TYPE, **fixed) % texts
        assert [text.encode()] == messages.encode(message)


def test_step_records_come_out_as_they_went_in_and_absent_columns_are_zero() -> None:
    first = messages.decode(steps())
    assert isinstance(first, StepRecords)
    again = messages.decode(messages.encode(first))
    assert isinstance(again, StepRecords)
    assert (again.engine, again.next_step, again.prompts) == ("e", 3, ((0, "r0", 17),))
    assert again.complete_ns == 123
    for name in (*STEP_COLUMNS, *ENTRY_COLUMNS):
        assert getattr(again.batch, name).tolist() == getattr(first.batch, name).tolist()
    assert first.batch.cached_tokens.tolist() == [0] * 6
    assert first.batch.end_ns.tolist() == [9, 19, 29]


def test_what_is_new_within_a_version_is_passed_over() -> None:
    frames = messages.encode(HELLO)
    header = json.loads(frames[0]) | {"colour": "green"}
    assert messages.decode([json.dumps(header).encode()]) == HELLO
    header, *columns = steps()
    content = json.loads(header)
    content["columns"].append(["future_tokens", "<i4"])
    records = messages.decode([json.dumps(content).encode(), *columns, b"\0" * 24])
    assert isinstance(records, StepRecords)
    assert len(records.batch) == 3


@pytest.mark.parametrize("version", [2, 4, "3", None])
def test_another_version_is_refused_and_named(version: object) -> None:
    header = json.loads(messages.encode(HELLO)[0]) | {"v": version}
    with pytest.raises(VersionError, match=f"speaks protocol {version!r}, and this side speaks 3"):
        messages.decode([json.dumps(header).encode()])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "song"}, "'song'"),
        ({"gpus": "0"}, "gpus"),
        ({"sent_ns": "soon"}, "sent_ns"),
        ({"rank": True}, "rank"),
        ({"model": None}, "model"),
    ],
)
def test_fields_of_another_kind_are_refused(change: dict[str, object], says: str) -> None:
    header = json.loads(messages.encode(HELLO)[0]) | change
    with pytest.raises(ProtocolError, match=says):
        messages.decode([json.dumps(header).encode()])


def test_a_field_that_is_missing_is_named() -> None:
    header = json.loads(messages.encode(HELLO)[0])
    del header["boot_id"]
    with pytest.raises(ProtocolError, match="lacks boot_id"):
        messages.decode([json.dumps(header).encode()])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": []}, "name each frame"),
        ({"request_ids": ["one"]}, "positions in request_ids"),
        ({"request_ids": "r0"}, "list of texts"),
        ({"next_step": 1.5}, "next_step"),
        ({"prompts": [[5, "r", 1]]}, "row 5"),
        ({"prompts": [["r"]]}, "row, part, tokens"),
    ],
)
def test_step_records_that_contradict_themselves_are_refused(change: dict[str, object], says: str) -> None:
    header, *columns = steps()
    content = json.loads(header) | change
    with pytest.raises(ProtocolError, match=says):
        messages.decode([json.dumps(content).encode(), *columns])


@pytest.mark.parametrize(
    ("number", "frame", "says"),
    [
        (2, b"1234567", "no whole column"),
        (2, b"\0" * 16, "launch_ns has 2 rows and should have 3"),
        (4, np.array([0, 0, 1, 1, 2, 3], "<i4").tobytes(), "in order"),
        (4, np.array([1, 0, 1, 1, 2, 2], "<i4").tobytes(), "in order"),
    ],
)
def test_columns_that_do_not_fit_are_refused(number: int, frame: bytes, says: str) -> None:
    frames = steps()
    frames[number] = frame
    with pytest.raises(ProtocolError, match=says):
        messages.decode(frames)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sent_ns": 10**400}, "sent_ns"),
        ({"started_ns": -(2**64)}, "started_ns"),
        ({"next_step": -1}, "next_step of a hello message is no count"),
        ({"engines": 2**60}, "no count"),
        ({"engine": "e" * 1025}, "longer than 1024"),
        ({"server": "\ud800"}, "server"),
        ({"model": "m" * 70_000}, "model"),
        ({"gpus": ["\udfff"]}, "gpus"),
        ({"type": 10**400}, "not known here"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, object], says: str) -> None:
    header = json.loads(messages.encode(HELLO)[0]) | change
    with pytest.raises(ProtocolError, match=says):
        messages.decode([json.dumps(header).encode()])


@pytest.mark.parametrize("wait", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_wait_that_is_no_time_is_refused(wait: str) -> None:
    text = f'{{"v": {messages.VERSION}, "type": "energy_question", "server": "s", "number": 1, "id": "r"}}'
    with pytest.raises(ProtocolError, match="wait_seconds"):
        messages.decode([text.replace("}", f', "wait_seconds": {wait}}}').encode()])


@pytest.mark.parametrize("tokens", [-1, 2**31, 10**400, "5", 1.5])
def test_an_absurd_count_costs_its_field_alone(tokens: object) -> None:
    """The end of a request must not be lost with it."""
    header = {"v": messages.VERSION, "type": "request_finished", "server": "s", "id": "r"}
    found = messages.decode([json.dumps({**header, "prompt_tokens": 7, "output_tokens": tokens}).encode()])
    assert found == RequestFinished("s", "r", 7, None)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("decode_tokens", [1, 1, 1, 1, 1, -1], "decode_tokens holds a value below 0"),
        ("launch_ns", [-5, 10, 20], "times from 0 on"),
        ("launch_ns", [0, 10, 30], "no end before its launch"),
        ("end_ns", [19, 18, 29], "the ends in order"),
    ],
)
def test_steps_that_cannot_be_are_refused(name: str, values: list[int], says: str) -> None:
    frames = steps()
    header = json.loads(frames[0])
    place = [column for column, _ in header["columns"]].index(name)
    frames[place + 1] = np.array(values, header["columns"][place][1]).tobytes()
    with pytest.raises(ProtocolError, match=says):
        messages.decode(frames)


def test_a_value_of_64_bits_is_not_cut_to_32() -> None:
    """2^40 tokens became 0."""
    frames = steps()
    header = json.loads(frames[0])
    place = [column for column, _ in header["columns"]].index("prefill_tokens")
    header["columns"][place][1] = "<i8"
    for value, taken in ((7, True), (2**40, False), (-(2**63), False)):
        wide = [json.dumps(header).encode(), *frames[1:]]
        wide[place + 1] = np.array([0, 0, 0, 0, 0, value], "<i8").tobytes()
        if taken:
            found = messages.decode(wide)
            assert isinstance(found, StepRecords)
            assert found.batch.prefill_tokens[-1] == value
        else:
            with pytest.raises(ProtocolError, match="that no 32 bits hold"):
                messages.decode(wide)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"request_ids": ["r0", "x" * 1025]}, "at most 1024 characters"),
        ({"request_ids": ["r0", "\ud800"]}, "list of texts"),
        ({"next_step": 2**60}, "next_step"),
        ({"next_step": -1}, "next_step"),
        ({"complete_ns": 10**400}, "complete_ns"),
        ({"prompts": [[0, "r0", -5]]}, "row, part, tokens"),
        ({"prompts": [[0, "r0", 10**400]]}, "row, part, tokens"),
    ],
)
def test_step_records_of_absurd_values_are_refused(change: dict[str, object], says: str) -> None:
    header, *columns = steps()
    with pytest.raises(ProtocolError, match=says):
        messages.decode([json.dumps(json.loads(header) | change).encode(), *columns])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_are_refused_with_a_sentence(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        messages.decode(frames)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["v", "type", "engine", "next_step", "request_ids", "columns", "prompts", "body"]),
        st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=3)),
    ),
    st.sampled_from(["steps", "hello", "answer", "request_started"]),
)
def test_any_header_is_a_message_or_refused(header: dict[str, object], kind: str) -> None:
    text = json.dumps({**header, "v": 3, "type": kind}).encode()
    with contextlib.suppress(ProtocolError):
        assert kind == messages.decode([text, b"1234"]).TYPE


def scheduled(**changes: object) -> messages.Scheduled:
    """Two steps: `a` and `b` compute their prompts, then one token each."""
    told = messages.Scheduled(["a", "b"], [(0, "a", 10), (1, "b", 4)], [0, 1])
    for name, values in {
        "index": [0, 1],
        "launch_ns": [1, 11],
        "end_ns": [10, 20],
        "entries": [2, 2],
        "request": [0, 1, 0, 1],
        "context_tokens": [2, 0, 10, 4],
        "scheduled_tokens": [8, 4, 1, 1],
        "prompt_tokens": [10, 4],
    }.items():
        getattr(told, name).extend(values)
    for name, value in changes.items():
        setattr(told, name, array("i", value) if isinstance(value, tuple) else value)
    return told


def packed(told: messages.Scheduled) -> bytes:
    return messages.encode_scheduled(told, engine="e", next_step=2, complete_ns=20)


def test_steps_as_a_scheduler_has_them_are_step_records() -> None:
    records = messages.decode(
        [packed(scheduled(drafts=[[2, 0, 0], [3, 3, 2]], scheduled_tokens=(8, 4, 1, 4)))]
    )
    assert isinstance(records, StepRecords)
    assert (records.engine, records.next_step, records.complete_ns) == ("e", 2, 20)
    assert records.prompts == ((0, "a", 10), (1, "b", 4))
    batch = records.batch
    assert batch.request_ids == ("a", "b")
    assert batch.step.tolist() == [0, 0, 1, 1]
    assert batch.prefill_tokens.tolist() == [8, 4, 0, 0]
    assert batch.decode_tokens.tolist() == [0, 0, 1, 4]
    assert batch.cached_tokens.tolist() == [2, 0, 0, 0]
    assert batch.draft_tokens.tolist() == [0, 0, 0, 3]
    assert batch.accepted_tokens.tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": (2, 3)},
        {"entries": (5, -1)},
        {"entries": (2,)},
        {"request": (0, 1, 0, 2)},
        {"request": (0, 1, 0, -1)},
        {"request": (0, 1, 0)},
        {"prompt_tokens": (10,)},
        {"context_tokens": (2, 0, 10)},
        {"context_tokens": (2, 0, 10, -4)},
        {"scheduled_tokens": (8, 4, 1)},
        {"request_ids": ["a"]},
        {"request_ids": ["a", "b" * 2000]},
        {"from_cache": [4]},
        {"from_cache": [-1]},
        {"from_cache": 3},
        {"from_cache": [[0]]},
        {"drafts": [[0, 1]]},
        {"drafts": [[4, 1, 1]]},
        {"drafts": ["abc"]},
        {"drafts": {"0": 1}},
        {"prompts": [[5, "a", 1]]},
    ],
)
def test_scheduled_steps_that_contradict_themselves_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        messages.decode([packed(scheduled(**changes))])


def test_one_frame_holds_any_message() -> None:
    header, *columns = steps()
    text = json.dumps({**json.loads(header), "frames": [len(column) for column in columns]}).encode()
    frame = b"".join([b"\0", len(text).to_bytes(4, "little"), text, *columns])
    assert messages.encode(messages.decode([frame])) == messages.encode(messages.decode(steps()))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 60))
def test_a_damaged_frame_is_a_sentence(at: int, byte: int, cut: int) -> None:
    frame = bytearray(packed(scheduled()))
    frame[at % len(frame)] = byte
    with contextlib.suppress(ProtocolError):
        messages.decode([bytes(frame[: len(frame) - cut])])
