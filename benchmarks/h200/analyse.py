"""Tables and plots of docs/validation.md from what the experiments left behind.

    python benchmarks/h200/analyse.py FOLDER... [--plots DIR]

Each FOLDER holds `recording/` (or several, `recording*/`) and the experiments' NAME.json.gz. Folders may come
from several servers on the same machine. Prints Markdown. Models are fitted on time that the figure beside
them does not cover.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attribution"))
from evaluate import (
    Evaluation,
    Window,
    error_table,
    fit_intervals,
    joined,
    measured_shapley,
    prediction_error,
    rules,
    updates_of,
)
from wattmeter.fit import Intervals, predict
from wattmeter.recording import Recording, read
from wattmeter.replay import EngineLimits, Jobs, limits_of, replay
from wattmeter.stepmodel import StepEnergyModel

TENANTS = ("code", "conv", "long")
# Okabe and Ito: told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73")


@dataclass
class Experiment:
    """One experiment over its recording. `books` is what the server answered, None if it did not."""

    name: str
    data: Evaluation
    requests: Mapping[str, Sequence[Mapping[str, Any]]]
    books: Mapping[str, Any] | None
    conservation: list[float] = field(default_factory=list)
    against_counter: list[float] = field(default_factory=list)


def plain(request_id: str) -> str:
    """The id that was sent, from the engine's: cmpl-<id>-<prompt>-<8 hex>, or the id as it is."""
    match = re.fullmatch(r"(?:cmpl-|chatcmpl-)(.+?)(?:-\d+)?-[0-9a-f]{8}", request_id)
    return match.group(1) if match else request_id


