"""Makes the repeats of a run, one after the other, and continues a series that was interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattload.analysis.compute import load_run
from wattload.analysis.repeats import Repeats, merged, relative_half_width, write_json
from wattload.config import RunConfig
from wattload.errors import InputError, RunInvalid
from wattload.load.stop_rule import parse_until
from wattload.rundir.result import RunJson
from wattload.rundir.resumed import check_same, made, set_aside, was_cut_short

# Where nothing else is said, `--repeat-until` gives up after so many.
MOST_REPEATS = 20
# Fewer repeats find a narrow interval by chance too often.
LEAST_BEFORE_STOPPING = 4
_SETTINGS = "series.json"
# What a series may be continued with other values of.
_FREE = ("progress", "out", "name", "seed")

Execute = Callable[[RunConfig], RunJson]


@dataclass(frozen=True, slots=True)
class Plan:
    """How often a run is repeated: `count` times, or at most so often until the interval is narrow enough.

    `fraction`: half the width of the interval over the repeats, over the value.
    """

    count: int
    fraction: float | None = None

    @classmethod
    def of(cls, repeats: int | None, until: str | None) -> Plan | None:
        """None where no repeats are asked for. Raises InputError naming the flag."""
        if repeats is not None and repeats < 2:
            raise InputError("repeats", f"{repeats}: must be at least 2")
        if until is None:
            return None if repeats is None else cls(repeats)
        fraction = parse_until(until, field="repeat_until").fraction
        count = repeats or MOST_REPEATS
        if count < LEAST_BEFORE_STOPPING:
            raise InputError("repeats", f"{count}: `repeat_until` needs {LEAST_BEFORE_STOPPING} at least")
        return cls(count, fraction)


def conduct(
    base: RunConfig, folder: Path, plan: Plan, *, execute: Execute, say: Callable[[str], None]
) -> Repeats:
    """Makes the repeats that `folder` does not hold yet, and writes repeats.json after each.

    Repeat i has the seed of the options plus i, so two series of one seed have the same requests in pairs.
    Raises RunInvalid where one is interrupted; the same series can be continued then.
    """
    saved: dict[str, Any] = base.saved()
    settings = {name: value for name, value in saved.items() if name not in _FREE}
    check_same(folder / _SETTINGS, {**settings, "seed": base.schedule.seed}, "repeats of a run")
    directories: list[Path] = []
    found: Repeats | None = None
    for number in range(plan.count):
        path = folder / f"repeat-{number + 1:02d}"
        if made(path) is None:
            set_aside(path)
            say(f"\nrepeat {number + 1} of {plan.count}{' at most' if plan.fraction is not None else ''} ...")
            own = {"seed": base.schedule.seed + number, "out": path, "name": path.name, "assertions": None}
            _make(base.changed(**own), folder, execute, say)
        directories.append(path)
        found = merged(folder, [load_run(directory) for directory in directories])
        write_json(found, folder)
        if plan.fraction is not None and _narrow(found, plan, say):
            break
    assert found is not None  # a plan has repeats
    return found


def _make(config: RunConfig, folder: Path, execute: Execute, say: Callable[[str], None]) -> None:
    again = f"interrupted; the same command with --out {folder} continues it"
    try:
        result = execute(config)
    except KeyboardInterrupt:
        say(again)
        raise
    if was_cut_short(result):
        raise RunInvalid(again)


def _narrow(found: Repeats, plan: Plan, say: Callable[[str], None]) -> bool:
    width = relative_half_width(found)
    if width is None or plan.fraction is None:
        return False
    title, fraction = width
    say(f"{title}: ±{fraction:.2%} over {len(found.valid_repeats)} repeats ({plan.fraction:.4g} wanted)")
    return len(found.valid_repeats) >= LEAST_BEFORE_STOPPING and fraction < plan.fraction
