"""The energy of a run's window: the counter's change, its parts, energy per request and per token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from wattload.analysis.host_energy import host_energy
from wattload.analysis.late_counter import late_seconds
from wattload.analysis.received import Received, received_until, tokens_by_request
from wattload.analysis.statistics import (
    LEAST_VALUES,
    TOO_FEW,
    Interval,
    mean_interval,
    quantile,
    quantile_interval,
    ratio_interval,
)
from wattload.analysis.window_energy import PARTS, answered, column, judge, window_joules
from wattload.rundir.directory import Capture
from wattload.rundir.requests import F64, Bool, Requests
from wattload.rundir.result import EnergyInfo, PerRequest
from wattload.rundir.run import NOTHING_GENERATED, RunData
from wattmeter.faults import Fault
from wattmeter.schema import WindowEnergy
from wattmeter.sensor_gain import SensorGain

# A gain that one board's power sensor has against the truth (arXiv 2312.02741: about 5 % from board to
# board). It is the same in every run on that board, so it drops out of ratios; a modelled meter has no
# sensor.
_GAIN = {"nvml": 0.05, "dcgm": 0.05}
_CONSERVATION_LIMIT = 1e-3
_MOST_BINS = 4000

# More requests than this, and than this share, that spent energy in the window and are not counted in it, or
# the reverse.
UNPAIRED_FRACTION = 0.05
UNPAIRED_REQUESTS = 10


@dataclass(slots=True)
class EnergyResult:
    """The energy section of run.json, why its nulls are null, and why the run is not valid, if it is not."""

    info: EnergyInfo
    absent: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def energy_section(run: RunData, tokens: Received | None) -> EnergyResult:
    """Computes the energy section of run.json; `tokens` are those received in the window, if known."""
    capture, window = run.capture, run.window
    if capture.no_energy_reason is not None:
        return EnergyResult(EnergyInfo(), {"energy": capture.no_energy_reason})
    start, end = window.start_unix + run.offset_seconds, window.end_unix + run.offset_seconds
    result = EnergyResult(EnergyInfo(source=capture.target.energy_source))
    if end <= start:
        result.absent["energy.total_joules"] = "the measurement window is empty"
        return result
    measured = window_joules(capture, start, end, run.series, run.split)
    late = None
    if run.series is not None and answered(capture) is None and not (run.split and run.split.num_rows):
        late = late_seconds(run.series, run.requests, run.offset_seconds)
    if late is not None:
        measured.flags.add(Fault.LATE_COUNTER)
        result.reasons.append(f"the counters' power rose {late:.0f} s after the first token of the load")
    result.reasons += judge(measured, capture, run.series, start, end)
    info = result.info
    info.flags = sorted(measured.flags)
    info.complete = measured.complete
    info.gain, info.gain_fraction = _gain(run, info.source or "")
    for part in PARTS:
        value = measured.joules.get(part)
        setattr(info, f"{part}_joules", value)
        if value is None:
            result.absent[f"energy.{part}_joules"] = measured.how
    total = info.total_joules
    _components(info, capture)
    info.host = host_energy(run, info.components)
    if total is None:
        if Fault.PARTIAL_COVERAGE in measured.flags and measured.how:
            result.reasons.append(measured.how)
        result.absent["energy.per_request_joules"] = measured.how
        return result
    info.mean_watts = total / (end - start)
    info.uncertainty_joules = measured.uncertainty_joules
    if measured.uncertainty_joules is None:
        result.absent["energy.uncertainty_joules"] = "the endpoint states none"
    binned = binned_energy(run, total)
    _per_request(result, run, total, binned)
    _absolute(info)
    _per_token(result, run, total, tokens, binned)
    info.accounting = _accounting(info, run)
    info.accounting["window_energy_from"] = measured.how
    info.accounting["warmup_excluded_seconds"] = window.warmup_seconds
    per = info.per_request_joules
    if per is not None and per.attributed_mean is not None and why_not_steady(run, info.accounting):
        per.headline = "attributed_mean"
    if abs(info.accounting.get("conservation_error_fraction") or 0.0) > _CONSERVATION_LIMIT:
        info.flags = sorted({*info.flags, Fault.CONSERVATION_ERROR.value})
        result.reasons.append(Fault.CONSERVATION_ERROR.clause)
    return result


def _gain(run: RunData, source: str) -> tuple[float | None, float | None]:
    """(gain of the devices together, by their energy; how far it may be off, at 95 %).

    Gains that were measured with one reference meter are off in the same direction, so their uncertainties
    add up. Where a device was not calibrated, the gain is not known.
    """
    gains = run.capture.gains or {}
    joules = _joules_by_device(run)
    if not gains or not joules or any(name not in gains for name in joules):
        return None, _GAIN.get(source)
    each = {name: SensorGain.from_json(gains[name]) for name in joules}
    total = sum(joules.values())
    gain = sum(joules[name] * one.gain for name, one in each.items()) / total
    deviation = sum(joules[name] * one.gain * one.uncertainty_fraction for name, one in each.items()) / total
    return gain, 2.0 * deviation / gain


def _joules_by_device(run: RunData) -> dict[str, float]:
    """The joules of each device in the window, as weights; empty where one's are not known."""
    answer = answered(run.capture)
    if isinstance(answer, WindowEnergy):
        found = {device.id: device.joules for device in answer.devices}
        known = {name: joules for name, joules in found.items() if joules}
        return known if len(known) == len(found) else {}
    if run.series is None or not run.series.num_rows:
        return {}
    names = np.asarray(run.series.column("device").to_pylist(), object)
    seconds, joules = column(run.series, "unix_seconds"), column(run.series, "joules")
    offset = run.offset_seconds
    ends = (run.window.start_unix + offset, run.window.end_unix + offset)
    parts = {}
    for name in np.unique(names):
        mine = (names == name) & ~np.isnan(joules)
        low, high = np.interp(ends, seconds[mine], joules[mine]) if mine.any() else (0.0, 0.0)
        parts[str(name)] = float(high - low)
    return parts if all(value > 0 for value in parts.values()) else {}


