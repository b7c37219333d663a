"""A lower bound of the energy of a window: idle power, arithmetic at the dense peak, memory traffic.

    E >= P_idle T + FLOPs (TDP - P_idle) / peak_dense + bytes e_HBM

The first term is drawn whatever is computed. The second: a chip that computes at its power limit does at
most `peak_dense` FLOP/s, so a FLOP costs at least that much above idle. The third: a byte from memory costs
at least what the memory's array and interface take, e_HBM; it is not (TDP - P_idle) / bandwidth, since a
step that waits for memory stays below the limit (on an H200 that would come out above the measurement).
Bytes: the weights once a step, every token's cache written once, and read once by each later token of its
request. Steps are at least the window's tokens over the requests in flight, since a step makes one token a
request; speculative decoding makes more, and then `steps` must be 0. See docs/research/estimates.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wattload.estimates.gpu_table import Gpu
from wattload.estimates.model_shape import ModelShape
from wattload.rundir.requests import F64

# Energy of a bit from HBM2: 3.92 pJ (O'Connor et al., "Fine-Grained DRAM", MICRO 2017, table 1). Half of it
# is taken, as a margin for what later generations have saved.
HBM_JOULES_PER_BYTE = 3.92e-12 * 8 / 2


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound's three terms, joules."""

    idle_joules: float
    compute_joules: float
    memory_joules: float
    flops: float
    bytes: float

    @property
    def joules(self) -> float:
        return self.idle_joules + self.compute_joules + self.memory_joules


@dataclass(frozen=True, slots=True)
class InsideWindow:
    """What requests did inside the window, arrays of shape (N,):

    `prefill` 1 where the whole prompt was computed in it, else 0; `decode` the share of the tokens after
    the first that were made in it.
    """

    prompt: F64
    output: F64
    cached: F64
    prefill: F64
    decode: F64


def roofline(
    inside: InsideWindow,
    shape: ModelShape,
    gpu: Gpu,
    *,
    seconds: float,
    idle_watts: float,
    devices: int,
    steps: float,
) -> Bound:
    """`idle_watts`: of all `devices` together; `steps`: the least number of engine steps in the window."""
    prompt, output, cached = inside.prompt, inside.output, inside.cached

    def weighted(amount: Callable[..., F64]) -> float:
        reading = amount(prompt, np.ones_like(output), cached)
        return float(
            (inside.prefill * reading + inside.decode * (amount(prompt, output, cached) - reading)).sum()
        )

    flops = weighted(shape.flops)
    traffic = weighted(shape.kv_bytes) + steps * shape.step_weight_bytes
    return Bound(
        idle_joules=idle_watts * seconds,
        compute_joules=flops * (gpu.tdp_watts - idle_watts / max(devices, 1)) / gpu.dense_flops,
        memory_joules=traffic * HBM_JOULES_PER_BYTE,
        flops=flops,
        bytes=traffic,
    )


def least_steps(first: F64, last: F64, output: F64, start: float, end: float) -> float:
    """The least number of steps in [start, end) that can have made the tokens of requests seen by the client.

    In each stretch of time: the tokens made in it over the most requests that were generating at once in it.
    Arrays of shape (N,), UNIX seconds; a request's tokens are spread evenly from its first to its last.
    """
    known = ~np.isnan(first) & ~np.isnan(last) & (output > 1)
    first, last, output = first[known], last[known], output[known]
    count = int(np.clip((end - start) / 0.5, 1, 5000))
    edges = np.linspace(start, end, count + 1)
    rate = (output - 1) / np.maximum(last - first, 1e-9)
    times = np.concatenate((first, last))
    order = np.argsort(times, kind="stable")
    times = times[order]
    flow = np.cumsum(np.concatenate((rate, -rate))[order])
    alive = np.cumsum(np.concatenate((np.ones(len(first)), -np.ones(len(last))))[order])
    if not len(times):
        return 0.0
    made = np.concatenate(([0.0], np.cumsum(flow[:-1] * np.diff(times))))
    tokens = np.diff(np.interp(edges, times, made))
    at_edge = np.searchsorted(times, edges, "right")
    steps = 0.0
    for place, amount in enumerate(tokens):
        inside = alive[max(at_edge[place] - 1, 0) : max(at_edge[place + 1], 1)]
        most = max(float(inside.max(initial=0.0)), 1.0)
        steps += float(amount) / most
    return steps
