"""Every estimate beside what an H200 measured, from the runs and the profile kept in results/estimates.

    python benchmarks/h200/estimates.py [--meter-joules]

The runs are `wattload run` directories as rates.py left them, without their schedules and the gaps between
tokens, which no estimate reads. Nothing is written. `--meter-joules` shows what the online estimate's error
comes from: it is made again with the joules of the meter's own step model, as it stood before the first of
these runs, in place of those that the profile gives; times remain the profile's.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wattload.analysis.compute import load_run
from wattload.estimates.calibration_file import load_profile
from wattload.estimates.online import simulate
from wattload.estimates.section import estimates
from wattload.estimates.step_cost import TERMS, fit
from wattload.rundir.directory import RunDir

KEPT = Path(__file__).resolve().parent / "results" / "estimates"
RATES = {"conv": (2, 5, 10, 16, 22, 28, 34), "code": (2, 6, 12, 20, 28, 36)}
KEYS = (
    "binned",
    "flops_tdp",
    "flops_tdp_sparse",
    "utilisation_tdp",
    "ml_energy",
    "google_gemini",
    "roofline",
)
HEAD = (
    "| workload, target rate | J/request, measured | power | TTFT p50 | online | binned, offline "
    "| FLOPs × TDP dense | sparse | utilisation × TDP | 0.0935 J/token | 0.24 Wh per prompt | bound |"
)


def row(workload: str, rate: int) -> tuple[str, dict[str, float]]:
    """A line of the table, and each estimate over the measurement by its key."""
    run = load_run(KEPT / f"{workload}-{rate}")
    energy, latency = run.energy, run.latency
    each, first_token = energy.per_request_joules, latency.ttft_seconds
    if energy.total_joules is None or energy.mean_watts is None or each is None or first_token is None:
        raise SystemExit(f"{run.name}: has no energy or no completed request")
    run.data.capture.config["estimates"] = {"profile": str(KEPT / "profile.json")}
    found = estimates(run.data, energy.total_joules, energy.idle_joules)
    if found is None:
        raise SystemExit(f"{run.name}: nothing completed")
    ratio = {entry["key"]: float(entry["ratio_to_measured"]) for entry in found["all"]}
    low, high = each.ci95 or (float("nan"), float("nan"))
    cells = [
        f"{workload}, {rate}/s",
        f"{each.mean:.1f} [{low:.1f}, {high:.1f}]",
        f"{energy.mean_watts:.0f} W",
        f"{first_token.p50:.2f} s",
        f"{ratio['online'] - 1:+.1%}",
        *(f"{ratio[key]:.2f}×" for key in KEYS),
    ]
    return f"| {' | '.join(cells)} |", ratio


def with_meter_joules(workload: str, rate: int) -> tuple[float, float]:
    """The online estimate's relative error, with the profile's joules and with the meter's."""
    profile = load_profile(KEPT / "profile.json")
    profiled = fit(profile)
    said = (RunDir.open(KEPT / "conv-2").load_capture().energy_probe or {})["model"]
    joules: dict[str, Any] = {f"{name}_joules": float(said[f"{name}_joules"]) for name in TERMS}
    metered = replace(profiled, model=replace(profiled.model, **joules))
    run = load_run(KEPT / f"{workload}-{rate}")
    requests, begin, window = run.data.requests, run.data.capture.started_unix, run.data.window
    served = requests.completed
    errors = []
    for cost in (profiled, metered):
        done = simulate(
            requests.due[served] - begin,
            requests.prompt[served].astype(np.int64),
            requests.output[served].astype(np.int64),
            cost,
            profile.idle_watts,
            max_batched_tokens=profile.max_batched_tokens,
            max_seqs=profile.max_seqs,
        )
        total = done.window_joules(window.start_unix - begin, window.end_unix - begin)
        errors.append(total / (run.energy.total_joules or float("nan")) - 1)
    return errors[0], errors[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--meter-joules", action="store_true")
    if parser.parse_args().meter_joules:
        print("| workload, target rate | online, the profile's joules | the meter's joules |\n|---|---|---|")
        for workload, rates in RATES.items():
            for rate in rates:
                before, after = with_meter_joules(workload, rate)
                print(f"| {workload}, {rate}/s | {before:+.1%} | {after:+.1%} |")
        return
    print(HEAD)
    print("|" + "---|" * HEAD.count(" | ") + "---|")
    for workload, rates in RATES.items():
        for rate in rates:
            print(row(workload, rate)[0])


if __name__ == "__main__":
    main()
