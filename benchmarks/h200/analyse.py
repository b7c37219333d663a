"""Tables and plots of docs/research/validation.md from what the experiments left behind.

    python benchmarks/h200/analyse.py FOLDER... [--plots DIR]

Each FOLDER holds `recording/` (or several, `recording*/`) and the experiments' NAME.json.gz. Folders may come
from several servers on the same machine. Prints Markdown. Models are fitted on time that the figure beside
them does not cover, with an experts' term where the server had one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    updates_of,
)

from wattmeter.energy_model.batching import EngineLimits, Jobs, limits_of, replay
from wattmeter.energy_model.fit import Intervals, predict
from wattmeter.energy_model.step_model import StepModel
from wattmeter.steps.recording import Recording, read

TENANTS = ("code", "conv", "long")
# A window goes on so long after its last answer (experiments.py).
CALM_SECONDS = 1.5
BOARD_WATTS = 700.0


@dataclass
class Experiment:
    """One experiment over its recording. `answers` is what the server's /energy said, None if it
    did not."""

    name: str
    data: Evaluation
    requests: Mapping[str, Sequence[Mapping[str, Any]]]
    answers: Mapping[str, Any] | None
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
    covered_to = recording.unix_seconds_of(int(recording.steps.end_ns[-1]))
    kept = [window for window in windows if window["end_unix"] - CALM_SECONDS <= covered_to]
    for window in windows[len(kept) :]:
        print(f"> {window['name']} is left out: the recording ends before it\n")
    stretches = []
    for window in kept:
        errors = [r["error"] for r in window["requests"] if r["error"]]
        if errors:
            print(f"> {window['name']}: {len(errors)} requests failed: {errors[0]}\n")
        tenants = tuple(sorted({r["group"] for r in window["requests"]}))
        stretches.append(
            Window(window["name"], tenants, window["start_unix"] - offset, window["end_unix"] - offset)
        )
        requests[window["name"]] = window["requests"]
    served = content["settled"] and content["settled"]["energy"]["model"]
    experts = StepModel.from_json(served).experts if served else None
    bare = Evaluation(recording, stretches, group_of, arrivals, 0.0, experts)
    idle = stretches[0]
    when, what = updates_of(bare.counter)
    inside = np.flatnonzero((when > idle.start_seconds * 1e9) & (when < idle.end_seconds * 1e9))
    watts = (what[inside[-1]] - what[inside[0]]) / ((when[inside[-1]] - when[inside[0]]) * 1e-9)
    data = replace(bare, windows=stretches[1:], idle_watts=float(watts))
    experiment = Experiment(content["experiment"], data, requests, content["settled"])
    if experiment.answers:
        answers = experiment.answers["windows"][1 : len(kept)]
        for window, split in zip(kept[1:], answers, strict=True):
            parts = (
                (split["idle_joules"] or 0.0)
                + sum(split["attributed_joules"].values())
                + split["unattributed_joules"]
            )
            experiment.conservation.append(parts / split["total_joules"] - 1.0)
            start, end = window["start_unix"] - offset, window["end_unix"] - offset
            experiment.against_counter.append(split["total_joules"] / bare.joules(start, end) - 1.0)
    return experiment


def _covers(recording: Recording, unix_seconds: float) -> bool:
    when = recording.monotonic_ns_of(unix_seconds)
    return any(s.monotonic_ns[0] <= when <= s.monotonic_ns[-1] for s in recording.devices.values())


def load_tests(folder: Path, recording: Recording) -> dict[str, Evaluation]:
    """The steady windows of the load tests (rates-*.json) in a folder, by name and rate."""
    offset = recording.unix_minus_monotonic_seconds
    found = {}
    for file in sorted(folder.glob("rates-*.json"), reverse=True):
        for row in json.loads(file.read_text())["rows"]:
            start, end = row["window"]["start_unix"], row["window"]["end_unix"]
            name = f"{file.stem.removeprefix('rates-')} {row['planned_rps']:g}"
            window = Window(name, (), start - offset, end - offset)
            found[name] = Evaluation(recording, [window], {}, {}, row["idle_joules"] / (end - start))
    return found


def loads_intervals(loads: Iterable[Evaluation]) -> list[Intervals]:
    return [data.intervals(data.windows) for data in loads]


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
        if experiment.answers:
            value, _ = measured_shapley(data, TENANTS)
            print("The server's own energy accounting, as `GET /energy?group_by=tag` answered:\n")
            print("| joint run | " + " | ".join(TENANTS) + " |\n|---|---|---|---|")
            names = [window.name for window in data.windows]
            for window in joint:
                split = experiment.answers["windows"][1 + names.index(window.name)]
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


def predicted_joules(data: Evaluation, windows: Sequence[Window], model: StepModel) -> float:
    """Predicted joules above idle of whole windows; what lies outside the first and last edge as it was."""
    total = 0.0
    for window in windows:
        cut = data.intervals([window])
        total += float(predict(model, cut).sum() - cut.joules.sum()) + data.above_idle(window)
    return total


def marginals(experiment: Experiment, model: StepModel, limits: EngineLimits) -> list[Marginal]:
    """Measured against predicted joules of the extra copies: windows with them less those without.

    A window without is served every third time; what it would have used at the time of a window with copies
    is taken on the straight line between the two around it, as the board warms up.
    """
    data = experiment.data
    by_shape: dict[str, list[Window]] = {}
    for window in data.windows:
        by_shape.setdefault(window.name.split(":")[1].split("#")[0].split(".")[0], []).append(window)
    base = by_shape.pop("base")
    middles = [0.5 * (window.start_seconds + window.end_seconds) for window in base]

    def replayed(window: Window) -> float:
        return replay(jobs_of_requests(experiment.requests[window.name]), model, limits).joules(model)

    def stepped(window: Window) -> float:
        return predicted_joules(data, [window], model)

    kinds = (data.above_idle, replayed, stepped)
    without = [[kind(window) for window in base] for kind in kinds]
    found = []
    for shape, windows in by_shape.items():
        added = np.array(
            [
                [
                    kind(window)
                    - np.interp(0.5 * (window.start_seconds + window.end_seconds), middles, joules)
                    for window in windows
                ]
                for kind, joules in zip(kinds, without, strict=True)
            ]
        )
        copies = sum(r["group"] == "copies" for r in experiment.requests[windows[0].name])
        found.append((shape, copies, added))
    pairs = [added[0] for _, _, added in found if added.shape[1] > 1]
    # One deviation for all shapes, from their repeats: two of each say too little of one.
    single = float(np.sqrt(np.mean([np.var(pair, ddof=1) for pair in pairs]))) if pairs else np.nan
    return [
        Marginal(shape, copies, added[0].mean(), single / np.sqrt(added.shape[1]), *added[1:].mean(axis=1))
        for shape, copies, added in found
    ]


def run_error(data: Evaluation, window: Window, model: StepModel) -> float:
    """Predicted over counted joules of a whole window, idle included, less 1."""
    counted = data.joules(window.start_seconds, window.end_seconds)
    return (predicted_joules(data, [window], model) - data.above_idle(window)) / counted


def books_report(experiments: Sequence[Experiment]) -> None:
    """Conservation, idle and unattributed in what the servers answered; one line each."""
    for experiment in experiments:
        if not experiment.answers:
            continue
        answers = experiment.answers["windows"][1 : 1 + len(experiment.against_counter)]
        total = sum(answer["total_joules"] for answer in answers)
        parts = 100 * max(map(abs, experiment.conservation))
        idle = experiment.answers["energy"]["idle"]
        complete = [
            abs(ratio)
            for ratio, answer in zip(experiment.against_counter, answers, strict=True)
            if "partial_coverage" not in answer["flags"]
        ]
        print(
            f"- {experiment.name}: {len(answers)} windows, {total:,.0f} J; "
            f"requests + idle + unattributed off by at most {parts:.4f} %; "
            f"against the raw counter at most {100 * max(complete, default=np.nan):.3f} % "
            f"({len(complete)} complete), "
            f"{100 * max(map(abs, experiment.against_counter)):.3f} % with the others; "
            f"idle {idle['watts']:.2f} ± {idle['uncertainty_watts'] or 0.0:.2f} W ({idle['how']}), here "
            f"{experiment.data.idle_watts:.2f} W; "
            f"unattributed {100 * sum(a['unattributed_joules'] for a in answers) / total:.2f} %; "
            f"{sum('model_not_trusted' in a['flags'] for a in answers)} windows model_not_trusted"
        )
    print()


@dataclass(frozen=True)
class PhaseRow:
    """One kind of pure phase: tokens computed, joules above idle of them as measured and as predicted."""

    name: str
    tokens: int
    measured: float
    predicted: float

    @property
    def error_percent(self) -> float:
        return 100 * (self.predicted / self.measured - 1)


def phase_rows(experiment: Experiment, model: StepModel) -> list[PhaseRow]:
    found = []
    for kind in dict.fromkeys(window.name.split("#")[0] for window in experiment.data.windows):
        windows = [w for w in experiment.data.windows if w.name.split("#")[0] == kind]
        steps = [experiment.data.steps(window) for window in windows]
        prefill = sum(int(batch.prefill_tokens.sum()) for batch in steps)
        decode = sum(int(batch.decode_tokens.sum()) for batch in steps)
        measured = sum(experiment.data.above_idle(window) for window in windows)
        predicted = predicted_joules(experiment.data, windows, model)
        tokens = prefill if "prefill" in kind else decode
        found.append(PhaseRow(kind.split(":")[1], tokens, measured, predicted))
    return found


def phase_table(experiment: Experiment, model: StepModel) -> None:
    print("| phase | tokens | measured | predicted from mixed traffic | error |")
    print("|---|---|---|---|---|")
    for row in phase_rows(experiment, model):
        print(
            f"| {row.name} | {row.tokens:,} | {1e3 * row.measured / row.tokens:.2f} mJ/token "
            f"| {1e3 * row.predicted / row.tokens:.2f} mJ/token | {row.error_percent:+.1f} % |"
        )
    print()


def read_folders(folders: Sequence[Path]) -> tuple[dict[str, Experiment], dict[str, Evaluation]]:
    """(experiments, load tests) of all folders, by name."""
    experiments: dict[str, Experiment] = {}
    loads: dict[str, Evaluation] = {}
    for folder in folders:
        recordings = [read(path) for path in sorted(folder.glob("recording*")) if path.is_dir()]
        for file in sorted(folder.glob("*.json.gz")):
            experiment = load(file, recordings)
            experiments[experiment.name] = experiment
        for recording in recordings:
            loads |= load_tests(folder, recording)
    if not experiments:
        raise SystemExit("analyse: no NAME.json.gz in the folders given")
    return experiments, loads


def duplicates_table(experiment: Experiment, others: Sequence[Experiment]) -> list[Marginal]:
    model = fit_intervals(intervals(others))
    found = marginals(experiment, model, limits_of(experiment.data.recording.steps))
    print("## Duplicates\n")
    print("| prompt x output | copies | measured | from the requests alone | from the recorded steps |")
    print("|---|---|---|---|---|")
    for m in found:
        errors = [f"{j:,.0f} J, {e:+.1f} %" for j, e in zip((m.replayed, m.stepped), m.errors(), strict=True)]
        measured = f"{m.measured:,.0f} ± {m.deviation:.0f} J"
        print(f"| {m.shape} | {m.copies} | {measured} | {errors[0]} | {errors[1]} |")
    print()
    return found


def window_table(experiments: Mapping[str, Experiment], others: Mapping[str, Sequence[Experiment]]) -> None:
    print("## Window prediction\n")
    for name, experiment in experiments.items():
        if others[name] == [experiment]:
            continue
        model = fit_intervals(intervals(others[name]))
        print(f"- {name}, fitted on the other experiments: {window_line(experiment, model)}")
    print()


def window_line(experiment: Experiment, model: StepModel) -> str:
    data = experiment.data
    runs = [run_error(data, window, model) for window in data.windows]
    return (
        f"{prediction_error(data, data.windows, model)}; {len(runs)} runs: "
        f"{100 * np.sqrt(np.mean(np.square(runs))):.2f} % rms a run, worst {100 * max(runs, key=abs):+.2f} %"
    )


def phases_section(
    experiment: Experiment, rest: Sequence[Experiment], loads: Mapping[str, Evaluation]
) -> None:
    mixed_traffic = [intervals(rest)] if rest else loads_intervals(loads.values())
    if not mixed_traffic:
        return
    model = fit_intervals(joined(mixed_traffic), BOARD_WATTS - experiment.data.idle_watts)
    print("## Pure phases\n")
    print(f"Step model fitted on {'the other experiments' if rest else 'the load tests'}:\n")
    phase_table(experiment, model)
    print(f"- {window_line(experiment, model)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    experiments, loads = read_folders(options.folders)
    others = {
        name: [e for other, e in experiments.items() if other != name] or [experiments[name]]
        for name in experiments
    }
    mixed = [e for name, e in experiments.items() if name.startswith("coalitions")]
    if mixed:
        print("## Coalitions\n")
        coalition_tables(mixed, others)
    found: list[Marginal] = []
    if "duplicates" in experiments:
        found = duplicates_table(experiments["duplicates"], others["duplicates"])
    window_table(experiments, others)
    if "phases" in experiments:
        rest = [e for name, e in experiments.items() if name != "phases"]
        phases_section(experiments["phases"], rest, loads)
    print("## Conservation\n")
    books_report(list(experiments.values()))
    if options.plots:
        import validation_plots

        options.plots.mkdir(parents=True, exist_ok=True)
        for experiment in mixed:
            rest = others[experiment.name]
            validation_plots.coalitions(options.plots, experiment, fit_intervals(intervals(rest)), TENANTS)
        if found:
            validation_plots.duplicates(options.plots, found)


if __name__ == "__main__":
    main()
