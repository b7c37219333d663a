"""Which requests the books remember, and what an id means that is used more than once."""

from __future__ import annotations

from wattmeter.faults import Fault
from wattmeter.requests import RequestBook

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
