"""From a run directory to run.json:

`collect` asks the endpoint what is still open, `finish` computes the rest.

`finish` needs no network: every number comes from capture.json and the Parquet files, and comes out the
same again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wattload.estimates.beside import estimates
from wattload.footprint import footprint
from wattload.measure_collect import collect, mark_window
from wattload.measure_columns import F64, GapHistogram, Requests, gap_histogram, read_requests
from wattload.measure_energy import RunData, measure_energy
from wattload.measure_window import decide_window
from wattload.rundir import Capture, RunDir, write_atomically
from wattload.runjson import (
    RUN_SCHEMA,
    Distribution,
    Lag,
    LatencyInfo,
    LoadInfo,
    RequestsInfo,
    RunJson,
    SloInfo,
    TokensInfo,
)
from wattload.slo import met
from wattload.statistics import mean_interval, quantile_interval

__all__ = ["collect", "compute", "distribution", "finish"]

_CLOCK_DRIFT_SECONDS = 0.005
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))


# A queue that grows by more than this over the window: its requests are paid for after it.
FELL_BEHIND_FRACTION = 0.05
FELL_BEHIND_REQUESTS = 10


def finish(run: RunDir, capture: Capture | None = None) -> RunJson:
    """run.json computed and written: `compute` without its histogram."""
    return compute(run, capture)[0]


def compute(run: RunDir, capture: Capture | None = None) -> tuple[RunJson, GapHistogram]:
    """Computes run.json from the directory and writes it; also gives the gaps between tokens, which take
    long to read. Raises BadInput where a file cannot be used.

    `capture` stands in for capture.json, for a run that is looked at with other settings.
    """
    capture = capture or run.load_capture()
    requests = read_requests(run)
    window = decide_window(capture, requests)
    inside = requests.within(window.start_unix, window.end_unix)
    data = RunData(capture, window, requests, inside, run.read_energy(), run.read_split())
    energy = measure_energy(data)
    absent = dict(energy.absent)
    gaps = gap_histogram(run, requests.index[data.done])
    latency = _latency(requests, data, gaps, absent)
    reasons = [*_invalid(capture, data), *energy.reasons]
    result = RunJson(
        schema=RUN_SCHEMA,
        name=capture.name,
        started_unix=capture.started_unix,
        finished_unix=capture.finished_unix,
        valid=not reasons,
        reasons=reasons,
        notes=_notes(capture, data, energy.info.accounting, absent),
        versions=capture.versions,
        host=capture.host,
        target=capture.target,
        clock=capture.clock,
        workload=capture.workload,
        window=window,
        requests=_requests(requests, data),
        load=_load(requests, data, absent),
        latency=latency,
        tokens=_tokens(requests, data, absent),
        energy=energy.info,
        estimates=estimates(data, energy.info.total_joules, energy.info.idle_joules),
        slo=_slo(capture, data, energy.info.total_joules),
        footprint=footprint(capture.config.get("footprint") or {}, energy.info),
        absent=absent,
        config=capture.config,
    )
    _explain_nulls(result)
    mark_window(run, window)
    write_atomically(run.run_json_path, result.as_text())
    return result, gaps


# Why a field may be null where no other reason was found, by the field's name.
_WHY_NULL = {
    "ci95": "too few values for an interval",
    "quantile_ci95": "too few values for an interval",
    "per_output_token_ci95": "too few values for an interval",
    "per_token_ci95": "too few values for an interval",
    "met_ci95": "too few values for an interval",
    "gain_fraction": "no published gain error for this source",
    "joules_per_good_request": "no request met the limits, or there is no energy",
    "by_tag": "the workload has no tags, or no request has energy of its own",
    "estimates": "no model and GPU are known for them",
    "slo": "no latency limits were given",
    "footprint": "there is no energy to convert",
    "cached": "the endpoint does not say",
    "steady": "too few values for the trend test",
    "clock": "no meter was asked",
    "finished_unix": "the run was cut short",
}
_EXPLAINED = (
    "window",
    "requests",
    "load",
    "latency",
    "tokens",
    "energy",
    "estimates",
    "slo",
    "footprint",
    "clock",
)


def _explain_nulls(result: RunJson) -> None:
    """Sees to it that no number is null without a reason: at its path, or at one above it."""

    def walk(value: Any, path: str) -> None:
        if any(path == known or path.startswith(f"{known}.") for known in result.absent):
            return
        if value is None:
            leaf = path.rpartition(".")[2]
            result.absent[path] = _WHY_NULL.get(leaf, "not given")
        elif isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, f"{path}.{name}" if path else name)

    for entry in (result.estimates or {}).get("all", []):
        if entry["reason"]:
            for name in ("joules", "ratio"):
                result.absent[f"estimates.{entry['key']}_{name}"] = entry["reason"]
    dumped = result.model_dump(mode="json", by_alias=True)
    for name in ("finished_unix", *_EXPLAINED):
        walk(dumped[name], name)


def _invalid(capture: Capture, data: RunData) -> list[str]:
    reasons = list(capture.reasons)
    if capture.interrupted:
        reasons.append(capture.interrupted)
    elif capture.finished_unix is None:
        reasons.append("the run was cut short: it has no end")
    missing = (capture.planned_requests or 0) - len(data.requests)
    if missing > 0:
        reasons.append(f"{missing} planned requests have no row in requests.parquet")
    if data.window.end_unix <= data.window.start_unix:
        reasons.append("the measurement window is empty: the run ended inside its warm-up")
    elif not data.inside.any():
        reasons.append("no request was due in the measurement window")
    elif not data.done.any():
        reasons.append("no request due in the measurement window completed")
    return reasons


def _notes(
    capture: Capture, data: RunData, accounting: dict[str, Any] | None, absent: dict[str, str]
) -> list[str]:
    """What a reader should know before using figures that stand."""
    notes = []
    window = data.window
    if window.method.startswith("not found"):
        notes.append(f"the end of the warm-up was {window.method}")
    if window.steady is not None and not window.steady["steady"]:
        change = window.steady["relative_change"]
        notes.append(f"not steady: {window.steady['series']} changed by {change:+.0%} over the window")
    behind = _fell_behind(accounting)
    if behind:
        notes.append(behind)
    failed = int(data.inside.sum()) - int(data.done.sum())
    if failed:
        notes.append(f"{failed} requests due in the window failed; latencies are of those that completed")
    if "energy.per_request_joules.attributed" in absent:
        notes.append(absent["energy.per_request_joules.attributed"])
    drift = _clock_drift(capture)
    if drift is not None:
        notes.append(f"the meter's clock and the client's moved {drift * 1e3:+.0f} ms apart during the run")
    if capture.host.get("energy_poll_errors"):
        notes.append(f"polling the meter failed now and then: {capture.host['energy_poll_errors'][0]}")
    return notes


def _fell_behind(accounting: dict[str, Any] | None) -> str | None:
    """What is wrong with energy per request where a queue grows: the requests due are not those worked on."""
    if accounting is None:
        return None
    due, finished = accounting["completed_of_those_due_in_window"], accounting["finished_inside_window"]
    if due - finished <= max(FELL_BEHIND_REQUESTS, FELL_BEHIND_FRACTION * due):
        return None
    return (
        f"the server fell behind: {due:,} requests were due in the window and {finished:,} were finished, so "
        "joules per request (of those due) are too low; see accounting.joules_per_request_finished"
    )


def _clock_drift(capture: Capture) -> float | None:
    """How far the two clocks moved apart, seconds, where that is sure and over 5 ms; else None."""
    before, after = capture.clock, capture.clock_after
    if before is None or after is None:
        return None
    drift = after.offset_seconds - before.offset_seconds
    unsure = before.uncertainty_seconds + after.uncertainty_seconds
    return drift if abs(drift) > max(unsure, _CLOCK_DRIFT_SECONDS) else None


def _requests(requests: Requests, data: RunData) -> RequestsInfo:
    outcomes = requests.outcomes
    return RequestsInfo(
        planned=max(len(requests), data.capture.planned_requests or 0),
        sent=int((~np.isnan(requests.sent)).sum()),
        completed=outcomes.get("completed", 0),
        failed={name: count for name, count in sorted(outcomes.items()) if name != "completed"},
        in_window=int(data.inside.sum()),
        completed_in_window=int(data.done.sum()),
    )


def _load(requests: Requests, data: RunData, absent: dict[str, str]) -> LoadInfo:
    length = data.window.end_unix - data.window.start_unix
    if length <= 0:
        absent["load"] = "the measurement window is empty"
        return LoadInfo()
    sent = ~np.isnan(requests.sent)
    sent_inside = sent & (requests.sent >= data.window.start_unix) & (requests.sent < data.window.end_unix)
    lag = (requests.sent - requests.due)[data.inside & sent]
    if not len(lag):
        absent["load.send_lag_seconds"] = "no request due in the window was sent"
    return LoadInfo(
        planned_rps=int(data.inside.sum()) / length,
        achieved_rps=int(sent_inside.sum()) / length,
        send_lag_seconds=Lag(
            p50=float(np.quantile(lag, 0.5)), p99=float(np.quantile(lag, 0.99)), max=float(lag.max())
        )
        if len(lag)
        else None,
    )


def _latency(requests: Requests, data: RunData, gaps: GapHistogram, absent: dict[str, str]) -> LatencyInfo:
    """Over the completed of the requests due in the window; how many failed stands in `requests`."""
    latency = LatencyInfo(
        ttft_seconds=distribution(requests.ttft[data.done]),
        tpot_seconds=distribution(requests.tpot[data.done]),
        e2e_seconds=distribution(requests.e2e[data.done]),
    )
    if gaps.n:
        latency.itl_seconds = Distribution(
            mean=gaps.total / gaps.n,
            max=gaps.maximum,
            n=gaps.n,
            p50=gaps.quantile(0.5),
            p90=gaps.quantile(0.9),
            p95=gaps.quantile(0.95),
            p99=gaps.quantile(0.99),
        )
    for name in ("ttft_seconds", "tpot_seconds", "e2e_seconds", "itl_seconds"):
        if getattr(latency, name) is None:
            absent[f"latency.{name}"] = "no completed request due in the window has one"
    return latency


def distribution(values: F64) -> Distribution | None:
    """Mean, quantiles, maximum and their intervals of `values` in time order; NaN are left out.

    None for none.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    interval = mean_interval(known)
    spread = {name: quantile_interval(known, q) for name, q in _QUANTILES}
    return Distribution(
        mean=float(known.mean()),
        max=float(known.max()),
        n=len(known),
        ci95=interval.pair if interval is not None else None,
        quantile_ci95={name: value.pair for name, value in spread.items() if value is not None},
        **_quantiles(known),
    )


