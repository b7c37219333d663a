"""What `--fail-if` finds in a comparison: conditions that hold, and those that the data do not decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wattload.analysis.assertions import Assertion, number_at
from wattload.analysis.compare import Against, Comparison
from wattload.analysis.repeats import Repeats, change_over_repeats
from wattload.rundir.numbers import known_number
from wattload.rundir.run import Run


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Sentences: `met` for conditions that hold, `open` for those on which the data allow no verdict."""

    met: list[str]
    open: list[str]


def judge(conditions: Sequence[Assertion], comparison: Comparison) -> Verdicts:
    """Judges each condition on each run against the baseline, by the 95 % interval of the change.

    A condition holds where the whole interval meets it, and does not where none of it does. In between the
    data allow no verdict, and neither do they where a number that can have an interval has none, as with too
    few requests. A number that never has one, as a count, is judged by itself. One that either run lacks
    meets its condition: what cannot be shown to be well is not well.
    """
    found = Verdicts([], [])
    base = comparison.baseline
    for run, against in zip(comparison.others, comparison.against, strict=True):
        for condition in conditions:
            before, after = (number_at(r.as_dict(), condition.path) for r in (base, run))
            if before is None or after is None or before == 0:
                found.met.append(f"{run.name}: {condition.text}: no such number in both runs")
                continue
            change = (after - before) / abs(before) * 100
            said = f"{run.name}: {condition.text}:"
            pair = _interval(base, run, against, condition.path)
            if condition.exact or (pair is None and not _may_have_one(base, run, condition.path)):
                if condition.holds(change):
                    found.met.append(f"{said} it changed by {change:+.2f} %")
            elif pair is None:
                found.open.append(
                    f"{said} no verdict: it changed by {change:+.2f} %, and there are too few values for an"
                    " interval; measure longer, or with `run --repeats`"
                )
            else:
                _judge_interval(condition, said, change, pair, found)
    return found


def _judge_interval(
    condition: Assertion, said: str, change: float, pair: tuple[float, float], found: Verdicts
) -> None:
    shown = f"it changed by {change:+.2f} % [{pair[0]:+.2f}, {pair[1]:+.2f}]"
    ends = [condition.holds(edge) for edge in pair]
    if all(ends):
        found.met.append(f"{said} {shown}")
    elif any(ends):
        found.open.append(
            f"{said} no verdict: {shown}, and the limit lies within; measure longer, or with more repeats"
        )


def _interval(base: Run, run: Run, against: Against, path: str) -> tuple[float, float] | None:
    """The 95 % interval of the change in percent."""
    known = next((change for change in against.changes if change.path == path), None)
    relative = known.relative_ci95 if known is not None else None
    number = known_number(path)
    if known is None and _of_repeats(base, run) and number is not None:
        ratio, _ = change_over_repeats(base, run, number)
        relative = (ratio.low - 1, ratio.high - 1) if ratio is not None else None
    return (relative[0] * 100, relative[1] * 100) if relative is not None else None


def _of_repeats(base: Run, run: Run) -> bool:
    return isinstance(base, Repeats) or isinstance(run, Repeats)


def _may_have_one(base: Run, run: Run, path: str) -> bool:
    """Whether the change of a number can have an interval at all."""
    number = known_number(path)
    if number is None:
        return False
    return _of_repeats(base, run) or number.interval_path is not None
