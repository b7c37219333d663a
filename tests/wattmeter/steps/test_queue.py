"""The queue of steps: what waits, what is kept of the past, and when the device was idle."""

from __future__ import annotations

import pytest

from meter_fakes import MS, SECOND, batch
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.queue import KEEP_ENTRIES, StepQueue

T0 = 100 * SECOND


def at(seconds: float) -> int:
    return T0 + round(seconds * SECOND)


def steps(*spans: tuple[float, float, str]) -> StepBatch:
    return batch([(at(a), at(b), [(name, 0, 1, 10) for name in names]) for a, b, names in spans])


def queue(*batches: StepBatch) -> StepQueue:
    own = StepQueue()
    for one in batches:
        own.add(one)
    return own


def names(found: StepBatch) -> list[str]:
    """The requests of each step, as letters."""
    rows = [""] * len(found)
    for step, request in zip(found.step.tolist(), found.request.tolist(), strict=True):
        rows[step] += found.request_ids[request]
    return rows


def test_steps_that_began_before_a_moment_are_given_and_stay() -> None:
    own = queue(steps((0.0, 1.0, "a"), (1.0, 2.0, "bc")), steps((1.5, 3.0, "d")))
    assert (own.entries, own.last_end_ns) == (4, at(3.0))
    for moment, expected in ((0.0, []), (0.1, ["a"]), (1.0, ["a"]), (1.1, ["a", "bc"]), (2.0, ["a", "bc"])):
        found, before = own.until(at(moment))
        assert (names(found), before) == (expected, None)
    assert names(own.until(at(2.1))[0]) == ["a", "bc", "d"]
    assert own.until(at(0.1))[0].request_ids == ("a",)
    assert names(own.rest()[0]) == ["a", "bc", "d"]


def test_steps_that_ended_by_a_moment_are_dropped_and_the_last_end_is_known() -> None:
    own = queue(steps((0.0, 1.0, "a"), (1.0, 2.0, "bc"), (1.5, 3.0, "d")))
    own.drop(at(0.9))
    assert (own.entries, own.rest()[1]) == (4, None)
    own.drop(at(1.0))
    assert (own.entries, own.rest()[1], names(own.rest()[0])) == (3, at(1.0), ["bc", "d"])
    own.drop(at(2.5))
    assert (own.entries, own.rest()[1], names(own.rest()[0])) == (1, at(2.0), ["d"])
    # It was launched while the one before ran: it begins with that one's end.
    assert names(own.until(at(2.0))[0]) == []
    assert names(own.until(at(2.0) + 1)[0]) == ["d"]
    own.add(steps((3.5, 4.0, "e")))
    assert (own.entries, own.last_end_ns, names(own.rest()[0])) == (2, at(4.0), ["d", "e"])
    assert own.rest()[0].request_ids == ("d", "e")


def test_an_empty_batch_changes_nothing() -> None:
    own = queue(StepBatch.concat([]))
    assert (own.entries, own.last_end_ns, len(own.rest()[0])) == (0, None, 0)
    own = queue(steps((0.0, 5.0, "a")), steps((1.0, 2.0, "b")))
    assert own.last_end_ns == at(5.0)


def test_settled_steps_are_kept_for_fifteen_seconds() -> None:
    own = queue(
        *(steps((float(second), second + 0.5, "abcdefghijklmnopqrstu"[second])) for second in range(20))
    )
    for second in range(18):
        own.drop(at(second + 0.5))
    assert names(own.window(at(-9.0), at(99.0), 999)) == list("defghijklmnopqrst")
    own.drop(at(17.5) - 1)
    assert len(own.window(at(-9.0), at(99.0), 999)) == 17
    assert own.names(at(-9.0)) == set("defghijklmnopqrst")
    assert own.names(at(16.5)) == set("rst")
    assert own.names(at(16.5) - 1) == set("qrst")


