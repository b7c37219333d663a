"""The energy of a run's window: the counter's change, its parts, and what a request and a token took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from wattload.measure_columns import F64, Bool, Requests
from wattload.measure_joules import INVALIDATING, PARTS, column, judge, window_joules
from wattload.rundir import Capture
from wattload.runjson import EnergyInfo, PerRequest, WindowInfo
from wattload.statistics import Interval, mean_interval, quantile_interval, ratio_interval

# A gain that one board's power sensor has against the truth (arXiv 2312.02741: about 5 % from board to
# board). It is the same in every run on that board, so it drops out of ratios; a modelled meter has no
# sensor.
_GAIN = {"nvml": 0.05, "dcgm": 0.05}
_CONSERVATION_LIMIT = 1e-3


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as it was read: `inside`, shape (N,), are the requests due in the window."""

    capture: Capture
    window: WindowInfo
    requests: Requests
    inside: Bool
    series: pa.Table | None
    split: pa.Table | None

    @property
    def offset_seconds(self) -> float:
        """The meter's clock minus the client's."""
        return self.capture.clock.offset_seconds if self.capture.clock is not None else 0.0

    @property
    def done(self) -> Bool:
        """The requests that were due in the window and completed, shape (N,)."""
        return self.inside & self.requests.completed


@dataclass(slots=True)
class EnergyResult:
    """The energy section of run.json, why its nulls are null, and why the run is not valid, if it is not."""

    info: EnergyInfo
    absent: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def measure_energy(run: RunData) -> EnergyResult:
    """Everything run.json says of energy."""
    capture, window = run.capture, run.window
    if capture.no_energy_reason is not None:
        return EnergyResult(EnergyInfo(), {"energy": capture.no_energy_reason})
    start, end = window.start_unix + run.offset_seconds, window.end_unix + run.offset_seconds
    result = EnergyResult(EnergyInfo(source=capture.target.energy_source))
    if end <= start:
        result.absent["energy.total_joules"] = "the measurement window is empty"
        return result
    measured = window_joules(capture, start, end, run.series, run.split)
    result.reasons += judge(measured, capture, run.series)
    info = result.info
    info.flags = sorted(measured.flags)
    info.complete = measured.complete
    info.gain_fraction = _GAIN.get(info.source or "")
    for part in PARTS:
        value = measured.joules.get(part)
        setattr(info, f"{part}_joules", value)
        if value is None:
            result.absent[f"energy.{part}_joules"] = measured.how
    total = info.total_joules
    if total is None:
        result.absent["energy.per_request_joules"] = measured.how
        return result
    info.mean_watts = total / (end - start)
    info.uncertainty_joules = measured.uncertainty_joules
    if measured.uncertainty_joules is None:
        result.absent["energy.uncertainty_joules"] = "the endpoint states none"
    _per_request(result, run, total)
    info.accounting = _accounting(info, run)
    info.accounting["window_energy_from"] = measured.how
    info.accounting["warmup_excluded_seconds"] = window.warmup_seconds
    if abs(info.accounting.get("conservation_error_fraction") or 0.0) > _CONSERVATION_LIMIT:
        info.flags = sorted({*info.flags, "conservation_error"})
        result.reasons.append(INVALIDATING["conservation_error"])
    return result


def _per_request(result: EnergyResult, run: RunData, total: float) -> None:
    requests, done = run.requests, run.done
    info, absent = result.info, result.absent
    count = int(done.sum())
    if not count:
        for name in ("per_request_joules", "per_output_token_joules", "per_token_joules"):
            absent[f"energy.{name}"] = "no request due in the window completed"
        return
    per = PerRequest(mean=total / count)
    info.per_request_joules = per
    weights = completed_weights(run)
    binned = binned_energy(run, total, weights)
    mean = _centred(binned, "request", per.mean)
    info.statistics = {
        "method": "batch means in time order; Student interval; ratio by the delta method",
        "bins": binned.count,
        "bin_seconds": binned.seconds,
        "numerator": binned.numerator,
    }
    if mean is not None:
        per.ci95 = mean.pair
        info.statistics |= {
            "batches": mean.batches,
            "still_correlated": mean.correlated,
            "minimum_detectable_difference_fraction": mean.minimum_detectable_difference() / mean.estimate,
        }
    else:
        absent["energy.per_request_joules.ci95"] = "fewer than 8 bins of time with data"
    for name in ("output_token", "token"):
        amount = float(weights[name].sum())
        if amount <= 0:
            absent[f"energy.per_{name}_joules"] = "no token counts were given by the endpoint"
            continue
        setattr(info, f"per_{name}_joules", total / amount)
        interval = _centred(binned, name, total / amount)
        setattr(info, f"per_{name}_ci95", interval.pair if interval is not None else None)
    _attributed(result, per, requests, done)


