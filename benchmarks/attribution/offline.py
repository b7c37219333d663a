"""Evaluates the attribution on the recorded H200 runs of three tenants, the fit on those and on the rates.

    python benchmarks/attribution/offline.py RECORDINGS

RECORDINGS holds `tenants/` and `rates/` (nvml.csv.gz, steps.jsonl.gz, recs.json.gz each). Prints the tables
of docs/explanation/attribution.md. A model is never judged on windows that it was fitted on.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from evaluate import Evaluation, Window, error_table, fit_on, prediction_error

from wattmeter.attribution.shapley import group_factors
from wattmeter.attribution.split import attribute
from wattmeter.energy_model.online_fit import OnlineFit
from wattmeter.energy_model.step_model import ENERGY_TERMS, PRIOR_MODEL, StepModel
from wattmeter.steps.recording import Recording

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from line_recording import read_lines

BOARD_LIMIT_WATTS = 700.0


def idle_watts(recording: Recording) -> float:
    """Counter change over the marked idle phase, its edges at counter updates, divided by its length."""
    marks = recording.meta["marks"]
    offset = recording.unix_minus_monotonic_seconds
    start = next(when for name, when in marks if name == "idle") - offset
    end = next(when for name, when in marks if name == "idle_end") - offset
    (series,) = recording.devices.values()
    when, what = series.updates()
    inside = np.flatnonzero((when > (start + 0.5) * 1e9) & (when < end * 1e9))
    return float((what[inside[-1]] - what[inside[0]]) / ((when[inside[-1]] - when[inside[0]]) * 1e-9))


def load(folder: Path) -> Evaluation:
    recording = read_lines(folder)
    offset = recording.unix_minus_monotonic_seconds
    windows = []
    marks = [mark for mark in recording.meta["marks"] if not mark[0].startswith("idle")]
    for (name, start), (_, end) in itertools.pairwise(marks):
        if name != "end":
            tenants = tuple(name.split("#")[0].split("+"))
            windows.append(Window(name, tenants, start - offset, end - offset))
    group_by_response = {row[1]: row[0].split("|")[-1] for row in recording.meta["recs"]}
    sent_by_response = {row[1]: row[2] - offset for row in recording.meta["recs"]}
    group_of, arrivals = {}, {}
    for request in recording.steps.request_ids:
        response = request.rsplit("-", 2)[0]
        if response in group_by_response:
            group_of[request] = group_by_response[response]
            arrivals[request] = sent_by_response[response]
    return Evaluation(recording, windows, group_of, arrivals, idle_watts(recording))


def online(data: Evaluation, prior: StepModel) -> str:
    """The online fit over the whole recording, second by second: errors of what it predicted beforehand."""
    fit = OnlineFit(prior)
    steps = data.recording.steps
    when, what = data.counter.updates()
    edges, values = when[::10], what[::10]
    errors: list[tuple[float, float]] = []
    trusted_after, busy = None, 0
    start = time.perf_counter()
    for row in range(len(edges) - 1):
        piece = steps.between(int(edges[row]), int(edges[row + 1]))
        if len(piece) == 0:
            continue
        busy += 1
        length = (edges[row + 1] - edges[row]) * 1e-9
        above = values[row + 1] - values[row] - data.idle_watts * length
        known = fit.fitted
        fit.add(piece, int(edges[row]), int(edges[row + 1]), float(above))
        if known:
            predicted, measured = fit.predictions[-1]
            errors.append((predicted - measured, measured + data.idle_watts * length))
        if trusted_after is None and fit.model is not None and fit.model.trusted:
            trusted_after = busy
    spent = time.perf_counter() - start
    error, counted = np.array(errors).T
    ratio = np.abs(error / counted)
    return (
        f"{len(errors)} s predicted beforehand: {100 * np.median(ratio):.2f} % median, "
        f"{100 * np.sqrt(np.mean(ratio**2)):.2f} % rms a second, {100 * error.sum() / counted.sum():+.2f} % "
        f"in sum; trusted after {trusted_after} s of steps; {1e3 * spent / busy:.2f} ms a second of data"
    )


def cost(data: Evaluation, window: Window) -> str:
    model = fit_on(data, [window])
    steps = data.steps(window)
    used = np.unique(steps.request)
    names = sorted(set(data.group_of.values()))
    groups = np.zeros(len(steps.request_ids), dtype=np.int32)
    for row in used:
        groups[row] = names.index(data.group_of[steps.request_ids[int(row)]])
    edges = np.round(np.linspace(window.start_seconds, window.end_seconds, 29) * 1e9).astype(np.int64)
    start = time.perf_counter()
    attribute(steps, edges, np.full(28, 300.0), model, groups=groups)
    split = time.perf_counter() - start
    start = time.perf_counter()
    group_factors(steps, groups, model)
    replayed = time.perf_counter() - start
    return (
        f"{1e3 * split / len(used):.3f} ms per request for the split, "
        f"{1e3 * replayed / len(used):.3f} ms for replaying the tenant subsets"
    )


def main(folder: Path) -> None:
    tenants_data, rates = load(folder / "tenants"), load(folder / "rates")
    tenants = ("code", "conv", "long")
    apart = [w for w in tenants_data.windows if len(w.tenants) < len(tenants)]
    joint = [w for w in tenants_data.windows if len(w.tenants) == len(tenants)]
    print("## Three tenants: error against the measured Shapley value\n")
    for label, model in (
        ("model fitted on the other subsets' windows", fit_on(tenants_data, apart)),
        ("model fitted on the joint runs alone, as a server would", fit_on(tenants_data, joint)),
        ("model fitted on the other recording (rates)", fit_on(rates, rates.windows)),
    ):
        print(f"{label}:\n")
        print("\n".join(error_table(tenants_data, tenants, model)), "\n")
    print("cost:", cost(tenants_data, joint[0]), "\n")
    print("## Prediction of held-out time\n")
    first = [w for w in tenants_data.windows if w.name.endswith("#0")]
    second = [w for w in tenants_data.windows if w.name.endswith("#1")]
    fitted = fit_on(tenants_data, first)
    print("tenants, second round, fitted on the first:", prediction_error(tenants_data, second, fitted))
    whole = Window("all", (), rates.windows[0].start_seconds, rates.windows[-1].end_seconds)
    fitted = fit_on(tenants_data, tenants_data.windows)
    print("rates, fitted on tenants (never at the ceiling):", prediction_error(rates, [whole], fitted))
    limited = replace(fitted, power_cap_watts=BOARD_LIMIT_WATTS - rates.idle_watts)
    print("the same with the GPU's power limit as ceiling:", prediction_error(rates, [whole], limited))
    fitted = fit_on(rates, [whole])
    print("tenants, fitted on rates:", prediction_error(tenants_data, tenants_data.windows, fitted))
    print(f"power ceiling found in rates: {fitted.power_cap_watts:.0f} W above idle")
    halves = [
        (Window(w.name, (), w.start_seconds, w.start_seconds + w.seconds / 2), w) for w in rates.windows
    ]
    odd = fit_on(rates, [half for half, _ in halves])
    rest = [Window(w.name, (), half.end_seconds, w.end_seconds) for half, w in halves]
    print("rates, second half of every phase, fitted on the first:", prediction_error(rates, rest, odd))
    for factor in (1.0, 2.5):
        prior = replace(PRIOR_MODEL, **{name: factor * getattr(PRIOR_MODEL, name) for name in ENERGY_TERMS})
        print(f"online, tenants, prior x {factor}:", online(tenants_data, prior))
        print(f"online, rates, prior x {factor}:", online(rates, prior))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