def _absolute(info: EnergyInfo) -> None:
    """Energy per request on the scale of a reference meter: sampling and the gain's error are independent."""
    each = info.per_request_joules
    if each is None or each.mean is None or info.gain_fraction is None:
        return
    gain = info.gain if info.gain is not None else 1.0
    each.absolute_mean = gain * each.mean
    if each.ci95 is not None:
        low, high = (abs(end - each.mean) / each.mean for end in each.ci95)
        error = info.gain_fraction
        each.absolute_ci95 = (
            each.absolute_mean * (1.0 - float(np.hypot(low, error))),
            each.absolute_mean * (1.0 + float(np.hypot(high, error))),
        )


def _components(info: EnergyInfo, capture: Capture) -> None:
    """What the node used besides; never part of the accelerators' total."""
    answer = answered(capture)
    if not isinstance(answer, WindowEnergy) or not isinstance(answer.more.get("components"), dict):
        return
    info.components = answer.more["components"]
    node = info.components.get("node")
    joules = node.get("joules") if isinstance(node, dict) else None
    if isinstance(joules, int | float) and info.total_joules:
        info.node_over_accelerators = joules / info.total_joules


def component_notes(components: dict[str, Any] | None) -> list[str]:
    """What the node used besides, and what of it is missing, as sentences."""
    entries = [(name, entry) for name, entry in (components or {}).items() if isinstance(entry, dict)]
    known = [
        f"{name.replace('_', ' ')} {entry['joules']:,.0f} J ({entry.get('source')})"
        for name, entry in entries
        if isinstance(entry.get("joules"), int | float)
    ]
    notes = [f"beside the accelerators, in figures of their own: {', '.join(known)}"] if known else []
    notes += [
        f"the energy of {name.replace('_', ' ')} is not known: {entry.get('reason')}"
        for name, entry in entries
        if entry.get("joules") is None
    ]
    return notes


