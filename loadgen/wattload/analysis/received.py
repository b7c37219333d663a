"""The tokens that were received in a window, whichever request they belong to.

A window's energy serves the tokens that are made in it, so these are what its energy is divided by: tokens of
requests that were scheduled before it, or that were aborted after it, are among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.rundir.requests import F64, Bool, Requests, gaps_of
from wattload.rundir.run import RunData


@dataclass(frozen=True, slots=True)
class Received:
    """What each of the N requests received in the window: tokens, shape (N,); 0 for nothing.

    `output` counts output tokens, `prompt` the prompts whose first output token arrived. `estimated`, shape
    (N,), are the requests whose output tokens the endpoint did not count: theirs are chunks times
    `tokens_per_chunk`. Where nothing is generated, `output` is 0 and `prompt` counts the prompts whose
    response arrived.
    """

    output: F64
    prompt: F64
    estimated: Bool
    tokens_per_chunk: float

    @property
    def weights(self) -> dict[str, F64]:
        """What the window's energy is divided by, by name."""
        return {
            "output_token": self.output,
            "token": self.output + self.prompt,
            "input_token": self.prompt,
        }


def output_tokens(requests: Requests) -> tuple[F64, Bool, float] | None:
    """Output tokens of each request, shape (N,), which of them are estimated, and tokens per chunk.

    Where the endpoint gave no count (an aborted request has no usage), chunks stand in, times the tokens per
    chunk of the requests that have a count. None where no request has one. All are 0 where nothing was
    generated and prompts were counted.
    """
    streamed = (requests.chunks > 0) & ~np.isnan(requests.first)
    counted = streamed & ~np.isnan(requests.output)
    if not counted.any():
        if streamed.any() or not (~np.isnan(requests.last) & ~np.isnan(requests.prompt)).any():
            return None
        nothing = np.zeros(len(requests))
        return nothing, nothing.astype(np.bool_), 0.0
    per_chunk = float(requests.output[counted].sum() / requests.chunks[counted].sum())
    tokens = np.where(counted, requests.output, requests.chunks * per_chunk)
    return np.where(streamed, tokens, 0.0), streamed & ~counted, per_chunk


def prefilled(requests: Requests) -> F64:
    """When each request's prompt had been computed, as its first token shows; the whole response where
    nothing was generated. Shape (N,), NaN where it did not happen.
    """
    return np.where(np.isnan(requests.first), requests.last, requests.first)


def prompt_tokens(requests: Requests) -> F64:
    """Prompt tokens of each request, shape (N,); the planned ones where the endpoint gave no count."""
    return np.where(np.isnan(requests.prompt), requests.prompt_planned, requests.prompt)


def received(run: RunData) -> Received | None:
    """The tokens received in the window; None where no request has a count of its tokens.

    A request's tokens are spread evenly over its chunks. Of a request that an edge of the window cuts, the
    chunks on this side of it are counted by their times; where the times between its chunks are not known,
    they are taken to be equal.
    """
    requests, start, end = run.requests, run.window.start_unix, run.window.end_unix
    counts = output_tokens(requests)
    if counts is None:
        return None
    tokens, estimated, per_chunk = counts
    computed = prefilled(requests)
    began = (computed >= start) & (computed <= end)
    whole = began & (requests.last <= end)
    touched = (tokens > 0) & (requests.first <= end) & (requests.last >= start)
    share = whole.astype(np.float64)
    cut = np.flatnonzero(touched & ~whole)
    gaps = gaps_of(run.directory, requests.index[cut])
    for row in cut:
        times = _chunk_times(requests, int(row), gaps.get(int(requests.index[row])))
        share[row] = float(((times >= start) & (times <= end)).mean())
    return Received(
        tokens * share, np.where(began, prompt_tokens(requests), 0.0), estimated & touched, per_chunk
    )


def _chunk_times(requests: Requests, row: int, gaps: F64 | None) -> F64:
    """When the chunks of a request arrived; evenly from the first to the last where that is not known."""
    count, first = int(requests.chunks[row]), float(requests.first[row])
    if gaps is None or len(gaps) != count - 1:
        return np.linspace(first, float(requests.last[row]), count)
    return first + np.concatenate(([0.0], np.cumsum(gaps)))


def tokens_by_request(requests: Requests) -> dict[str, F64]:
    """All tokens of each request, whenever they were received, shape (N,), by the names of
    `Received.weights`; empty where no request has a count.
    """
    counts = output_tokens(requests)
    if counts is None:
        return {}
    output = counts[0]
    prompt = np.where(np.isnan(prefilled(requests)), 0.0, prompt_tokens(requests))
    if output.any():
        prompt = np.where(output > 0, prompt, 0.0)
    return {"output_token": output, "token": output + prompt, "input_token": prompt}


def received_until(requests: Requests, at: F64) -> dict[str, F64]:
    """Tokens received up to each of the times `at`, shape (K,), by the names of `Received.weights`.

    For intervals: the tokens after a request's first chunk are spread evenly up to its last. Empty where no
    request has a count.
    """
    counts = output_tokens(requests)
    if counts is None:
        return {}
    tokens = counts[0]
    if not tokens.any():
        known = ~np.isnan(requests.last)
        prompt = _steps(requests.last[known], prompt_tokens(requests)[known], at)
        return {"output_token": np.zeros(len(at)), "token": prompt, "input_token": prompt}
    used = tokens > 0
    first, last = requests.first[used], requests.last[used]
    at_first = tokens[used] / requests.chunks[used]
    later = tokens[used] - at_first
    span = last - first
    at_first = np.where(span > 0, at_first, tokens[used])
    rate = np.where(span > 0, later / np.where(span > 0, span, 1.0), 0.0)
    output = _steps(first, at_first, at) + _ramps(first, last, rate, at)
    prompt = _steps(first, prompt_tokens(requests)[used], at)
    return {"output_token": output, "token": output + prompt, "input_token": prompt}


def _steps(times: F64, amounts: F64, at: F64) -> F64:
    """The sum of the amounts whose time is before each of `at`."""
    order = np.argsort(times)
    sums = np.concatenate(([0.0], np.cumsum(amounts[order])))
    result: F64 = sums[np.searchsorted(times[order], at)]
    return result


def _ramps(begin: F64, end: F64, rate: F64, at: F64) -> F64:
    """What has come in up to each of `at` from sources that flow at `rate` from `begin` to `end`."""
    times = np.concatenate((begin, end))
    order = np.argsort(times)
    times, flow = times[order], np.cumsum(np.concatenate((rate, -rate))[order])
    total = np.concatenate(([0.0], np.cumsum(flow[:-1] * np.diff(times))))
    return np.interp(at, times, total) if len(times) else np.zeros(len(at))
