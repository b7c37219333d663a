"""Energy per request against rate: tables and plots of docs/research/validation.md, from rates.py's output.

    python benchmarks/h200/rate_tables.py FOLDER [--plots DIR]

FOLDER holds `rates-<trace>.json` of rates.py, `recording/` of the server that answered and the experiments'
NAME.json.gz, for a step model. The recording says what run.json's window cannot: how many requests ended in
it. Prints Markdown. A row has its intervals only where rates.py wrote their method: earlier rows hold those
of batch means, which contain the truth less often (benchmarks/results/intervals.md), and not the requests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from analyse import BOARD_WATTS, Experiment, intervals, load, load_tests, loads_intervals
from evaluate import Evaluation, fit_intervals, joined, prediction_error, updates_of

from wattmeter.steps.recording import Recording, read

# Okabe and Ito: told apart with every kind of colour vision.
OWN, WHOLE, POWER = "#0072B2", "#D55E00", "#009E73"
# Above this share of the offered rate the server keeps up; below, a queue grows.
KEEPS_UP = 0.95


@dataclass(frozen=True)
class Point:
    """One rate. Joules per request: `own` attributed, without idle; `due` the window's energy over the
    requests scheduled in it; `whole` the same energy over those that ended in it. An interval is None where
    the row has none of today's.
    """

    offered_rps: float
    ended_rps: float
    own_joules: float
    own_ci95: tuple[float, float] | None
    whole_joules: float
    due_joules: float
    due_ci95: tuple[float, float] | None
    watts: float
    ttft_p50_seconds: float
    counter_ratio: float
    parts_ratio: float
    flags: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def keeps_up(self) -> bool:
        return self.ended_rps >= KEEPS_UP * self.offered_rps


def ended_between(recording: Recording, start_unix: float, end_unix: float) -> int:
    """Requests whose last step ended in [start, end)."""
    steps = recording.steps
    last = np.zeros(len(steps.request_ids), dtype=np.int64)
    np.maximum.at(last, steps.request, steps.end_ns[steps.step])
    start, end = recording.monotonic_ns_of(start_unix), recording.monotonic_ns_of(end_unix)
    return int(np.count_nonzero((last >= start) & (last < end)))


def point(row: dict[str, Any], recording: Recording) -> Point:
    window = row["window"]
    start, end = window["start_unix"], window["end_unix"]
    (device,) = recording.devices.values()
    when, what = updates_of(device)
    edges = [recording.monotonic_ns_of(start), recording.monotonic_ns_of(end)]
    first, last = np.interp(edges, when, what)
    ended = ended_between(recording, start, end)
    joules = row["per_request_joules"]
    known = row.get("interval_method") is not None
    parts = ("prefill_joules", "decode_joules", "idle_joules", "unattributed_joules")
    return Point(
        offered_rps=row["requests"]["in_window"] / (end - start),
        ended_rps=ended / (end - start),
        own_joules=joules["attributed_mean"],
        own_ci95=tuple(joules["attributed_ci95"]) if known else None,
        whole_joules=row["total_joules"] / ended,
        due_joules=joules["mean"],
        due_ci95=tuple(joules["ci95"]) if known else None,
        watts=row["mean_watts"],
        ttft_p50_seconds=row["ttft_seconds"]["p50"],
        counter_ratio=row["total_joules"] / float(last - first) - 1.0,
        parts_ratio=sum(row[name] for name in parts) / row["total_joules"] - 1.0,
        flags=tuple(row["flags"]),
        notes=tuple(row["notes"]),
    )


def held_out(name: str, loads: Mapping[str, Evaluation], experiments: Sequence[Experiment]) -> str:
    """A load test's seconds predicted by a model of the experiments and the other load tests: a table row."""
    data = loads[name]
    ceiling = BOARD_WATTS - data.idle_watts
    others = loads_intervals(each for other, each in loads.items() if other != name)
    model = fit_intervals(joined([*others, intervals(experiments)] if experiments else others), ceiling)
    error = prediction_error(data, data.windows, model)
    free = prediction_error(data, data.windows, dataclasses.replace(model, power_cap_watts=None))
    window = data.windows[0]
    watts = data.joules(window.start_seconds, window.end_seconds) / window.seconds
    return (
        f"| {name} | {watts:.0f} | {100 * error.rms:.2f} % | {100 * error.p95:.1f} % "
        f"| {100 * error.total:+.2f} % | {100 * free.total:+.2f} % |"
    )


