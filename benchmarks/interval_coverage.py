"""How often 95 % intervals hold the truth, on simulated traffic whose truth is known: `--help` has the
settings.

A workload's requests arrive as `wattload run` would send them, at a simulated server: those in flight share a
batch, whose steps become longer and cost more with its size, and each request is attributed its share. The
long series is cut into windows of N requests, each as a run would see it; the mean over the whole series is
the truth.

    python benchmarks/interval_coverage.py
    python benchmarks/interval_coverage.py --workload code --arrivals poisson --windows 2000
    python benchmarks/interval_coverage.py --arrivals poisson --seconds 24 --batches 12

`--batches` shows the classic interval of batch means beside wattload's, for the energy per request.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from wattload import build_schedule, load_trace
from wattload.analysis.statistics import (
    Interval,
    mean_interval,
    quantile_interval,
    ratio_interval,
)
from wattload.analysis.window import mean_in_flight

F64 = npt.NDArray[np.float64]

# A step of the simulated server: seconds and joules that it always takes, and those of each request in it.
STEP_SECONDS, STEP_SECONDS_EACH = 0.009, 0.00012
STEP_JOULES, STEP_JOULES_EACH = 3.0, 0.12
PROMPT_TOKEN_JOULES = 0.015
IDLE_WATTS = 120.0


@dataclass(frozen=True, slots=True)
class Served:
    """Requests in order of arrival, each an array of shape (N,): seconds, attributed joules, latency, seconds
    per token, and how many were in flight with it.
    """

    due: F64
    joules: F64
    seconds: F64
    seconds_per_token: F64
    in_flight: F64


def serve(due: F64, prompt: F64, output: F64) -> Served:
    """What each request costs and takes, where those in flight make their tokens together."""
    count = len(due)
    joules, ended = prompt * PROMPT_TOKEN_JOULES, np.empty(count)
    # Tokens that a request in flight since the beginning would have made, and joules it would have been
    # attributed.
    now = tokens = cost = 0.0
    flying: list[tuple[float, int]] = []
    begun = np.empty(count)
    place = 0
    while place < count or flying:
        batch = len(flying)
        step = STEP_SECONDS + STEP_SECONDS_EACH * batch
        arrives = due[place] if place < count else np.inf
        leaves = now + (flying[0][0] - tokens) * step if flying else np.inf
        until = min(arrives, leaves)
        if batch:
            made = (until - now) / step
            tokens += made
            cost += made * (STEP_JOULES / batch + STEP_JOULES_EACH)
        now = until
        if leaves <= arrives:
            _, request = heapq.heappop(flying)
            ended[request] = now
            joules[request] += cost - begun[request]
        else:
            begun[place] = cost
            heapq.heappush(flying, (tokens + output[place], place))
            place += 1
    return Served(due, joules, ended - due, (ended - due) / output, mean_in_flight(due, ended))


def traffic(workload: str, rate: float, arrivals: str, count: int, seed: int) -> Served:
    schedule = build_schedule(
        load_trace(workload), arrivals, rate=rate, requests=count, seed=seed, sessions="trace-times"
    )
    order = np.argsort(schedule.due_seconds, kind="stable")
    sizes = (schedule.prompt_tokens[order], schedule.output_tokens[order])
    return serve(schedule.due_seconds[order], *(np.asarray(size, np.float64) for size in sizes))


def windows(served: Served, size: int) -> Iterator[slice]:
    """Stretches of `size` requests, without those that came while the server filled."""
    for start in range(size, len(served.due) - size + 1, size):
        yield slice(start, start + size)


def total_per_request(served: Served, part: slice) -> Interval | None:
    """Energy per request, idle included, as `wattload` computes it: joules and requests in bins of time."""
    return ratio_interval(*binned(served, part))


def binned(served: Served, part: slice) -> tuple[F64, F64]:
    """Joules, idle included, and requests of a window's bins of time, each of shape (bins,)."""
    due, joules = served.due[part], served.joules[part]
    begin, end = due[0], served.due[part.stop] if part.stop < len(served.due) else due[-1]
    length = max(end - begin, 1e-9)
    bins = int(np.clip(length, 30, 4000))
    place = ((due - begin) / length * bins).astype(np.int64).clip(0, bins - 1)
    requests = np.bincount(place, minlength=bins).astype(np.float64)
    spent = np.bincount(place, joules, minlength=bins) + IDLE_WATTS * length / bins
    return spent, requests


