"""Numbers as people read them: three significant digits, a prefix where one helps, "simulated" where due."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wattload.rundir.numbers import Number
from wattload.rundir.result import RunJson

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
_PREFIXED = {"J", "W", "J/token"}


def digits(value: float, significant: int = 3) -> str:
    """`value` with `significant` digits, thousands separated, in scientific notation only below 1e-5."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= significant - 1:
        return f"{value:,.0f}"
    if size < -5:
        return f"{value:.{significant - 1}e}"
    return f"{value:.{significant - 1 - size}f}"


def quantity(value: float | None, unit: str, *, modelled: bool = False) -> str:
    """`value` in its `unit`; a dash where it is None.

    Joules and watts get a prefix, seconds become ms below 1.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "J" and 0 < abs(value) < 1e-6:
        return "0 J"  # what rounding leaves of a sum
    factor, prefix = _prefix(value, unit)
    text = f"{digits(value / factor)} {prefix}{unit}".rstrip()
    return f"{text} simulated" if modelled and (unit[:1] in ("J", "W") or unit == "kWh") else text


def interval(pair: tuple[float, float] | None, unit: str, around: float | None) -> str:
    """`[low, high]` with the prefix that `around` has, or an empty string where there is no interval."""
    if pair is None or around is None:
        return ""
    factor, prefix = _prefix(around, unit)
    low, high = (digits(edge / factor) for edge in pair)
    return f"[{low}, {high}] {prefix}{unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Shown:
    """A number of a run as text: its title, value, 95 % interval (empty: none) and definition."""

    title: str
    value: str
    interval: str
    definition: str


def show(number: Number, run: RunJson, *, tag: bool = True) -> Shown | None:
    """A number of a run as text, with "simulated" beside every joule that no sensor read (not `tag`: where a
    heading says so); None where it is null.
    """
    value = number.of(run)
    if value is None:
        return None
    pair = number.interval_of(run)
    if number.unit == "fraction":
        text = percent(value)
        spread = f"[{percent(pair[0])}, {percent(pair[1])}]" if pair is not None else ""
    elif isinstance(value, int):
        text, spread = f"{value:,}", ""
    else:
        text = quantity(value, number.unit, modelled=tag and run.energy.simulated)
        spread = interval(pair, number.unit, value)
    return Shown(number.title_in(run), text, spread, number.definition)


def percent(fraction: float | None, places: int = 1) -> str:
    """`fraction` in percent. What rounding leaves of a sum is 0, not -0."""
    return "–" if fraction is None else f"{round(fraction * 100, places) + 0.0:.{places}f} %"


def _prefix(value: float, unit: str) -> tuple[float, str]:
    size = abs(value)
    if unit == "s":
        return (1e-3, "m") if 0 < size < 1 else (1.0, "")
    if unit in _PREFIXED and size > 0:
        # 1,500 J reads better than 1.5 kJ beside other joules; only five digits and more get a kilo.
        for factor, prefix in _PREFIXES:
            if size >= factor * (10 if factor >= 1e3 else 1):
                return factor, prefix
    return 1.0, ""
