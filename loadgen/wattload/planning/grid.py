"""Carbon intensities of electricity, each with its year and source; none is taken without being asked for."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

from wattload.errors import InputError


@dataclass(frozen=True, slots=True)
class Grid:
    """The mean intensity of a country's electricity in a year."""

    name: str
    grams_per_kwh: float
    year: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.name} {self.year}, {self.grams_per_kwh:g} g/kWh ({self.what}; {self.source})"


def grids() -> dict[str, Grid]:
    """Every row of the table by its name."""
    text = resources.files(__package__).joinpath("grid_table.toml").read_text("utf-8")
    return {name: Grid(name=name, **row) for name, row in tomllib.loads(text).items()}


def grid_of(name: str) -> Grid:
    """The row called `name`. Raises InputError where there is none."""
    known = grids()
    if name not in known:
        raise InputError("grid", f"{name!r}: the table has {', '.join(sorted(known))}")
    return known[name]
