"""Why the server's own books err where the mix of tenants changes: its rule replayed on the kept recording.

    python benchmarks/h200/steady_mix.py FOLDER

The books divide a second by factors of the minute before it. Here that rule runs piece by piece, as the
server runs it, with one step model throughout: once over the experiment as it was, where another subset of
the tenants is served every 18 s, and once over a joint run repeated six times, a steady mix. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from analyse import TENANTS, intervals, load
from evaluate import Evaluation, Window, fit_intervals, measured_shapley
from wattmeter.attribution import attribute
from wattmeter.groupshares import GroupShares
from wattmeter.recording import concatenate, read, rows
from wattmeter.stepmodel import StepEnergyModel
from wattmeter.steps import StepBatch

REPEATS = 6


def only_used(steps: StepBatch) -> StepBatch:
    """The same steps with the ids of their own requests only."""
    used = np.unique(steps.request)
    return dataclasses.replace(
        steps,
        request=np.searchsorted(used, steps.request).astype(np.int32),
        request_ids=tuple(steps.request_ids[int(row)] for row in used),
    )


def booked(
    steps: StepBatch,
    group_of: Mapping[str, str],
    arrivals: Mapping[str, float],
    *,
    span: tuple[float, float],
    model: StepEnergyModel,
    above_idle: Callable[[float, float], float],
) -> list[tuple[float, dict[str, float]]]:
    """(middle of the second, joules by group) of each second of `span`, settled one after the other."""
    shares, factors, found = GroupShares(), dict[str, float](), []
    for start in np.arange(span[0], span[1]):
        edges = np.round(np.array([start, start + 1.0]) * 1e9).astype(np.int64)
        first, ended = np.searchsorted(steps.end_ns, edges, side="right")
        stop = int(np.searchsorted(steps.launch_ns, edges[1]))
        piece = rows(steps, int(first), max(stop, int(ended)))
        if len(piece) == 0:
            continue
        piece = only_used(piece)
        shares.add(rows(piece, 0, int(ended - first)))
        names: dict[str, int] = {}
        groups = [names.setdefault(group_of.get(name, ""), len(names)) for name in piece.request_ids]
        split = attribute(
            piece,
            edges,
            np.array([above_idle(start, start + 1.0)]),
            model,
            groups=np.array(groups, dtype=np.int32) if len(names) > 1 else None,
            group_factors=np.array([factors.get(name, 1.0) for name in names]),
            previous_end_ns=int(steps.end_ns[first - 1]) if first else None,
        )
        given = np.bincount(groups, weights=split.request_joules, minlength=len(names))
        found.append((start + 0.5, {name: float(given[row]) for name, row in names.items()}))
        factors = shares.factors(int(edges[1]), model, lambda name: group_of.get(name, ""), arrivals.get)
    return found


def errors(
    found: list[tuple[float, dict[str, float]]], start: float, end: float, value: np.ndarray
) -> list[str]:
    inside = [groups for middle, groups in found if start <= middle < end]
    sums = np.array([sum(groups.get(tenant, 0.0) for groups in inside) for tenant in TENANTS])
    return [f"{error:+.1f} %" for error in 100 * (sums / value - 1)]


def repeated(data: Evaluation, window: Window, model: StepEnergyModel, value: np.ndarray) -> list[str]:
    """The errors in the last of REPEATS identical runs."""
    steps, length = data.steps(window), float(np.ceil(window.seconds))
    parts, group_of, arrivals = [], {}, {}
    for number in range(REPEATS):
        shift = round(number * length * 1e9)
        names = {name: f"{number}/{name}" for name in steps.request_ids}
        parts.append(
            dataclasses.replace(
                steps,
                index=steps.index + number * 10**6,
                launch_ns=steps.launch_ns + shift,
                end_ns=steps.end_ns + shift,
                request_ids=tuple(names.values()),
            )
        )
        group_of.update({new: data.group_of[old] for old, new in names.items() if old in data.group_of})
        arrivals.update(
            {new: data.arrivals[old] + number * length for old, new in names.items() if old in data.arrivals}
        )
    begin = window.start_seconds

    def above_idle(start: float, end: float) -> float:
        before = (start - begin) // length * length
        return data.joules(start - before, end - before) - data.idle_watts * (end - start)

    last = begin + (REPEATS - 1) * length
    span = (begin, begin + REPEATS * length)
    return errors(
        booked(concatenate(parts), group_of, arrivals, span=span, model=model, above_idle=above_idle),
        last,
        span[1],
        value,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    recording = read(options.folder / "recording")
    experiments = [load(file, [recording]) for file in sorted(options.folder.glob("*.json.gz"))]
    print("| joint run | mix | " + " | ".join(TENANTS) + " |\n|---|---|---|---|---|")
    for experiment in experiments:
        if not experiment.name.startswith("coalitions"):
            continue
        data = experiment.data
        value, _ = measured_shapley(data, TENANTS)
        model = fit_intervals(intervals([e for e in experiments if e is not experiment]))

        def above_idle(start: float, end: float, data: Evaluation = data) -> float:
            return data.joules(start, end) - data.idle_watts * (end - start)

        span = (data.windows[0].start_seconds, data.windows[-1].end_seconds)
        found = booked(
            recording.steps, data.group_of, data.arrivals, span=span, model=model, above_idle=above_idle
        )
        for window in (w for w in data.windows if len(w.tenants) == len(TENANTS)):
            as_it_was = errors(found, window.start_seconds, window.end_seconds, value)
            print(f"| {window.name} | changing, as it was | {' | '.join(as_it_was)} |")
            print(f"| {window.name} | steady | {' | '.join(repeated(data, window, model, value))} |")


if __name__ == "__main__":
    main()
