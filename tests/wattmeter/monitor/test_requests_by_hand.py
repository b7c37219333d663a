"""A request's figures and its way through the table, one change after the other."""

from __future__ import annotations

import pytest

from wattmeter.attribution.tenants import Arrival
from wattmeter.faults import Fault
from wattmeter.monitor.inbox import Preview
from wattmeter.monitor.requests import RequestShare, RequestState, RequestTable

SECOND = 1_000_000_000


class Table(RequestTable):
    """A table whose time the test sets."""

    def __init__(self, most: int = 10) -> None:
        self.now = 1
        super().__init__("nvml", max_requests=most, now_ns=lambda: self.now)

    def state(self, name: str) -> RequestState:
        found = self.get(name)
        assert found is not None
        return found


def share(
    name: str,
    joules: tuple[float, float, float] = (1.0, 2.0, 0.25),
    pending: tuple[float, float] = (0.0, 0.0),
    *,
    missing: bool = False,
    flags: frozenset[Fault] = frozenset(),
) -> RequestShare:
    return RequestShare(name, flags, missing, *joules, *pending)


def running(name: str = "a", most: int = 10) -> Table:
    table = Table(most)
    table.start(name, 7, "shop")
    table.add_preview(name, Preview(1, 5, 0.5, 1.5))
    return table


# --- figures ------------------------------------------------------------------------------------------------


def test_figures_are_what_is_settled_and_what_is_estimated() -> None:
    table = running()
    first = table.energy(table.state("a"))
    assert (first.prefill_joules, first.decode_joules, first.joules) == (0.5, 1.5, 2.0)
    assert first.uncertainty_joules == pytest.approx(0.5)  # a quarter of an estimate
    assert (first.status, first.source, first.group) == ("provisional", "nvml", "shop")
    assert (first.prompt_tokens, first.output_tokens, first.aborted, first.reason) == (7, None, False, None)
    table.add_preview("a", Preview(2, 4, 0.25, 0.25))
    assert table.energy(table.state("a")).joules == 2.5
    assert table.state("a").last_step_ns == 5
    table.add_shares([share("a", (1.0, 2.0, 0.25), (0.25, 1.0)), share("stranger")])
    table.add_shares([share("a", (4.0, 8.0, 0.75), (0.5, 1.5))])
    second = table.energy(table.state("a"))
    assert (second.prefill_joules, second.decode_joules) == (5.5, 11.5)
    assert second.joules == 17.0
    assert second.uncertainty_joules == pytest.approx((1.0 + 0.25) ** 0.5)
    with_more = table.energy(table.state("a"), preview=Preview(1, 9, 1.0, 3.0))
    assert (with_more.prefill_joules, with_more.decode_joules) == (6.5, 14.5)
    assert with_more.uncertainty_joules == pytest.approx((1.0 + (0.25 * 6.0) ** 2) ** 0.5)


def test_figures_that_are_settled_have_no_estimate() -> None:
    table = running()
    table.add_shares([share("a", pending=(9.0, 9.0))])
    table.finish("a", 5, 8, aborted=False)
    table.settle_until(9)
    settled = table.energy(table.state("a"), preview=Preview(1, 9, 50.0, 50.0))
    assert (settled.prefill_joules, settled.decode_joules, settled.uncertainty_joules) == (1.0, 2.0, 0.5)
    assert (settled.status, settled.prompt_tokens, settled.output_tokens) == ("settled", 8, 5)
    table.add_shares([share("a")])
    table.add_preview("a", Preview(1, 99, 1.0, 1.0))
    table.add_prompt("a", "0", 3)
    table.finish("a", 99, 99, aborted=True)
    assert table.energy(table.state("a")) == table.energy(table.state("a"), preview=Preview(1, 9, 1.0, 1.0))
    assert table.energy(table.state("a")).joules == 3.0
    assert table.state("a").last_step_ns == 5


def test_steps_that_were_made_out_of_a_stream_are_less_certain() -> None:
    table = running()
    table.add_shares([share("a", (3.0, 7.0, 4.0))])
    table.flags = frozenset({Fault.ESTIMATED})
    told = table.energy(table.state("a"))
    assert told.uncertainty_joules == pytest.approx((4.0 + (0.2 * 10.0) ** 2) ** 0.5)
    assert told.flags == {Fault.ESTIMATED}


def test_flags_are_gathered_from_its_seconds_and_from_the_meter() -> None:
    table = running()
    table.add_shares([share("a", flags=frozenset({Fault.STALE_SENSOR}))])
    table.add_shares([share("a", flags=frozenset({Fault.COUNTER_RESET}))])
    table.flag(["stranger", "a"], Fault.CLOCK_STEP)
    table.flags = frozenset({Fault.MIG})
    assert table.energy(table.state("a")).flags == {
        Fault.STALE_SENSOR,
        Fault.COUNTER_RESET,
        Fault.CLOCK_STEP,
        Fault.MIG,
    }
    assert table.get("stranger") is None


