"""Which requests the monitor remembers, and what an id means that is used more than once."""

from __future__ import annotations

import pytest

from wattmeter.attribution.tenants import Arrival
from wattmeter.faults import Fault
from wattmeter.monitor.inbox import Preview
from wattmeter.monitor.requests import RequestTable
from wattmeter.monitor.tenant_names import LONGEST_NAME, OTHERS, TenantNames
from world import MODEL, World

SECOND = 1_000_000_000


def table(max_requests: int) -> RequestTable:
    return RequestTable("nvml", max_requests=max_requests, now_ns=lambda: SECOND)


def test_a_running_request_is_remembered_longer_than_settled_ones() -> None:
    requests = table(3)
    requests.start("long", 7, "tenant")
    for number in range(10):
        requests.start(f"short-{number}", None, "")
        requests.finish(f"short-{number}", 1, None, False)
        requests.settle_until(2 * SECOND)
    state = requests.get("long")
    assert state is not None
    assert (state.prompt_tokens, state.group) == (7, "tenant")
    assert requests.get("short-0") is None
    assert requests.get("short-9") is not None
    assert requests.active == 1


def test_a_running_request_that_had_to_be_forgotten_has_no_number() -> None:
    requests = table(2)
    for name in ("a", "b", "c"):
        requests.start(name, None, "")
    assert requests.get("a") is None
    assert requests.active == 3
    requests.add_preview("a", Preview(SECOND, SECOND, 1.0, 2.0))
    state = requests.get("a")
    assert state is not None
    answer = requests.energy(state)
    assert answer.joules is None
    assert answer.reason is not None
    assert Fault.LOST_STEP_RECORDS in answer.flags
    for name in ("a", "b", "c"):
        requests.finish(name, 1, None, False)
    assert requests.active == 0


def test_what_is_kept_of_forgotten_requests_has_a_bound() -> None:
    requests = table(2)
    for number in range(50):
        requests.start(str(number), None, "")
    assert requests.active == 4  # two that are known and two of which the id is


def test_an_id_used_twice_at_once_runs_until_both_have_ended() -> None:
    """Otherwise it counted as running for ever, and idle power was never measured again."""
    world = World(step_model=MODEL)
    world.monitor.request_started("a", prompt_tokens=3)
    world.monitor.request_started("a", prompt_tokens=4)
    world.step([("a", 7, 0, 0)])
    world.monitor.request_finished("a", output_tokens=5)
    assert world.monitor.snapshot().active_requests == 1
    world.monitor.request_finished("a", aborted=True)
    world.pass_time(12.0)
    snapshot = world.monitor.snapshot()
    assert snapshot.active_requests == 0
    assert snapshot.idle.how == "measured"
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert (energy.status, energy.aborted) == ("settled", False)
    assert Fault.REQUEST_ID_REUSED in energy.flags


