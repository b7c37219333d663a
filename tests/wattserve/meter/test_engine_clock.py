"""An engine of another host at a meter: its times are moved by what the clocks differ, or it is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from meter_node import FakeEngine, hello, modelled_node, until
from wattmeter.meters.modelled import ModelledMeter
from wattserve.meter import engine_clock
from wattserve.meter.engine_clock import MOST_ERROR_NS, EngineClock
from wattserve.meter.engines import Engine, Node, RefusedError
from wattserve.meter_spec import MeterSpec
from wattserve.protocol.host import boot_id, pid_namespace
from wattserve.protocol.messages import EngineHello, RequestFinished, RequestStarted, StepRecords

# Our monotonic clock minus that of the engine's host.
OFFSET_NS = -(10**15)


def there(message: EngineHello, *, error_ns: int = 1000, offset_ns: int = OFFSET_NS) -> EngineHello:
    """The same hello as an engine of another host would send it."""
    clock = {"boot_id": boot_id(), "offset_ns": offset_ns, "error_ns": error_ns}
    return replace(
        message,
        boot_id="of-another-host",
        sent_ns=message.sent_ns - OFFSET_NS,
        started_ns=message.started_ns - OFFSET_NS,
        clock=clock,
    )


def theirs(records: StepRecords, shift: int = -OFFSET_NS) -> StepRecords:
    batch = records.batch
    moved = replace(batch, launch_ns=batch.launch_ns + shift, end_ns=batch.end_ns + shift)
    complete = None if records.complete_ns is None else records.complete_ns + shift
    return replace(records, batch=moved, complete_ns=complete)


def reads(engine: Engine) -> bool:
    """Whether its monitor has read each device twice."""
    now = time.time()
    return all(len(device.unix_seconds) > 1 for device in engine.monitor.series(now - 60.0, now))


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    made = modelled_node(idle_watts=90.0), modelled_node(idle_watts=90.0)
    for node in made:
        node.start()
    yield made
    for node in made:
        node.stop()


def test_steps_of_another_hosts_clock_cost_what_they_cost_here(nodes: tuple[Node, Node]) -> None:
    here, elsewhere = nodes
    engine = FakeEngine()
    first = engine.hello(hosts=2)
    here.hello(first)
    elsewhere.hello(there(first))
    for node in nodes:
        (known,) = node.engines()
        until(lambda known=known: reads(known), "no reading")  # type: ignore[misc]
        node.request_started(RequestStarted("s", "r"))
    for number in range(20):
        records = engine.step("r") if number else engine.step(prompts={"r": 500})
        assert here.steps(records)
        assert elsewhere.steps(theirs(records))
        time.sleep(0.01)
    for node in nodes:
        node.request_finished(RequestFinished("s", "r", 500, 20))

    def settled(node: Node) -> bool:
        node.tick()
        energy = node.request_energy("r")
        return energy is not None and energy.status == "settled"

    for node in nodes:
        until(lambda node=node: settled(node), "it is not settled")  # type: ignore[misc]
    joules = [node.request_energy("r") for node in nodes]
    assert joules[0] is not None
    assert joules[1] is not None
    # Two monitors read their counters at different moments; a step is some joules.
    assert joules[1].joules == pytest.approx(joules[0].joules, rel=0.25)
    assert "clock_uncertain" not in joules[1].flags
    (known,) = elsewhere.engines()
    assert known.lost_steps == 0
    assert abs(known.startup.start_unix - here.engines()[0].startup.start_unix) < 1.0


@pytest.mark.parametrize(
    "clock",
    [
        {},
        {"boot_id": "of-the-meters-host-before-it-was-started-again", "offset_ns": OFFSET_NS, "error_ns": 1},
        {"boot_id": boot_id(), "offset_ns": "1", "error_ns": 1},
        {"boot_id": boot_id(), "offset_ns": True, "error_ns": 1},
        {"boot_id": boot_id(), "offset_ns": 2**63, "error_ns": 1},
        {"boot_id": boot_id(), "offset_ns": OFFSET_NS, "error_ns": -1},
        {"boot_id": boot_id(), "offset_ns": OFFSET_NS},
    ],
)
def test_a_clock_that_is_not_known_is_refused(nodes: tuple[Node, Node], clock: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=r"another host.*not known yet"):
        nodes[0].hello(replace(there(hello()), clock=clock))
    assert not nodes[0].engines()


def test_a_clock_that_is_known_too_roughly_is_refused(nodes: tuple[Node, Node]) -> None:
    with pytest.raises(RefusedError, match=r"6\.0 ms only, where 5 ms are needed"):
        nodes[0].hello(there(hello(), error_ns=6_000_000))
    nodes[0].hello(there(hello(), error_ns=MOST_ERROR_NS))


def test_a_clock_that_is_said_wrongly_is_refused(nodes: tuple[Node, Node]) -> None:
    with pytest.raises(RefusedError, match="monotonic clock is not the meter's"):
        nodes[0].hello(there(hello(), offset_ns=0))


def test_clocks_that_do_not_keep_together_are_flagged(nodes: tuple[Node, Node]) -> None:
    node, engine = nodes[0], FakeEngine()
    message = engine.hello()
    node.hello(there(message))
    # A little drift is followed without a word.
    node.hello(there(message, offset_ns=OFFSET_NS + 50_000))
    assert node.steps(theirs(engine.step("r"), -OFFSET_NS - 50_000))
    energy = node.request_energy("r")
    assert energy is not None
    assert "clock_uncertain" not in energy.flags
    node.hello(there(message, offset_ns=OFFSET_NS - 20_000_000))
    assert node.steps(theirs(engine.step("q"), -OFFSET_NS + 20_000_000))
    energy = node.request_energy("q")
    assert energy is not None
    assert "clock_uncertain" in energy.flags


def test_comparisons_that_became_poor_are_flagged_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = EngineClock(there(hello()))
    poor = there(hello(), error_ns=10 * MOST_ERROR_NS)
    clock.note(poor)
    assert not clock.uncertain
    monkeypatch.setattr(engine_clock, "KEPT_SECONDS", -1.0)
    clock.note(poor)
    assert clock.uncertain


def test_nothing_moves_behind_what_was_told() -> None:
    clock, engine = EngineClock(there(hello())), FakeEngine()
    first = clock.records(theirs(replace(engine.step("r"), complete_ns=time.monotonic_ns())))
    assert first.complete_ns is not None
    clock.note(there(hello(), offset_ns=OFFSET_NS - 2_000_000))
    second = clock.records(theirs(engine.step("r")))
    assert int(second.batch.end_ns[0]) >= first.complete_ns
    assert int(second.batch.end_ns[0] - second.batch.launch_ns[0]) == 10_000_000


def test_an_engine_of_this_host_is_left_as_it_is() -> None:
    message, records = hello(), FakeEngine().step("r")
    clock = EngineClock(message)
    clock.note(replace(message, clock={"boot_id": boot_id(), "offset_ns": 10**12, "error_ns": 1}))
    assert clock.hello(message) is message
    assert clock.records(records) is records
    assert not clock.uncertain


def test_times_at_the_end_of_all_numbers_do_not_wrap() -> None:
    clock = EngineClock(there(hello(), offset_ns=2**61))
    records = theirs(FakeEngine().step("r"), 0)
    late = replace(records, batch=replace(records.batch, end_ns=np.array([2**63 - 1])))
    assert int(clock.records(late).batch.end_ns[0]) == 2**63 - 1


class Spec(MeterSpec):
    """A kind of meter that is opened for each engine; `told` is what it was told of engines' processes."""

    told: ClassVar[list[object]] = []

    def open(self, gpus: Any = None, *, number: int = 0, is_own: Any = None) -> ModelledMeter:
        self.told.append(is_own)
        return ModelledMeter(lambda ns: 0.0, device_id=f"gpu-{len(self.told)}")


def test_processes_of_another_host_are_nobodys_here() -> None:
    node = Node(Spec("nvml"), meter=ModelledMeter(lambda ns: 0.0, device_id="gpu-0"))
    message = hello(pid=1, pid_namespace=pid_namespace())
    node.hello(message)
    node.hello(there(replace(message, engine="e1")))
    here, elsewhere = Spec.told
    assert here is not None
    assert elsewhere is None
    node.stop()