@pytest.mark.parametrize("order", [(True, False), (False, True), (True, True)])
def test_what_missed_a_second_has_no_number_any_more(order: tuple[bool, bool]) -> None:
    table = running()
    table.add_shares([share("a", missing=missing) for missing in order])
    told = table.energy(table.state("a"), "the meter failed", Preview(1, 2, 1.0, 1.0))
    assert (told.joules, told.prefill_joules, told.decode_joules, told.uncertainty_joules) == (None,) * 4
    assert "did not cover" in (told.reason or "")


def test_the_reason_is_the_nearest_one() -> None:
    table = Table()
    table.start("a", None, "")
    state = table.state("a")
    waiting = table.energy(state).reason
    assert "no step of this request has been recorded yet" in (waiting or "")
    assert table.energy(state).joules is None
    assert table.energy(state, preview=Preview(1, 2, 1.0, 2.0)).joules == 3.0
    assert table.energy(state, "the meter failed").reason == "the meter failed"
    table.refusal = "no model"
    assert table.energy(state, "the meter failed", Preview(1, 2, 1.0, 2.0)).reason == "no model"
    table.refusal = None
    table.finish("a", 3, None, aborted=False)
    table.settle_until(9)
    lost = table.energy(state)
    assert (lost.reason, lost.joules) == ("no step of this request was recorded", None)
    assert Fault.LOST_STEP_RECORDS in lost.flags


@pytest.mark.parametrize(
    ("output_tokens", "aborted", "joules"),
    [(None, True, 0.0), (0, True, 0.0), (3, True, None), (None, False, None)],
)
def test_only_an_aborted_request_without_tokens_may_have_used_nothing(
    output_tokens: int | None, aborted: bool, joules: float | None
) -> None:
    table = Table()
    table.start("a", None, "")
    table.finish("a", output_tokens, None, aborted=aborted)
    (state,) = table.settle_until(9)
    assert table.energy(state).joules == joules
    assert (Fault.LOST_STEP_RECORDS in state.flags) is (joules is None)


def test_prompts_of_the_parts_are_added_up_where_none_was_reported() -> None:
    table = Table()
    table.start("a", None, "")
    assert table.state("a").all_prompt_tokens is None
    for part, tokens in (("0", 3), ("1", 5), ("0", 4)):
        table.add_prompt("a", part, tokens)
    assert table.energy(table.state("a")).prompt_tokens == 9
    table.flag(["a"], Fault.LOST_STEP_RECORDS)
    assert table.energy(table.state("a")).prompt_tokens is None
    table.finish("a", None, 11, aborted=False)
    assert table.energy(table.state("a")).prompt_tokens == 11


# --- from the first step to the last ------------------------------------------------------------------------


def test_a_request_settles_once_it_and_its_last_step_lie_before_the_frontier() -> None:
    table = running()
    table.now = 20
    table.finish("a", 1, None, aborted=False)
    assert (table.settle_until(19), table.settle_until(4)) == ([], [])
    assert [state.id for state in table.settle_until(20)] == ["a"]
    assert table.settle_until(99) == []
    late = running("b")
    late.state("b").last_step_ns = 30
    late.finish("b", 1, None, aborted=False)
    assert late.settle_until(29) == []
    assert [state.id for state in late.settle_until(30)] == ["b"]


def test_ends_are_counted_once_and_keep_what_is_known() -> None:
    table = running()
    assert table.active == 1
    table.finish("a", 5, None, aborted=True)
    assert (table.active, table.state("a").aborted, table.state("a").prompt_tokens) == (0, True, 7)
    table.now = 50
    table.finish("a", 6, 9, aborted=False)
    assert (table.active, table.state("a").aborted, table.state("a").output_tokens) == (0, True, 5)
    assert table.state("a").finished_ns == 1


def test_one_of_several_that_answered_is_an_answer() -> None:
    for order in ((True, False), (False, True)):
        table = running()
        table.start("a", 9, "bank")
        assert table.active == 2
        for aborted in order:
            table.finish("a", None, None, aborted=aborted)
        state = table.state("a")
        assert (state.aborted, state.shared, state.group, table.active) == (False, True, "shop", 0)
        assert table.energy(state).output_tokens is None


def test_an_end_without_a_start_is_known_and_counts_nobody() -> None:
    table = Table()
    table.now = 40
    table.finish("a", 5, 6, aborted=False)
    state = table.state("a")
    assert (table.active, state.started_ns, state.finished_ns, state.shared) == (0, 40, 40, False)
    assert [one.id for one in table.settle_until(40)] == ["a"]


def test_a_step_before_the_start_is_the_requests_beginning() -> None:
    table = Table()
    table.now = 70
    table.add_preview("a", Preview(30, 35, 1.0, 1.0))
    assert table.arrivals == {"a": Arrival("", 30)}
    table.start("a", 7, "shop")
    assert table.arrivals == {"a": Arrival("shop", 30)}
    state = table.state("a")
    assert (state.started_ns, state.prompt_tokens, state.group, state.starts) == (30, 7, "shop", 1)


