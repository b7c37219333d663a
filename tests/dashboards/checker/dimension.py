"""Dimensions as exponents over base units: J/s is {"J": 1, "s": -1}. A watt is nothing of its own."""

from __future__ import annotations

from dataclasses import dataclass


class DimensionError(Exception):
    """Two quantities of different dimension were mixed, or one's dimension cannot be known."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """Exponents by base unit, sorted, without zeros. `anything`: that of a bare zero, which fits all."""

    exponents: tuple[tuple[str, int], ...] = ()
    anything: bool = False

    def __str__(self) -> str:
        if self.anything:
            return "any"
        above = [u + (f"^{e}" if e > 1 else "") for u, e in self.exponents if e > 0]
        below = [u + (f"^{-e}" if e < -1 else "") for u, e in self.exponents if e < 0]
        return ("·".join(above) or "1") + ("/" + "/".join(below) if below else "")

    def _combined(self, other: Dimension, sign: int) -> Dimension:
        if self.anything or other.anything:
            return ANY
        total = dict(self.exponents)
        for unit, exponent in other.exponents:
            total[unit] = total.get(unit, 0) + sign * exponent
        return of(**total)

    def __mul__(self, other: Dimension) -> Dimension:
        return self._combined(other, 1)

    def __truediv__(self, other: Dimension) -> Dimension:
        return self._combined(other, -1)

    def fits(self, other: Dimension) -> bool:
        return self.anything or other.anything or self.exponents == other.exponents


def of(**exponents: int) -> Dimension:
    """`of(J=1, s=-1)` is power."""
    return Dimension(tuple(sorted((u, e) for u, e in exponents.items() if e)))


ONE = of()
ANY = Dimension(anything=True)
JOULE = of(J=1)
SECOND = of(s=1)
WATT = JOULE / SECOND
REQUEST = of(request=1)
KWH = of(kWh=1)
MONEY = of(currency=1)
GRAMS = of(g=1)
TOKEN = of(token=1)
