"""Repeats of one run as one: means over them, with the interval over them beside that within a run.

The interval within a run says how much another window of the same run would differ. From run to run more
varies: the requests that are drawn, the server's state, the temperature. Only repeats see that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from wattload.analysis.compute import load_run
from wattload.analysis.statistics import LEAST_REPEATS, Interval, ratio_of, repeats_interval
from wattload.errors import InputError
from wattload.rundir.directory import RunDir, read_document
from wattload.rundir.numbers import NUMBERS, Number, headline, number_of
from wattload.rundir.result import RunJson
from wattload.rundir.run import Run
from wattmeter.whole_file import write_atomically

SCHEMA = "wattload.repeats/1"
FILE = "repeats.json"
_FALLBACK = "latency.e2e_seconds.mean"


@dataclass(frozen=True)
class Repeats(Run):
    """A run made several times. Its numbers are means over the valid repeats, its intervals are over them.

    `repeats` are all that were made; `data` is that of the first valid one.
    """

    repeats: tuple[Run, ...] = ()

    @property
    def valid_repeats(self) -> tuple[Run, ...]:
        return tuple(run for run in self.repeats if run.valid)


def merged(folder: Path, runs: Sequence[Run]) -> Repeats:
    """The repeats in `folder` as one. Raises InputError where there is none."""
    if not runs:
        raise InputError(f"{folder}: holds no repeat")
    used = [run for run in runs if run.valid] or list(runs)
    result = used[0].result.model_copy(deep=True)
    result.name = folder.name
    result.valid = any(run.valid for run in runs)
    bad = [run for run in runs if not run.valid]
    result.reasons = [f"{run.name}: {'; '.join(run.reasons)}" for run in bad] if not result.valid else []
    notes = [f"means of {len(used)} repeats; intervals are over the repeats"]
    notes += [f"{run.name} is not valid and left out: {'; '.join(run.reasons)}" for run in bad]
    result.notes = notes if result.valid else []
    for number in NUMBERS:
        values = values_of(used, number)
        mean = float(np.mean(values)) if len(values) == len(used) else None
        _put(result, number.path, mean)
        if number.interval_path is not None:
            _put(result, number.interval_path, _over(values, number))
    whole = Repeats(RunDir(folder), result, tuple(runs))
    vars(whole)["data"] = used[0].data
    return whole


def load(path: Path | str) -> Run:
    """The run in a directory, or the repeats of one. Raises InputError as `load_run` does."""
    folder = Path(path)
    if not (folder / FILE).exists():
        return load_run(path)
    raw = read_document(folder / FILE, SCHEMA)
    return merged(folder, [load_run(folder / entry["directory"]) for entry in raw["runs"]])


def _over(values: Sequence[float], number: Number) -> tuple[float, float] | None:
    """The interval over repeats; a share does not exceed 1."""
    interval = repeats_interval(values)
    if interval is None:
        return None
    return (interval.low, min(1.0, interval.high)) if number.unit == "fraction" else interval.pair


def values_of(runs: Sequence[Run], number: Number) -> list[float]:
    """The number of each of the runs that have it."""
    return [value for run in runs if (value := number.of(run.result)) is not None]


def relative_half_width(repeats: Repeats) -> tuple[str, float] | None:
    """Title of the headline number, and half its interval over the repeats as a share of it.

    End-to-end latency stands in where there is no energy. None where there is no interval yet.
    """
    for number in (headline(repeats.result), number_of(_FALLBACK)):
        values = values_of(repeats.valid_repeats, number)
        if values:
            interval = repeats_interval(values)
            return None if interval is None else (number.title, interval.half_width / interval.estimate)
    return None


def as_dict(repeats: Repeats) -> dict[str, Any]:
    """repeats.json: the runs, and for each number its mean, its interval over them and that within a run."""
    used = repeats.valid_repeats
    numbers = {}
    for number in NUMBERS:
        values = values_of(used, number)
        if not values:
            continue
        numbers[number.path] = {
            "title": number.title,
            "unit": number.unit,
            "mean": float(np.mean(values)),
            "ci95": _over(values, number),
            "within_run_ci95": _within(used, number),
            "values": values,
        }
    return {
        "schema": SCHEMA,
        "name": repeats.name,
        "valid": repeats.valid,
        "runs": [
            {
                "directory": run.path.name,
                "seed": run.result.workload.seed,
                "valid": run.valid,
                "reasons": run.reasons,
            }
            for run in repeats.repeats
        ],
        "numbers": numbers,
    }


def write_json(repeats: Repeats, folder: Path) -> None:
    write_atomically(folder / FILE, json.dumps(as_dict(repeats), indent=1))


def change_over_repeats(first: Run, other: Run, number: Number) -> tuple[Interval | None, bool]:
    """The interval of other / first over the repeats of both, and whether these were paired.

    Repeats of one schedule are pairs; where fewer than three are, all of both are taken as independent.
    None where there are fewer than three of either.
    """
    left, right = (_by_schedule(run, number) for run in (first, other))
    shared = sorted(left.keys() & right.keys())
    if len(shared) >= LEAST_REPEATS:
        ratios = [right[key] / left[key] for key in shared if left[key] > 0]
        return repeats_interval(ratios), True
    a, b = repeats_interval(list(left.values())), repeats_interval(list(right.values()))
    return (ratio_of(a, b) if a is not None and b is not None else None), False


def _by_schedule(run: Run, number: Number) -> dict[str, float]:
    """The number of each valid repeat by its schedule; a run alone is a repeat of its own."""
    found = {}
    for place, repeat in enumerate(run.valid_repeats if isinstance(run, Repeats) else (run,)):
        value = number.of(repeat.result)
        if value is not None:
            found[repeat.result.workload.schedule_sha256 or f"{run.name}-{place}"] = value
    return found


def _within(runs: Sequence[Run], number: Number) -> list[float] | None:
    """The runs' own intervals of a number on average; None where not every run has one."""
    pairs = [pair for run in runs if (pair := number.interval_of(run.result)) is not None]
    if not pairs or len(pairs) < len(runs):
        return None
    return [float(edge) for edge in np.mean(pairs, axis=0)]


def _put(result: RunJson, path: str, value: Any) -> None:
    """Sets a number of run.json; nothing where the section that it belongs to is not there."""
    *above, name = path.split(".")
    at: Any = result
    for part in above:
        at = at.get(part) if isinstance(at, dict) else getattr(at, part, None)
        if at is None:
            return
    if isinstance(at, dict):
        if value is None:
            at.pop(name, None)
        else:
            at[name] = value
    elif isinstance(at, BaseModel):
        whole = isinstance(getattr(at, name, None), int) and isinstance(value, float)
        setattr(at, name, round(value) if whole else value)
