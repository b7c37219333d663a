"""Engines of one meter, as messages: who is metered on what, exact steps, requests over several engines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meter_node import FakeEngine, hello, modelled_node, until
from wattmeter.meters.modelled import ModelledMeter
from wattmeter.steps import recording
from wattserve.meter.answers import View
from wattserve.meter.engines import Node, RefusedError
from wattserve.meter_spec import MeterSpec
from wattserve.protocol.messages import RequestFinished, RequestStarted


@pytest.fixture
def node() -> Iterator[Node]:
    made = modelled_node()
    made.start()
    yield made
    made.stop()


def ticking(node: Node, condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, looked at after a tick of the node."""

    def check() -> bool:
        node.tick()
        return condition()

    return check


def settled(node: Node, *request_ids: str) -> bool:
    node.tick()
    found = [node.request_energy(i) for i in request_ids]
    return all(energy is not None and energy.status == "settled" for energy in found)


def test_two_engines_count_their_own_steps_and_losses(node: Node) -> None:
    first, second = FakeEngine("e0", "s0"), FakeEngine("e1", "s1")
    node.hello(first.hello())
    node.hello(second.hello())
    for number in range(20):
        assert node.steps(first.step(prompts={f"a{number}": 10}))
        records = second.step(prompts={f"b{number}": 10})
        if number not in (7, 8):
            assert node.steps(records)
    assert [(e.steps, e.lost_steps) for e in node.engines()] == [(20, 0), (18, 2)]
    assert [e.hello.engine for e in node.engines("s1")] == ["e1"]
    assert {i for e in node.engines() for i in e.segment.device_ids} == {"modelled-0", "modelled-1"}


def test_steps_before_a_hello_cannot_be_used(node: Node) -> None:
    assert not node.steps(FakeEngine().step("a"))


def test_steps_of_no_time_are_refused_and_counted_as_lost(node: Node) -> None:
    """A step of the next hour held every joule back until then; one of the past was joined to nothing."""
    engine = FakeEngine()
    node.hello(engine.hello())
    assert node.steps(engine.step(prompts={"r": 10}))
    good = engine.step("r")
    assert node.steps(good)
    (known,) = node.engines()
    hour = 3600 * 10**9
    for moved, says in ((hour, "time to come"), (-hour, "from before")):
        records = engine.step("r")
        batch = replace(
            records.batch, launch_ns=records.batch.launch_ns + moved, end_ns=records.batch.end_ns + moved
        )
        with pytest.raises(RefusedError, match=says):
            node.steps(replace(records, batch=batch))
    with pytest.raises(RefusedError, match="time to come"):
        node.steps(replace(engine.step("r"), complete_ns=2**63 - 1))
    assert (known.steps, known.lost_steps) == (2, 0)
    assert node.steps(engine.step("r"))
    assert (known.steps, known.lost_steps) == (3, 3)
    found = node.request_energy("r")
    assert found is not None


@pytest.mark.parametrize(
    "padding",
    [{"tile_tokens": 10**400}, {"tile_tokens": float("inf")}, {"graph_sizes": [2**40]}, {"graph_sizes": 5}],
)
def test_an_engines_absurd_padding_is_none(node: Node, padding: dict[str, Any]) -> None:
    engine = FakeEngine()
    node.hello(engine.hello(padding=padding))
    assert node.steps(engine.step(prompts={"r": 10}))


def test_the_tenant_of_an_id_is_that_of_the_accepted_request(node: Node) -> None:
    engine = FakeEngine()
    node.hello(engine.hello())
    for group in ("stranger", "payer"):
        node.request_started(RequestStarted("s", "r", group))
    node.request_finished(RequestFinished("s", "r", aborted=True, refused=True, group="stranger"))
    node.steps(engine.step(prompts={"r": 10}))
    node.steps(engine.step("r"))
    node.request_finished(RequestFinished("s", "r", 10, 2))
    found = node.request_energy("r")
    assert found is not None
    assert (found.group, found.output_tokens) == ("payer", 2)


