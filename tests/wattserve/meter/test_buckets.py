"""Every joule of the node's counters is in one bucket: of an engine, or of what no engine used."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry

from meter_node import FakeEngine, modelled_node, until
from wattmeter.meters.base import Device, Reading
from wattmeter.meters.modelled import ModelledMeter
from wattserve.meter.answers import NO_ENGINE, NodeCollector, NodeRoutes, View
from wattserve.meter.engines import Node, Segment
from wattserve.meter_spec import MeterSpec
from wattserve.protocol.messages import RequestFinished, RequestStarted
from world import MODEL, World


@pytest.mark.parametrize("devices", [1, 2])
def test_segments_that_follow_one_another_divide_what_a_monitor_settled(devices: int) -> None:
    world = World(step_model=MODEL, devices=devices)
    world.pass_time(5.0)
    for _ in range(3):
        world.serve({"a": (100, 60)})
        world.pass_time(4.0)
    snapshot = world.monitor.snapshot()
    assert snapshot.settled_unix is not None
    ids = tuple(device.id for device in world.devices)
    begin = world.wall_offset + 1_000.0
    cuts = [begin + 6.3, begin + 7.7, begin + 11.1]
    edges: list[float | None] = [None, *cuts, None]
    parts = []
    for low, high in itertools.pairwise(edges):
        ends = {} if high is None else dict.fromkeys(ids, high)
        parts.append(Segment(world.monitor, world, ids, low, ends).buckets(snapshot))
    for name, joules in snapshot.bucket_joules.items():
        assert sum(part[name] for part in parts) == pytest.approx(joules, abs=1e-3), name
    assert all(sum(part.values()) > 0 for part in parts)


def test_of_two_devices_each_has_its_own_end() -> None:
    world = World(step_model=MODEL, devices=2)
    world.pass_time(30.0)
    snapshot = world.monitor.snapshot()
    begin = world.wall_offset + 1_000.0
    segment = Segment(world.monitor, world, ("gpu-0", "gpu-1"), None, {"gpu-0": begin + 10.0})
    assert snapshot.settled_unix is not None
    # 100 W each: one is gone 10 s after the start.
    gone = 100.0 * (snapshot.settled_unix - begin - 10.0)
    assert sum(segment.buckets(snapshot).values()) == pytest.approx(
        sum(snapshot.bucket_joules.values()) - gone, rel=1e-3
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattserve.meter.engines.OVERLAP_SECONDS", 1.0)
    monkeypatch.setattr("wattserve.meter.engines.SEAM_SECONDS", 2.0)


def ticking(node: Node, condition: Callable[[], object]) -> Callable[[], object]:
    def found() -> object:
        node.tick()
        return condition()

    return found


@pytest.fixture
def steady() -> Iterator[Node]:
    """One board at 200 W that any engine may use."""
    origin = time.monotonic_ns()
    meter = ModelledMeter(lambda ns: 200.0 * (ns - origin) * 1e-9)
    node = Node(MeterSpec("rapl"), meter=meter)
    node.start()
    yield node
    node.stop()


def takes_over(node: Node, engine: FakeEngine) -> None:
    before = node.segments()
    node.hello(engine.hello())
    until(ticking(node, lambda: node.engines()[-1].seam_found), "no seam")
    until(ticking(node, lambda: all(segment.stopped for segment in before)), "what was before goes on")


def test_the_buckets_gain_what_the_counter_gains_over_two_engines(steady: Node, quick: None) -> None:
    def ahead() -> float:
        """By how much the counter is ahead of the buckets, J: of the last seconds, which settle later."""
        joules = steady.counters.joules("virtual-0")
        assert joules is not None
        return joules - sum(steady.all_joules().values())

    until(lambda: sum(steady.all_joules().values()) > 200.0, "nothing is settled")
    before = ahead()
    takes_over(steady, FakeEngine("e0", "s0"))
    assert steady.unused_joules()["unattributed"] > 200.0
    steady.goodbye("e0")
    takes_over(steady, FakeEngine("e1", "s1"))
    until(lambda: ahead() < before + 300.0, "the buckets fall behind the counter")
    # An interval that counted twice would be there for good: each takes 1 to 3 s, 200 to 600 J.
    assert ahead() > min(before, 0.0) - 100.0


class Boards:
    """Boards at 200 W each, of which engines may use some: the meter, and the specification that opens it."""

    source = "modelled"
    min_energy_interval_seconds = 0.1
    kind = "nvml"
    divisible = True

    def __init__(self, *names: str) -> None:
        origin = time.monotonic_ns()
        self.boards = {
            name: ModelledMeter(lambda ns: 200.0 * (ns - origin) * 1e-9, device_id=name) for name in names
        }

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(meter.devices[0] for meter in self.boards.values())

    def open(self, gpus: tuple[str, ...] | None, **_: object) -> Boards:
        return Boards(*(gpus or self.boards))

    def read_energy(self, device_id: str) -> Reading:
        return self.boards[device_id].read_energy(device_id)

    def read_power(self, device_id: str) -> Reading:
        return self.boards[device_id].read_power(device_id)

    def close(self) -> None: ...


def test_a_board_that_an_ended_engine_leaves_is_watched_again(quick: None) -> None:
    """Two boards of one engine; the next one takes one of them. The other's joules count on, and once."""
    boards = Boards("gpu-0", "gpu-1", "gpu-2")
    node = Node(boards, meter=boards)  # type: ignore[arg-type]
    node.start()
    first, second = FakeEngine("e0", "s0"), FakeEngine("e1", "s1")
    node.hello(first.hello(gpus=("gpu-0", "gpu-1")))
    until(ticking(node, lambda: node.engines()[0].seam_found), "no seam")
    node.goodbye("e0")
    node.hello(second.hello(gpus=("gpu-1",)))
    until(ticking(node, lambda: node.engines()[0].segment.stopped), "the first engine's monitor goes on")
    watched = node.watched()
    assert watched is not None
    assert set(watched.device_ids) == {"gpu-0", "gpu-2"}
    assert node.engines()[1].segment.device_ids == ("gpu-1",)
    until(ticking(node, lambda: sum(not s.stopped for s in node.segments()) == 2), "monitors go on")
    joules = [node.counters.joules(name) or 0.0 for name in boards.boards]
    until(lambda: sum(node.all_joules().values()) > sum(joules) - 1500.0, "the buckets fall behind")
    ahead = sum(node.counters.joules(name) or 0.0 for name in boards.boards) - sum(node.all_joules().values())
    assert ahead > -150.0
    node.stop()


