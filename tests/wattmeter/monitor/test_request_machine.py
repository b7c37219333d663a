"""The table of requests under any order of starts, steps, ends, refusals and settling.

What must hold at every moment: what is settled never changes, nobody's request changes hands, a refused one
leaves no trace, the number of those that run is right, and memory is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wattmeter.monitor.inbox import Preview
from wattmeter.monitor.requests import RequestShare, RequestTable
from wattmeter.schema import RequestEnergy

MOST = 6
ids = st.sampled_from([f"r{number}" for number in range(10)])
tenants = st.sampled_from(["shop", "bank", ""])


@dataclass
class Live:
    """A request that was started and has not ended, as its server knows it."""

    id: str
    tenant: str


class Requests(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1
        self.table = RequestTable("nvml", max_requests=MOST, now_ns=lambda: self.now_ns)
        self.live: list[Live] = []
        self.settled: dict[str, RequestEnergy] = {}

    def tick(self) -> None:
        self.now_ns += 1

    @rule(name=ids, tenant=tenants)
    def start(self, name: str, tenant: str) -> None:
        self.tick()
        # More at once than are kept would be forgotten while they run, which the other tests are about.
        if len(self.live) < MOST - 1:
            self.table.start(name, 7, tenant)
            self.live.append(Live(name, tenant))

    @rule(name=ids, joules=st.floats(0.0, 10.0))
    def step(self, name: str, joules: float) -> None:
        self.tick()
        if any(request.id == name for request in self.live):
            self.table.add_preview(name, Preview(self.now_ns, self.now_ns, joules, joules))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 100), aborted=st.booleans(), refused=st.booleans())
    def finish(self, which: int, aborted: bool, refused: bool) -> None:
        self.tick()
        request = self.live.pop(which % len(self.live))
        before = {name: self.table.get(name) for name in (f"r{number}" for number in range(10))}
        alone = not any(other.id == request.id for other in self.live)
        self.table.finish(request.id, 5, 7, aborted or refused, refused=refused, group=request.tenant)
        state = self.table.get(request.id)
        if refused and alone and before[request.id] is not None and not before[request.id].last_step_ns:  # type: ignore[union-attr]
            # Nobody else has this id, and it never ran: unless an earlier one of it ended, nothing is there.
            assert state is None or state.finished_ns is not None

    @rule(name=ids, joules=st.floats(0.0, 10.0))
    def divide(self, name: str, joules: float) -> None:
        self.table.add_shares([RequestShare(name, frozenset(), False, joules, joules, 0.0, 0.0, 0.0)])

    @rule()
    def settle(self) -> None:
        self.tick()
        for state in self.table.settle_until(self.now_ns):
            self.settled[state.id] = self.table.energy(state)

    @invariant()
    def what_is_settled_never_changes(self) -> None:
        for name, told in list(self.settled.items()):
            state = self.table.get(name)
            if state is None or not state.settled:
                del self.settled[name]  # forgotten since: the newest MOST are kept
                continue
            assert self.table.energy(state) == told

    @invariant()
    def those_that_run_are_counted(self) -> None:
        assert self.table.active == len(self.live)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.table) <= 2 * MOST

    @invariant()
    def a_request_is_of_one_who_started_it(self) -> None:
        for request in self.live:
            state = self.table.get(request.id)
            if state is None or state.settled or state.starts > 1:
                continue
            assert state.group in {other.tenant for other in self.live if other.id == request.id}


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
