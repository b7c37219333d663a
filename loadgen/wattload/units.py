"""Quantities with units as text, to SI, once: `90`, `500ms`, `1m30s`, `1.5kJ`, `300W`."""

from __future__ import annotations

import math
import re

SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
JOULES = {"mJ": 1e-3, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3.6e3, "kWh": 3.6e6}
WATTS = {"mW": 1e-3, "W": 1.0, "kW": 1e3}
_UNITS = {**SECONDS, **JOULES, **WATTS}

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ALONE = re.compile(rf"({_NUMBER})\s*([A-Za-zµ]*)")
_TERM = re.compile(rf"({_NUMBER})\s*([A-Za-zµ]+)\s*")
_DURATION_EXAMPLES = "90, 90s, 500ms, 2m, 1m30s"


def parse_duration(text: str, *, needs_unit: bool = False) -> float:
    """Seconds of `90`, `90s`, `500us`, `2m` or `1h30m`.

    `needs_unit`: a number alone is refused, where it could be taken for milliseconds. Raises ValueError.
    """
    wrong = ValueError(
        f"not a valid duration (examples: {_DURATION_EXAMPLES.removeprefix('90, ' * needs_unit)})"
    )
    stripped = text.strip()
    alone = _ALONE.fullmatch(stripped)
    if alone is not None and not alone[2]:
        if needs_unit:
            raise wrong
        return _finite(float(alone[1]), wrong)
    total, place, scale_before = 0.0, 0, math.inf
    while place < len(stripped):
        term = _TERM.match(stripped, place)
        scale = None if term is None else SECONDS.get(term[2].lower())
        # Each unit is smaller than the one before: `30s1m` is a slip of the pen.
        if term is None or scale is None or scale >= scale_before:
            raise wrong
        total += float(term[1]) * scale
        place, scale_before = term.end(), scale
    if not place:
        raise wrong
    return _finite(total, wrong)


def parse_quantity(text: str) -> float:
    """The SI value of a signed number, alone or with a unit of time, energy or power. Raises ValueError."""
    wrong = ValueError("not a quantity (examples: 120, 500ms, 1.5kJ, 300W)")
    stripped = text.strip()
    sign = -1.0 if stripped.startswith("-") else 1.0
    alone = _ALONE.fullmatch(stripped.removeprefix("-" if sign < 0 else "+"))
    if alone is None or (alone[2] and alone[2] not in _UNITS):
        raise wrong
    return sign * _finite(float(alone[1]) * _UNITS.get(alone[2], 1.0), wrong)


def _finite(value: float, wrong: ValueError) -> float:
    if not math.isfinite(value):
        raise wrong
    return value
