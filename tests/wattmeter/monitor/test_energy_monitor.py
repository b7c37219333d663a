"""The monitor: requests + idle + unattributed = the counter's change, whatever happens."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meter_fakes import SECOND, ScriptedMeter, batch
from wattmeter.faults import Fault
from wattmeter.meters.base import Reading
from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattmeter.schema import WindowEnergy
from world import MODEL, World


def sum_of_parts(window: WindowEnergy) -> float:
    parts = (window.prefill_joules, window.decode_joules, window.unattributed_joules)
    return sum(part or 0.0 for part in parts) + (window.idle_joules or 0.0)


def test_a_request_gets_what_it_used() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.serve({"a": (500, 60)})
    world.pass_time(3.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.status == "settled"
    assert energy.joules == pytest.approx(world.above_idle, rel=0.01)
    prefill = MODEL.fixed_joules + 500 * MODEL.prefill_token_joules
    assert energy.prefill_joules == pytest.approx(prefill, rel=0.1)
    assert (energy.prompt_tokens, energy.output_tokens, energy.source) == (500, 60, "modelled")
    assert Fault.MODELLED in energy.flags
    assert energy.uncertainty_joules is not None
    assert energy.to_json()["joules"] == energy.joules


def test_idle_is_its_own_bucket_and_measured() -> None:
    world = World(step_model=MODEL, idle_watts=82.0)
    world.pass_time(6.0)
    begin = world.unix
    snapshot = world.monitor.snapshot()
    assert snapshot.idle.watts == pytest.approx(82.0, rel=0.01)
    assert snapshot.idle.how == "measured"
    assert snapshot.bucket_joules["unattributed"] == pytest.approx(0.0, abs=1e-6)
    world.serve({"a": (100, 150)})
    world.pass_time(8.0)
    window = world.monitor.window_energy(begin, begin + 9.0)
    assert window.complete
    assert window.idle_joules == pytest.approx(82.0 * 9.0, rel=0.01)
    assert window.total_joules == pytest.approx(82.0 * 9.0 + world.above_idle, rel=0.01)


def test_idle_is_measured_again() -> None:
    world = World(step_model=MODEL, idle_watts=82.0)
    world.pass_time(6.0)
    world.serve({"a": (100, 50)})
    before = world.exact(world.now_ns)
    world.idle_watts = 120.0
    world.done += before - world.exact(world.now_ns)
    world.pass_time(12.0)
    idle = world.monitor.snapshot().idle
    assert idle.watts == pytest.approx(120.0, rel=0.02)
    assert idle.measured_unix == pytest.approx(world.unix, abs=2.0)


def test_idle_that_was_never_measured_is_flagged_and_not_made_up() -> None:
    world = World(step_model=MODEL)
    begin = world.unix + 2.0
    world.serve({"a": (100, 300)})
    world.pass_time(1.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert Fault.IDLE_NOT_MEASURED in energy.flags
    window = world.monitor.window_energy(begin, begin + 3.0)
    assert window.idle_joules is None
    assert Fault.IDLE_NOT_MEASURED in window.flags
    assert sum_of_parts(window) == pytest.approx(window.total_joules)


def test_given_idle_watts_are_kept() -> None:
    world = World(step_model=MODEL, idle_watts=82.0)
    given_world = World(step_model=MODEL)
    assert world.monitor.snapshot().idle.how is None
    monitor = EnergyMonitor(given_world, model="m", idle_watts=50.0)
    assert monitor.snapshot().idle.to_json()["how"] == "given"
    with pytest.raises(ValueError, match="idle watts"):
        EnergyMonitor(given_world, model="m", idle_watts=-1.0)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_every_ten_seconds_add_up(devices: int) -> None:
    world = World(step_model=MODEL, devices=devices, seed=devices)
    world.pass_time(4.0)
    begin = world.unix
    number = 0
    while world.unix < begin + 35.0:
        number += 1
        count = world.chance.randrange(1, 5)
        world.serve(
            {
                f"{number}-{i}": (world.chance.randrange(10, 900), world.chance.randrange(1, 80))
                for i in range(count)
            },
            seconds=world.chance.uniform(0.006, 0.04),
        )
        world.pass_time(world.chance.choice([0.0, 0.0, 0.3, 4.0]))
    world.pass_time(3.0)
    for start in np.arange(begin, begin + 25.0, 2.5):
        window = world.monitor.window_energy(start, start + 10.0)
        assert window.complete
        assert window.total_joules is not None
        assert len(window.devices) == devices
        assert sum_of_parts(window) == pytest.approx(window.total_joules, rel=1e-3)
        assert abs(window.unattributed_joules or 0.0) < 0.05 * window.total_joules
    snapshot = world.monitor.snapshot()
    assert snapshot.conservation_error_ratio < 1e-9
    assert sum(snapshot.bucket_joules.values()) == pytest.approx(snapshot.settled_joules, rel=1e-9)


def test_the_requests_are_what_is_attributed() -> None:
    world = World(step_model=MODEL)
    world.pass_time(4.0)
    names = []
    for i in range(10):
        requests = {f"{i}-{j}": (50 * (j + 1), 10 * (j + 1)) for j in range(4)}
        names += list(requests)
        world.serve(requests)
    world.pass_time(3.0)
    settled = [world.monitor.request_energy(name) for name in names]
    assert all(energy is not None and energy.status == "settled" for energy in settled)
    total = sum(energy.joules or 0.0 for energy in settled if energy is not None)
    buckets = world.monitor.snapshot().bucket_joules
    assert total == pytest.approx(buckets["prefill"] + buckets["decode"], rel=1e-9)
    assert total == pytest.approx(world.above_idle, rel=0.02)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("serve"), st.integers(1, 4), st.integers(1, 60)),
        st.tuples(st.just("rest"), st.floats(0.05, 5.0), st.none()),
        st.tuples(st.just("fault"), st.sampled_from([Fault.TIMEOUT, Fault.GPU_LOST]), st.floats(0.1, 4.0)),
        st.tuples(st.just("reset"), st.none(), st.none()),
        st.tuples(st.just("unrecorded"), st.integers(1, 20), st.none()),
        st.tuples(st.just("step back"), st.floats(-3.0, 3.0), st.none()),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVENTS, st.integers(0, 1000))
def test_conservation_whatever_happens(events: list[tuple[str, object, object]], seed: int) -> None:
    """Faults, resets, lost records, clock steps: the counter's change is divided, the rest is flagged."""
    world = World(step_model=MODEL, devices=1 + seed % 2, seed=seed)
    world.pass_time(3.0)
    begin, joules_begin = world.unix, world.exact(world.now_ns)
    stepped = troubled = False
    for number, (what, first, second) in enumerate(events):
        if what == "serve":
            world.serve({f"{number}-{i}": (40, int(str(second))) for i in range(int(str(first)))})
        elif what == "rest":
            world.pass_time(float(str(first)))
        elif what == "fault":
            assert isinstance(first, Fault)
            world.faults["gpu-0"] = first
            world.pass_time(float(str(second)))
            world.faults.clear()
            world.pass_time(1.2)
            troubled = True
        elif what == "reset":
            world.resets["gpu-0"] = world.exact(world.now_ns)
            world.pass_time(0.3)
            troubled = True
        elif what == "unrecorded":
            for _ in range(int(str(first))):
                world.step([("ghost", 0, 1, 10)], record=False)
        else:
            world.wall_offset += float(str(first))
            stepped = True
    world.pass_time(6.0)
    snapshot = world.monitor.snapshot()
    assert snapshot.conservation_error_ratio < 1e-9
    assert sum(snapshot.bucket_joules.values()) == pytest.approx(snapshot.settled_joules, rel=1e-9, abs=1e-6)
    if not stepped:
        window = world.monitor.window_energy(begin, world.unix - 1.5)
        assert window.total_joules is not None
        assert sum_of_parts(window) == pytest.approx(window.total_joules, rel=1e-3)
        assert window.complete or Fault.PARTIAL_COVERAGE in window.flags
        if not troubled:
            assert window.complete
            exact = len(world.devices) * (world.exact(world.now_ns - round(1.5e9)) - joules_begin)
            assert window.uncertainty_joules is not None
            assert window.total_joules == pytest.approx(exact, abs=5.0 * window.uncertainty_joules + 1.0)