def test_an_id_used_again_before_it_settled_is_flagged_and_has_no_tokens() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    for tokens in (1, 99):
        world.monitor.request_started("a", prompt_tokens=10)
        world.step([("a", 10, 0, 0)])
        world.monitor.request_finished("a", output_tokens=tokens)
    world.pass_time(3.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.joules == pytest.approx(world.above_idle, rel=0.02)
    assert (energy.prompt_tokens, energy.output_tokens) == (None, None)
    assert Fault.REQUEST_ID_REUSED in energy.flags


def test_a_settled_request_stays_as_it_is_whoever_uses_its_id_again() -> None:
    """A stranger who sends a request with the id of another's took its joules, its tokens and its tenant."""
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    begin = world.unix - 2.0
    world.serve({"a": (10, 60)}, groups={"a": "victim"})
    world.pass_time(3.0)
    before = world.monitor.request_energy("a")
    used = world.above_idle
    world.monitor.request_started("a", group="stranger")
    newest = world.monitor.request_energy("a", newest=True)
    assert newest is not None
    assert (newest.joules, newest.status) == (None, "provisional")
    assert "another request had this id" in (newest.reason or "")
    for _ in range(50):
        world.step([("a", 0, 1, 100)])
    world.monitor.request_finished("a", output_tokens=50)
    world.pass_time(20.0)
    assert world.monitor.request_energy("a") == before
    assert world.monitor.snapshot().active_requests == 0
    groups = world.monitor.window_energy(begin, world.unix - 5.0).groups
    assert groups["victim"] == pytest.approx(used, rel=0.02)
    assert groups["stranger"] == pytest.approx(world.above_idle - used, rel=0.02)


def refused(requests: RequestTable, name: str, group: str = "stranger") -> None:
    """A request that the server answered with 400 or 401."""
    requests.start(name, 5, group)
    requests.finish(name, None, None, aborted=True, refused=True)


@pytest.mark.parametrize("when", ["announced", "running", "finished", "settled"])
def test_a_refused_request_costs_nothing_and_takes_nothing(when: str) -> None:
    requests = table(10)
    requests.start("a", 7, "victim")
    if when != "announced":
        requests.add_preview("a", Preview(SECOND, SECOND, 1.0, 2.0))
    if when in ("finished", "settled"):
        requests.finish("a", 9, 7, False)
    if when == "settled":
        requests.settle_until(2 * SECOND)
    state = requests.get("a")
    assert state is not None
    before, active = requests.energy(state), requests.active
    refused(requests, "a")
    refused(requests, "nobody's")
    again = requests.get("a")
    assert again is state
    assert requests.energy(state) == before
    assert requests.active == active
    assert requests.get("nobody's") is None
    assert len(requests) == 1
    if when == "finished":
        assert [done.id for done in requests.settle_until(2 * SECOND)] == ["a"]


@pytest.mark.parametrize("stepped", [False, True])
def test_of_two_of_one_id_the_accepted_one_has_its_own_tenant(stepped: bool) -> None:
    """Two API processes take the same id; the one that came first is refused. The other had its name."""
    requests = table(10)
    requests.start("a", None, "stranger")
    requests.start("a", None, "payer")
    if stepped:
        requests.add_preview("a", Preview(SECOND, SECOND, 1.0, 2.0))
    requests.finish("a", None, None, aborted=True, refused=True, group="stranger")
    state = requests.get("a")
    assert state is not None
    assert (state.group, state.shared, requests.active) == ("payer", False, 1)
    owner = requests.arrivals["a"]
    assert owner is not None
    assert owner.group == "payer"
    # Refused in the other order, nothing changes hands.
    requests.start("a", None, "late")
    requests.finish("a", None, None, aborted=True, refused=True, group="late")
    assert (state.group, state.shared) == ("payer", False)
    requests.add_preview("a", Preview(SECOND, SECOND, 1.0, 2.0))
    requests.finish("a", 9, 7, aborted=False)
    assert requests.energy(state).group == "payer"
    assert Fault.REQUEST_ID_REUSED not in requests.energy(state).flags
    assert requests.active == 0


def test_refused_requests_push_nobody_out() -> None:
    requests = table(5)
    for number in range(5):
        requests.start(f"r{number}", None, "")
        requests.finish(f"r{number}", 1, None, False)
    requests.settle_until(2 * SECOND)
    for number in range(1000):
        refused(requests, f"x{number}")
    waiting = [f"y{number}" for number in range(5)]
    for name in waiting:
        requests.start(name, None, "")
    assert all(requests.get(f"r{number}") is not None for number in range(5))
    assert requests.active == 5
    for name in waiting:
        requests.finish(name, None, None, aborted=True, refused=True)
    assert (requests.active, len(requests)) == (0, 5)


def test_a_refusal_after_steps_is_an_abort() -> None:
    """A server that answers 500 when its engine has died: what was used until then was used."""
    requests = table(5)
    requests.start("a", 7, "tenant")
    requests.add_preview("a", Preview(SECOND, SECOND, 1.0, 2.0))
    requests.finish("a", None, None, aborted=True, refused=True)
    (state,) = requests.settle_until(2 * SECOND)
    assert (state.aborted, state.group) == (True, "tenant")


def test_an_id_in_use_keeps_the_tenant_that_it_had_first() -> None:
    requests = table(5)
    requests.start("a", 7, "victim")
    requests.add_preview("a", Preview(SECOND, SECOND, 1.0, 2.0))
    requests.start("a", 99, "stranger")
    state = requests.get("a")
    assert state is not None
    answer = requests.energy(state)
    assert answer.group == "victim"
    assert Fault.REQUEST_ID_REUSED in answer.flags
    assert requests.arrivals["a"] == Arrival("victim", SECOND)


def test_names_of_tenants_are_bounded_in_length_and_number() -> None:
    names = TenantNames(most=3)
    long = ["x" * 5000 + end for end in "ab"]
    kept = [names.of(name) for name in long]
    assert len(set(kept)) == 2
    assert all(len(name) <= LONGEST_NAME for name in kept)
    assert names.of("c") == "c"
    assert [names.of(f"n{number}") for number in range(100)] == [OTHERS] * 100
    assert (names.of("c"), names.of(long[0]), names.of("")) == ("c", kept[0], "")


def test_what_changed_of_requests_is_told_once() -> None:
    requests = table(2)
    requests.start("a", None, "tenant")
    requests.ensure("b")
    assert requests.arrivals == {"a": Arrival("tenant", SECOND), "b": Arrival("", SECOND)}
    requests.arrivals = {}
    requests.finish("a", 1, None, False)
    requests.settle_until(2 * SECOND)
    requests.start("c", None, "other")
    assert requests.arrivals == {"c": Arrival("other", SECOND)}
    requests.ensure("c")
    assert requests.arrivals == {"a": None, "c": Arrival("other", SECOND)}


def test_requests_are_settled_in_parts_and_not_before_their_steps_are_entered() -> None:
    requests = table(10)
    for name in "abcde":
        requests.start(name, None, "")
        requests.finish(name, 1, None, False)
    parts = []
    while part := requests.settle_until(2 * SECOND, 2, waits=lambda name: name == "b"):
        parts.append([state.id for state in part])
    assert parts == [["a", "c"], ["d", "e"]]


def test_what_was_settled_an_hour_ago_is_forgotten_and_what_runs_is_not() -> None:
    now = [SECOND]
    requests = RequestTable("nvml", now_ns=lambda: now[0])
    requests.start("runs", None, "")
    for number in range(4):
        now[0] = (1 + 1800 * number) * SECOND
        requests.start(f"r{number}", None, "")
        requests.finish(f"r{number}", 1, None, False)
        requests.settle_until(now[0])
    assert [requests.get(f"r{number}") is not None for number in range(4)] == [False, True, True, True]
    assert requests.get("runs") is not None
    now[0] += 3601 * SECOND
    requests.settle_until(now[0])
    assert len(requests) == 1