def _attributed(result: EnergyResult, per: PerRequest, requests: Requests, done: Bool) -> None:
    """The distribution of the requests' own joules, over those that have settled."""
    known = done & requests.settled & ~np.isnan(requests.joules)
    own = requests.joules[known]
    per.attributed_requests = len(own)
    if not len(own):
        for name in ("p50", "p90", "p95", "p99", "attributed_mean"):
            result.absent[f"energy.per_request_joules.{name}"] = "no request has settled energy of its own"
        return
    per.attributed_mean = float(own.mean())
    interval = mean_interval(own)
    per.attributed_ci95 = interval.pair if interval is not None else None
    per.p50, per.p90, per.p95, per.p99 = (float(q) for q in np.quantile(own, (0.5, 0.9, 0.95, 0.99)))
    spread = {f"p{round(q * 100)}": quantile_interval(own, q) for q in (0.5, 0.9, 0.95, 0.99)}
    per.quantile_ci95 = {name: value.pair for name, value in spread.items() if value is not None}
    if len(own) < int(done.sum()):
        short = int(done.sum()) - len(own)
        result.absent["energy.per_request_joules.attributed"] = (
            f"{short} completed requests have no settled energy"
        )
    tags = sorted({str(tag) for tag in requests.tag[known]} - {""})
    if tags:
        result.info.by_tag = {
            tag: {
                "requests": int((requests.tag[known] == tag).sum()),
                "attributed_joules": float(own[requests.tag[known] == tag].sum()),
                "attributed_mean_joules": float(own[requests.tag[known] == tag].mean()),
            }
            for tag in tags
        }


def completed_weights(run: RunData) -> dict[str, F64]:
    """What the window's energy is divided by: requests, output tokens, tokens of each request, shape (N,)."""
    requests, done = run.requests, run.done
    output, prompt = np.nan_to_num(requests.output), np.nan_to_num(requests.prompt)
    return {
        "request": done.astype(np.float64),
        "output_token": np.where(done, output, 0.0),
        "token": np.where(done, output + prompt, 0.0),
    }


@dataclass(frozen=True, slots=True)
class Binned:
    """The window cut into equal bins:

    joules and weights of each. `numerator` says where the joules come from.
    """

    count: int
    seconds: float
    joules: F64
    weights: dict[str, F64]
    numerator: str


def binned_energy(run: RunData, total: float, weights: dict[str, F64]) -> Binned:
    """Joules and weights of equal bins of the window.

    Where requests have their own joules, a bin holds those of the requests that were due in it (so that
    work and count belong together however long an answer takes) and its time's share of the rest, idle and
    unattributed. Else it holds the split series' joules of its time, else an equal share of the total.
    """
    window, requests, inside, split = run.window, run.requests, run.inside, run.split
    length = window.end_unix - window.start_unix
    count = int(np.clip(length, 8, 4000)) if length >= 16 else 16
    place = ((requests.due - window.start_unix) / length * count).astype(np.int64).clip(0, count - 1)
    sums = {
        name: np.bincount(place[inside], values[inside], minlength=count).astype(np.float64)
        for name, values in weights.items()
    }
    known = inside & ~np.isnan(requests.joules)
    done = run.done
    edges = np.linspace(window.start_unix, window.end_unix, count + 1) + run.offset_seconds
    if (known & done).sum() >= 0.99 * done.sum():
        own = np.bincount(place[known], requests.joules[known], minlength=count)
        rest = total - float(own.sum())
        joules, numerator = (
            own.astype(np.float64) + rest / count,
            "the due requests' own joules, the rest spread evenly",
        )
    elif split is not None and split.num_rows:
        joules, numerator = _split_bins(split, edges), "the endpoint's joules by time"
    else:
        joules, numerator = np.full(count, total / count), "the window's joules spread evenly"
    return Binned(count, length / count, joules, sums, numerator)


def _split_bins(split: pa.Table, edges: F64) -> F64:
    left, right = split.column("start_unix").to_numpy(), split.column("end_unix").to_numpy()
    climb = np.cumsum(np.nan_to_num(column(split, "total_joules")))
    at = np.interp(edges, np.concatenate((left[:1], right)), np.concatenate(([0.0], climb)))
    return np.diff(at)


def _centred(binned: Binned, name: str, estimate: float | None) -> Interval | None:
    """The interval of a ratio over the bins, moved to the figure from the whole window's counter."""
    interval = ratio_interval(binned.joules, binned.weights[name])
    if interval is None or estimate is None:
        return None
    half = interval.half_width
    return Interval(
        estimate,
        estimate - half,
        estimate + half,
        interval.standard_error,
        interval.degrees,
        interval.batches,
        interval.correlated,
    )


def _accounting(info: EnergyInfo, run: RunData) -> dict[str, Any]:
    """How the window's energy and the requests' own energy relate, and what straddles the window's edges."""
    start, end = run.window.start_unix, run.window.end_unix
    requests, done = run.requests, run.done
    finished = (requests.last >= start) & (requests.last < end) & requests.completed
    own = requests.joules[done]
    account: dict[str, Any] = {
        "completed_of_those_due_in_window": int(done.sum()),
        "finished_inside_window": int(finished.sum()),
        "running_at_start": int(((requests.sent < start) & (requests.last >= start)).sum()),
        "running_at_end": int(((requests.sent < end) & (requests.last >= end)).sum()),
        "sum_of_requests_own_joules": float(np.nansum(own)) if (~np.isnan(own)).any() else None,
        "joules_per_request_finished": info.total_joules / int(finished.sum())
        if finished.any() and info.total_joules is not None
        else None,
    }
    parts = [getattr(info, f"{part}_joules") for part in PARTS[1:]]
    if info.total_joules and all(part is not None for part in parts):
        account["conservation_error_fraction"] = (sum(parts) - info.total_joules) / info.total_joules
    return account
