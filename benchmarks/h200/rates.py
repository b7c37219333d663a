"""Energy per request against arrival rate, up to saturation: one `wattload run` a rate, and the curve.

    python benchmarks/h200/rates.py URL --trace conv|code --out DIR [--rates 2 5 10 ...] [--seconds 30]
        [any wattload run flag]
    python benchmarks/h200/rates.py --again RUNS --trace conv|code --out DIR

Writes DIR/<trace>-<rate>/ (run directories), DIR/rates-<trace>.json and DIR/rates-<trace>.png. A rate at
which the server falls behind is in the table too, marked; the last rates are meant to be beyond
saturation. `--again` sends nothing: it writes the rows from the run.json of the runs kept in RUNS, after
`wattload report` computed them again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RATES = {"conv": [2, 5, 10, 16, 22, 28, 34], "code": [2, 6, 12, 20, 28, 36, 44]}


def one(url: str, trace: str, rate: float, *, seconds: float, out: Path, more: list[str]) -> dict[str, Any]:
    """The figures of one run, from its run.json; `valid` and `reasons` are the run's own."""
    command = [sys.executable, "-c", "from wattload.cli import main; main()", "run", url, "--trace", trace]
    command += ["--arrivals", "poisson", "--rate", str(rate), "--duration", str(seconds), "--seed", "11"]
    command += ["--warmup", str(seconds / 5), "--repeat", "--out", str(out), "--progress", "none"]
    ended = subprocess.run([*command, "--no-report", *more], capture_output=True, text=True, check=False)
    if not (out / "run.json").exists():
        raise RuntimeError(f"{trace} at {rate}/s: status {ended.returncode}: {ended.stderr[-800:]}")
    return row_of(json.loads((out / "run.json").read_text()), trace, rate)


def row_of(run: dict[str, Any], trace: str, rate: float) -> dict[str, Any]:
    """What rates-<trace>.json keeps of a run.json; `interval_method` is that of the intervals in the row."""
    energy = run["energy"] or {}
    return {
        "trace": trace,
        "planned_rps": rate,
        "achieved_rps": run["load"]["achieved_rps"],
        "valid": run["valid"],
        "reasons": run["reasons"],
        "notes": run["notes"],
        "window": run["window"],
        "source": energy.get("source"),
        "mean_watts": energy.get("mean_watts"),
        "per_request_joules": energy.get("per_request_joules"),
        "interval_method": (energy.get("statistics") or {}).get("method"),
        "per_output_token_joules": energy.get("per_output_token_joules"),
        "total_joules": energy.get("total_joules"),
        "idle_joules": energy.get("idle_joules"),
        "prefill_joules": energy.get("prefill_joules"),
        "decode_joules": energy.get("decode_joules"),
        "unattributed_joules": energy.get("unattributed_joules"),
        "uncertainty_joules": energy.get("uncertainty_joules"),
        "accounting": energy.get("accounting"),
        "flags": energy.get("flags"),
        "ttft_seconds": run["latency"]["ttft_seconds"],
        "tpot_seconds": run["latency"]["tpot_seconds"],
        "requests": run["requests"],
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Joules per request (with its 95 % interval) and watts against the arrival rate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = [row for row in rows if row["per_request_joules"] and row["per_request_joules"]["mean"]]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    rate = [row["planned_rps"] for row in known]
    mean = [row["per_request_joules"]["mean"] for row in known]
    ci = [row["per_request_joules"]["ci95"] or [float("nan")] * 2 for row in known]
    errors = [[m - low for m, (low, _) in zip(mean, ci, strict=True)]]
    errors.append([high - m for m, (_, high) in zip(mean, ci, strict=True)])
    axes[0].errorbar(rate, mean, yerr=errors, marker="o", capsize=3)
    axes[0].set(xlabel="arrival rate (requests/s)", ylabel="total energy per request (J)", ylim=(0, None))
    axes[1].plot(rate, [row["mean_watts"] for row in known], marker="o")
    axes[1].set(xlabel="arrival rate (requests/s)", ylabel="mean power (W)", ylim=(0, None))
    source = {row["source"] for row in known}
    figure.suptitle(f"{known[0]['trace'] if known else ''}: energy by {', '.join(map(str, source))}")
    figure.savefig(path, dpi=140)


def rate_of(path: Path) -> float:
    """The rate in the name of a run's directory, such as conv-16."""
    return float(path.parent.name.rpartition("-")[2])


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    text = json.dumps({"schema": "wattload.rates/1", "rows": rows}, indent=1)
    (options.out / f"rates-{options.trace}.json").write_text(text + "\n")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("--again", type=Path, metavar="RUNS", help="run directories to take the rows from")
    parser.add_argument("--trace", choices=sorted(RATES), required=True)
    parser.add_argument("--rates", type=float, nargs="+")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, required=True)
    # What is not known here goes to `wattload run`.
    options, more = parser.parse_known_args(arguments)
    if (options.url is None) == (options.again is None):
        parser.error("either URL or --again RUNS is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.again is not None:
        kept = sorted(options.again.glob(f"{options.trace}-*/run.json"), key=rate_of)
        write([row_of(json.loads(path.read_text()), options.trace, rate_of(path)) for path in kept], options)
        return 0
    rows = []
    for rate in options.rates or RATES[options.trace]:
        run_dir = options.out / f"{options.trace}-{rate:g}"
        row = one(options.url, options.trace, rate, seconds=options.seconds, out=run_dir, more=more)
        rows.append(row)
        joules = row["per_request_joules"] or {}
        print(
            f"{options.trace} {rate:6.1f}/s  {row['mean_watts']} W  {joules.get('mean')} J"
            f" {joules.get('ci95')}  achieved {row['achieved_rps']}  {row['reasons']}",
            flush=True,
        )
        write(rows, options)
    plot(rows, options.out / f"rates-{options.trace}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
