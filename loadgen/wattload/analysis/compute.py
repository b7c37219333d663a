"""From a run directory to run.json.

It needs no network: every number comes from capture.json and the Parquet files, and comes out the same again.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from wattload.analysis.by_model import by_model
from wattload.analysis.distributions import distribution
from wattload.analysis.energy import component_notes, energy_section, why_not_steady
from wattload.analysis.failures import failures, told
from wattload.analysis.footprint import footprint
from wattload.analysis.options import FootprintOptions
from wattload.analysis.received import Received, received
from wattload.analysis.server import server_notes, server_section
from wattload.analysis.sessions import sessions_section
from wattload.analysis.settle import collect, write_requests
from wattload.analysis.slo import met
from wattload.analysis.statistics import (
    LEAST_VALUES,
    quantile,
    share_interval,
)
from wattload.analysis.stream_notes import stream_notes
from wattload.analysis.window import at_once, closed_loop, decide_window, mean_in_flight
from wattload.errors import InputError
from wattload.estimates.section import estimates
from wattload.rundir.directory import Capture, RunDir, load_run_json
from wattload.rundir.numbers import why_null
from wattload.rundir.requests import GapHistogram, Requests, gap_histogram, read_requests
from wattload.rundir.result import (
    RUN_SCHEMA,
    ClockInfo,
    Distribution,
    EnergyInfo,
    FailureInfo,
    Lag,
    LatencyInfo,
    LoadInfo,
    RequestsInfo,
    RunJson,
    SloInfo,
    TokensInfo,
)
from wattload.rundir.run import NOTHING_GENERATED, Run, RunData
from wattload.rundir.sessions import write_units
from wattmeter.whole_file import write_atomically

__all__ = ["collect", "compute", "distribution", "finish", "load_run"]

_CLOCK_DRIFT_SECONDS = 0.005
_OUTPUT_COUNTS = ("received", "estimated", "per_second")


def finish(run: RunDir, capture: Capture | None = None) -> RunJson:
    """Computes run.json, writes it and gives it back. Raises InputError where a file cannot be used."""
    return compute(run, capture)[0].result


def load_run(path: Path | str) -> Run:
    """The run in a directory; computes and writes run.json where there is none.

    Raises InputError, naming the file, where there is no run or a file of it cannot be used.
    """
    directory = RunDir.open(path)
    result = load_run_json(directory) if directory.run_json_path.exists() else finish(directory)
    if result.window is None:
        raise InputError(f"{directory.run_json_path}: has no window")
    return Run(directory, result)


def compute(run: RunDir, capture: Capture | None = None) -> tuple[Run, GapHistogram]:
    """Computes run.json from the directory and writes it; also gives the times between chunks, which take
    long to read. Raises InputError where a file cannot be used.

    `capture` stands in for capture.json, for a run that is looked at with other settings.
    """
    capture = capture or run.load_capture()
    requests = read_requests(run)
    window = decide_window(capture, requests)
    write_requests(run, window)
    data = RunData.read(run, capture, window, requests)
    tokens = received(data)
    energy = energy_section(data, tokens)
    absent = dict(energy.absent)
    sessions = sessions_section(data, energy.info)
    if sessions is not None:
        absent.update(sessions.absent)
        write_units(sessions.sessions, run.sessions_path)
        write_units(sessions.tasks, run.tasks_path)
    gaps = gap_histogram(run, requests.index[data.done])
    latency = _latency(requests, data, gaps, absent)
    failed = failures(run)
    if not data.generates:
        absent["estimates"] = NOTHING_GENERATED
    reasons = [*_invalid(capture, data, failed), *energy.reasons, *data.unreadable_energy]
    result = RunJson(
        schema=RUN_SCHEMA,
        name=capture.name,
        started_unix=capture.started_unix,
        finished_unix=capture.finished_unix,
        valid=not reasons,
        reasons=reasons,
        notes=[
            *_notes(capture, data, energy.info, absent),
            *stream_notes(data, gaps),
            *(sessions.notes if sessions is not None else ()),
        ],
        versions=capture.versions,
        host=capture.host,
        target=capture.target,
        clock=capture.clock,
        workload=capture.workload,
        window=window,
        requests=_requests(requests, data, failed),
        load=_load(requests, data, absent),
        latency=latency,
        tokens=_tokens(requests, data, tokens, absent),
        energy=energy.info,
        sessions=sessions.info if sessions is not None else None,
        estimates=estimates(data, energy.info.total_joules, energy.info.idle_joules)
        if data.generates
        else None,
        slo=_slo(capture, data, energy.info.total_joules),
        by_model=by_model(data),
        footprint=footprint(FootprintOptions.of(capture.config.get("footprint") or {}), energy.info),
        server=server_section(data, absent),
        absent=absent,
        config=capture.config,
    )
    _explain_nulls(result)
    write_atomically(run.run_json_path, result.as_text())
    return Run.of(run, result, data), gaps


_EXPLAINED = (
    "window",
    "requests",
    "load",
    "latency",
    "tokens",
    "energy",
    "sessions",
    "estimates",
    "slo",
    "footprint",
    "server",
    "clock",
)


def _explain_nulls(result: RunJson) -> None:
    """Sees to it that no number is null without a reason: at its path, or at one above it."""

    def walk(value: Any, path: str) -> None:
        if any(path == known or path.startswith(f"{known}.") for known in result.absent):
            return
        if value is None:
            result.absent[path] = why_null(path)
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


def _invalid(capture: Capture, data: RunData, failed: list[FailureInfo]) -> list[str]:
    reasons = list(capture.reasons)
    if capture.interrupted:
        reasons.append(capture.interrupted)
    elif capture.finished_unix is None:
        reasons.append("the run was cut short: it has no end")
    missing = (capture.planned_requests or 0) - len(data.requests)
    if missing > 0:
        reasons.append(f"{missing} planned requests have no row in requests.parquet")
    twice = len(data.requests) - len(np.unique(data.requests.index))
    if twice:
        reasons.append(
            f"{twice} rows of requests.parquet repeat the index of another: they would count twice"
        )
    scheduled, share = int(data.inside.sum()), _failed_fraction(data)
    why = f": {told(failed[0])}" if failed else ""
    if data.window.end_unix <= data.window.start_unix:
        reasons.append("the measurement window is empty: the run ended inside its warm-up")
    elif share is None:
        reasons.append("no request was scheduled in the measurement window")
    elif not data.done.any():
        reasons.append(f"none of the {scheduled:,} requests scheduled in the window completed{why}")
    elif share > capture.max_failures:
        reasons.append(
            f"{share:.1%} of the {scheduled:,} requests scheduled in the window failed (--max-failures"
            f" {capture.max_failures:.4g}){why}"
        )
    cut = int(data.requests.aborted.sum())
    if cut and at_once(capture) and not capture.interrupted:
        reasons.append(
            f"{cut:,} of {len(data.requests):,} requests, all sent at once, were still under way when --drain"
            " ended: the longest ones are missing, and the time and energy that they take; give a longer"
            " --drain"
        )
    return reasons


def _failed_fraction(data: RunData) -> float | None:
    """The share of the requests scheduled in the window that failed; None where there is no such request.

    The end of a run aborts what is in flight: that is no failure of the server, and told apart.
    """
    scheduled = int(data.inside.sum())
    failed = data.inside & ~data.requests.completed & ~data.requests.aborted
    return int(failed.sum()) / scheduled if scheduled else None


def _notes(capture: Capture, data: RunData, info: EnergyInfo, absent: dict[str, str]) -> list[str]:
    """Sentences that qualify figures which stand."""
    notes = [*data.unreadable_server]
    window, done = data.window, int(data.done.sum())
    if 0 < done < LEAST_VALUES:
        notes.append(
            f"too few requests: {done} completed in the window, and confidence intervals need {LEAST_VALUES}"
        )
    if window.method.startswith("not found"):
        notes.append(f"the end of the warm-up was {window.method}")
    notes += why_not_steady(data, info.accounting)
    failed = int(data.inside.sum()) - done
    if failed and done:
        notes.append(
            f"{failed:,} requests scheduled in the window did not complete; latencies leave them out"
        )
    if "energy.per_request_joules.attributed" in absent:
        notes.append(absent["energy.per_request_joules.attributed"])
    drift = _clock_drift(capture)
    if drift is not None:
        notes.append(f"the meter's clock and the client's moved {drift * 1e3:+.0f} ms apart during the run")
    notes += component_notes(info.components)
    notes += server_notes(capture.server_metrics)
    if capture.host.get("energy_poll_errors"):
        notes.append(f"polling the meter failed now and then: {capture.host['energy_poll_errors'][0]}")
    return notes


def _clock_drift(capture: Capture) -> float | None:
    """How far the two clocks moved apart, seconds, where that is significant and over 5 ms; else None."""
    before, after = capture.clock, capture.clock_after
    if before is None or after is None:
        return None
    if before.hosts and after.hosts:
        drifts = [
            _drift(before.hosts[name], clock) for name, clock in after.hosts.items() if name in before.hosts
        ]
        return max((drift for drift in drifts if drift is not None), key=abs, default=None)
    return _drift(before, after)


def _drift(before: ClockInfo, after: ClockInfo) -> float | None:
    drift = after.offset_seconds - before.offset_seconds
    unsure = before.uncertainty_seconds + after.uncertainty_seconds
    return drift if abs(drift) > max(unsure, _CLOCK_DRIFT_SECONDS) else None


def _requests(requests: Requests, data: RunData, failed: list[FailureInfo]) -> RequestsInfo:
    outcomes = requests.outcomes
    return RequestsInfo(
        planned=max(len(requests), data.capture.planned_requests or 0),
        sent=int((~np.isnan(requests.sent)).sum()),
        images_sent=None if np.isnan(requests.images).all() else int(np.nansum(requests.images)),
        completed=outcomes.get("completed", 0),
        failed={name: count for name, count in sorted(outcomes.items()) if name != "completed"},
        in_window=int(data.inside.sum()),
        completed_in_window=int(data.done.sum()),
        failed_fraction=_failed_fraction(data),
        failures=failed,
    )


def _load(requests: Requests, data: RunData, absent: dict[str, str]) -> LoadInfo:
    length = data.window.end_unix - data.window.start_unix
    if length <= 0:
        absent["load"] = "the measurement window is empty"
        return LoadInfo(target_rps=data.capture.workload.arrivals.target_rps)
    sent = ~np.isnan(requests.sent)
    sent_inside = sent & (requests.sent >= data.window.start_unix) & (requests.sent < data.window.end_unix)
    lag = (requests.sent - requests.due)[data.inside & sent]
    if closed_loop(data.capture):
        lag = lag[:0]
        absent["load.send_lag_seconds"] = "a request of a closed loop has no scheduled time to be late for"
    elif not len(lag):
        absent["load.send_lag_seconds"] = "no request scheduled in the window was sent"
    return LoadInfo(
        target_rps=data.capture.workload.arrivals.target_rps,
        planned_rps=int(data.inside.sum()) / length,
        achieved_rps=int(sent_inside.sum()) / length,
        send_lag_seconds=Lag(p50=quantile(lag, 0.5), p99=quantile(lag, 0.99), max=float(lag.max()))
        if len(lag)
        else None,
    )


def _latency(requests: Requests, data: RunData, gaps: GapHistogram, absent: dict[str, str]) -> LatencyInfo:
    """Over the completed of the requests due in the window; how many failed stands in `requests`."""
    load = mean_in_flight(requests.sent, requests.last)[data.done]
    latency = LatencyInfo(
        ttft_seconds=distribution(requests.ttft[data.done], load),
        tpot_seconds=distribution(requests.tpot[data.done], load),
        e2e_seconds=distribution(requests.e2e[data.done], load),
        ttfa_seconds=distribution(requests.ttfa[data.done], load),
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
            whole = not data.generates and name != "e2e_seconds"
            why = "no completed request scheduled in the window has one"
            absent[f"latency.{name}"] = NOTHING_GENERATED if whole else why
    return latency


def _tokens(requests: Requests, data: RunData, tokens: Received | None, absent: dict[str, str]) -> TokensInfo:
    done = data.done
    length = data.window.end_unix - data.window.start_unix
    prompt, output = requests.prompt[done], requests.output[done]
    info = TokensInfo()
    if tokens is not None and length > 0:
        info.prompt_received, info.output_received = float(tokens.prompt.sum()), float(tokens.output.sum())
        info.output_estimated = float(tokens.output[tokens.estimated].sum())
        info.prompt_per_second = info.prompt_received / length
        info.output_per_second = info.output_received / length
    counted = output if data.generates else prompt
    if not done.any() or np.isnan(counted).all():
        why = "no completed request scheduled in the window has token counts"
        names = ("prompt", "output", "mismatches", "cached")
        absent.update({f"tokens.{name}": why for name in names} if tokens is not None else {"tokens": why})
        return info
    unknown = int((np.isnan(prompt) | np.isnan(counted)).sum())
    if unknown:
        absent["tokens.partial"] = (
            f"{unknown} completed requests gave no token counts and are not in the sums"
        )
    info.prompt = int(np.nansum(prompt))
    wrong = prompt != requests.prompt_planned[done]
    if data.capture.workload.image is not None:
        # How many tokens an image is, only the server knows. Runs of earlier versions count no images, and
        # have one in each request.
        sent = requests.images[done]
        wrong[np.isnan(sent) | (sent > 0)] = False
        images = requests.image[done]
        info.image = int(np.nansum(images)) if (~np.isnan(images)).any() else None
    if data.generates:
        info.output = int(np.nansum(output))
        wrong |= output != requests.output_planned[done]
    else:
        absent |= {f"tokens.{name}": NOTHING_GENERATED for name in ("output", "reasoning", "tool_calls")}
        absent |= {f"tokens.output_{name}": NOTHING_GENERATED for name in _OUTPUT_COUNTS}
        for name in _OUTPUT_COUNTS:
            setattr(info, f"output_{name}", None)
    info.mismatches = int((wrong & ~np.isnan(prompt) & ~np.isnan(counted)).sum())
    thought = requests.reasoning_estimated[done]
    if np.nansum(thought) > 0:
        info.reasoning = float(np.nansum(thought))
    if np.nansum(requests.tool_calls[done]) > 0:
        info.tool_calls = int(np.nansum(requests.tool_calls[done]))
    cached = requests.cached[done]
    info.cached = int(np.nansum(cached)) if (~np.isnan(cached)).any() else None
    return info


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
        output_tokens=requests.output,
    )
    hits = int(good.sum())
    info.met_fraction = hits / count
    info.met_ci95 = share_interval(good[data.inside])
    info.goodput_rps = hits / length
    if hits and total_joules is not None and math.isfinite(total_joules):
        info.joules_per_good_request = total_joules / hits
    return info