@pytest.mark.parametrize("pause_seconds", [0.0, 1.5, 3.5])
def test_the_starts_of_engines_that_come_one_after_the_other_are_all_measured(
    quick: None, pause_seconds: float
) -> None:
    """Data parallel: who comes first takes its board from the watch, and another watch begins on the rest."""
    boards = Boards("gpu-0", "gpu-1", "gpu-2")
    node = Node(boards, meter=boards)  # type: ignore[arg-type]
    node.start()
    first = node.segments()[0].monitor
    until(lambda: first.series(0.0, time.time() + 1)[0].unix_seconds.size > 3, "no reading")
    began = time.monotonic_ns()
    time.sleep(1.5)
    node.hello(FakeEngine("e0").hello(gpus=("gpu-0",), started_ns=began))
    deadline = time.monotonic() + pause_seconds
    until(ticking(node, lambda: time.monotonic() >= deadline), "time stands still")
    node.hello(FakeEngine("e1").hello(gpus=("gpu-1", "gpu-2"), started_ns=began))
    engines = node.engines()
    until(ticking(node, lambda: all(e.startup.reason is None for e in engines)), "a start has no joules")
    for engine, count in zip(engines, (1, 2), strict=True):
        startup = engine.startup
        assert startup.end_unix is not None
        watts = 200.0 * count
        assert startup.joules == pytest.approx(watts * (startup.end_unix - startup.start_unix), rel=0.1)
    node.stop()


def test_an_engine_that_is_forgotten_leaves_its_counts(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattserve.meter.engines.MAX_ENDED", 0)
    node = modelled_node()
    node.start()
    registry = CollectorRegistry()
    NodeCollector(node, info={}, registry=registry)

    def counted() -> dict[str, float]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {
            "steps": sum(s.value for s in samples if s.name == "wattserve_engine_steps_total"),
            "requests": sum(s.value for s in samples if s.name == "wattserve_request_energy_joules_count"),
            **{
                f"{s.labels['bucket']} {s.labels['model']}": s.value
                for s in samples
                if s.name == "wattserve_energy_joules_total"
            },
        }

    first = FakeEngine("e0", "s0")
    node.hello(first.hello())
    until(ticking(node, lambda: node.engines()[0].seam_found), "no seam")
    node.request_started(RequestStarted("s0", "r"))
    node.steps(first.step(prompts={"r": 20_000}))
    node.request_finished(RequestFinished("s0", "r", 20_000, 1))
    until(ticking(node, lambda: counted()["requests"] == 1), "the request does not settle")
    node.goodbye("e0")
    before = counted()
    node.hello(FakeEngine("e1", "s1").hello())
    until(ticking(node, lambda: node.forgotten == 1), "the engine is not forgotten")
    after = counted()
    assert [engine.hello.engine for engine in node.engines()] == ["e1"]
    assert after["steps"] == before["steps"] == 1
    assert after["requests"] == 1
    assert after["prefill tiny"] == pytest.approx(before["prefill tiny"]) != 0.0
    assert all(after[name] >= joules for name, joules in before.items())
    assert f"unattributed {NO_ENGINE}" in after
    assert node.request_energy("r") is None
    routes = NodeRoutes(View(node), software="test")
    assert "1 engine that ended is forgotten" in routes.unknown("r")
    assert routes.state()["engines_forgotten"] == 1
    node.stop()