def why_not_steady(run: RunData, accounting: dict[str, Any] | None) -> list[str]:
    """Sentences on why the window's energy is not that of the requests scheduled in it; empty where it is."""
    found = []
    steady = run.window.steady
    if steady is not None and not steady["steady"]:
        change = steady["relative_change"]
        found.append(f"not steady: {steady['series']} changed by {change:+.0%} over the window")
    if accounting is None:
        return found
    due, finished = accounting["completed_of_those_due_in_window"], accounting["finished_inside_window"]
    if due - finished > max(UNPAIRED_REQUESTS, UNPAIRED_FRACTION * due):
        found.append(
            f"the server fell behind: {due:,} requests were scheduled in the window and {finished:,}"
            f" were finished,"
            " so energy per request (of those scheduled) is too low; see"
            " accounting.joules_per_request_finished"
        )
    cut = int((run.inside & run.requests.aborted).sum())
    if cut > max(UNPAIRED_REQUESTS, UNPAIRED_FRACTION * due):
        found.append(
            f"{cut:,} requests scheduled in the window were aborted, so energy per request (of the "
            f"{due:,} completed ones) is too high; see accounting.joules_per_request_finished"
        )
    return found


def _per_request(result: EnergyResult, run: RunData, total: float, binned: Binned) -> None:
    requests, done = run.requests, run.done
    info, absent = result.info, result.absent
    count = int(done.sum())
    if not count:
        absent["energy.per_request_joules"] = "no request scheduled in the window completed"
        return
    per = PerRequest(mean=total / count)
    info.per_request_joules = per
    mean = _about(binned, "request", total / count) if count >= LEAST_VALUES else None
    info.statistics = {
        "method": "ratio of sums over bins of time on the scale of the logarithm; Student interval, the"
        " variance "
        "from slow cosine waves",
        "bins": binned.count,
        "bin_seconds": binned.seconds,
        "numerator": binned.numerator,
    }
    if mean is not None:
        per.ci95 = mean.pair
        info.statistics |= {
            "degrees_of_freedom": mean.degrees,
            "minimum_detectable_difference_fraction": mean.minimum_detectable_fraction(),
        }
    else:
        absent["energy.per_request_joules.ci95"] = TOO_FEW
    _attributed(result, per, requests, done)


def _per_token(
    result: EnergyResult, run: RunData, total: float, tokens: Received | None, binned: Binned
) -> None:
    """Energy per token received in the window, whichever request it belongs to."""
    # Energy per input token is that of endpoints which do nothing else: elsewhere it would hold the output's.
    names = ("output_token", "token") if run.generates else ("token", "input_token")
    if not run.generates:
        result.absent |= {f"energy.per_output_token_{what}": NOTHING_GENERATED for what in ("joules", "ci95")}
    for name in names:
        amount = float(tokens.weights[name].sum()) if tokens is not None else 0.0
        if amount <= 0:
            why = "no token counts were given by the endpoint"
            result.absent[f"energy.per_{name}_joules"] = why if tokens is None else "no token was received"
            continue
        setattr(result.info, f"per_{name}_joules", total / amount)
        few = int(run.done.sum()) < LEAST_VALUES
        interval = None if few else _about(binned, name, total / amount)
        setattr(result.info, f"per_{name}_ci95", interval.pair if interval is not None else None)