def batch_means(served: Served, part: slice, batches: int) -> Interval | None:
    """Energy per request with Student's interval of `batches` batch means, the ratio by the delta method."""
    spent, requests = (
        np.array([piece.sum() for piece in np.array_split(each, batches)]) for each in binned(served, part)
    )
    mean = float(spent.sum() / requests.sum())
    error = float((spent - mean * requests).std(ddof=1)) / math.sqrt(batches) / float(requests.mean())
    half = float(stats.t.ppf(0.975, batches - 1)) * error
    return Interval(mean, mean - half, mean + half, error / mean, batches - 1)


@dataclass(slots=True)
class Coverage:
    shown: int = 0
    tried: int = 0
    held: int = 0
    below: int = 0
    widths: list[float] | None = None

    def add(self, interval: Interval | None, truth: float) -> None:
        self.tried += 1
        if interval is None:
            return
        self.shown += 1
        self.held += interval.low <= truth <= interval.high
        self.below += interval.high < truth
        self.widths = [*(self.widths or []), interval.half_width / interval.estimate]

    def __str__(self) -> str:
        if not self.shown:
            return "none given"
        width = float(np.median(self.widths or [0.0]))
        return f"{self.held / self.shown:6.1%} of {self.shown:,} (half width {width:.1%})"


def report(served: Served, size: int, batches: int | None = None) -> dict[str, Coverage]:
    steady = slice(len(served.due) // 100, len(served.due))
    span = served.due[-1] - served.due[steady.start]
    truths = {
        "energy per request": float(
            served.joules[steady].mean() + IDLE_WATTS * span / (steady.stop - steady.start)
        ),
        "attributed energy per request": float(served.joules[steady].mean()),
        "attributed energy, p50": float(np.quantile(served.joules[steady], 0.5)),
        "time per output token, mean": float(served.seconds_per_token[steady].mean()),
        "time per output token, p90": float(np.quantile(served.seconds_per_token[steady], 0.9)),
        "end-to-end latency, mean": float(served.seconds[steady].mean()),
        "end-to-end latency, p50": float(np.quantile(served.seconds[steady], 0.5)),
        "end-to-end latency, p90": float(np.quantile(served.seconds[steady], 0.9)),
    }
    intervals: dict[str, Callable[[slice], Interval | None]] = {
        "energy per request": lambda part: total_per_request(served, part),
        "attributed energy per request": lambda part: mean_interval(served.joules[part]),
        "attributed energy, p50": lambda part: quantile_interval(served.joules[part], 0.5),
        "time per output token, mean": lambda part: mean_interval(
            served.seconds_per_token[part], served.in_flight[part]
        ),
        "time per output token, p90": lambda part: quantile_interval(
            served.seconds_per_token[part], 0.9, served.in_flight[part]
        ),
        "end-to-end latency, mean": lambda part: mean_interval(served.seconds[part], served.in_flight[part]),
        "end-to-end latency, p50": lambda part: quantile_interval(
            served.seconds[part], 0.5, served.in_flight[part]
        ),
        "end-to-end latency, p90": lambda part: quantile_interval(
            served.seconds[part], 0.9, served.in_flight[part]
        ),
    }
    if batches is not None:
        name = f"the same, {batches} batch means"
        truths[name] = truths["energy per request"]
        intervals[name] = lambda part: batch_means(served, part, batches)
    found = {name: Coverage() for name in truths}
    for part in windows(served, size):
        for name, truth in truths.items():
            found[name].add(intervals[name](part), truth)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", action="append", help="default: conv and code")
    parser.add_argument("--arrivals", action="append", help="default: poisson and trace")
    parser.add_argument("--rate", type=float, action="append", help="requests/s; default: 2 and 16")
    parser.add_argument("--sizes", default="30,100,1000", help="requests of a window")
    parser.add_argument("--seconds", type=float, help="a window's length, in place of --sizes")
    parser.add_argument("--batches", type=int, help="also batch means of this many batches")
    parser.add_argument("--windows", type=int, default=1000, help="windows of each size")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for workload in args.workload or ["conv", "code"]:
        for arrivals in args.arrivals or ["poisson", "trace"]:
            for rate in args.rate or [2.0, 16.0]:
                sizes = [int(part) for part in args.sizes.split(",")]
                for size in [round(args.seconds * rate)] if args.seconds else sizes:
                    count = size * (args.windows + 1)
                    served = traffic(workload, rate, arrivals, count, args.seed)
                    print(f"\n{workload}, {arrivals} at {rate:g} requests/s, windows of {size} requests")
                    for name, coverage in report(served, size, args.batches).items():
                        print(f"  {name:32} {coverage}", flush=True)


if __name__ == "__main__":
    main()