def test_a_request_is_found_by_its_id_and_only_where_it_ran(node: Node) -> None:
    """Data parallel: both engines are of one server, and nothing says which of them runs a request."""
    first, second = FakeEngine("e0"), FakeEngine("e1")
    node.hello(first.hello())
    node.hello(second.hello())
    until(ticking(node, lambda: all(e.seam_found for e in node.engines())), "no seam")
    node.request_started(RequestStarted("s", "r0", "shop"))
    node.steps(first.step(prompts={"r0": 100}))
    for _ in range(5):
        node.steps(first.step("r0"))
    node.request_finished(RequestFinished("s", "r0", 100, 6))
    until(lambda: settled(node, "r0"), "not settled")
    energy = node.request_energy("r0")
    assert energy is not None
    assert energy.joules is not None
    assert energy.joules > 0
    assert (energy.prompt_tokens, energy.output_tokens, energy.aborted) == (100, 6, False)
    assert energy.group == "shop"
    assert node.request_energy("r0", "s") == energy
    assert node.request_energy("r0", "another") is None
    other = node.engines()[1].monitor
    until(lambda: (found := other.request_energy("r0")) is None or found.status == "settled", "not settled")
    part = other.request_energy("r0")
    assert part is None or part.joules == 0.0


def test_a_request_that_ran_on_two_engines_is_the_sum(node: Node) -> None:
    """Its samples on both engines of a server, or prefill on one and decoding on the other."""
    first, second = FakeEngine("e0"), FakeEngine("e1")
    node.hello(first.hello())
    node.hello(second.hello())
    until(ticking(node, lambda: all(e.seam_found for e in node.engines())), "no seam")
    node.request_started(RequestStarted("s", "r"))
    node.steps(first.step(prompts={"r": 200}))
    node.steps(second.step("r"))
    node.steps(second.step("r"))
    node.request_finished(RequestFinished("s", "r", 200, 3))
    until(lambda: settled(node, "r"), "not settled")
    parts = [engine.monitor.request_energy("r") for engine in node.engines()]
    whole = node.request_energy("r")
    assert whole is not None
    assert whole.joules == pytest.approx(sum(p.joules or 0.0 for p in parts if p is not None))
    assert all(p is not None and (p.joules or 0.0) > 0 for p in parts)
    assert whole.prefill_joules
    assert whole.decode_joules


def test_a_short_request_whose_records_come_after_its_end(node: Node) -> None:
    first, second = FakeEngine("e0"), FakeEngine("e1")
    node.hello(first.hello())
    node.hello(second.hello())
    until(ticking(node, lambda: all(e.seam_found for e in node.engines())), "no seam")
    node.request_started(RequestStarted("s", "r"))
    records = second.step(prompts={"r": 5})
    node.request_finished(RequestFinished("s", "r", 5, 1))
    node.steps(records)
    until(lambda: settled(node, "r"), "not settled")
    energy = node.request_energy("r")
    assert energy is not None
    assert energy.output_tokens == 1
    assert (energy.joules or 0.0) > 0


def test_a_request_right_after_the_hello_has_its_joules(node: Node) -> None:
    """The node's watch has read the devices all along: an engine that works at once misses nothing."""
    until(lambda: View(node).series(0.0, time.time() + 1)[0].unix_seconds.size > 3, "the watch reads nothing")
    engine = FakeEngine()
    node.hello(engine.hello())
    node.request_started(RequestStarted("s", "r", ""))
    time.sleep(0.02)
    node.steps(engine.step(prompts={"r": 100}))
    node.request_finished(RequestFinished("s", "r", 1, 100))
    until(lambda: settled(node, "r"), "not settled")
    energy = node.request_energy("r")
    assert energy is not None
    assert (energy.joules or 0.0) > 0.0, energy


def test_starting_is_a_component_of_its_own(node: Node) -> None:
    engine = FakeEngine()
    until(lambda: View(node).series(0.0, time.time() + 1)[0].unix_seconds.size > 3, "the watch reads nothing")
    began = time.monotonic_ns()
    time.sleep(1.0)
    node.hello(engine.hello(started_ns=began))
    (known,) = node.engines()
    until(ticking(node, lambda: known.startup.reason is None), "the start-up is not measured")
    # The device idles: 125 W for as long as the engine took to start.
    assert known.startup.end_unix is not None
    seconds = known.startup.end_unix - known.startup.start_unix
    assert seconds > 1.0
    assert known.startup.joules == pytest.approx(124.82 * seconds, rel=0.05)
    view = View(node, "s")
    start, end = known.startup.start_unix + 0.5, known.startup.end_unix + 0.5
    until(lambda: view.window_energy(start, end).complete, "the window is not complete")
    window = view.window_energy(start, end)
    share = view.startup_joules(start, end)
    assert known.startup.joules is not None
    assert share == pytest.approx(known.startup.joules - 0.5 * 124.82, rel=0.05)
    assert window.total_joules == pytest.approx(
        share + (window.idle_joules or 0.0) + (window.unattributed_joules or 0.0)
    )
    # No request of the whole life of the engine pays for it.
    assert window.prefill_joules == window.decode_joules == 0.0


