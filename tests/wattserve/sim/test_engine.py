"""The simulated GPU's profile, power limit, engine and energy; against the recordings where present."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline_sim import run_offline
from shared import shared_file
from wattmeter.steps.batch import StepBatch
from wattserve.sim.engine import Engine
from wattserve.sim.modelled_energy import ModelledEnergy
from wattserve.sim.profile import ProfileError, known_profiles, load_profile, parse_profile
from wattserve.sim.scheduler import Sequence
from wattserve.sim.step_delay import StepDelayLog
from wattserve.sim.timer import Timer

H200 = "h200-llama-3.1-8b"


def test_profiles_round_trip() -> None:
    for name in known_profiles():
        profile = load_profile(name)
        assert parse_profile(json.loads(json.dumps(profile.as_json()))) == profile


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "x"}, "not a wattserve.profile/1"),
        ({"name": ""}, "name is missing"),
        ({"idle_watts": -1}, "idle_watts"),
        ({"idle_watts": float("nan")}, "idle_watts"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"limits": {}}, "limits"),
        ({"timing": None}, "timing is missing"),
        ({"timing": {"token_seconds": 1}}, "timing"),
        ({"step_model": {}}, "step model"),
        ({"launches_ahead": 3}, "launches_ahead"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_by_name(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**load_profile(H200).as_json(), **change}))
    with pytest.raises(ProfileError, match=says) as error:
        load_profile(str(path))
    assert str(path) in str(error.value)


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=H200):
        load_profile("h900")
    path = tmp_path / "p.json"
    path.write_text("{\n1")
    with pytest.raises(ProfileError, match="line 2"):
        load_profile(str(path))


def test_the_power_limit_holds_the_mean_power_and_lets_go() -> None:
    profile = load_profile(H200)
    device = profile.device()
    spent = [device.step(8192, 0, 0, 8192**2 / 2, 1) for _ in range(60)]
    seconds, joules = np.array(spent[30:]).sum(axis=0)
    assert joules / seconds == pytest.approx(profile.timing.limit_watts, rel=0.02)
    assert device.clock < 1.0
    device.idle(2.0)
    for _ in range(200):
        device.step(0, 1, 500, 0, 1)
    assert device.clock == 1.0
    alone = profile.device().step(0, 1, 500, 0, 1)
    assert device.step(0, 1, 500, 0, 1) == alone


def test_modelled_energy_is_idle_plus_steps() -> None:
    energy = ModelledEnergy(100.0, 0)
    energy.add_load(1_000_000_000, 2_000_000_000, 50.0)
    energy.add_load(2_000_000_000, 4_000_000_000, 10.0)
    found = [energy.joules_at(t) for t in (0, 1_500_000_000, 2_000_000_000, 3_000_000_000, 9_000_000_000)]
    assert found == pytest.approx([0.0, 175.0, 250.0, 355.0, 960.0])


def test_the_timer_is_on_time() -> None:
    async def delays() -> list[int]:
        rang = asyncio.Event()
        timer = Timer(asyncio.get_running_loop(), rang.set)
        late = []
        for _ in range(40):
            at = time.monotonic_ns() + 2_300_000
            timer.set(at)
            await rang.wait()
            rang.clear()
            late.append(time.monotonic_ns() - at)
        timer.close()
        return late

    late = asyncio.run(delays())
    assert min(late) >= 0, "it rang too early"
    assert np.median(late) < 900_000, "no better than the loop's own timer"


def test_steps_follow_the_plan_without_drift_and_records_are_whole() -> None:
    batches: list[StepBatch] = []
    loads: list[tuple[int, int, float]] = []

    class Load:
        def add_load(self, start_ns: int, end_ns: int, joules: float) -> None:
            loads.append((start_ns, end_ns, joules))

    async def run() -> tuple[Engine, list[str]]:
        base = load_profile(H200)
        timing = dataclasses.replace(base.timing, weights_seconds=0.002)
        profile = dataclasses.replace(base, timing=timing)
        engine = Engine(profile, profile.limits, load=Load(), on_steps=batches.append)
        engine.start()
        told: list[str] = []
        done = asyncio.Event()

        def deliver(seq: Sequence) -> None:
            told.append(seq.request_id)
            if told.count("a") == 40 and told.count("b") == 30:
                done.set()

        a = Sequence("a", [1] * 50, 40, arrival_ns=time.monotonic_ns(), deliver=deliver)
        b = Sequence("b", [2] * 20, 30, arrival_ns=time.monotonic_ns(), deliver=deliver)
        engine.submit([a])
        await asyncio.sleep(0.01)
        b.arrival_ns = time.monotonic_ns()
        engine.submit([b])
        await asyncio.wait_for(done.wait(), 10)
        await asyncio.sleep(0.01)
        engine.stop()
        return engine, told

    engine, told = asyncio.run(run())
    assert (told.count("a"), told.count("b")) == (40, 30)
    index = np.concatenate([batch.index for batch in batches])
    assert index.tolist() == list(range(engine.steps_run))
    launch = np.concatenate([batch.launch_ns for batch in batches])
    end = np.concatenate([batch.end_ns for batch in batches])
    assert (launch[1:] == end[:-1]).all(), "steps are back to back by plan, whatever the event loop did"
    assert [(s, e) for s, e, _ in loads] == list(zip(launch.tolist(), end.tolist(), strict=True))
    totals = {"a": [0, 0], "b": [0, 0]}
    for batch in batches:
        for request, prefill, decode in zip(
            batch.request, batch.prefill_tokens, batch.decode_tokens, strict=True
        ):
            totals[batch.request_ids[request]][0] += int(prefill)
            totals[batch.request_ids[request]][1] += int(decode)
    assert totals == {"a": [50, 39], "b": [20, 29]}


def test_step_delays_are_counted_and_flagged() -> None:
    log = StepDelayLog(tolerance_seconds=0.005)
    for number in range(1000):
        log.note(number * 1_000_000, number * 1_000_000 + (6_000_000 if number % 40 == 0 else 100_000))
    assert log.window(0, 10**12).late_steps == 25
    assert log.window(0, 10**12).too_late
    assert not log.window(1_000_000, 39_000_000).too_late
    assert log.window(10**13, 10**14).steps == 0
    assert not log.window(10**13, 10**14).too_late


def test_the_log_of_step_delays_keeps_the_last_steps_in_order() -> None:
    log = StepDelayLog(history=10)
    for number in range(37):
        log.note(number, number + number)
    kept = log.window(0, 100)
    assert kept.steps == 10
    assert kept.max_seconds == pytest.approx(36e-9)
    assert log.window(30, 33).steps == 3
    assert log.window(30, 33).p50_seconds == pytest.approx(31e-9)
    assert log.window(0, 27).steps == 0


# --- against the recordings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisson_1", "poisson_4", "poisson_16", "poisson_40"])
def test_recorded_arrivals_replayed_give_the_recorded_run(name: str) -> None:
    """The bounds are those stated in docs/explanation/simulator.md: length of the run, TPOT and TTFT."""
    with gzip.open(shared_file("h200", "rates", "recs.json.gz"), "rt") as file:
        rows = sorted((row for row in json.load(file)["recs"] if row[0] == name), key=lambda row: row[2])
    profile = load_profile(H200)
    sent, first, last = (np.array([row[i] for row in rows]) - rows[0][2] for i in (2, 3, 4))
    output = np.array([row[6] for row in rows])
    found = run_offline(
        profile,
        profile.limits,
        (sent + profile.frontend_seconds).tolist(),
        [row[5] for row in rows],
        output.tolist(),
    )
    assert found.last_seconds.max() == pytest.approx(last.max(), rel=0.01)
    gaps = np.maximum(output - 1, 1)
    modelled = (found.last_seconds - found.first_seconds) / gaps
    assert np.median(modelled) == pytest.approx(np.median((last - first) / gaps), rel=0.05)
    assert np.quantile(found.first_seconds - sent, 0.9) == pytest.approx(
        np.quantile(first - sent, 0.9), rel=0.06
    )


def test_the_profiles_own_errors_are_within_what_the_docs_say() -> None:
    fit = load_profile(H200).fit
    for level in ("low_load", "saturated"):
        assert abs(fit["held_out"][level]["run_joules_above_idle_worst"]) < 0.025
        assert abs(fit["held_out"][level]["run_seconds_worst"]) < 0.03
    runs = [row["run_joules"] for name, row in fit["replayed_arrivals"].items() if name.startswith("poisson")]
    assert len(runs) == 4
    assert all(abs(modelled / recorded - 1) < 0.01 for modelled, recorded in runs)


def test_a_board_can_be_held_below_its_limit() -> None:
    """A long load at the ceiling draws the power it is held at, and takes longer for the same work."""
    whole = load_profile(H200)
    drawn, took = {}, {}
    for limit in (None, 500.0, 400.0):
        profile = whole if limit is None else whole.limited(limit)
        device = profile.device()
        seconds = joules = 0.0
        for step in range(600):
            length, cost = device.step(8192, 64, 64 * 1000, 8192.0 * 1000, 72)
            if step >= 100:  # once the clock has settled
                seconds, joules = seconds + length, joules + cost
        drawn[limit] = profile.idle_watts + joules / seconds
        took[limit] = seconds
    assert drawn[500.0] == pytest.approx(500.0 - (700.0 - 568.5 - whole.idle_watts), rel=0.02)
    assert drawn[400.0] == pytest.approx(drawn[500.0] - 100.0, rel=0.02)
    assert took[None] < took[500.0] < took[400.0]


@pytest.mark.parametrize("watts", [701.0, 130.0])
def test_a_limit_that_the_board_cannot_have(watts: float) -> None:
    with pytest.raises(ProfileError, match="can be held between 132 and 700 W"):
        load_profile(H200).limited(watts)
