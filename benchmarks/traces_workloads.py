"""How near the embedded workloads are to their traces: python benchmarks/traces_workloads.py TRACES_DIR
[--plot FILE]

Prints a Markdown table of the distances (means over 8 seeds, the worst seed in brackets) and, with --plot,
draws the index of dispersion at every time scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from wattload import traces
from wattload.traces import embedded as workloads
from wattload.traces.describe import dispersion
from wattload.traces.trace import Trace

SEEDS = range(8)
WINDOWS_SECONDS = (0.1, 1.0, 10.0, 60.0)


def rank(trace: Trace) -> float:
    return float(stats.spearmanr(trace.prompt_tokens, trace.output_tokens).statistic)


def gap_ks(a: Trace, b: Trace) -> float:
    return float(stats.ks_2samp(np.diff(a.seconds), np.diff(b.seconds)).statistic)


def row(what: str, values: list[float], real: str = "0") -> str:
    worst = max(values, key=abs)
    return f"| {what} | {np.mean(values):.3f} ({worst:.3f}) | {real} |"


def compare(name: str, real: Trace) -> None:
    drawn = [workloads.load(name).sample(len(real), seed) for seed in SEEDS]
    print(
        f"\n**{name}** ({len(real):,} rows)\n\n| quantity | drawn: mean (worst seed) | trace |\n|---|---|---|"
    )
    for column in ("prompt_tokens", "output_tokens"):
        theirs = getattr(real, column)
        distances = [float(stats.ks_2samp(getattr(d, column), theirs).statistic) for d in drawn]
        print(row(f"two-sample KS distance of {column.replace('_', ' ')}", distances))
        means = [float(getattr(d, column).mean()) for d in drawn]
        print(f"| mean {column.replace('_', ' ')} | {np.mean(means):,.0f} | {theirs.mean():,.0f} |")
    print(row("rank correlation", [rank(d) for d in drawn], f"{rank(real):.3f}"))
    print(row("KS distance of the gaps between requests", [gap_ks(d, real) for d in drawn]))
    for width in WINDOWS_SECONDS:
        found = [value for d in drawn if (value := dispersion(d.seconds, width)) is not None]
        theirs = dispersion(real.seconds, width)
        low, high = min(found), max(found)
        print(
            f"| dispersion at {width:g} s | {np.mean(found):.2f} ({low:.2f} to {high:.2f}) | {theirs:.2f} |"
        )


def plot(real: dict[str, Trace], path: Path) -> None:
    from matplotlib.figure import Figure

    widths = np.geomspace(0.05, 120, 25)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (name, trace) in zip(figure.subplots(1, 2), real.items(), strict=True):
        for seed in SEEDS:
            seconds = workloads.load(name).sample(len(trace), seed).seconds
            label = "drawn, 8 seeds" if seed == 0 else None
            axes.plot(widths, [dispersion(seconds, w) for w in widths], color="#88bbdd", label=label)
        axes.plot(
            widths, [dispersion(trace.seconds, w) for w in widths], color="#222222", lw=2, label="trace"
        )
        axes.axhline(1, color="#aa3377", ls=":", label="Poisson")
        axes.set(
            title=name, xlabel="window (s)", ylabel="variance / mean of requests", xscale="log", yscale="log"
        )
        axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds AzureLLMInferenceTrace_{conv,code}.csv")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    real = {
        name: traces.load(arguments.directory / f"AzureLLMInferenceTrace_{name}.csv")
        for name in ("conv", "code")
    }
    for name, trace in real.items():
        compare(name, trace)
    if arguments.plot:
        plot(real, arguments.plot)


if __name__ == "__main__":
    main()