def test_a_dead_engine_keeps_what_it_has_and_another_takes_its_devices(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattserve.meter.engines.SILENT_SECONDS", 0.2)
    monkeypatch.setattr("wattserve.meter.engines.GONE_SECONDS", 0.4)
    first = FakeEngine("e0", "s0")
    node.hello(first.hello())
    until(ticking(node, lambda: node.engines()[0].seam_found), "no seam")
    node.hello(first.hello())
    node.request_started(RequestStarted("s0", "r"))
    node.steps(first.step(prompts={"r": 100}))
    time.sleep(0.3)
    until(ticking(node, lambda: not node.engines()[0].alive), "the silence is not seen")
    # The request has no end: it is aborted with its engine, and what it cost is known.
    until(lambda: settled(node, "r"), "not settled")
    energy = node.request_energy("r")
    assert energy is not None
    assert (energy.joules or 0.0) > 0
    assert energy.aborted
    node.hello(FakeEngine("e1", "s1").hello())
    again = node.engines("s1")[0]
    assert again.segment.device_ids == ("modelled-0",)
    until(ticking(node, lambda: node.engines("s0")[0].segment.stop_at is not None), "nothing took over")
    assert node.request_energy("r") == energy


def test_two_engines_on_one_gpu_are_refused() -> None:
    origin = time.monotonic_ns()
    meter = ModelledMeter(lambda ns: 200.0 * (ns - origin) * 1e-9)
    node = Node(MeterSpec("rapl"), meter=meter)
    node.hello(hello("e0", "s0"))
    with pytest.raises(RefusedError, match="used by another engine, of tiny"):
        node.hello(hello("e1", "s1"))
    assert "used by another engine" in node.no_engine_reason("s1")
    node.request_started(RequestStarted("s1", "r"))
    energy = node.request_energy("r", "s1")
    assert energy is not None
    assert energy.joules is None
    assert "used by another engine" in str(energy.reason)
    node.stop()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"boot_id": "of-another-host"}, "another host"),
        ({"sent_ns": time.monotonic_ns() + 10**15}, "monotonic clock"),
    ],
)
def test_clocks_that_cannot_be_joined_are_refused(node: Node, more: dict[str, Any], says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        node.hello(hello(**more))
    assert not node.engines()


def test_a_meter_that_was_started_again_knows_what_was_before(tmp_path: Path) -> None:
    state = tmp_path / "meter.state"
    before = modelled_node(state=state)
    before.start()
    engine = FakeEngine()
    before.hello(engine.hello())
    for _ in range(5):
        before.steps(engine.step("r"))
    until(ticking(before, state.exists), "nothing was saved")
    saved = json.loads(state.read_text())
    # As if killed: the engine goes on, and what it sends meets nobody.
    for _ in range(3):
        engine.step("r")
    after = modelled_node(state=state)
    after.start()
    after.hello(engine.hello())
    assert after.steps(engine.step("r"))
    (known,) = after.engines()
    assert saved["engines"]["e0"]["next_step"] == 5
    assert (known.steps, known.lost_steps) == (1, 3)
    energy = after.request_energy("r")
    assert energy is not None
    assert "lost_step_records" in energy.flags
    until(lambda: after.counters.holes, "the hole is not named")
    assert after.counters.holes[0].device_id == "modelled-0"
    window = View(after).window_energy(after.counters.holes[0].start_unix - 1.0, time.time())
    assert "meter_restarted" in window.flags
    assert not window.complete
    for node in (before, after):
        node.stop()


def test_a_state_of_another_boot_or_of_no_form_is_not_used(tmp_path: Path) -> None:
    state = tmp_path / "meter.state"
    for content in ("{", '{"boot_id": "another", "devices": {"modelled-0": [1, 2, 3]}}', "[]"):
        state.write_text(content)
        node = modelled_node(state=state)
        assert node.counters.as_json() == {}
        node.stop()


def test_each_engine_has_its_own_recording(tmp_path: Path) -> None:
    node = modelled_node(record=tmp_path / "recording")
    node.start()
    engines = [FakeEngine("e0"), FakeEngine("e1")]
    for engine in engines:
        node.hello(engine.hello())
    for engine, count in zip(engines, (4, 6), strict=True):
        for _ in range(count):
            node.steps(engine.step("r"))
    node.stop()
    folders = [tmp_path / "recording", tmp_path / "recording" / "engine-1"]
    assert [len(recording.read(folder).steps) for folder in folders] == [4, 6]
