"""A DCGM exporter as a source of energy: every GPU of its node, scraped whenever the series is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Timestamp

from wattload.clock import unix_now
from wattload.energy.devices import MIG_REASON, MeteredDevice, device_names, pod_of
from wattload.energy.foreign import ForeignSource
from wattload.rundir.result import ClockInfo
from wattmeter.faults import Fault
from wattmeter.schema import DeviceSeries

ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
POWER = "DCGM_FI_DEV_POWER_USAGE"
_PREFIX = "DCGM_FI_DEV_"
# dcgm_structs.h: what stands for a value that is not there. As doubles all of the first group are one number.
_INT64_BLANK = float(0x7FFFFFFFFFFFFFF0)
_FP64_BLANK = 140737488355328.0
_BLANK_FAULTS = {2: Fault.NOT_SUPPORTED, 3: Fault.NO_PERMISSION}

# A scrape that takes no longer tells when its values were read well enough.
_QUICK_SECONDS = 0.05
_SCRAPES = 3
# Samples with times of their own, as those of a federation, must be as fresh as an exporter's.
_FRESH_SECONDS = 2.0

Sample = tuple[dict[str, str], str, float]


@dataclass(slots=True)
class DcgmSource(ForeignSource):
    """The counters of a DCGM exporter, in millijoules.

    The exporter reads its sensors every 30 s by default: its collection interval should be a second or less.
    """

    now: Callable[[], float] = unix_now

    def devices(self) -> list[MeteredDevice]:
        """Every GPU that the exporter shows, those without an energy counter too, with the reason."""
        return list(_devices(self._scrape()))

    def clock(self) -> ClockInfo:
        """A scrape carries the time at which we made it, so the clock is ours, to half a round trip."""
        before = time.perf_counter()
        self._text()
        return ClockInfo(offset_seconds=0.0, uncertainty_seconds=(time.perf_counter() - before) / 2)

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        """One reading of each device, of now, whatever is asked: an exporter has no past."""
        moment, samples = self._timed_scrape()
        energy, watts = _by_device(samples, ENERGY), _by_device(samples, POWER)
        return [
            DeviceSeries(
                id=name,
                name=labels.get("modelName", name),
                source="dcgm",
                unix_seconds=np.array([moment]),
                joules=np.array([value * 1e-3]),
                watts=np.array([watts[name][1] if name in watts else math.nan]),
            )
            for name, (labels, value) in energy.items()
            if self.counts(name) and blank_fault(value) is None
        ]

    def _timed_scrape(self) -> tuple[float, list[Sample]]:
        """A scrape and its time, the middle of a round trip; a slow one (a new connection) is made again."""
        shortest, best = math.inf, (0.0, list[Sample]())
        for _ in range(_SCRAPES):
            before = self.now()
            samples = self._scrape(ENERGY, POWER)
            after = self.now()
            if after - before < shortest:
                shortest, best = after - before, ((before + after) / 2, samples)
            if shortest <= _QUICK_SECONDS:
                break
        return best

    def _text(self) -> str:
        answer = self.client().get(self.url)
        answer.raise_for_status()
        return answer.text

    def _scrape(self, *metrics: str) -> list[Sample]:
        """(labels, metric, value) of every device's metrics, or of the named ones alone: an exporter may have
        100,000 other lines.

        Raises ValueError for MIG instances, for a counter that is shown twice with different values, for
        values of another time, and for a text that is no metrics.
        """
        text = self._text()
        if metrics:
            text = "".join(f"{line}\n" for line in text.split("\n") if any(name in line for name in metrics))
        samples: list[Sample] = []
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name.startswith(_PREFIX):
                        name = sample.name.removesuffix("_total")
                        samples.append((dict(sample.labels), name, float(sample.value)))
                        self._check_time(name, sample.timestamp)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            # The parser of prometheus_client stumbles over some texts instead of refusing them.
            raise ValueError(f"its text is no metrics ({type(error).__name__}: {error})") from error
        if not samples:
            raise ValueError(f"it exports no {ENERGY}")
        if any(labels.get("GPU_I_ID") for labels, name, _ in samples if name == ENERGY):
            raise ValueError(f"it exports MIG instances: {MIG_REASON}")
        _refuse_contradictions(samples)
        return samples

    def _check_time(self, metric: str, stamped: Timestamp | float | None) -> None:
        late = 0.0 if stamped is None or metric != ENERGY else self.now() - float(stamped)
        if not abs(late) <= _FRESH_SECONDS:
            raise ValueError(
                f"its values have times of their own, {abs(late):,.0f} s {'before' if late > 0 else 'after'}"
                " this host's: ask the exporter itself, or a Prometheus by prometheus+URL"
            )


def blank_fault(value: float) -> Fault | None:
    """Why the value of a counter is none, by DCGM's marks for that; None for a value."""
    if not math.isfinite(value) or value < 0 or value >= _INT64_BLANK:
        return Fault.NOT_SUPPORTED
    if _FP64_BLANK <= value < _FP64_BLANK + 16:
        return _BLANK_FAULTS.get(int(value - _FP64_BLANK), Fault.NOT_SUPPORTED)
    return None


def _refuse_contradictions(samples: Iterable[Sample]) -> None:
    """Raises ValueError where lines of one GPU, one for each pod, show different values of its counter."""
    shown: dict[str, float] = {}
    for labels, name, value in samples:
        uuid = labels.get("UUID") or labels.get("uuid")
        if name == ENERGY and uuid and shown.setdefault(uuid, value) != value and math.isfinite(value):
            raise ValueError(f"it shows the energy counter of {uuid} twice, with different values")


def _devices(samples: Iterable[Sample]) -> Iterable[MeteredDevice]:
    listed = list(samples)
    energy = _by_device(listed, ENERGY)
    pods: dict[str, list[str]] = {}
    every: dict[str, Mapping[str, str]] = {}
    for metric in dict.fromkeys(name for _, name, _ in listed):
        rows = [labels for labels, name, _ in listed if name == metric]
        for name, row in zip(device_names(rows), rows, strict=True):
            every.setdefault(name, row)
            if metric == ENERGY and pod_of(row):
                pods.setdefault(name, []).append(pod_of(row))
    for name, labels in every.items():
        fault = blank_fault(energy[name][1]) if name in energy else Fault.NOT_SUPPORTED
        named = tuple(sorted(set(pods.get(name, ()))))
        yield MeteredDevice(name, labels.get("modelName", name), "dcgm", labels, fault, named)


def _by_device(samples: Iterable[Sample], metric: str) -> dict[str, tuple[Mapping[str, str], float]]:
    """(labels, value) of a metric by device. Lines of one UUID, one for each pod, are one counter."""
    rows = [(labels, value) for labels, name, value in samples if name == metric]
    names = device_names([labels for labels, _ in rows])
    found: dict[str, tuple[Mapping[str, str], float]] = {}
    for name, row in zip(names, rows, strict=True):
        found.setdefault(name, row)
    return found
