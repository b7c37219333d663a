"""Step records from scheduler outputs to `StepBatch`: exact tokens, and losses that are counted."""

import random
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_node import keeping, until
from wattmeter.steps.batch import ENTRY_COLUMNS, StepBatch
from wattserve.meter.engines import StepTally
from wattserve.protocol import messages as protocol
from wattserve.protocol.messages import Frames, StepRecords
from wattserve.vllm.recorder import StepRecorder


def step(
    new: dict[str, tuple[int, int, int]] | None = None,
    old: dict[str, tuple[int, int]] | None = None,
    *,
    drafts: dict[str, list[int]] | None = None,
    finished: Collection[str] = (),
    resumed: Collection[str] = (),
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


def decoded(frames: Frames) -> StepRecords:
    records = protocol.decode(frames)
    assert isinstance(records, StepRecords)
    return records


def recorded(*outputs: Any, sampled: list[list[int]] | None = None) -> StepBatch:
    messages: list[Frames] = []
    run(StepRecorder(keeping(messages)), *outputs, sampled=sampled)
    assert len(messages) == 1
    return decoded(messages[0]).batch


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
    messages: list[Frames] = []
    recorder = StepRecorder(keeping(messages))
    run(recorder, step({"a": (100, 16, 50)}), step({"b": (1, 0, 1)}, {"a": (66, 34)}))
    run(recorder, step({"c": (7, 6, 1)}, {"a": (100, 1)}, finished={"b"}))
    run(recorder, step(old={"a": (8, 93)}, resumed={"a"}))
    told = [decoded(message) for message in messages]
    assert [{part: tokens for _, part, tokens in message.prompts} for message in told] == [
        {"a": 100, "b": 1},
        {"c": 7},
        {},
    ]
    assert [message.batch.request_ids for message in told] == [("a", "b"), ("a", "c"), ("a",)]


def test_the_prompts_of_a_request_are_parts_of_it_and_samples_are_not() -> None:
    messages: list[Frames] = []
    recorder = StepRecorder(keeping(messages))
    ids = ("0_cmpl-r-0-0123abcd", "1_cmpl-r-0-0123abcd", "0_cmpl-r-1-89abcdef", "chatcmpl-q-01234567")
    run(recorder, step({name: (10 + row, 0, 5) for row, name in enumerate(ids)}))
    told = decoded(messages[0])
    assert told.batch.request_ids == ("r", "r", "r", "q")
    assert told.prompts == (
        (0, "cmpl-r-0-0123abcd", 10),
        (1, "cmpl-r-0-0123abcd", 11),
        (2, "cmpl-r-1-89abcdef", 12),
        (3, "chatcmpl-q-01234567", 13),
    )


def test_a_message_says_up_to_when_it_is_complete() -> None:
    taken: list[Frames] = []
    recorder = StepRecorder(keeping(taken))
    before_ns = time.monotonic_ns()
    run(recorder, step({"a": (4, 0, 4)}))
    recorder.flush()  # a heartbeat
    complete = [decoded(message).complete_ns for message in taken]
    assert all(moment is not None for moment in complete)
    assert before_ns < (complete[0] or 0) < (complete[1] or 0) < time.monotonic_ns()


def test_no_message_is_complete_beyond_a_step_that_may_have_ended_unseen() -> None:
    """Its end is noted after the scheduler took its result in; a message may be sent in between."""
    taken: list[Frames] = []
    recorder = StepRecorder(keeping(taken))
    outputs = [step({"a": (4, 0, 4)}), step(old={"a": (4, 1)})]
    for output in outputs:  # as with asynchronous scheduling, two are under way
        recorder.launched(output)
    ends_ns = []
    for output in outputs:
        ends_ns.append(time.monotonic_ns())
        recorder.flush()
        recorder.ended(output, ends_ns[-1], None)
    recorder.flush()
    complete = [decoded(message).complete_ns or 0 for message in taken]
    assert complete[0] < ends_ns[0]
    assert complete[1] == ends_ns[0]
    assert complete[2] > ends_ns[1]


def test_ids_that_vllm_did_not_randomise_stay_whole() -> None:
    messages: list[Frames] = []
    recorder = StepRecorder(keeping(messages), randomised=False)
    run(recorder, step({"chatcmpl-q-01234567": (4, 0, 4)}))
    assert decoded(messages[0]).batch.request_ids == ("q-01234567",)


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
    taken: list[Frames] = []
    open_again = [True, False, True]
    recorder = StepRecorder(keeping(taken, open_again))
    tally = StepTally()
    for _ in range(3):
        run(recorder, step({"a": (4, 0, 4)}), step(old={"a": (4, 1)}))
    assert recorder.lost_messages == 1
    assert [tally.lost(decoded(m)) for m in taken] == [0, 2]


def test_a_heartbeat_shows_that_the_last_steps_were_lost() -> None:
    taken: list[Frames] = []
    open_again = [False, True]
    recorder = StepRecorder(keeping(taken, open_again))
    run(recorder, step({"a": (4, 0, 4)}))
    recorder.flush()
    assert StepTally().lost(decoded(taken[0])) == 1


def test_outputs_of_an_unknown_form_are_lost_not_guessed() -> None:
    taken: list[Frames] = []
    recorder = StepRecorder(keeping(taken))
    good, strange = step({"a": (4, 0, 4)}), step(old={"a": (4, 1)})
    del strange.scheduled_cached_reqs
    run(recorder, strange)
    run(recorder, good)
    tally = StepTally()
    assert [tally.lost(decoded(m)) for m in taken] == [1, 0]
    assert len(decoded(taken[1]).batch) == 1


def test_the_engine_says_hello_first_and_then_with_each_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattserve.vllm.recorder.HEARTBEAT_SECONDS", 0.02)
    sent: list[Frames] = []
    told: list[int] = []

    def hello(next_step: int) -> None:
        told.append(next_step)
        sent.append([b"hello"])

    recorder = StepRecorder(keeping(sent), hello=hello, flush_seconds=0.005)
    output = step({"a": (4, 0, 4)})
    recorder.launched(output)
    recorder.ended(output, 10**18, None)
    recorder.start()
    deadline = time.monotonic() + 10
    while len(told) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    recorder.stop()
    assert sent[0] == [b"hello"]
    assert told[0] == 0
    assert told[-1] == 1


def test_steps_that_are_recorded_together_are_each_what_they_are() -> None:
    """Decoding runs of the same requests are one operation: interrupted by everything that a step may be."""
    steps = [
        step({"a": (3, 0, 3), "b": (5, 0, 2)}),
        step(old={"a": (3, 1), "b": (2, 1)}),  # b's prompt, one token at a time
        step(old={"a": (4, 1), "b": (3, 1)}),
        step(old={"a": (5, 1), "b": (4, 1)}),
        step(old={"a": (6, 1), "b": (5, 1)}),
        step(old={"b": (6, 1), "a": (7, 1)}),  # in another order
        step({"c": (1, 0, 1)}, {"b": (7, 1), "a": (8, 1)}),
        step(old={"b": (8, 1), "a": (9, 3), "c": (1, 1)}, drafts={"a": [7, 7]}),
        step(old={"b": (9, 1), "a": (10, 1), "c": (2, 1)}),
        step(old={"b": (10, 1), "a": (4, 1), "c": (3, 1)}, resumed={"a"}),
        step(old={"b": (11, 1), "c": (4, 1)}, finished={"a"}),
        step(old={"b": (12, 1), "c": (5, 1)}),
    ]
    sampled = [[1], [1], [1]]
    batch = recorded(*steps, sampled=sampled)
    alone: list[Frames] = []
    recorder = StepRecorder(keeping(alone))
    for number, output in enumerate(steps):
        run(recorder, output, sampled=sampled)
        assert len(alone) == number + 1
    expected = StepBatch.concat(decoded(frames).batch for frames in alone)
    prompts = {"a": 3, "b": 5, "c": 1}
    for name in (*ENTRY_COLUMNS, "index", "request_ids"):
        assert list(getattr(batch, name)) == list(getattr(expected, name)), name
    for at in range(len(batch.request)):
        name = batch.request_ids[batch.request[at]]
        if batch.prefill_tokens[at] + batch.decode_tokens[at] == 1:
            assert (batch.prefill_tokens[at] == 1) == (batch.context_tokens[at] < prompts[name])


def told_alone(output: Any, prompts: dict[str, int]) -> list[tuple[str, int, int, int, int]]:
    """(id, prefill, decode, context, cached) of each entry of a step, written down without any shortcut."""
    rows = []
    cached = output.scheduled_cached_reqs
    contexts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    contexts |= {request.req_id: request.num_computed_tokens for request in output.scheduled_new_reqs}
    for name, context in contexts.items():
        tokens = output.num_scheduled_tokens[name]
        prefill = context < prompts.get(name, 0) or tokens > 1
        fresh = name in cached.resumed_req_ids or name not in cached.req_ids
        rows.append((name, tokens * prefill, tokens * (not prefill), context, context if fresh else 0))
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.booleans())
def test_whoever_comes_goes_and_returns_is_told_as_it_was(seed: int, flush_every: int, unseen: bool) -> None:
    """Requests begin, end, are preempted and resumed, change places; messages begin anywhere."""
    dice = random.Random(seed)
    prompts: dict[str, int] = {}
    running: list[str] = []
    waiting: list[str] = []
    contexts: dict[str, int] = {}
    outputs = []
    for number in range(24):
        finished = [name for name in running if dice.random() < 0.15]
        running = [name for name in running if name not in finished]
        preempted = [name for name in running if dice.random() < 0.08]
        running = [name for name in running if name not in preempted]
        resumed = [name for name in waiting if dice.random() < 0.4]
        waiting = [name for name in waiting if name not in resumed] + preempted
        running += resumed
        if dice.random() < 0.1:
            dice.shuffle(running)
        new = {f"r{number}-{at}": dice.randint(1, 40) for at in range(dice.choice([0, 0, 1, 2]))}
        old = {}
        for name in running:
            if name in resumed:
                contexts[name] = dice.randint(0, 3)
            old[name] = (contexts[name], dice.choice([1, 1, 1, 5]))
        prompts |= new
        output = step(
            {
                name: (prompt, dice.choice([0, prompt - 1]), dice.randint(1, 8))
                for name, prompt in new.items()
            },
            old,
            finished=finished,
            resumed=resumed,
        )
        for name, tokens in output.num_scheduled_tokens.items():
            contexts[name] = contexts.get(name, 0) + tokens
        running += new
        outputs.append(output)
    told: list[Frames] = []
    recorder = StepRecorder(keeping(told))
    if unseen:  # the recorder began after some of them
        for request in outputs[0].scheduled_new_reqs:
            prompts[request.req_id] = 0
        outputs = outputs[1:]
        prompts = {
            name: prompt
            for name, prompt in prompts.items()
            if any(request.req_id == name for output in outputs for request in output.scheduled_new_reqs)
        }
    for first in range(0, len(outputs), flush_every):
        run(recorder, *outputs[first : first + flush_every])
    batch = StepBatch.concat(decoded(frames).batch for frames in told)
    expected = [(row, *entry) for row, o in enumerate(o for o in outputs if o.num_scheduled_tokens)
                for entry in told_alone(o, prompts)]  # fmt: skip
    found = zip(
        batch.step.tolist(),
        (batch.request_ids[row] for row in batch.request),
        batch.prefill_tokens.tolist(),
        batch.decode_tokens.tolist(),
        batch.context_tokens.tolist(),
        batch.cached_tokens.tolist(),
        strict=True,
    )
    assert list(found) == expected


