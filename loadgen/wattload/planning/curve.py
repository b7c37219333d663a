"""What one server takes and how fast it answers, by rate: from the runs of a study or of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattload.errors import InputError
from wattload.rundir.directory import RunDir, load_run_json
from wattload.rundir.result import Distribution, RunJson, SloLimits
from wattload.study.table import read_rows

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Point:
    """A rate at which one server was measured; the mean over its valid runs.

    `rate_rps` is that of the requests scheduled in the windows, which power and latency belong to. `latency`
    are seconds by limit and quantile, as ("ttft_seconds", "p95").
    """

    rate_rps: float
    watts: float
    runs: int
    latency: dict[tuple[str, str], float]

    def within(self, slo: SloLimits, quantile: str) -> bool:
        """Whether the quantile of each latency that has a limit is within it."""
        for name, limit in slo.model_dump().items():
            if limit is not None and not self.latency.get((name, quantile), math.inf) <= limit:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Curve:
    """One kind of server under one workload. `gpus` is how many it has; `points` rise with the rate.

    `idle_watts` are those of the whole server with the model loaded and nothing to do.
    """

    name: str
    workload: str
    gpus: int
    device: str
    idle_watts: float
    points: tuple[Point, ...]
    modelled: bool

    def watts(self, rate_rps: float) -> float:
        """Power at a rate between idle and the highest that was measured, by straight lines between those."""
        rates = [0.0, *(point.rate_rps for point in self.points)]
        powers = [self.idle_watts, *(point.watts for point in self.points)]
        return float(np.interp(rate_rps, rates, powers))

    def highest_rate(self, slo: SloLimits, quantile: str) -> float | None:
        """The highest measured rate up to which every measured rate is within the limits; None for none."""
        best = None
        for point in self.points:
            if not point.within(slo, quantile):
                break
            best = point.rate_rps
        return best

    def interpolation_errors(self) -> list[float]:
        """Relative errors of the power of each rate but the highest, predicted from all others and idle."""
        errors = []
        for left_out in self.points[:-1]:
            others = tuple(point for point in self.points if point is not left_out)
            rest = Curve(
                self.name, self.workload, self.gpus, self.device, self.idle_watts, others, self.modelled
            )
            errors.append(rest.watts(left_out.rate_rps) / left_out.watts - 1)
        return errors


def curves(path: Path) -> list[Curve]:
    """The curves of a study's directory (one per arm and workload), of a sweep's, or of any directory of runs
    at several rates (one per trace).

    Raises InputError where there are none, naming what is missing.
    """
    if not path.is_dir():
        raise InputError(f"{path}: is not a directory")
    found: dict[tuple[str, str], list[RunJson]] = {}
    for row in read_rows(path):
        if row.run is not None and row.facts.valid and row.facts.rate_rps is not None:
            found.setdefault((row.facts.arm, row.facts.workload), []).append(row.run)
    for file in sorted(path.glob("*/run.json")):
        if ".cut-" not in file.parent.name:
            result = load_run_json(RunDir(file.parent))
            if result.valid and result.config.get("rate") is not None:
                found.setdefault((path.name, result.workload.trace), []).append(result)
    if not found:
        raise InputError(f"{path}: holds no valid run at a rate, of a study, a sweep or by itself")
    made = [_curve(name, workload, runs) for (name, workload), runs in found.items()]
    return sorted(made, key=lambda curve: (curve.workload, curve.name))


def _curve(name: str, workload: str, runs: Sequence[RunJson]) -> Curve:
    by_rate: dict[str, list[RunJson]] = {}
    for run in runs:
        target = run.config.get("rate")
        if target is not None and run.energy.mean_watts is not None and run.load.planned_rps:
            by_rate.setdefault(str(target), []).append(run)
    if not by_rate:
        raise InputError(f"{name}: its runs have no energy or no rate of their own")
    idle = [
        run.energy.idle_joules / (run.window.end_unix - run.window.start_unix)
        for run in runs
        if run.energy.idle_joules is not None and run.window is not None
    ]
    if not idle:
        raise InputError(f"{name}: its runs do not say what the server takes when idle")
    devices = runs[0].target.devices
    points = [_point(each) for each in by_rate.values()]
    return Curve(
        name=name,
        workload=workload,
        gpus=max(1, len(devices)),
        device=", ".join(dict.fromkeys(str(device.get("name")) for device in devices)) or "unknown",
        idle_watts=float(np.median(idle)),
        points=tuple(sorted(points, key=lambda point: point.rate_rps)),
        modelled=any(run.energy.simulated for run in runs),
    )


def _point(runs: Sequence[RunJson]) -> Point:
    latency = {}
    rate = float(np.mean([run.load.planned_rps for run in runs if run.load.planned_rps is not None]))
    for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds"):
        spread: list[Distribution] = [d for run in runs if (d := getattr(run.latency, name)) is not None]
        for quantile in _QUANTILES:
            if len(spread) == len(runs):
                latency[name, quantile] = float(np.mean([getattr(d, quantile) for d in spread]))
    watts = float(np.mean([run.energy.mean_watts for run in runs if run.energy.mean_watts is not None]))
    return Point(rate, watts, len(runs), latency)
