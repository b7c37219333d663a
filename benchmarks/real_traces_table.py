"""The table of docs/research/real-traces.md from the run directories that real_traces.sh wrote.

python benchmarks/real_traces_table.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RUNS = ("conv-1x", "conv-3x", "code-1x", "code-3x")
ROWS: tuple[tuple[str, Any], ...] = (
    (
        "requests in the trace's part, sent, completed",
        lambda r: "{planned}, {sent}, {completed}".format(**r["requests"]),
    ),
    ("valid", lambda r: "yes" if r["valid"] else "no: " + "; ".join(r["reasons"])),
    ("rate in the window, requests/s", lambda r: f"{r['load']['achieved_rps']:.2f}"),
    ("lag of sending p50 / p99 / max", lambda r: spread(r["load"]["send_lag_seconds"], "p50", "p99", "max")),
    ("token mismatches", lambda r: r["tokens"]["mismatches"]),
    ("TTFT p50 / p99", lambda r: spread(r["latency"]["ttft_seconds"], "p50", "p99")),
    ("TPOT p50 / p99", lambda r: spread(r["latency"]["tpot_seconds"], "p50", "p99")),
    ("mean power (modelled)", lambda r: f"{r['energy']['mean_watts']:.0f} W"),
    ("energy of the window (modelled)", lambda r: f"{r['energy']['total_joules'] / 1000:.1f} kJ"),
    ("idle / prefill / decode / unattributed", lambda r: split(r["energy"])),
    (
        "**joules per request** (modelled), 95 % interval",
        lambda r: interval(r["energy"]["per_request_joules"]),
    ),
    ("joules per request finished in the window (modelled)", lambda r: f"{finished(r):.1f}"),
    ("notes", lambda r: "; ".join(r["notes"]) or "none"),
    ("joules per output token (modelled)", lambda r: f"{r['energy']['per_output_token_joules']:.3f}"),
    ("joules per token (modelled)", lambda r: f"{r['energy']['per_token_joules']:.4f}"),
    (
        "attributed joules per request, p50 / p90 / p99 (modelled)",
        lambda r: own(r["energy"]["per_request_joules"]),
    ),
    ("conservation error", lambda r: f"{r['energy']['accounting']['conservation_error_fraction']:.1e}"),
    ("detectable difference of two such runs", lambda r: detectable(r["energy"]["statistics"])),
    ("flags", lambda r: ", ".join(r["energy"]["flags"]) or "none"),
)


def spread(values: dict[str, float], *names: str) -> str:
    return " / ".join(f"{values[name] * 1000:.3g}" for name in names) + " ms"


def split(energy: dict[str, float]) -> str:
    parts = ("idle_joules", "prefill_joules", "decode_joules", "unattributed_joules")
    return " / ".join(f"{round(energy[part] / energy['total_joules'], 3) + 0.0:.1%}" for part in parts)


def interval(values: dict[str, Any]) -> str:
    if values["ci95"] is None:
        return f"{values['mean']:.1f} (no interval)"
    low, high = values["ci95"]
    return f"**{values['mean']:.1f}** [{low:.1f}, {high:.1f}]"


def finished(run: dict[str, Any]) -> float:
    return float(run["energy"]["accounting"]["joules_per_request_finished"])


def own(values: dict[str, float]) -> str:
    return " / ".join(f"{values[name]:.1f}" for name in ("p50", "p90", "p99"))


def detectable(statistics: dict[str, float]) -> str:
    return f"{statistics['minimum_detectable_difference_fraction']:.1%}"


def main(out: Path) -> None:
    runs = [json.loads((out / name / "run.json").read_text()) for name in RUNS]
    print("| | " + " | ".join(RUNS) + " |\n|---" * 1 + "|---" * len(RUNS) + "|")
    for title, figure in ROWS:
        print(f"| {title} | " + " | ".join(str(figure(run)) for run in runs) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
