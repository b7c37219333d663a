"""Rules of thumb: what is commonly taken for the energy of a workload without measuring it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.estimates.gpu_table import Gpu
from wattload.estimates.model_shape import ModelShape
from wattload.rundir.requests import F64


@dataclass(frozen=True, slots=True)
class PerToken:
    """A published figure, in joules per output token or per request, for one model on one machine."""

    key: str
    title: str
    joules_per_output_token: float | None
    joules_per_request: float | None
    source: str


LITERATURE = (
    PerToken(
        "ml_energy",
        "0.0935 J per output token (ML.ENERGY)",
        0.0935,
        None,
        "Qwen3-8B on an H100, saturated; arXiv 2505.06371",
    ),
    PerToken(
        "google_gemini",
        "0.24 Wh per prompt, 58 % of it accelerators (Google)",
        None,
        0.24 * 3600 * 0.58,
        "median Gemini Apps text prompt, the accelerators' part; arXiv 2508.15734",
    ),
)


@dataclass(frozen=True, slots=True)
class Work:
    """What a window's requests computed: arrays of shape (N,), and how long and how busy the window was."""

    prompt: F64
    output: F64
    cached: F64
    seconds: float
    busy_seconds: float
    devices: int


def flops_tdp_joules(work: Work, shape: ModelShape, gpu: Gpu, *, sparse: bool = False) -> float:
    """FLOPs x TDP / peak. `sparse`: with the peak for 2:4 sparsity, which no dense model reaches, as arXiv
    2504.17674 does. Ignores memory traffic, idle power and that no engine runs at its peak."""
    peak = gpu.sparse_flops if sparse else gpu.dense_flops
    flops = float(np.sum(shape.flops(work.prompt, work.output, work.cached)))
    return flops * gpu.tdp_watts / peak


def utilisation_tdp_joules(work: Work, gpu: Gpu) -> float:
    """TDP x the time with at least one request in flight, as a utilisation of "some kernel runs" leads to."""
    return gpu.tdp_watts * work.busy_seconds * work.devices


def literature_joules(work: Work, constant: PerToken) -> float:
    """A published constant times the window's output tokens or requests."""
    if constant.joules_per_output_token is not None:
        return float(work.output.sum()) * constant.joules_per_output_token
    assert constant.joules_per_request is not None
    return len(work.output) * constant.joules_per_request