def load(file: Path, recordings: Sequence[Recording]) -> Experiment:
    with gzip.open(file, "rt") as stream:
        content = json.load(stream)
    windows = content["windows"]
    middle = windows[len(windows) // 2]["start_unix"]
    recording = next((r for r in recordings if _covers(r, middle)), None)
    if recording is None:
        raise SystemExit(f"analyse: no recording covers the time of {file}")
    offset = recording.unix_minus_monotonic_seconds
    group_of, arrivals, requests = {}, {}, {}
    group_by_id = {r["request_id"]: r for w in windows for r in w["requests"]}
    for name in recording.steps.request_ids:
        record = group_by_id.get(plain(name)) or group_by_id.get(name)
        if record is not None:
            group_of[name] = record["group"]
            arrivals[name] = record["sent_unix"] - offset
    stretches = []
    for window in windows:
        errors = [r["error"] for r in window["requests"] if r["error"]]
        if errors:
            print(f"> {window['name']}: {len(errors)} requests failed: {errors[0]}\n")
        tenants = tuple(sorted({r["group"] for r in window["requests"]}))
        stretches.append(
            Window(window["name"], tenants, window["start_unix"] - offset, window["end_unix"] - offset)
        )
        requests[window["name"]] = window["requests"]
    bare = Evaluation(recording, stretches, group_of, arrivals, 0.0)
    idle = stretches[0]
    when, what = updates_of(bare.counter)
    inside = np.flatnonzero((when > idle.start_seconds * 1e9) & (when < idle.end_seconds * 1e9))
    watts = (what[inside[-1]] - what[inside[0]]) / ((when[inside[-1]] - when[inside[0]]) * 1e-9)
    data = Evaluation(recording, stretches[1:], group_of, arrivals, float(watts))
    experiment = Experiment(content["experiment"], data, requests, content["settled"])
    if experiment.books:
        for window, split in zip(windows[1:], experiment.books["windows"][1:], strict=True):
            booked = (
                (split["idle_joules"] or 0.0)
                + sum(split["attributed_joules"].values())
                + split["unattributed_joules"]
            )
            experiment.conservation.append(booked / split["total_joules"] - 1.0)
            start, end = window["start_unix"] - offset, window["end_unix"] - offset
            experiment.against_counter.append(split["total_joules"] / bare.joules(start, end) - 1.0)
    return experiment


def _covers(recording: Recording, unix_seconds: float) -> bool:
    when = recording.monotonic_ns_of(unix_seconds)
    return any(s.monotonic_ns[0] <= when <= s.monotonic_ns[-1] for s in recording.devices.values())


def intervals(experiments: Sequence[Experiment]) -> Intervals:
    return joined([e.data.intervals(e.data.windows) for e in experiments])


def coalition_tables(experiments: Sequence[Experiment], others: Mapping[str, Sequence[Experiment]]) -> None:
    for experiment in experiments:
        data = experiment.data
        joint = [w for w in data.windows if len(w.tenants) == len(TENANTS)]
        counted = np.mean([data.joules(w.start_seconds, w.end_seconds) / w.seconds for w in joint])
        print(f"### {experiment.name}: {counted:.0f} W in the joint runs, idle {data.idle_watts:.1f} W\n")
        model = fit_intervals(intervals(others[experiment.name]))
        print("Step model fitted on the other experiments only:\n")
        print("\n".join(error_table(data, TENANTS, model)), "\n")
        model = fit_intervals(data.intervals(joint))
        print("Step model fitted on the joint runs alone:\n")
        print("\n".join(error_table(data, TENANTS, model)), "\n")
        if experiment.books:
            value, _ = measured_shapley(data, TENANTS)
            print("The server's own books, as `GET /energy?group_by=tag` answered:\n")
            print("| joint run | " + " | ".join(TENANTS) + " |\n|---|---|---|---|")
            names = [window.name for window in data.windows]
            for window in joint:
                split = experiment.books["windows"][1 + names.index(window.name)]
                groups = [split["groups"].get(tenant, 0.0) for tenant in TENANTS]
                errors = " | ".join(f"{100 * (g / v - 1):+.1f} %" for g, v in zip(groups, value, strict=True))
                print(f"| {window.name} | {errors} |")
            print()


def jobs_of_requests(records: Sequence[Mapping[str, Any]]) -> Jobs:
    rows = sorted((r["sent_unix"], r["prompt_tokens"], r["output_tokens"]) for r in records)
    outputs = np.array([row[2] - 1 for row in rows], dtype=np.int64)
    return Jobs(
        np.array([row[0] for row in rows]) - rows[0][0],
        np.zeros(len(rows), dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        outputs,
        outputs,
        tuple(str(number) for number in range(len(rows))),
    )


@dataclass(frozen=True)
class Marginal:
    """Joules of the copies: `replayed` from the requests alone, `stepped` from the recorded steps."""

    shape: str
    copies: int
    measured: float
    deviation: float
    replayed: float
    stepped: float

    def errors(self) -> tuple[float, float]:
        """(replayed, stepped) against measured, in per cent."""
        return 100 * (self.replayed / self.measured - 1), 100 * (self.stepped / self.measured - 1)


def predicted_joules(data: Evaluation, windows: Sequence[Window], model: StepEnergyModel) -> float:
    """Predicted joules above idle of whole windows; what lies outside the first and last edge as it was."""
    total = 0.0
    for window in windows:
        cut = data.intervals([window])
        total += float(predict(model, cut).sum() - cut.joules.sum()) + data.above_idle(window)
    return total


def marginals(experiment: Experiment, model: StepEnergyModel, limits: EngineLimits) -> list[Marginal]:
    """Measured against predicted joules of the extra copies: windows with them less those without."""
    data = experiment.data
    by_shape: dict[str, list[Window]] = {}
    for window in data.windows:
        by_shape.setdefault(window.name.split(":")[1].split("#")[0].split(".")[0], []).append(window)
    base = by_shape.pop("base")
    base_joules = [data.above_idle(window) for window in base]
    base_predicted = np.mean(
        [replay(jobs_of_requests(experiment.requests[w.name]), model, limits).joules(model) for w in base]
    )
    found = []
    for shape, windows in by_shape.items():
        joules = [data.above_idle(window) for window in windows]
        predicted = np.mean(
            [
                replay(jobs_of_requests(experiment.requests[w.name]), model, limits).joules(model)
                for w in windows
            ]
        )
        copies = sum(r["group"] == "copies" for r in experiment.requests[windows[0].name])
        spread = np.sqrt(np.var(base_joules, ddof=1) * (1 / len(base) + 1 / len(windows)))
        found.append(
            Marginal(
                shape,
                copies,
                float(np.mean(joules) - np.mean(base_joules)),
                float(spread),
                float(predicted - base_predicted),
                predicted_joules(data, windows, model) / len(windows)
                - predicted_joules(data, base, model) / len(base),
            )
        )
    return found


def run_error(data: Evaluation, window: Window, model: StepEnergyModel) -> float:
    """Predicted over counted joules of a whole window, idle included, less 1."""
    counted = data.joules(window.start_seconds, window.end_seconds)
    return (predicted_joules(data, [window], model) - data.above_idle(window)) / counted


def books_report(experiments: Sequence[Experiment]) -> None:
    """Conservation, idle and unattributed in what the servers answered; one line each."""
    for experiment in experiments:
        if not experiment.books:
            continue
        answers = experiment.books["windows"][1:]
        total = sum(answer["total_joules"] for answer in answers)
        booked = 100 * max(map(abs, experiment.conservation))
        idle = experiment.books["energy"]["idle"]
        complete = [
            abs(ratio)
            for ratio, answer in zip(experiment.against_counter, answers, strict=True)
            if "partial_coverage" not in answer["flags"]
        ]
        print(
            f"- {experiment.name}: {len(answers)} windows, {total:,.0f} J; "
            f"requests + idle + unattributed off by at most {booked:.4f} %; "
            f"against the raw counter at most {100 * max(complete, default=np.nan):.3f} % "
            f"({len(complete)} complete), "
            f"{100 * max(map(abs, experiment.against_counter)):.3f} % with the others; "
            f"idle {idle['watts']:.2f} ± {idle['uncertainty_watts'] or 0.0:.2f} W ({idle['how']}), here "
            f"{experiment.data.idle_watts:.2f} W; "
            f"unattributed {100 * sum(a['unattributed_joules'] for a in answers) / total:.2f} %; "
            f"{sum('model_not_trusted' in a['flags'] for a in answers)} windows model_not_trusted"
        )
    print()


def phase_table(experiment: Experiment, model: StepEnergyModel) -> None:
    print("| phase | tokens | measured | predicted from mixed traffic | error |")
    print("|---|---|---|---|---|")
    for kind in dict.fromkeys(window.name.split("#")[0] for window in experiment.data.windows):
        windows = [w for w in experiment.data.windows if w.name.split("#")[0] == kind]
        measured = sum(experiment.data.above_idle(window) for window in windows)
        steps = [experiment.data.steps(window) for window in windows]
        prefill = sum(int(batch.prefill_tokens.sum()) for batch in steps)
        decode = sum(int(batch.decode_tokens.sum()) for batch in steps)
        tokens = prefill if "prefill" in kind else decode
        predicted = predicted_joules(experiment.data, windows, model)
        print(
            f"| {kind.split(':')[1]} | {tokens:,} | {1e3 * measured / tokens:.2f} mJ/token "
            f"| {1e3 * predicted / tokens:.2f} mJ/token | {100 * (predicted / measured - 1):+.1f} % |"
        )
    print()


def plots(folder: Path, experiments: Mapping[str, Experiment], found: Sequence[Marginal]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    for name, experiment in experiments.items():
        if not name.startswith("coalitions"):
            continue
        data = experiment.data
        others = [e for other, e in experiments.items() if other != name]
        model = fit_intervals(intervals(others or [experiment]))
        value, _ = measured_shapley(data, TENANTS)
        joint = [w for w in data.windows if len(w.tenants) == len(TENANTS)]
        split = [rules(data, window, TENANTS, model) for window in joint]
        figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
        names = list(split[0])
        for column, tenant in enumerate(TENANTS):
            errors = [100 * (np.mean([s[n][column] for s in split]) / value[column] - 1) for n in names]
            axes.barh(
                np.arange(len(names)) + 0.27 * (column - 1),
                errors,
                height=0.25,
                label=tenant,
                color=COLOURS[column],
            )
        axes.axvspan(-5, 5, color="0.9", zorder=0)
        axes.set_yticks(np.arange(len(names)), names)
        axes.invert_yaxis()
        axes.set_xscale("symlog", linthresh=10)
        ticks = (-100, -50, -20, -5, 0, 5, 20, 50, 200)
        axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
        axes.set_xlabel("error against the measured Shapley value, % (grey: ±5; linear to ±10)")
        axes.set_title(name)
        axes.legend()
        figure.savefig(folder / f"validation-{name}.png", dpi=110)
        pyplot.close(figure)
    if found:
        figure, axes = pyplot.subplots(figsize=(5, 4.5), layout="constrained")
        most = 1.1 * max(max(m.measured, m.replayed) for m in found)
        axes.plot([0, most], [0, most], color="0.6")
        axes.set(xlim=(300, most), ylim=(300, most))
        axes.fill_between([0, most], [0, 0.95 * most], [0, 1.05 * most], color="0.9")
        for number, marginal in enumerate(sorted(found, key=lambda m: m.measured)):
            x, error = marginal.measured, marginal.deviation
            axes.errorbar(x, marginal.replayed, xerr=error, fmt="o", color=COLOURS[0])
            axes.plot(x, marginal.stepped, "D", mfc="none", color=COLOURS[1])
            # Left and right by turns, since neighbours are close.
            place = ("left", "top") if number % 2 == 0 else ("right", "bottom")
            axes.annotate(
                f"  {marginal.shape}  ", (x, marginal.replayed), ha=place[0], va=place[1], fontsize=9
            )
        axes.plot([], [], "o", color=COLOURS[0], label="from the requests alone")
        axes.plot([], [], "D", mfc="none", color=COLOURS[1], label="from the recorded steps")
        axes.legend(loc="upper left")
        axes.set_xlabel("measured joules of the copies")
        axes.set_ylabel("predicted joules (grey: ±5 %)")
        axes.set_title("copies injected into steady traffic")
        figure.savefig(folder / "validation-duplicates.png", dpi=110)
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    experiments: dict[str, Experiment] = {}
    for folder in options.folders:
        recordings = [read(path) for path in sorted(folder.glob("recording*")) if path.is_dir()]
        for file in sorted(folder.glob("*.json.gz")):
            found_experiment = load(file, recordings)
            experiments[found_experiment.name] = found_experiment
    if not experiments:
        raise SystemExit("analyse: no NAME.json.gz in the folders given")
    others = {
        name: [e for other, e in experiments.items() if other != name] or [experiments[name]]
        for name in experiments
    }
    print("## Coalitions\n")
    mixed = [e for name, e in experiments.items() if name.startswith("coalitions")]
    coalition_tables(mixed, others)
    found: list[Marginal] = []
    if "duplicates" in experiments:
        experiment = experiments["duplicates"]
        model = fit_intervals(intervals(others["duplicates"]))
        found = marginals(experiment, model, limits_of(experiment.data.recording.steps))
        print("## Duplicates\n")
        print("| prompt x output | copies | measured | from the requests alone | from the recorded steps |")
        print("|---|---|---|---|---|")
        for m in found:
            errors = [
                f"{j:,.0f} J, {e:+.1f} %" for j, e in zip((m.replayed, m.stepped), m.errors(), strict=True)
            ]
            measured = f"{m.measured:,.0f} ± {m.deviation:.0f} J"
            print(f"| {m.shape} | {m.copies} | {measured} | {errors[0]} | {errors[1]} |")
        print()
    print("## Window prediction\n")
    for name, experiment in experiments.items():
        model = fit_intervals(intervals(others[name]))
        print(f"- {name}, fitted on the other experiments:", end=" ")
        print(prediction_error(experiment.data, experiment.data.windows, model), end="; ")
        runs = [run_error(experiment.data, window, model) for window in experiment.data.windows]
        print(
            f"{len(runs)} runs: {100 * np.sqrt(np.mean(np.square(runs))):.2f} % rms a run, "
            f"worst {100 * max(runs, key=abs):+.2f} %"
        )
    print()
    if "phases" in experiments and mixed:
        print("## Pure phases\n")
        rest = [e for name, e in experiments.items() if name != "phases"]
        phase_table(experiments["phases"], fit_intervals(intervals(rest)))
    print("## Conservation\n")
    books_report(list(experiments.values()))
    if options.plots:
        plots(options.plots, experiments, found)


if __name__ == "__main__":
    main()