def _quantiles(values: F64) -> dict[str, Any]:
    found = np.quantile(values, [q for _, q in _QUANTILES])
    return {name: float(value) for (name, _), value in zip(_QUANTILES, found, strict=True)}


def _tokens(requests: Requests, data: RunData, absent: dict[str, str]) -> TokensInfo:
    done = data.done
    length = data.window.end_unix - data.window.start_unix
    prompt, output = requests.prompt[done], requests.output[done]
    tokens = TokensInfo()
    if not done.any() or np.isnan(output).all():
        absent["tokens"] = "no completed request due in the window has token counts"
        return tokens
    unknown = int((np.isnan(prompt) | np.isnan(output)).sum())
    if unknown:
        absent["tokens.partial"] = (
            f"{unknown} completed requests gave no token counts and are not in the sums"
        )
    tokens.prompt, tokens.output = int(np.nansum(prompt)), int(np.nansum(output))
    tokens.prompt_per_second, tokens.output_per_second = tokens.prompt / length, tokens.output / length
    wrong = (prompt != requests.prompt_planned[done]) | (output != requests.output_planned[done])
    tokens.mismatches = int((wrong & ~np.isnan(prompt) & ~np.isnan(output)).sum())
    cached = requests.cached[done]
    tokens.cached = int(np.nansum(cached)) if (~np.isnan(cached)).any() else None
    return tokens


def _slo(capture: Capture, data: RunData, total_joules: float | None) -> SloInfo | None:
    """The limits' outcome over the requests due in the window. One that failed missed them."""
    if capture.slo is None:
        return None
    info = SloInfo(**capture.slo.model_dump())
    requests, count = data.requests, int(data.inside.sum())
    length = data.window.end_unix - data.window.start_unix
    if not count or length <= 0:
        return info
    good = met(
        capture.slo,
        completed=data.done,
        ttft_seconds=requests.ttft,
        tpot_seconds=requests.tpot,
        e2e_seconds=requests.e2e,
    )
    hits = int(good.sum())
    info.met_fraction = hits / count
    interval = mean_interval(good[data.inside].astype(np.float64))
    if interval is not None:
        # A share lies in [0, 1]; the Student interval does not know that.
        info.met_ci95 = (max(0.0, interval.low), min(1.0, interval.high))
    info.goodput_rps = hits / length
    if hits and total_joules is not None and math.isfinite(total_joules):
        info.joules_per_good_request = total_joules / hits
    return info