def _attributed(result: EnergyResult, per: PerRequest, requests: Requests, done: Bool) -> None:
    """The distribution of attributed energy, over the requests whose energy is final."""
    known = done & requests.settled & ~np.isnan(requests.joules)
    own = requests.joules[known]
    per.attributed_requests = len(own)
    if not len(own):
        for name in ("p50", "p90", "p95", "p99", "attributed_mean"):
            result.absent[f"energy.per_request_joules.{name}"] = "no request has final attributed energy"
        return
    per.attributed_mean = float(own.mean())
    interval = mean_interval(own)
    per.attributed_ci95 = interval.pair if interval is not None else None
    per.p50, per.p90, per.p95, per.p99 = (quantile(own, q) for q in (0.5, 0.9, 0.95, 0.99))
    spread = {f"p{round(q * 100)}": quantile_interval(own, q) for q in (0.5, 0.9, 0.95, 0.99)}
    per.quantile_ci95 = {name: value.pair for name, value in spread.items() if value is not None}
    if len(own) < int(done.sum()):
        short = int(done.sum()) - len(own)
        result.absent["energy.per_request_joules.attributed"] = (
            f"{short} completed requests have no final energy"
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


@dataclass(frozen=True, slots=True)
class Binned:
    """Joules and weights of equal bins of the window; `numerator` says where the joules come from."""

    count: int
    seconds: float
    joules: F64
    weights: dict[str, F64]
    numerator: str


def binned_energy(run: RunData, total: float) -> Binned:
    """Joules and weights of equal bins of the window: "request" and, where tokens are counted, "output_token"
    and "token".

    Where requests have attributed joules, a bin holds those of the requests that were due in it, so that work
    and count belong together however long a response takes, and its time's share of the rest, idle and
    unattributed. Else it holds the joules of its time: of the endpoint's split, of the counters, or an equal
    share of the total; tokens then belong to the bin in which they were received.
    """
    window, requests, done = run.window, run.requests, run.done
    length = window.end_unix - window.start_unix
    count = int(np.clip(length, LEAST_VALUES, _MOST_BINS))
    place = ((requests.due - window.start_unix) / length * count).astype(np.int64).clip(0, count - 1)

    def by_due(values: F64, rows: Bool) -> F64:
        return np.bincount(place[rows], values[rows], minlength=count).astype(np.float64)

    weights = {"request": by_due(np.ones(len(requests)), done)}
    known = run.inside & ~np.isnan(requests.joules)
    at = np.linspace(window.start_unix, window.end_unix, count + 1)
    if (known & done).sum() >= 0.99 * done.sum():
        joules = by_due(requests.joules, known)
        joules += (total - float(joules.sum())) / count
        weights |= {name: by_due(tokens, known) for name, tokens in tokens_by_request(requests).items()}
        return Binned(
            count,
            length / count,
            joules,
            weights,
            "attributed energy of the requests scheduled in each bin, the rest spread evenly",
        )
    weights |= {name: np.diff(tokens) for name, tokens in received_until(requests, at).items()}
    edges = at + run.offset_seconds
    if run.split is not None and run.split.num_rows:
        joules, numerator = _split_bins(run.split, edges), "the endpoint's joules by time"
    elif run.series is not None and run.series.num_rows:
        joules, numerator = _series_bins(run.series, edges), "the counters' joules by time"
    else:
        joules, numerator = np.full(count, total / count), "the window's joules spread evenly"
    return Binned(count, length / count, joules, weights, numerator)


def _split_bins(split: pa.Table, edges: F64) -> F64:
    left, right = split.column("start_unix").to_numpy(), split.column("end_unix").to_numpy()
    climb = np.cumsum(np.nan_to_num(column(split, "total_joules")))
    at = np.interp(edges, np.concatenate((left[:1], right)), np.concatenate(([0.0], climb)))
    return np.diff(at)


def _series_bins(series: pa.Table, edges: F64) -> F64:
    seconds, joules = series.column("unix_seconds").to_numpy(), column(series, "joules")
    names = np.asarray(series.column("device").to_pylist(), object)
    total = np.zeros(len(edges) - 1)
    for name in np.unique(names):
        mine = (names == name) & ~np.isnan(joules)
        if mine.any():
            total += np.diff(np.interp(edges, seconds[mine], joules[mine]))
    return total


def _about(binned: Binned, name: str, estimate: float) -> Interval | None:
    """The interval of a ratio over the bins, about the figure from the whole window's counter."""
    interval = ratio_interval(binned.joules, binned.weights[name])
    return interval.around(estimate) if interval is not None and estimate > 0 else None


def _accounting(info: EnergyInfo, run: RunData) -> dict[str, Any]:
    """How total and attributed energy relate, and how many requests straddle the window's edges."""
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
