"""Which requests the books remember, and what an id means that is used more than once."""

from __future__ import annotations

import pytest
from wattmeter.faults import Fault
from wattmeter.requests import RequestBook
from world import MODEL, World

SECOND = 1_000_000_000


def book(max_requests: int) -> RequestBook:
    return RequestBook("nvml", max_requests=max_requests, now_ns=lambda: SECOND)


def test_a_running_request_is_remembered_longer_than_settled_ones() -> None:
    requests = book(3)
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
    requests = book(2)
    for name in ("a", "b", "c"):
        requests.start(name, None, "")
    assert requests.get("a") is None
    assert requests.active == 3
    requests.add_steps([("a", SECOND, 1.0, 2.0)], 0)
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
    requests = book(2)
    for number in range(50):
        requests.start(str(number), None, "")
    assert requests.active == 4  # two that are known and two of which the id is


def test_an_id_used_twice_at_once_runs_until_both_have_ended() -> None:
    """Otherwise it counted as running for ever, and idle power was never measured again."""
    world = World(step_model=MODEL)
    world.account.request_started("a", prompt_tokens=3)
    world.account.request_started("a", prompt_tokens=4)
    world.step([("a", 7, 0, 0)])
    world.account.request_finished("a", output_tokens=5)
    assert world.account.snapshot().active_requests == 1
    world.account.request_finished("a", aborted=True)
    world.pass_time(12.0)
    snapshot = world.account.snapshot()
    assert snapshot.active_requests == 0
    assert snapshot.idle.how == "measured"
    energy = world.account.request_energy("a")
    assert energy is not None
    assert (energy.status, energy.aborted) == ("settled", False)
    assert Fault.REQUEST_ID_REUSED in energy.flags


def test_an_id_used_again_before_it_settled_is_flagged_and_has_no_tokens() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    for tokens in (1, 99):
        world.account.request_started("a", prompt_tokens=10)
        world.step([("a", 10, 0, 0)])
        world.account.request_finished("a", output_tokens=tokens)
    world.pass_time(3.0)
    energy = world.account.request_energy("a")
    assert energy is not None
    assert energy.joules == pytest.approx(world.above_idle, rel=0.02)
    assert (energy.prompt_tokens, energy.output_tokens) == (None, None)
    assert Fault.REQUEST_ID_REUSED in energy.flags


def test_an_id_used_again_after_it_settled_is_a_new_request() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.serve({"a": (10, 60)})
    world.pass_time(3.0)
    used = world.above_idle
    world.serve({"a": (20, 30)})
    world.pass_time(3.0)
    energy = world.account.request_energy("a")
    assert energy is not None
    assert energy.joules == pytest.approx(world.above_idle - used, rel=0.02)
    assert (energy.prompt_tokens, energy.output_tokens) == (20, 30)
    assert Fault.REQUEST_ID_REUSED not in energy.flags
