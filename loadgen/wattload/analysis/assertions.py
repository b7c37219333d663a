"""Assertions on run.json: `energy.per_request_joules.mean < 120`, and for comparisons `... > +5%`.

A path, an operator, a number: nothing is evaluated as code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattload.errors import InputError
from wattload.rundir.numbers import is_number, near_paths
from wattload.units import parse_quantity

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_SHAPE = re.compile(
    r"^\s*(?P<path>[A-Za-z_][\w.\-/]*)\s*(?P<op><=|>=|==|!=|<|>)\s*"
    r"(?P<value>.*?)\s*(?P<percent>%?)\s*$"
)


@dataclass(frozen=True, slots=True)
class Assertion:
    """`path operator value`. `relative`: the value is a change in percent, which only comparisons have."""

    text: str
    path: str
    op: str
    value: float
    relative: bool

    def holds(self, actual: float) -> bool:
        return _OPERATORS[self.op](actual, self.value)

    @property
    def exact(self) -> bool:
        """Whether it asks for one value, and not for a side of it."""
        return self.op in ("==", "!=")


def parse_assertion(text: str, *, field: str = "assertions", relative: bool = False) -> Assertion:
    """Reads one assertion. Raises InputError naming `field` where it is none, or is of a number that no
    run.json has.

    `relative` says which kind the setting takes: with it a value must be a percentage, without it must not.
    """
    match = _SHAPE.match(text)
    if match is None:
        raise InputError(field, f"{text!r}: is not like 'energy.per_request_joules.mean < 120'")
    if not is_number(match["path"]):
        near = near_paths(match["path"])
        instead = (
            f"; did you mean {' or '.join(near)}?"
            if near
            else " (docs/reference/run-directory.md lists them)"
        )
        raise InputError(field, f"{text!r}: run.json has no number {match['path']}{instead}")
    if bool(match["percent"]) != relative:
        kind = "a change, like '> +5%'" if relative else "a number; changes in percent are for compare"
        raise InputError(field, f"{text!r}: the value must be {kind}")
    try:
        value = float(match["value"].replace(" ", "")) if relative else parse_quantity(match["value"])
    except ValueError as error:
        reason = "the value must be a change, like '> +5%'" if relative else f"the value is {error}"
        raise InputError(field, f"{text!r}: {reason}") from error
    if not math.isfinite(value):
        raise InputError(field, f"{text!r}: the value must be finite")
    return Assertion(text.strip(), match["path"], match["op"], value, relative)


def check_assertions(assertions: Sequence[Assertion], run: Mapping[str, Any]) -> list[str]:
    """The sentences of those that fail on a run.json, in order; empty where all hold.

    A number that was not measured fails its assertion: what cannot be shown does not hold.
    """
    failures = []
    for assertion in assertions:
        actual = number_at(run, assertion.path)
        if actual is None:
            reason = (run.get("absent") or {}).get(assertion.path, "it is not in run.json")
            failures.append(f"assertion failed: {assertion.text}: no such number ({reason})")
        elif not assertion.holds(actual):
            failures.append(f"assertion failed: {assertion.text}: it is {actual:.6g}")
    return failures


def number_at(run: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of run.json (list items by index), or None where there is none.

    An outcome that no request had is 0 under `requests.failed`.
    """
    value: Any = run
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, 0 if path.startswith("requests.failed.") else None)
        elif isinstance(value, (list, tuple)) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None
