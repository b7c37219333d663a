"""What waits for the settling thread counts for its requests, each joule once, wherever it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meter_fakes import SECOND, batch
from wattmeter.monitor.inbox import Inbox, Previews
from wattmeter.steps.batch import StepBatch
from world import MODEL


def steps(start: int, names: str, index: int = 0) -> StepBatch:
    """One step of a second that begins at `start` seconds, decoding a token of each request."""
    span = start * SECOND, (start + 1) * SECOND
    return batch([(*span, [(name, 0, 1, 10) for name in names])], index)


def test_previews_of_several_batches_add_up() -> None:
    parts = [Previews.of(steps(n, names), MODEL, None, n) for n, names in enumerate(("ab", "b", "ca"))]
    total = Previews.sum(parts)
    assert list(total.rows) == ["a", "b", "c"]
    for name in "abc":
        known = [preview for preview in (part.get(name) for part in parts) if preview is not None]
        preview = total.get(name)
        assert preview is not None
        assert preview.received_ns == min(part.received_ns for part in known)
        assert preview.last_step_ns == max(part.last_step_ns for part in known)
        assert preview.decode_joules == pytest.approx(sum(part.decode_joules for part in known))
    assert dict(total.items()) == {name: total.get(name) for name in "abc"}
    whole = sum(preview.decode_joules for _, preview in total.items())
    assert whole == pytest.approx(3 * MODEL.fixed_joules + 5 * (0.02 + 10 * 20e-6))


def test_a_preview_counts_until_its_requests_figures_have_it() -> None:
    inbox = Inbox()
    first, second = steps(0, "ab"), steps(1, "a", 1)
    for number, part in enumerate((first, second)):
        assert inbox.add(part, Previews.of(part, MODEL, None, number)) == 0
    before = inbox.preview("a")
    assert inbox.take() == [first, second]
    assert inbox.preview("a") == before
    total = Previews.sum(inbox.leaving)
    inbox.leaving = [total]
    del total.rows["a"]
    assert inbox.preview("a") is None
    assert not inbox.has("a")
    assert inbox.has("b")
    assert inbox.take() == []


def test_gaps_in_the_numbers_and_what_the_engine_tells_are_lost_steps() -> None:
    inbox = Inbox()

    def lost(part: StepBatch) -> int:
        return inbox.add(part, Previews.of(part, MODEL, None, 0))

    assert lost(steps(0, "a", 5)) == 0  # the first one's number is where counting begins
    assert lost(steps(1, "a", 9)) == 3
    assert lost(replace(steps(2, "a", 10), lost_steps=2)) == 2
    assert lost(replace(batch([]), lost_steps=4)) == 4
    assert lost(steps(3, "a", 11)) == 0
    assert inbox.last_end_ns == 4 * SECOND