def test_a_request_that_starts_again_after_its_end_runs_again() -> None:
    table = running()
    table.finish("a", 5, None, aborted=False)
    table.start("a", 7, "shop")
    assert table.state("a").finished_ns is None
    assert table.settle_until(99) == []
    table.finish("a", 5, None, aborted=False)
    assert len(table.settle_until(99)) == 1
    assert table.energy(table.state("a")).flags == {Fault.REQUEST_ID_REUSED}


def test_an_id_that_is_settled_may_run_again_several_times_beside() -> None:
    table = running()
    table.finish("a", 5, None, aborted=False)
    table.settle_until(99)
    table.now = 120
    for _ in range(2):
        table.start("a", 7, "bank")
    assert table.arrivals["a"] == Arrival("bank", 120)
    assert (table.active, table.again("a"), table.again("b")) == (2, True, False)
    table.finish("a", None, None, aborted=False)
    assert (table.active, table.again("a")) == (1, True)
    table.finish("a", None, None, aborted=True, refused=True)
    assert (table.active, table.again("a")) == (0, False)
    assert table.state("a").group == "shop"


# --- what is forgotten --------------------------------------------------------------------------------------


def test_those_settled_first_are_forgotten_first_and_then_the_oldest_that_runs() -> None:
    table = Table(3)
    for name in "abc":
        table.start(name, None, "")
        table.ensure(name)
    for name in "cb":
        table.finish(name, 1, None, aborted=False)
        table.settle_until(99)
    for new, gone in (("d", "c"), ("e", "b"), ("f", "a"), ("g", "d")):
        table.start(new, None, "")
        assert table.get(gone) is not None
        table.ensure(new)
        assert table.get(gone) is None
        assert table.arrivals[gone] is None
    assert [name for name in "abcdefg" if table.get(name)] == ["e", "f", "g"]


def test_a_request_that_was_forgotten_while_it_ran_comes_back_without_a_number() -> None:
    table = Table(1)
    for name in "ab":
        table.start(name, None, "")
        table.ensure(name)
    assert (table.get("a"), table.active) == (None, 2)
    table.add_preview("a", Preview(1, 5, 1.0, 1.0))
    state = table.state("a")
    assert (state.missing, state.starts, state.running) == (True, 1, 1)
    assert Fault.LOST_STEP_RECORDS in state.flags
    table.finish("a", 1, None, aborted=False)
    assert table.active == 1
    assert [one.id for one in table.settle_until(99)] == ["a"]


def test_a_forgotten_one_that_ended_unsettled_is_not_settled() -> None:
    table = Table(1)
    table.start("a", None, "")
    table.finish("a", 1, None, aborted=False)
    table.start("b", None, "")
    table.ensure("b")
    assert table.settle_until(99) == []


def test_announced_ones_are_bounded_by_themselves_and_may_be_refused_after() -> None:
    table = Table(2)
    for name in "abcd":
        table.start(name, None, "")
    assert [name for name in "abcd" if table.get(name)] == ["c", "d"]
    table.start("a", None, "")  # twice, of which one is only counted
    assert table.active == 5
    assert table.state("a").running == 2
    table.finish("b", None, None, aborted=True, refused=True)
    assert table.active == 4
    table.finish("b", None, None, aborted=True, refused=True)
    assert table.active == 4


def test_a_forgotten_id_counts_until_each_of_it_has_been_refused() -> None:
    table = Table(1)
    table.start("a", None, "")
    table.start("a", None, "")
    table.start("b", None, "")
    assert (table.get("a"), table.active) == (None, 3)
    for left in (2, 1, 1):
        table.finish("a", None, None, aborted=True, refused=True)
        assert table.active == left


def test_a_refused_twin_takes_back_its_own_start_alone() -> None:
    table = Table()
    table.start("a", 7, "shop")
    table.start("a", 9, "bank")
    table.finish("a", None, None, aborted=True, refused=True)
    state = table.state("a")
    assert (table.active, state.starts, state.running, state.finished_ns) == (1, 1, 1, None)
    table.add_preview("a", Preview(1, 5, 1.0, 1.0))
    table.start("a", 9, "bank")
    table.finish("a", 1, None, aborted=False)
    table.finish("a", None, None, aborted=True, refused=True)
    assert (table.active, state.starts, state.running, state.finished_ns) == (0, 1, 0, 1)
    assert not table.energy(state).aborted


def test_a_refusal_of_what_has_ended_changes_nothing() -> None:
    table = running()
    table.start("a", 9, "shop")
    for _ in range(2):
        table.finish("a", 1, None, aborted=False)
    table.finish("a", None, None, aborted=True, refused=True)
    state = table.state("a")
    assert (table.active, state.starts, state.running, state.shared) == (0, 2, 0, True)
