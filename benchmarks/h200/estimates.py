"""Every estimate beside what an H200 measured, from the runs and the profile kept in results/estimates.

    python benchmarks/h200/estimates.py

The runs are `wattload run` directories as rates.py left them, without their schedules and the gaps between
tokens, which no estimate reads. Nothing is written.
"""

from __future__ import annotations

from pathlib import Path

from wattload.compare import load
from wattload.estimates.beside import estimates
from wattload.rundir import RunDir

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
    "| workload, asked | J a request, measured | power | TTFT p50 | online | binned, offline "
    "| FLOPs × TDP dense | sparse | utilisation × TDP | 0.0935 J a token | 0.24 Wh a prompt | bound |"
)


def row(workload: str, rate: int) -> tuple[str, dict[str, float]]:
    """A line of the table, and each estimate over the measurement by its key."""
    run = load(RunDir.open(KEPT / f"{workload}-{rate}"))
    energy, latency = run.json.energy, run.json.latency
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


def main() -> None:
    print(HEAD)
    print("|" + "---|" * HEAD.count(" | ") + "---|")
    for workload, rates in RATES.items():
        for rate in rates:
            print(row(workload, rate)[0])


if __name__ == "__main__":
    main()
