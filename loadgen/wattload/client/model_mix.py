"""Several models in one run: their names, and how often each is asked for."""

from __future__ import annotations

import math

# Names with their weights, which are positive, in the order in which they were given.
ModelMix = tuple[tuple[str, float], ...]


def parse_models(text: str) -> ModelMix:
    """`NAME`, or several as `NAME=WEIGHT,NAME=WEIGHT`; a weight that is left out is 1.

    Raises ValueError where a weight is none, or a name is missing or given twice.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, weight = part.strip().rpartition("=")
        if not equals:
            name, weight = part.strip(), "1"
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{part.strip()!r} is not NAME=WEIGHT, as in a=3,b=1")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    return tuple(found.items())
