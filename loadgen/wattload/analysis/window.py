"""The measurement window of a run: where the warm-up ends, and whether the run was steady after it."""

from __future__ import annotations

import numpy as np

from wattload.analysis.stationarity import mser5, trend
from wattload.rundir.directory import Capture
from wattload.rundir.requests import F64, Requests
from wattload.rundir.result import WindowInfo

_FALLBACK = 0.2
_DETECTABLE_SECONDS = 60.0


def closed_loop(capture: Capture) -> bool:
    """Whether a request was sent when the one before it had ended, and not at a time of its own."""
    return _arrivals(capture) == "closed"


def at_once(capture: Capture) -> bool:
    """Whether everything was sent at once, so that the run is measured until the last response ends."""
    return _arrivals(capture) == "offline"


def _arrivals(capture: Capture) -> str:
    """The kind of arrival process, without its parameters."""
    return capture.workload.arrivals.process.partition(":")[0]


def decide_window(capture: Capture, requests: Requests) -> WindowInfo:
    """[start, end) on the client's clock, and the tests behind it.

    The end is that of the planned arrivals: what runs after it is the drain. The start is the warm-up that
    was given, or the one that MSER-5 finds in the number of requests in flight. Where everything was sent
    at once there is no steady state, and the window is the whole run up to the last token.
    """
    begin = capture.started_unix
    end = begin + capture.duration_seconds
    if capture.interrupted and capture.finished_unix is not None:
        end = min(end, capture.finished_unix)
    if at_once(capture) or capture.duration_seconds <= 0:
        last = np.nanmax(requests.last) if np.isfinite(requests.last).any() else begin
        return _whole(capture, float(max(last, begin)))
    if capture.warmup_seconds is not None:
        warmup, method = capture.warmup_seconds, "warmup given"
    else:
        warmup, method = _detect(requests, begin, end)
    start = min(begin + warmup, end)
    window = WindowInfo(start_unix=start, end_unix=end, warmup_seconds=start - begin, method=method)
    kept, width = in_flight(requests, start, end)
    drift = trend(kept, f"requests in flight every {width:.2g} s")
    window.steady = drift.as_dict() if drift is not None else None
    return window


def _whole(capture: Capture, end: float) -> WindowInfo:
    """Up to the last token, for loads whose length was not planned."""
    begin = capture.started_unix
    if at_once(capture):
        return WindowInfo(
            start_unix=begin,
            end_unix=end,
            warmup_seconds=0.0,
            method="whole run: everything was sent at once",
        )
    start = min(begin + (capture.warmup_seconds or 0.0), end)
    said = "warmup given" if capture.warmup_seconds else "whole run"
    return WindowInfo(
        start_unix=start,
        end_unix=end,
        warmup_seconds=start - begin,
        method=f"{said}; up to the last token, since its length was not planned",
    )


def in_flight(requests: Requests, start: float, end: float, points: int = 240) -> tuple[F64, float]:
    """Requests sent and not ended, at the middle of `points` equal intervals of [start, end); and their
    width.
    """
    width = max((end - start) / points, 1e-9)
    at = start + width * (np.arange(points) + 0.5)
    sent = np.sort(requests.sent[~np.isnan(requests.sent)])
    # A request that was sent and failed has no last token; when it left is unknown, so it is left out of
    # both.
    ended = np.sort(requests.last[~np.isnan(requests.last)])
    alive = np.searchsorted(sent, at, "right") - np.searchsorted(ended, at, "right")
    lost = np.sort(requests.sent[~np.isnan(requests.sent) & np.isnan(requests.last)])
    return (alive - np.searchsorted(lost, at, "right")).astype(np.float64), width


def mean_in_flight(sent: F64, ended: F64) -> F64:
    """Mean number of requests in flight from when each was sent until it ended, itself included, shape (N,).

    `sent` and `ended`, shape (N,), are on one clock. A request without either is not counted and has NaN.
    """
    there = ~np.isnan(sent) & ~np.isnan(ended)
    begin, end = sent[there], ended[there]
    changes = np.concatenate((begin, end))
    order = np.argsort(changes, kind="stable")
    at = changes[order]
    alive = np.cumsum(np.repeat((1.0, -1.0), len(begin))[order])
    # Request-seconds since the first was sent, at every change: straight lines between.
    area = np.concatenate(([0.0], np.cumsum(alive[:-1] * np.diff(at)))) if len(at) else at
    result = np.full(len(sent), np.nan)
    if len(begin):
        lasted = np.maximum(end - begin, 1e-9)
        result[there] = np.maximum((np.interp(end, at, area) - np.interp(begin, at, area)) / lasted, 1.0)
    return result


def _detect(requests: Requests, begin: float, end: float) -> tuple[float, str]:
    series, width = in_flight(requests, begin, end)
    cut = mser5(series)
    if cut is None:
        why = "MSER-5 on requests in flight has no optimum in the first half"
        if end - begin < _DETECTABLE_SECONDS:
            why = f"a run of under {_DETECTABLE_SECONDS:g} s is too short to detect it"
        return _FALLBACK * (end - begin), f"not found: {why}; {_FALLBACK:.0%} of the run left out"
    return cut * width, "detected: MSER-5 on requests in flight"
