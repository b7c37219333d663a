"""What an arrival process is given and what it answers: when, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wattload.errors import InputError

F64 = npt.NDArray[np.float64]

# More is a slip of the pen; planning takes about 250 bytes a request.
MAX_REQUESTS = 50_000_000


def limited(count: float, field: str, what: str = "") -> int:
    """`count` as a whole number of what is planned. Raises InputError for `field` and `what` if too many."""
    if not count <= MAX_REQUESTS:
        raise InputError(
            field, f"{what}: {count:,.0f} are more than the {MAX_REQUESTS:,} that can be planned"
        )
    return int(count)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run asks for. `rate_rps`: mean rate; None: none asked. `speed`: how many times faster than
    its own times a trace is played (1.0 unless `--rate 3x` was asked). `duration_seconds` or `requests`
    may be None.
    """

    rate_rps: float | None = None
    speed: float = 1.0
    duration_seconds: float | None = None
    requests: int | None = None

    def count(self, process: str, limit: int | None = None) -> int:
        """How many requests a process of constant mean rate plans: `requests`, else rate x duration, rounded,
        else all that the trace holds (`limit`).
        """
        if self.requests is not None:
            return self.requests
        if self.duration_seconds is None:
            if limit is not None:
                return limit
            raise InputError("arrivals", f"{process} needs `duration` or `requests`")
        wanted = self.rate(process) * self.duration_seconds
        limited(wanted, "rate", "times `duration`")
        return max(1, round(wanted))

    def within(self, due: F64) -> F64:
        """Those of `due` that a number of requests asked for as well does not push beyond the duration."""
        if self.requests is None or self.duration_seconds is None:
            return due
        return due[due < self.duration_seconds]

    def rate(self, process: str) -> float:
        """The rate asked for. Raises InputError where none was and `process` cannot do without."""
        if self.rate_rps is None:
            raise InputError("arrivals", f"{process} needs `rate`")
        return self.rate_rps


class Rows(Protocol):
    """The trace's own times, as far as they are asked for: an embedded workload has no end."""

    def first(self, count: int) -> F64:
        """Times of the first `count` rows, seconds from 0.0; fewer where the trace ends."""

    def until(self, seconds: float) -> F64:
        """Times of all rows before `seconds`."""

    @property
    def limit(self) -> int | None:
        """How many rows there are; None: no end."""

    @property
    def timed(self) -> bool:
        """Whether the trace has times of its own."""

    @property
    def mean_gap_seconds(self) -> float:
        """The trace's mean time between requests."""


class Arrivals(Protocol):
    """When requests are due. `text` is the specification it was made from, in full."""

    @property
    def text(self) -> str: ...

    @property
    def concurrency(self) -> int:
        """Above 0: a closed loop of so many slots, and all due times are NaN."""

    def due_seconds(self, demand: Demand, rows: Rows, rng: np.random.Generator) -> F64:
        """Due times, shape (N,), never decreasing, seconds after the start; NaN where a slot decides (closed
        loop).

        N may exceed what the trace holds: `schedule.build` says what happens then. Deterministic in `rng`.
        """


@dataclass(frozen=True, slots=True)
class Parameters:
    """The `key=value` part of an arrival specification; every value taken is checked, every one left is
    refused.
    """

    process: str
    values: dict[str, str]

    def number(
        self, key: str, default: float | None = None, *, least: float = 0.0, above: bool = True
    ) -> float:
        """The value of `key` as a float > least (>= least where not `above`). Raises InputError naming it."""
        if key not in self.values:
            if default is None:
                raise InputError("arrivals", f"{self.process} needs {key}=NUMBER")
            return default
        return number(self.values.pop(key), "arrivals", f"{self.process}: {key} ", least=least, above=above)

    def finish(self) -> None:
        """Raises InputError for a key nobody asked for."""
        if self.values:
            raise InputError(
                "arrivals", f"{self.process}: unknown parameter {', '.join(sorted(self.values))}"
            )


def number(text: str, field: str, what: str = "", *, least: float = 0.0, above: bool = True) -> float:
    """`text` as a finite float. Raises InputError, naming `field` and `what`, otherwise."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(field, f"{what}{text!r} is not a number") from None
    if not math.isfinite(value):
        raise InputError(field, f"{what}{text} is not a finite number")
    if value < least or (above and value == least):
        raise InputError(field, f"{what}{text} must be {'above' if above else 'at least'} {least:g}")
    return value


Parser = Callable[[Parameters], Arrivals]