def test_a_name_that_is_used_again_at_once_has_its_new_prompt() -> None:
    """As vLLM without random suffixes: one ends, and one of the same name begins in the next step."""
    taken: list[Frames] = []
    recorder = StepRecorder(keeping(taken))
    run(recorder, step({"a": (4, 0, 4), "b": (2, 0, 2)}))
    run(recorder, step({"a": (30, 0, 10)}, {"b": (2, 1)}, finished={"a"}))
    # In another order, and one token of the prompt.
    run(recorder, step(old={"a": (10, 1), "b": (3, 1)}))
    batches = [decoded(frames).batch for frames in taken]
    assert [batch.prefill_tokens.tolist() for batch in batches] == [[4, 2], [0, 10], [1, 0]]
    assert [batch.decode_tokens.tolist() for batch in batches] == [[0, 0], [1, 0], [0, 1]]


def test_a_name_with_a_line_break_stays_one_name() -> None:
    batch = recorded(step({"a\nb": (4, 0, 4), "c": (4, 0, 4)}))
    assert batch.request_ids == ("a\nb", "c")


def test_a_message_is_one_frame() -> None:
    """Each frame more is a moment in which the recorder lets go of the interpreter lock."""
    taken: list[Frames] = []
    run(StepRecorder(keeping(taken)), step({"a": (4, 0, 4)}), step(old={"a": (4, 1)}))
    assert [len(frames) for frames in taken] == [1]


def test_a_request_that_began_and_ended_is_told_of_at_once() -> None:
    """Its response waits for its first record; that of a longer one does not."""
    taken: list[Frames] = []
    recorder = StepRecorder(keeping(taken), flush_seconds=3600.0)
    recorder.start()
    output = step({"a": (4, 0, 4)})
    recorder.launched(output)
    recorder.ended(output, time.monotonic_ns(), None, finished={"a"})
    until(lambda: len(taken) == 1, "the short request's steps")
    recorder.stop()
    assert decoded(taken[0]).batch.request_ids == ("a",)