def test_unrecorded_work_is_unattributed_not_idle() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    for _ in range(100):
        world.step([("ghost", 0, 1, 10)], record=False)
    world.pass_time(6.0)
    buckets = world.monitor.snapshot().bucket_joules
    assert buckets["unattributed"] == pytest.approx(world.above_idle, rel=0.05)


def test_lost_records_are_counted_and_flagged() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.monitor.request_started("a")
    for i in range(100):
        world.step([("a", 0, 1, 10 + i)], record=i not in {40, 41, 42})
    world.monitor.request_finished("a")
    world.pass_time(3.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert Fault.LOST_STEP_RECORDS in energy.flags
    assert world.monitor.snapshot().faults["lost_step_records"] == 3
    window = world.monitor.window_energy(world.unix - 6.0, world.unix - 2.0)
    assert Fault.LOST_STEP_RECORDS in window.flags


def test_aborted_requests_keep_theirs() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.monitor.request_started("a", prompt_tokens=10)
    for i in range(50):
        world.step([("a", 0, 1, 10 + i)])
    world.monitor.request_finished("a", output_tokens=50, aborted=True)
    world.pass_time(2.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert (energy.status, energy.aborted) == ("settled", True)
    assert energy.joules == pytest.approx(world.above_idle, rel=0.02)


def test_a_request_without_steps_settles_at_zero_joules() -> None:
    """Refused by the engine before it ran: 0 J is the truth here, and it settles."""
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.monitor.request_started("a")
    world.monitor.request_finished("a", aborted=True)
    world.pass_time(2.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert (energy.status, energy.joules) == ("settled", 0.0)


@pytest.mark.parametrize("output_tokens", [3, None])
def test_a_request_that_answered_without_a_record_has_no_number(output_tokens: int | None) -> None:
    """Its records were lost: it ran, so 0 J would be wrong; a stream may not tell its tokens."""
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.monitor.request_started("a")
    world.monitor.request_finished("a", output_tokens=output_tokens)
    world.pass_time(2.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert (energy.status, energy.joules) == ("settled", None)
    assert energy.reason == "no step of this request was recorded"
    assert Fault.LOST_STEP_RECORDS in energy.flags


def test_before_the_first_step_there_is_no_number() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.monitor.request_started("a")
    for _ in range(2):  # at once, and after what follows its start was settled
        energy = world.monitor.request_energy("a")
        assert energy is not None
        assert (energy.status, energy.joules, energy.prefill_joules) == ("provisional", None, None)
        assert energy.uncertainty_joules is None
        assert energy.reason == "no step of this request has been recorded yet"
        assert not world.monitor.has_steps("a")
        world.pass_time(2.0)
    world.step([("a", 100, 0, 0)])
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert world.monitor.has_steps("a")
    assert energy.joules is not None
    assert energy.joules > 0
    assert energy.reason is None


def test_prompts_are_those_told_or_else_those_recorded() -> None:
    world = World(step_model=MODEL)
    world.monitor.add_prompts([("a", "a-0", 30), ("b", "b-0", 8)])
    world.monitor.request_started("a")
    world.monitor.add_prompts([("a", "a-0", 30), ("a", "a-1", 45)])
    world.monitor.request_finished("b", prompt_tokens=9)

    def prompt(name: str) -> int | None:
        energy = world.monitor.request_energy(name)
        assert energy is not None
        return energy.prompt_tokens

    assert (prompt("a"), prompt("b")) == (75, 9)
    lost = batch([(world.now_ns, world.now_ns + SECOND, [("a", 1, 0, 0)])], first_index=7)
    world.monitor.add_steps(replace(lost, lost_steps=2))
    assert prompt("a") is None  # a part of it may be among the lost


def test_unknown_requests_are_none() -> None:
    assert World().monitor.request_energy("nobody") is None


def test_groups_share_what_is_attributed() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    begin = world.unix
    world.serve({"a": (400, 60), "b": (40, 60)}, groups={"a": "code", "b": "conv"})
    world.pass_time(3.0)
    window = world.monitor.window_energy(begin - 0.5, begin + 2.5)
    assert set(window.groups) == {"code", "conv"}
    attributed = (window.prefill_joules or 0.0) + (window.decode_joules or 0.0)
    assert sum(window.groups.values()) == pytest.approx(attributed, rel=1e-9)
    assert window.groups["code"] > window.groups["conv"]
    assert window.to_json(groups=True)["groups"] == window.groups
    assert "groups" not in window.to_json()


def test_provisional_is_near_settled_and_fast() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.serve({"warm": (100, 100)})
    world.monitor.request_started("a")
    for i in range(60):
        world.step([("a", 0, 1, 10 + i)])
    world.monitor.request_finished("a", output_tokens=60)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.status == "provisional"
    begin = time.perf_counter()
    for _ in range(200):
        world.monitor.request_energy("a")
    assert (time.perf_counter() - begin) / 200 < 1e-3
    world.pass_time(3.0)
    settled = world.monitor.request_energy("a")
    assert settled is not None
    assert energy.joules == pytest.approx(settled.joules, rel=0.15)


def test_a_meter_that_fails_gives_a_reason_and_no_number() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.monitor.request_started("a")
    world.step([("a", 100, 0, 0)])
    world.faults["gpu-0"] = Fault.GPU_LOST
    world.pass_time(2.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.joules is None
    assert energy.reason == "meter of gpu-0: gpu_lost"
    device = world.monitor.snapshot().devices[0]
    assert device.power_watts is None
    assert device.flags == {Fault.GPU_LOST}
    assert device.faults == {"gpu_lost": 1}
    window = world.monitor.window_energy(world.unix - 1.0, world.unix)
    assert not window.complete
    assert Fault.GPU_LOST in window.flags


def test_a_request_in_a_counter_reset_has_no_number() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.monitor.request_started("a")
    for i in range(150):
        if i == 75:
            world.resets["gpu-0"] = world.exact(world.now_ns)
        world.step([("a", 0, 1, 10 + i)])
    world.monitor.request_finished("a")
    world.pass_time(3.0)
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert (energy.status, energy.joules) == ("settled", None)
    assert Fault.COUNTER_RESET in energy.flags
    assert energy.reason is not None


def test_a_frozen_counter_is_no_idle_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sensor that stands at one value must not become 0 W of idle power."""
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    idle = world.monitor.snapshot().idle.watts
    frozen = world.read_energy("gpu-0")

    def read_frozen(device_id: str) -> Reading:
        return Reading(device_id, world.now_ns, world.unix, energy_joules=frozen.energy_joules)

    monkeypatch.setattr(world, "read_energy", read_frozen)
    world.pass_time(5.0)
    assert world.monitor.snapshot().idle.watts == idle
    world.monitor.request_started("a")
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert energy.reason == "meter of gpu-0: stale_sensor"
    monkeypatch.undo()
    world.pass_time(3.0)
    window = world.monitor.window_energy(world.unix - 7.0, world.unix - 2.0)
    assert Fault.STALE_SENSOR in window.flags


def test_one_lost_device_of_two_leaves_no_half_sum() -> None:
    world = World(step_model=MODEL, devices=2)
    world.pass_time(5.0)
    world.faults["gpu-1"] = Fault.GPU_LOST
    world.pass_time(5.0)
    window = world.monitor.window_energy(world.unix - 3.0, world.unix - 1.0)
    assert window.total_joules is None
    assert [device.joules is None for device in window.devices] == [False, True]
    assert not window.complete


def test_a_clock_step_is_flagged() -> None:
    world = World(step_model=MODEL)
    world.pass_time(5.0)
    world.wall_offset += 2.0
    world.pass_time(3.0)
    window = world.monitor.window_energy(world.unix - 4.0, world.unix - 1.0)
    assert Fault.CLOCK_STEP in window.flags
    assert window.devices[0].flags == {Fault.CLOCK_STEP}


def test_windows_ahead_of_what_is_settled_are_not_complete() -> None:
    world = World(step_model=MODEL)
    world.pass_time(6.0)
    window = world.monitor.window_energy(world.unix - 3.0, world.unix + 1.0)
    assert not window.complete
    assert Fault.PARTIAL_COVERAGE in window.flags
    with pytest.raises(ValueError, match="end after it starts"):
        world.monitor.window_energy(5.0, 5.0)


def test_series_is_the_counter() -> None:
    world = World(step_model=MODEL)
    world.pass_time(6.0)
    (series,) = world.monitor.series(world.unix - 3.0, world.unix)
    assert 25 <= len(series.unix_seconds) <= 31
    assert np.all(np.diff(series.joules) > 0.0)
    assert np.median(series.watts) == pytest.approx(100.0, rel=0.02)
    assert set(series.to_json()) == {"id", "name", "source", "unix_seconds", "joules", "watts"}


def test_settled_requests_are_handed_out_once() -> None:
    world = World(step_model=MODEL)
    world.pass_time(4.0)
    world.serve({"a": (10, 5), "b": (10, 5)})
    world.pass_time(3.0)
    first = world.monitor.snapshot(take_settled=True)
    assert {energy.id for energy in first.settled_requests} == {"a", "b"}
    assert world.monitor.snapshot(take_settled=True).settled_requests == ()


def test_the_counter_is_read_ten_times_a_second_and_a_little_oftener_at_the_start() -> None:
    world = World(step_model=MODEL)
    world.pass_time(20.0)
    reads = np.array(world.energy_reads)
    for first, thirteenth in zip(reads, reads[12:], strict=False):
        assert thirteenth - first >= 0.98 * SECOND
    assert 180 < len(reads) <= 203


def test_memory_is_bounded() -> None:
    world = World(step_model=MODEL, max_requests=50, history_seconds=20)
    world.pass_time(3.0)
    for i in range(200):
        world.monitor.request_started(f"r{i}")
        world.step([(f"r{i}", 10, 0, 0)])
        world.monitor.request_finished(f"r{i}")
    world.pass_time(2.0)
    assert world.monitor.request_energy("r0") is None
    assert world.monitor.request_energy("r199") is not None
    assert sum(world.monitor.request_energy(f"r{i}") is not None for i in range(200)) <= 50


def test_the_model_is_fitted_while_serving() -> None:
    guess = type(MODEL)(1.0, 0.03, 0.005, 50e-6, fixed_seconds=0.005)
    world = World(step_model=guess)
    world.pass_time(4.0)
    for i in range(60):
        count = world.chance.randrange(1, 6)
        world.serve(
            {
                f"{i}-{j}": (world.chance.randrange(10, 1500), world.chance.randrange(1, 60))
                for j in range(count)
            }
        )
    world.pass_time(2.0)
    model = world.monitor.snapshot().step_model
    assert model is not None
    assert model["trusted"] is True
    assert model["fixed_joules"] == pytest.approx(MODEL.fixed_joules, rel=0.15)
    assert model["prefill_token_joules"] == pytest.approx(MODEL.prefill_token_joules, rel=0.15)


def test_threads_run_and_stop_and_survive_a_meter_that_raises() -> None:
    start = time.monotonic_ns()
    failing = threading.Event()

    def energy() -> float:
        if failing.is_set():
            raise RuntimeError("a driver's surprise")
        return (time.monotonic_ns() - start) // 100_000_000 * 10.0

    monitor = EnergyMonitor(ScriptedMeter(time.monotonic_ns, energy), model="m")
    monitor.start()
    with pytest.raises(RuntimeError, match="already started"):
        monitor.start()
    monitor.request_started("a")
    deadline = time.monotonic() + 30.0
    while not len(monitor.series(0.0, time.time())[0].unix_seconds) and time.monotonic() < deadline:
        time.sleep(0.02)
    monitor.add_steps(batch([(time.monotonic_ns(), time.monotonic_ns() + 1000, [("a", 10, 0, 0)])]))
    failing.set()
    reason = None
    while reason is None and time.monotonic() < deadline:
        time.sleep(0.02)
        answer = monitor.request_energy("a")
        assert answer is not None
        reason = answer.reason
    assert reason == "meter of gpu: unknown_error"
    failing.clear()
    while reason is not None and time.monotonic() < deadline:
        time.sleep(0.02)
        answer = monitor.request_energy("a")
        assert answer is not None
        reason = answer.reason
    monitor.stop()
    assert reason is None
    assert not any(thread.name.startswith("wattmeter") for thread in threading.enumerate())


def test_a_meter_without_devices_is_refused() -> None:
    class Empty(ScriptedMeter):
        @property
        def devices(self) -> tuple[()]:
            return ()

    with pytest.raises(ValueError, match="no device"):
        EnergyMonitor(Empty(time.monotonic_ns, lambda: 0.0), model="m")


@pytest.mark.parametrize("given", [None, 70.0])
def test_without_attribution_it_answers_null_with_the_reason(given: float | None) -> None:
    world = World(idle_watts=100.0, attribution=False, given_watts=given)
    world.pass_time(6.0)
    window = world.monitor.window_energy(world.unix - 3.0, world.unix - 1.0)
    assert window.complete
    assert window.total_joules == pytest.approx(200.0, rel=0.01)
    assert (window.prefill_joules, window.decode_joules, window.groups) == (None, None, {})
    assert window.idle_joules == (None if given is None else pytest.approx(140.0))
    assert window.unattributed_joules == pytest.approx(200.0 - 2 * (given or 0.0), rel=0.01)
    assert (Fault.IDLE_NOT_MEASURED in window.flags) == (given is None)
    assert "no engine steps" in (window.reason or "")
    answer = window.to_json(groups=True)
    assert (answer["groups"], answer["reason"]) == (None, window.reason)
    assert type(window).from_json(answer).reason == window.reason
    world.monitor.request_started("a")
    energy = world.monitor.request_energy("a")
    assert energy is not None
    assert (energy.joules, energy.reason) == (None, window.reason)
    snapshot = world.monitor.snapshot()
    assert (snapshot.step_model, snapshot.reason) == (None, window.reason)
    assert set(snapshot.bucket_joules) == {"unattributed"} | (set() if given is None else {"idle"})
    assert sum(snapshot.bucket_joules.values()) == pytest.approx(snapshot.settled_joules)
    assert Fault.MODEL_NOT_TRUSTED not in snapshot.flags
