"""The text of a /metrics, read again and again: what a line names is learnt once, then only values are read.

prometheus_client's parser needs 15 ms for a page of vLLM's, which would make a load that runs in the same
process late. A line that has been seen is found by its text here, in under a microsecond.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from wattload.server_metrics.common import MAPPED, Kind
from wattmeter.arrays import F64, I64

# Series under an engine's own name that are kept; those with a common name are kept in any case.
MOST_OWN_SERIES = 500
MOST_SERIES = 2_000
_MOST_LINES = 20_000
_LONGEST_LINE = 2_000
_LINES_A_SLICE = 200
_SKIPPED, _UNREADABLE = -1, -2
# The parts of a histogram that are kept are its sum and its count.
_LEFT_OUT = ("_bucket", "_created")


@dataclass(frozen=True, slots=True)
class Series:
    """One series: a sample's name, its labels as they were written, and whether it counts up."""

    metric: str
    labels: str
    kind: Kind

    @property
    def mapped(self) -> bool:
        """Whether a common metric is read from it."""
        return self.metric in MAPPED


class Exposition:
    """The series of one /metrics. `left_out`: how many series were not kept for the bound on their number;
    `unreadable`: the first line that is no sample, None where there was none.
    """

    def __init__(self, pause: Callable[[], None] = lambda: time.sleep(0)) -> None:
        self._pause = pause
        self._known: dict[str, int] = {}
        self._types: dict[str, str] = {}
        self._own = 0
        self._timestamps = False
        self.series: list[Series] = []
        self.left_out = 0
        self.unreadable: str | None = None

    def read(self, text: str) -> tuple[I64, F64]:
        """(places in `series`, values) of what `text` shows; values that are no numbers are left out.

        Pauses now and then, for what else runs in this process. Raises ValueError where no line is a sample.
        """
        samples = 0
        places: list[int] = []
        values: list[float] = []
        lines = text.split("\n")
        for begin in range(0, len(lines), _LINES_A_SLICE):
            for line in lines[begin : begin + _LINES_A_SLICE]:
                if not line or line[0] == "#":
                    if line.startswith("# TYPE "):
                        self._note_type(line)
                    continue
                name, value = self._parted(line)
                place = self._known.get(name)
                if place is None:
                    place = self._learn(line)
                    value = self._parted(line)[1]
                if place == _UNREADABLE:
                    continue
                samples += 1
                if place == _SKIPPED:
                    continue
                try:
                    number = float(value)
                except ValueError:
                    self.unreadable = self.unreadable or line[:80]
                    continue
                if math.isfinite(number):
                    places.append(place)
                    values.append(number)
            self._pause()
        if not samples:
            raise ValueError("its text is not an exposition of metrics")
        return np.array(places, np.int64), np.array(values, np.float64)

    def _parted(self, line: str) -> tuple[str, str]:
        """The name of a line with its labels, and its value."""
        name, _, value = line.rstrip().rpartition(" ")
        if self._timestamps and name not in self._known:
            inner, _, middle = name.rpartition(" ")
            if inner and ("{" not in inner or inner.endswith("}")):
                return inner, middle
        return name, value

    def _note_type(self, line: str) -> None:
        parts = line.split(None, 3)
        if len(parts) == 4 and len(self._types) < _MOST_LINES:
            self._types.setdefault(parts[2], parts[3].strip())

    def _learn(self, line: str) -> int:
        """The place of a line that is new; negative for one that is not kept."""
        if len(self._known) >= _MOST_LINES or len(line) > _LONGEST_LINE:
            self.left_out += 1
            return _SKIPPED
        try:
            (sample,) = (s for family in text_string_to_metric_families(line + "\n") for s in family.samples)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError):
            # The parser stumbles over some texts instead of refusing them.
            self.unreadable = self.unreadable or line[:80]
            return _UNREADABLE
        self._timestamps = self._timestamps or sample.timestamp is not None
        name = self._parted(line)[0]
        mapped, kind = sample.name in MAPPED, self._kind(sample.name)
        place = _SKIPPED
        if kind is not None and (mapped or self._own < MOST_OWN_SERIES) and len(self.series) < MOST_SERIES:
            place = len(self.series)
            labels = name.partition("{")[2].rstrip().removesuffix("}").removesuffix(",")
            self.series.append(Series(sample.name, labels, kind))
            self._own += not mapped
        elif kind is not None:
            self.left_out += 1
        self._known[name] = place
        return place

    def _kind(self, sample: str) -> Kind | None:
        """None for a sample that is not kept."""
        if sample.endswith(_LEFT_OUT):
            return None
        stem, _, suffix = sample.rpartition("_")
        declared = self._types.get(sample) or self._types.get(stem)
        if declared in ("histogram", "summary"):
            return "counter" if suffix in ("sum", "count") else None
        return "counter" if declared == "counter" or suffix == "total" else "gauge"