def test_a_window_has_the_steps_that_reach_into_it_up_to_so_many_entries() -> None:
    own = queue(steps((0.0, 1.0, "a"), (1.0, 2.0, "bc"), (2.0, 3.0, "de"), (3.0, 4.0, "f")))
    own.drop(at(1.0))
    assert names(own.window(at(0.5), at(9.0), 99)) == ["a", "bc", "de", "f"]
    assert names(own.window(at(1.0), at(3.0), 99)) == ["bc", "de"]
    assert own.window(at(1.0), at(3.0), 99).request_ids == ("b", "c", "d", "e")
    for most, expected in (
        (6, ["a", "bc", "de", "f"]),
        (5, ["a", "bc", "de"]),
        (4, ["a", "bc"]),
        (3, ["a", "bc"]),
    ):
        assert names(own.window(at(0.0), at(9.0), most)) == expected


def test_of_many_settled_entries_the_newest_are_kept() -> None:
    own = StepQueue()
    for number, width in enumerate((1, 1, KEEP_ENTRIES // 2, KEEP_ENTRIES // 2)):
        entries = [(f"r{one}", 0, 1, 1) for one in range(width)]
        own.add(batch([(at(number), at(number + 0.1), entries)]))
        own.drop(at(number + 0.5))
    # 1 + 1 + 50,000 + 50,000 entries are two too many.
    kept = own.window(at(-1.0), at(99.0), 10**7)
    assert len(kept) == 2
    assert len(kept.step) == KEEP_ENTRIES
    own.add(steps((5.0, 5.1, "z")))
    own.drop(at(6.0))
    assert len(own.window(at(-1.0), at(99.0), 10**7)) == 2


# --- idle gaps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "known"), [(0.999, False), (1.0, True), (3.0, True)])
def test_a_gap_is_a_second_without_a_step(gap: float, known: bool) -> None:
    for apart in (True, False):
        spans = ((0.0, 1.0, "a"), (1.0 + gap, 2.0 + gap, "b"))
        own = queue(*(steps(span) for span in spans)) if apart else queue(steps(*spans))
        assert own.idle_from(at(0.5), at(2.0 + gap)) == (at(1.0) if known else None)
        assert own.busy_since(at(4.0)) == (at(1.0 + gap) if known else None)
        assert own.busy_since(at(1.0)) == (at(1.0 + gap) if known else None)
        assert own.busy_since(at(1.0) - 1) is None


def test_the_gap_that_is_asked_for_is_the_nearest() -> None:
    own = queue(steps((0.0, 1.0, "a"), (3.0, 4.0, "a"), (6.0, 7.0, "a")))
    assert own.idle_from(at(0.0), at(7.0)) == at(1.0)
    assert own.idle_from(at(1.0), at(7.0)) == at(4.0)
    assert own.idle_from(at(4.0), at(7.5)) is None
    assert own.idle_from(at(4.0), at(8.0) - 1) is None
    assert own.idle_from(at(4.0), at(8.0)) == at(7.0)
    assert own.idle_from(at(7.0), at(9.0)) is None
    assert (own.busy_since(at(3.9)), own.busy_since(at(4.0))) == (at(3.0), at(6.0))
    assert StepQueue().idle_from(at(0.0), at(9.0)) is None


def test_gaps_are_forgotten_with_what_ran_before_them() -> None:
    own = queue(steps((0.0, 1.0, "a"), (3.0, 4.0, "a")))
    own.drop(at(18.0) - 1)
    assert own.busy_since(at(9.0)) == at(3.0)
    own.drop(at(18.0))
    assert own.busy_since(at(9.0)) is None


def test_the_first_batch_has_no_gap_before_it() -> None:
    own = queue(steps((5.0, 5.0 + 10 * MS / SECOND, "a")))
    assert own.busy_since(at(9.0)) is None


def test_the_first_step_that_waits_begins_when_the_one_before_it_ended() -> None:
    own = queue(steps((0.0, 2.0, "a"), (1.5, 3.0, "b"), (5.0, 6.0, "c")))
    assert own.begin_ns == at(0.0)
    own.drop(at(2.0))
    assert own.begin_ns == at(2.0)
    own.drop(at(3.0))
    assert own.begin_ns == at(5.0)
    own.drop(at(6.0))
    assert own.begin_ns is None


def test_the_last_settled_batch_is_kept_however_large() -> None:
    entries = [(f"r{one}", 0, 1, 1) for one in range(KEEP_ENTRIES + 1)]
    own = queue(batch([(at(0.0), at(0.1), entries)]))
    own.drop(at(0.5))
    assert len(own.window(at(-1.0), at(99.0), 10**7)) == 1
