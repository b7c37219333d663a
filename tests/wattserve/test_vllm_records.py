"""Step records from scheduler outputs to `StepBatch`: exact tokens, and losses that are counted."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from wattmeter.steps import StepBatch
from wattserve.vllm import wire
from wattserve.vllm.receiver import StepReceiver, StepTally
from wattserve.vllm.records import StepRecorder
from wattserve.vllm.socket_path import Ownership, SocketInUseError, address_of


def step(
    new: dict[str, tuple[int, int, int]] | None = None,
    old: dict[str, tuple[int, int]] | None = None,
    *,
    drafts: dict[str, list[int]] | None = None,
    finished: set[str] = frozenset(),
    resumed: set[str] = frozenset(),
) -> Any:
    """new: id -> (prompt, computed, scheduled); old: id -> (computed, scheduled)."""
    new, old = new or {}, old or {}
    tokens = {i: n[2] for i, n in new.items()} | {i: n[1] for i, n in old.items()}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=i, prompt_token_ids=[0] * n[0], num_computed_tokens=n[1])
            for i, n in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(old), num_computed_tokens=[n[0] for n in old.values()], resumed_req_ids=set(resumed)
        ),
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens=drafts or {},
        finished_req_ids=set(finished),
    )


def run(recorder: StepRecorder, *outputs: Any, sampled: list[list[int]] | None = None) -> None:
    for number, output in enumerate(outputs):
        rows = {i: at for at, i in enumerate(output.num_scheduled_tokens)}
        recorder.launched(output)
        recorder.ended(
            output, 10**18 + number, SimpleNamespace(sampled_token_ids=sampled, req_id_to_index=rows)
        )
    recorder.flush()


def recorded(*outputs: Any, sampled: list[list[int]] | None = None) -> StepBatch:
    messages: list[bytes] = []
    run(StepRecorder(lambda m: not messages.append(m)), *outputs, sampled=sampled)
    assert len(messages) == 1
    return wire.decode(messages[0]).batch


def test_prefill_in_chunks_from_a_cached_prefix_then_decoding() -> None:
    batch = recorded(
        step({"a": (100, 16, 50)}),
        step({"b": (1, 0, 1)}, {"a": (66, 34)}),
        step(old={"a": (100, 1), "b": (1, 1)}),
        step(old={"b": (2, 1)}, finished={"a"}),
    )
    assert batch.index.tolist() == [0, 1, 2, 3]
    assert batch.request_ids == ("a", "b")
    assert batch.step.tolist() == [0, 1, 1, 2, 2, 3]
    assert batch.request.tolist() == [0, 0, 1, 0, 1, 1]
    assert batch.prefill_tokens.tolist() == [50, 34, 1, 0, 0, 0]
    assert batch.decode_tokens.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.context_tokens.tolist() == [16, 66, 0, 100, 1, 2]
    assert batch.cached_tokens.tolist() == [16, 0, 0, 0, 0, 0]
    assert (batch.launch_ns <= batch.end_ns).all()


def test_each_prompts_length_is_told_once_as_the_request_begins() -> None:
    """Exactly, also for a prompt that is computed in parts, comes from the cache, or is never finished."""
    messages: list[bytes] = []
    recorder = StepRecorder(lambda m: not messages.append(m))
    run(recorder, step({"a": (100, 16, 50)}), step({"b": (1, 0, 1)}, {"a": (66, 34)}))
    run(recorder, step({"c": (7, 6, 1)}, {"a": (100, 1)}, finished={"b"}))
    run(recorder, step(old={"a": (8, 93)}, resumed={"a"}))
    told = [wire.decode(message) for message in messages]
    assert [
        dict(zip(message.batch.request_ids, message.prompt_tokens.tolist(), strict=True)) for message in told
    ] == [{"a": 100, "b": 1}, {"a": wire.NOT_NEW, "c": 7}, {"a": wire.NOT_NEW}]


def test_the_prompts_of_a_request_are_parts_of_it_and_samples_are_not(tmp_path: Any) -> None:
    messages: list[bytes] = []
    recorder = StepRecorder(lambda m: not messages.append(m))
    ids = ("0_cmpl-r-0-0123abcd", "1_cmpl-r-0-0123abcd", "0_cmpl-r-1-89abcdef", "chatcmpl-q-01234567")
    run(recorder, step({name: (10 + row, 0, 5) for row, name in enumerate(ids)}))
    prompts: list[Any] = []
    batches: list[StepBatch] = []
    receiver = StepReceiver(address_of(tmp_path / "s.sock"), batches.append, prompts.extend)
    receiver.receive(messages[0])
    receiver.stop()
    assert prompts == [
        ("r", "cmpl-r-0-0123abcd", 10),
        ("r", "cmpl-r-0-0123abcd", 11),
        ("r", "cmpl-r-1-89abcdef", 12),
        ("q", "chatcmpl-q-01234567", 13),
    ]
    assert batches[0].request_ids == ("r", "q")


def test_drafted_tokens_and_those_that_were_kept() -> None:
    output = step(old={"a": (40, 5), "b": (9, 1), "c": (20, 3)}, drafts={"a": [1, 2, 3, 4], "c": [5, 6]})
    # a keeps 2 of 4 drafts, b draws without drafts, c's answer was cut to nothing.
    batch = recorded(output, sampled=[[7, 7, 7], [7], []])
    assert batch.draft_tokens.tolist() == [4, 0, 2]
    assert batch.accepted_tokens.tolist() == [2, 0, 0]
    assert batch.decode_tokens.tolist() == [5, 1, 3]
    assert batch.prefill_tokens.tolist() == [0, 0, 0]


def test_a_preempted_request_is_prefilled_again_with_its_own_output() -> None:
    batch = recorded(step({"a": (10, 0, 10)}), step(old={"a": (8, 7)}, resumed={"a"}))
    assert batch.prefill_tokens.tolist() == [10, 7]
    assert batch.cached_tokens.tolist() == [0, 8]


def test_an_empty_step_is_no_step() -> None:
    batch = recorded(step({"a": (4, 0, 4)}), step(finished={"a"}), step({"b": (4, 0, 4)}))
    assert batch.index.tolist() == [0, 1]


def test_a_message_the_socket_refused_counts_as_lost_steps() -> None:
    taken: list[bytes] = []
    open_again = [True, False, True]
    recorder = StepRecorder(lambda m: open_again.pop(0) and not taken.append(m))
    tally = StepTally()
    for _ in range(3):
        run(recorder, step({"a": (4, 0, 4)}), step(old={"a": (4, 1)}))
    assert recorder.lost_messages == 1
    assert [tally.lost(wire.decode(m)) for m in taken] == [0, 2]


def test_a_heartbeat_shows_that_the_last_steps_were_lost() -> None:
    taken: list[bytes] = []
    open_again = [False, True]
    recorder = StepRecorder(lambda m: open_again.pop(0) and not taken.append(m))
    run(recorder, step({"a": (4, 0, 4)}))
    recorder.flush()
    assert StepTally().lost(wire.decode(taken[0])) == 1


def test_outputs_of_an_unknown_form_are_lost_not_guessed() -> None:
    taken: list[bytes] = []
    recorder = StepRecorder(lambda m: not taken.append(m))
    good, strange = step({"a": (4, 0, 4)}), step(old={"a": (4, 1)})
    del strange.scheduled_cached_reqs
    run(recorder, strange)
    run(recorder, good)
    tally = StepTally()
    assert [tally.lost(wire.decode(m)) for m in taken] == [1, 0]
    assert len(wire.decode(taken[1]).batch) == 1


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_bytes_that_are_no_message_are_refused(cut: int) -> None:
    messages: list[bytes] = []
    run(StepRecorder(lambda m: not messages.append(m)), step({"a": (4, 0, 4)}))
    with pytest.raises(wire.WireError):
        wire.decode(messages[0][:cut])
    with pytest.raises(wire.WireError):
        wire.decode(b"x" * len(messages[0]))


def test_through_the_socket_under_request_ids(tmp_path: Any) -> None:
    from wattserve.vllm.plugin import sender

    address = address_of(tmp_path / "steps.sock")
    batches: list[StepBatch] = []
    receiver = StepReceiver(address, batches.append)
    receiver.start()
    recorder = StepRecorder(sender(address), flush_seconds=0.005)
    recorder.start()
    for number in range(300):
        parent = f"cmpl-r{number % 3}-0-0123abcd"
        output = step(old={parent: (5, 1), f"1_{parent}": (6, 1)})
        recorder.launched(output)
        recorder.ended(output, 10**18 + number, None)
    recorder.stop()
    deadline = time.monotonic() + 5
    while receiver.steps < 300 and time.monotonic() < deadline:
        time.sleep(0.01)
    receiver.stop()
    assert receiver.steps == 300
    assert receiver.lost_steps == 0
    assert {i for b in batches for i in b.request_ids} == {"r0", "r1", "r2"}
    assert np.concatenate([b.index for b in batches]).tolist() == list(range(300))
    assert sum(int(b.decode_tokens.sum()) for b in batches) == 600


def test_a_second_server_cannot_take_the_socket(tmp_path: Any) -> None:
    address = address_of(tmp_path / "steps.sock")
    first = Ownership(address)
    with pytest.raises(SocketInUseError, match="another server already receives"):
        Ownership(address)
    first.release()
    Ownership(address).release()
    with pytest.raises(ValueError, match="longer than"):
        address_of(tmp_path / ("x" * 120))
