"""Values as Grafana prints them: with the unit's SI prefix."""

from __future__ import annotations

import math

_SUFFIX = {
    "watt": "W",
    "joule": "J",
    "s": "s",
    "hertz": "Hz",
    "celsius": "°C",
    "short": "",
    "bool_yes_no": "",
    "kwatth": "Wh",
    "massg": "g",
    "reqps": "req/s",
}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))


def text(value: float, unit: str) -> str:
    """`text(0.0123, "si:J/token")` is "12.3 mJ/token"."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit.startswith("suffix: "):
        shown = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
        return f"{shown} {unit.removeprefix('suffix: ')}"
    if unit == "kwatth":
        value *= 1e3
    suffix = unit.removeprefix("si:") if unit.startswith("si:") else _SUFFIX.get(unit, unit)
    if value == 0 or not math.isfinite(value):
        return f"0 {suffix}".strip()
    if unit in {"celsius", "bool_yes_no"} or (unit == "short" and abs(value) < 1e4):
        return f"{value:.4g} {suffix}".strip()
    size, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s * 0.9995), _PREFIXES[-1])
    return f"{value / size:.4g} {prefix}{suffix}".strip()
