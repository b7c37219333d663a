"""What waits in the inbox, and what its steps are estimated to have cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meter_fakes import SECOND, batch
from wattmeter.energy_model.step_model import StepModel
from wattmeter.monitor.inbox import Inbox, Preview, Previews, estimate
from wattmeter.steps.batch import StepBatch

# 10 J a step, of which each token of a prompt and each decoded one costs some.
MODEL = StepModel(10.0, 0.1, 1.0, 0.0)
WORK = batch(
    [
        (1 * SECOND, 2 * SECOND, [("a", 30, 0, 0), ("b", 0, 1, 9)]),
        (2 * SECOND, 4 * SECOND, [("b", 0, 1, 10)]),
    ],
    first_index=7,
)


def test_an_estimate_is_the_models_times_what_the_counter_gained_of_late() -> None:
    for scale, factor in ((None, 1.0), (0.0, 1.0), (0.5, 0.5)):
        found = estimate(MODEL.work(WORK), MODEL, scale)
        assert found.request_ids == ("a", "b")
        assert found.prefill_joules.tolist() == pytest.approx([8.0 * factor, 0.0])
        assert found.decode_joules.tolist() == pytest.approx([0.0, 17.0 * factor])


def test_an_estimate_from_a_moment_on_gives_all_to_what_ran_after_it() -> None:
    late = estimate(MODEL.work(WORK), MODEL, None, from_ns=2 * SECOND)
    assert late.prefill_joules.tolist() == [0.0, 0.0]
    assert late.decode_joules.tolist() == pytest.approx([0.0, 25.0])
    nothing = estimate(MODEL.work(WORK), MODEL, None, from_ns=4 * SECOND)
    assert nothing.prefill_joules.tolist() == nothing.decode_joules.tolist() == [0.0, 0.0]
    just = estimate(MODEL.work(WORK), MODEL, None, from_ns=4 * SECOND - 1)
    assert just.decode_joules.sum() == pytest.approx(25.0)


def test_a_preview_is_of_each_request_of_a_batch() -> None:
    previews = Previews.of(WORK, MODEL, 0.5, 99)
    assert previews.rows == {"a": 0, "b": 1}
    assert previews.get("a") == Preview(99, 2 * SECOND, pytest.approx(4.0), 0.0)  # type: ignore[arg-type]
    assert previews.get("b") == Preview(99, 4 * SECOND, 0.0, pytest.approx(8.5))  # type: ignore[arg-type]
    assert previews.get("c") is None
    empty = Previews.of(batch([]), MODEL, None, 99)
    assert (empty.rows, list(empty.items())) == ({}, [])
    named = Previews.of(replace(StepBatch.concat([]), request_ids=("x",)), MODEL, None, 99)
    assert named.get("x") == Preview(99, 0, 0.0, 0.0)


def test_sums_are_by_request_whatever_the_order_of_the_rows() -> None:
    first = Previews.of(WORK, MODEL, None, 50)
    turned = batch([(4 * SECOND, 5 * SECOND, [("b", 0, 1, 9), ("c", 20, 0, 0), ("a", 0, 1, 9)])])
    second = Previews.of(turned, MODEL, None, 40)
    del second.rows["c"]  # its figures have it
    total = Previews.sum([first, second])
    assert list(total.rows) == ["a", "b"]
    share = 10.0 / 3 + 1.0
    for name, prefill, decode in (("a", 8.0, share), ("b", 0.0, 17.0 + share)):
        got = total.get(name)
        assert got is not None
        assert (got.received_ns, got.last_step_ns) == (40, 5 * SECOND)
        assert got[2:] == pytest.approx((prefill, decode))
    assert dict(total.items()) == {"a": total.get("a"), "b": total.get("b")}
    assert Previews.sum([]).rows == {}


def test_a_later_preview_is_added() -> None:
    both = Preview(5, 30, 1.0, 2.0).plus(Preview(9, 20, 3.0, 5.0))
    assert both == (5, 30, 4.0, 7.0)
    assert Preview(5, 30, 1.0, 2.0).plus(Preview(9, 40, 3.0, 5.0)).last_step_ns == 40


def test_what_waits_and_what_leaves_counts_for_its_requests() -> None:
    inbox = Inbox()
    assert (inbox.last_end_ns, inbox.complete_ns, inbox.preview("a"), inbox.has("a")) == (
        None,
        None,
        None,
        False,
    )
    assert inbox.add(WORK, Previews.of(WORK, MODEL, None, 50)) == 0
    assert inbox.last_end_ns == 4 * SECOND
    assert inbox.take() == [WORK]
    assert (inbox.batches, inbox.previews, len(inbox.leaving)) == ([], [], 1)
    early = replace(
        WORK, index=WORK.index + 2, launch_ns=WORK.launch_ns - SECOND, end_ns=WORK.end_ns - SECOND
    )
    inbox.add(early, Previews.of(early, MODEL, None, 60))
    assert inbox.last_end_ns == 4 * SECOND
    both = inbox.preview("b")
    assert both is not None
    assert both.received_ns == 50
    assert both.decode_joules == pytest.approx(34.0)
    assert inbox.has("a")
    inbox.take()
    assert len(inbox.leaving) == 2


@pytest.mark.parametrize(
    ("index", "told", "lost"), [(9, 0, 0), (12, 0, 3), (12, 5, 5), (12, 2, 3), (3, 0, 0), (3, 1, 1)]
)
def test_lost_steps_are_those_missing_or_those_told_if_more(index: int, told: int, lost: int) -> None:
    inbox = Inbox()
    inbox.add(WORK, Previews.of(WORK, MODEL, None, 50))
    following = replace(WORK, index=WORK.index - 7 + index, lost_steps=told)
    assert inbox.add(following, Previews.of(following, MODEL, None, 60)) == lost
    after = replace(WORK, index=WORK.index - 7 + index + 2)
    assert inbox.add(after, Previews.of(after, MODEL, None, 60)) == 0


def test_an_empty_batch_may_tell_of_lost_steps_and_leaves_nothing() -> None:
    inbox = Inbox()
    nothing = replace(StepBatch.concat([]), lost_steps=3)
    assert inbox.add(nothing, Previews.of(nothing, MODEL, None, 1)) == 3
    assert (inbox.batches, inbox.previews, inbox.last_end_ns) == ([], [], None)