def bracket(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]"


def table(points: list[Point]) -> None:
    print(
        "| offered/s | ended/s | attributed, J/request | total, J/request "
        "| total per ended, J/request | W | TTFT p50 | flags and notes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for p in points:
        noted = [*p.flags, *("not steady" for note in p.notes if note.startswith("not steady"))]
        noted += [] if p.keeps_up else ["falls behind"]
        print(
            f"| {p.offered_rps:.1f} | {p.ended_rps:.1f} "
            f"| {p.own_joules:.1f}{bracket(p.own_ci95)} "
            f"| {p.due_joules:.1f}{bracket(p.due_ci95)} "
            f"| {p.whole_joules:.1f} | {p.watts:.0f} | {p.ttft_p50_seconds:.2f} s | {', '.join(noted)} |"
        )
    print()


def plot(points: list[Point], trace: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
    rate = [p.offered_rps for p in points]
    own = np.array([p.own_joules for p in points])
    low, high = np.array([p.own_ci95 or (p.own_joules, p.own_joules) for p in points]).T
    left.errorbar(
        rate,
        own,
        yerr=[own - low, high - own],
        fmt="o-",
        capsize=3,
        color=OWN,
        label="attributed, 95 % interval",
    )
    # A server that falls behind ends fewer requests than it works on: no joules per request ended there.
    kept = [p for p in points if p.keeps_up]
    left.plot(
        [p.offered_rps for p in kept],
        [p.whole_joules for p in kept],
        "s--",
        color=WHOLE,
        label="whole device, idle included",
    )
    left.set_yscale("log")
    left.yaxis.set_major_locator(FixedLocator([20, 30, 50, 100, 200, 300]))
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_locator(NullLocator())
    left.set(xlabel="arrival rate (requests/s)", ylabel="joules per request")
    right.plot(rate, [p.watts for p in points], "o-", color=POWER)
    right.set(xlabel="arrival rate (requests/s)", ylabel="mean power (W)", ylim=(0, 750), xlim=(0, None))
    right.axhline(700, color="0.6", linestyle=":")
    right.annotate("power limit", (0.02, 708), xycoords=("axes fraction", "data"), fontsize=8, color="0.4")
    behind = [p.offered_rps for p in points if not p.keeps_up]
    left.set_xlim(0, None)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if behind:
            axes.axvspan(
                min(behind) - 0.6, max(rate) + 1.0, color="0.92", zorder=0, label="server falls behind"
            )
            axes.set_xlim(0, max(rate) + 1.0)
    left.legend(fontsize=8)
    figure.suptitle(f"{trace}: Llama-3.1-8B shape on one H200, Poisson arrivals, energy by NVML")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    recording = read(options.folder / "recording")
    experiments = [load(file, [recording]) for file in sorted(options.folder.glob("*.json.gz"))]
    loads = load_tests(options.folder, recording)
    for file in sorted(options.folder.glob("rates-*.json"), reverse=True):
        trace = file.stem.removeprefix("rates-")
        rows = json.loads(file.read_text())["rows"]
        points = [point(row, recording) for row in rows]
        print(f"### {trace}\n")
        table(points)
        counter = 100 * max(abs(p.counter_ratio) for p in points)
        parts = 100 * max(abs(p.parts_ratio) for p in points)
        print(f"- windows' energy against the raw counter: worst {counter:.3f} %")
        print(f"- requests + idle + unattributed against it: worst {parts:.4f} %\n")
        if options.plots:
            options.plots.mkdir(parents=True, exist_ok=True)
            plot(points, trace, options.plots / f"validation-rates-{trace}.png")
    print("### Held out\n")
    print("Step model fitted on the experiments and the other load tests, with the power limit as ceiling:\n")
    print("| load test | W | rms per second | 95th percentile | in sum | in sum without the ceiling |")
    print("|---|---|---|---|---|---|")
    for name in loads:
        print(held_out(name, loads, experiments))


if __name__ == "__main__":
    main()
