"""Assertions on run.json: `energy.per_request_joules.mean < 120`, and for comparisons `... > +5%`.

A path, an operator, a number: nothing is evaluated as code.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wattload.errors import BadInput

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_UNITS = {"": 1.0, "ms": 1e-3, "us": 1e-6, "s": 1.0, "kJ": 1e3, "J": 1.0, "W": 1.0, "kW": 1e3}
_SHAPE = re.compile(
    r"^\s*(?P<path>[A-Za-z_][\w.\-/]*)\s*(?P<op><=|>=|==|!=|<|>)\s*"
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>%|[A-Za-z]*)\s*$"
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


def parse_assertion(text: str, *, flag: str = "--assert", relative: bool = False) -> Assertion:
    """Reads one assertion. Raises BadInput naming `flag` where it is none.

    `relative` says which kind the flag takes: with it a value must be a percentage, without it must not.
    """
    match = _SHAPE.match(text)
    if match is None:
        raise BadInput(f"{flag} {text!r}: is not like 'energy.per_request_joules.mean < 120'")
    unit = match["unit"]
    if (unit == "%") != relative:
        kind = "a change, like '> +5%'" if relative else "a number; changes in percent are for compare"
        raise BadInput(f"{flag} {text!r}: the value must be {kind}")
    if unit != "%" and unit not in _UNITS:
        raise BadInput(f"{flag} {text!r}: unknown unit {unit!r}; known: {', '.join(u for u in _UNITS if u)}")
    value = float(match["number"]) * (1.0 if unit == "%" else _UNITS[unit])
    return Assertion(text.strip(), match["path"], match["op"], value, relative)


def check_assertions(assertions: list[Assertion], run: Mapping[str, Any]) -> list[str]:
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
    """The number at a dotted path of run.json (list items by index), or None where there is none."""
    value: Any = run
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, (list, tuple)) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None
