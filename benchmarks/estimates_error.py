"""How far off the estimates are on the virtual H200 in virtual time:

a profile of 24 shapes, two workloads, five rates.

    python benchmarks/estimates_error.py [--write]

All joules are simulated: the simulated GPU's, which was fitted to recordings of a real one (its errors are in
its profile). It limits its power and its clock in ways that the estimates' step model does not know, so
this is a test of the method and not of itself. Nothing runs in real time, so no other program can disturb
it. `--write` puts the table into benchmarks/results/estimates.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from wattload.calibration.measure import choose_shapes
from wattload.estimates.binned import binned_joules
from wattload.estimates.calibration_file import PROFILE_SCHEMA, Profile, ShapeCost
from wattload.estimates.gpu_table import require_gpu
from wattload.estimates.model_shape import known_shape
from wattload.estimates.online import simulate
from wattload.estimates.roofline import InsideWindow, least_steps, roofline
from wattload.estimates.rules_of_thumb import Work, flops_tdp_joules
from wattload.estimates.step_cost import StepCost, fit
from wattload.rundir.result import TargetInfo
from wattload.schedule.build import build_schedule
from wattload.traces import load as load_trace
from wattserve.sim.profile import Profile as Gpu
from wattserve.sim.profile import load_profile as load_gpu

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from offline_sim import run_offline

HERE = Path(__file__).resolve().parent
RATES = (1, 2, 6, 12, 20)
SECONDS, WARMUP = 90.0, 15.0


def measured_profile(gpu: Gpu) -> Profile:
    """24 shapes of the conversational workload, each batch run once."""
    rows = load_trace("conv")
    shapes = choose_shapes(
        rows.prompt_tokens, rows.output_tokens, count=24, max_batch=64, max_model_len=16384
    )
    costs = []
    for shape in shapes:
        lengths = [shape.prompt_tokens] * shape.batch, [shape.output_tokens] * shape.batch
        done = run_offline(gpu, gpu.limits, [0.0] * shape.batch, *lengths)
        costs.append(
            ShapeCost(
                prompt_tokens=shape.prompt_tokens,
                output_tokens=shape.output_tokens,
                batch=shape.batch,
                waves=1,
                seconds=float(done.last_seconds.max()),
                above_idle_joules=float(done.step_joules.sum()),
                ttft_seconds=float(np.median(done.first_seconds)),
            )
        )
    return Profile(
        schema=PROFILE_SCHEMA,
        created_unix=0.0,
        target=TargetInfo(url="virtual", model=gpu.model, energy_source="modelled"),
        idle_watts=gpu.idle_watts,
        power_limit_watts=gpu.power_limit_watts,
        max_batched_tokens=gpu.limits.max_num_batched_tokens,
        max_seqs=gpu.limits.max_num_seqs,
        shapes=costs,
    )


def row(gpu: Gpu, profile: Profile, cost: StepCost, workload: str, rate: float) -> str:
    """One line of the table."""
    schedule = build_schedule(load_trace(workload), "poisson", rate=rate, duration=SECONDS, seed=11)
    due, prompt, output = schedule.due_seconds, schedule.prompt_tokens, schedule.output_tokens
    truth = run_offline(gpu, gpu.limits, due.tolist(), prompt.tolist(), output.tolist())
    measured = truth.joules_above_idle(WARMUP, SECONDS) + gpu.idle_watts * (SECONDS - WARMUP)
    guess = simulate(
        due,
        prompt.astype(np.int64),
        output.astype(np.int64),
        cost,
        profile.idle_watts,
        max_batched_tokens=profile.max_batched_tokens,
        max_seqs=profile.max_seqs,
    )
    inside = (due >= WARMUP) & (due < SECONDS)
    online = guess.window_joules(WARMUP, SECONDS) / measured - 1
    offline = binned_joules(profile, cost, prompt[inside], output[inside]).joules / measured
    shape, table = known_shape(gpu.model), require_gpu("h200")
    assert shape is not None
    length = SECONDS - WARMUP
    p, o = prompt.astype(np.float64), output.astype(np.float64)
    work = Work(p[inside], o[inside], np.zeros(int(inside.sum())), length, length, 1)
    naive = flops_tdp_joules(work, shape, table) / measured
    first, last = truth.first_seconds, truth.last_seconds
    overlap = np.clip(np.minimum(last, SECONDS) - np.maximum(first, WARMUP), 0, None)
    bound = roofline(
        InsideWindow(
            p,
            o,
            np.zeros_like(o),
            ((due >= WARMUP) & (first < SECONDS)).astype(np.float64),
            overlap / np.maximum(last - first, 1e-9),
        ),
        shape,
        table,
        seconds=length,
        idle_watts=gpu.idle_watts,
        devices=1,
        steps=least_steps(first, last, o, WARMUP, SECONDS),
    )
    each = measured / int(inside.sum())
    return (
        f"| {workload} | {inside.sum() / length:.1f} | {each:.1f} J | {measured / length:.0f} W | "
        f"{online:+.1%} "
        f"| {offline:.2f}× | {naive:.2f}× | {bound.joules / measured:.2f}× |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    gpu = load_gpu("h200-llama-3.1-8b")
    profile = measured_profile(gpu)
    cost = fit(profile)
    lines = [
        "# Estimates beside the simulated H200 (all joules and watts simulated)",
        "",
        f"A profile of {len(profile.shapes)} shapes of the conversational workload; its step model is off by "
        f"{cost.joules_error:.1%} of energy and {cost.seconds_error:.1%} of time on them (root mean square). "
        f"Poisson arrivals for {SECONDS:.0f} s, {WARMUP:.0f} s of warm-up left out. "
        "Made by `python benchmarks/estimates_error.py --write`.",
        "",
        "| workload | requests/s | a request | power | online | binned, offline | FLOPs × TDP dense | "
        "bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [row(gpu, profile, cost, workload, rate) for workload in ("conv", "code") for rate in RATES]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.write:
        (HERE / "results" / "estimates.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
