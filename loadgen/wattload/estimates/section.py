"""Estimates beside a run's measurement: the `estimates` section of run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from wattload.errors import InputError
from wattload.estimates.binned import binned_joules
from wattload.estimates.calibration_file import load_profile
from wattload.estimates.gpu_table import Gpu, find_gpu, require_gpu
from wattload.estimates.model_shape import ModelShape, known_shape, shape_from_file
from wattload.estimates.online import simulate
from wattload.estimates.roofline import Bound, InsideWindow, least_steps, roofline
from wattload.estimates.rules_of_thumb import (
    LITERATURE,
    Work,
    flops_tdp_joules,
    literature_joules,
    utilisation_tdp_joules,
)
from wattload.estimates.step_cost import fit
from wattload.options import Options
from wattload.rundir.run import RunData


class EstimateOptions(Options):
    """What the estimates need besides the run."""

    title: ClassVar[str] = "Estimates"

    gpu: str | None = Field(default=None, description="GPU for the estimates, by name. Default: the meter's.")
    gpu_table: Path | None = Field(default=None, description="TOML file with further GPUs.")
    model_file: Path | None = Field(
        default=None,
        alias="model_config",
        description="Hugging Face config.json of the model, for the estimates.",
    )
    profile: Path | None = Field(
        default=None, description="Calibration from `wattload calibrate`, for the binned estimate."
    )

    def find_gpu(self, device: str | None) -> Gpu | None:
        if self.gpu is not None:
            return require_gpu(self.gpu, self.gpu_table)
        return find_gpu(device, self.gpu_table) if device else None

    def find_shape(self, model: str | None) -> ModelShape | None:
        if self.model_file is not None:
            return shape_from_file(self.model_file)
        return known_shape(model) if model else None


# Made of the time in which requests were in flight, whatever their tokens.
_WITHOUT_COUNTS = frozenset({"utilisation_tdp"})
_NO_COUNTS = "no completed request has a count of its tokens"


def estimates(run: RunData, total_joules: float | None, idle_joules: float | None) -> dict[str, Any] | None:
    """Every estimate that can be made for the window's completed requests, with its ratio to the measurement.

    None where nothing completed. One that cannot be made is in `all` with the reason. Raises InputError for a
    GPU or a file that the user named and that cannot be used.
    """
    if not run.done.any():
        return None
    options = EstimateOptions.of(run.capture.config.get("estimates") or {})
    devices = run.capture.target.devices
    gpu = options.find_gpu(str(devices[0].get("name")) if devices else None)
    shape = options.find_shape(run.capture.target.model)
    work = window_work(run)
    idle_watts = idle_joules / work.seconds if idle_joules is not None else None
    entries = [
        *_naive(work, shape, gpu),
        *_literature(work),
        _bound(run, work, shape, gpu, idle_watts),
        *_profiled(run, options),
    ]
    if not len(work.output):
        # Sums over no request: 0 J would be the estimate of a load that was not looked at.
        for entry in entries:
            if entry["joules"] is not None and entry["key"] not in _WITHOUT_COUNTS:
                entry |= {"joules": None, "reason": _NO_COUNTS}
    for entry in entries:
        known = entry["joules"] is not None and total_joules
        entry["ratio_to_measured"] = entry["joules"] / total_joules if known else None
    by_key = {entry["key"]: entry for entry in entries}
    found: dict[str, Any] = {"gpu": gpu.id if gpu else None, "gpu_source": gpu.source if gpu else None}
    for name in ("flops_tdp", "roofline", "binned", "online"):
        entry = by_key.get(name, {})
        found[f"{name}_joules"] = entry.get("joules")
        found[f"{name}_ratio"] = entry.get("ratio_to_measured")
    found["all"] = entries
    return found


def window_work(run: RunData) -> Work:
    """What the completed requests due in the window computed."""
    done, requests = run.done, run.requests
    prompt, output = requests.prompt[done], requests.output[done]
    known = ~np.isnan(prompt) & ~np.isnan(output)
    seconds = run.window.end_unix - run.window.start_unix
    return Work(
        prompt=prompt[known],
        output=output[known],
        cached=np.nan_to_num(requests.cached[done][known]),
        seconds=seconds,
        busy_seconds=_busy_seconds(run),
        devices=max(len(run.capture.target.devices), 1),
    )


def _busy_seconds(run: RunData) -> float:
    """Time in the window with at least one request between its sending and its last token."""
    requests, start, end = run.requests, run.window.start_unix, run.window.end_unix
    known = ~np.isnan(requests.sent) & ~np.isnan(requests.last)
    order = np.argsort(requests.sent[known])
    sent = np.clip(requests.sent[known][order], start, end)
    last = np.maximum.accumulate(np.clip(requests.last[known][order], start, end))
    if not len(sent):
        return 0.0
    before = np.concatenate(([start], last[:-1]))
    return float(np.maximum(last - np.maximum(sent, before), 0.0).sum())


def _entry(key: str, title: str, joules: float | None, how: str, reason: str = "") -> dict[str, Any]:
    return {"key": key, "title": title, "joules": joules, "how": how, "reason": reason}


def _missing(shape: ModelShape | None, gpu: Gpu | None) -> str:
    lacking = [
        text
        for thing, text in (
            (gpu, "the GPU is not in the table (--gpu, --gpu-table)"),
            (shape, "the model's shape is not known (--model-config)"),
        )
        if thing is None
    ]
    return " and ".join(lacking)


def _naive(work: Work, shape: ModelShape | None, gpu: Gpu | None) -> list[dict[str, Any]]:
    reason = _missing(shape, gpu)
    dense = (
        "FLOPs of the window's requests times TDP over the dense BF16 peak; no memory traffic, no idle power."
    )
    sparse = (
        "The same with the peak for 2:4 structured sparsity, which a dense model cannot use; arXiv "
        "2504.17674 "
        "takes that one."
    )
    busy = "TDP times the time with at least one request in flight."
    watts = utilisation_tdp_joules(work, gpu) if gpu else None
    able = shape is not None and gpu is not None
    return [
        _entry(
            "flops_tdp",
            "FLOPs × TDP / dense peak",
            flops_tdp_joules(work, shape, gpu) if able else None,  # type: ignore[arg-type]
            dense,
            reason,
        ),
        _entry(
            "flops_tdp_sparse",
            "FLOPs × TDP / sparse peak",
            flops_tdp_joules(work, shape, gpu, sparse=True) if able else None,  # type: ignore[arg-type]
            sparse,
            reason,
        ),
        _entry("utilisation_tdp", "utilisation × TDP", watts, busy, "" if gpu else _missing(shape, gpu)),
    ]


def _literature(work: Work) -> list[dict[str, Any]]:
    return [_entry(c.key, c.title, literature_joules(work, c), f"{c.source}.") for c in LITERATURE]


def _bound(
    run: RunData, work: Work, shape: ModelShape | None, gpu: Gpu | None, idle_watts: float | None
) -> dict[str, Any]:
    how = (
        "Lower bound: idle power over the window, arithmetic at the dense peak, the least traffic of "
        "weights and "
        "KV cache."
    )
    reason = _missing(shape, gpu)
    if shape is None or gpu is None or idle_watts is None:
        reason = reason or "the endpoint gives no idle energy"
        return _entry("roofline", "roofline (lower bound)", None, how, reason)
    return _entry(
        "roofline", "roofline (lower bound)", _roofline(run, work, shape, gpu, idle_watts).joules, how
    )


def _roofline(run: RunData, work: Work, shape: ModelShape, gpu: Gpu, idle_watts: float) -> Bound:
    """Counts what happened inside the window only, whoever it was for, so that the bound holds at its edges
    too.
    """
    requests, start, end = run.requests, run.window.start_unix, run.window.end_unix
    known = requests.completed & (requests.output > 0) & ~np.isnan(requests.prompt)
    sent, first, last = requests.sent[known], requests.first[known], requests.last[known]
    overlap = np.clip(np.minimum(last, end) - np.maximum(first, start), 0, None)
    inside = InsideWindow(
        prompt=requests.prompt[known],
        output=requests.output[known],
        cached=np.nan_to_num(requests.cached[known]),
        prefill=((sent >= start) & (first < end)).astype(np.float64),
        decode=overlap / np.maximum(last - first, 1e-9),
    )
    steps = least_steps(first, last, requests.output[known], start, end)
    return roofline(
        inside, shape, gpu, seconds=work.seconds, idle_watts=idle_watts, devices=work.devices, steps=steps
    )


def _profiled(run: RunData, options: EstimateOptions) -> list[dict[str, Any]]:
    binned = (
        "Binning model of arXiv 2504.17674 on the profile: offline, knows neither arrivals nor idle time."
    )
    online = (
        "A continuous-batching schedule of the same arrivals with the profile's step costs, idle included."
    )
    if options.profile is None:
        reason = "no profile was given (--profile)"
        return [
            _entry("binned", "binned, offline", None, binned, reason),
            _entry("online", "binned profile, online", None, online, reason),
        ]
    profile = load_profile(options.profile)
    cost = fit(profile)
    requests = run.requests
    done = run.done & ~np.isnan(requests.prompt) & ~np.isnan(requests.output)
    offline = binned_joules(profile, cost, requests.prompt[done], requests.output[done])
    if offline.filled_in:
        binned += (
            f" {offline.filled_in:.0%} of requests fell into bins that the profile's step model filled in."
        )
    served = requests.completed & ~np.isnan(requests.prompt) & ~np.isnan(requests.output)
    if not served.any():
        raise InputError("no completed request has token counts")
    begin = run.capture.started_unix
    result = simulate(
        requests.due[served] - begin,
        requests.prompt[served].astype(np.int64),
        requests.output[served].astype(np.int64),
        cost,
        profile.idle_watts,
        max_batched_tokens=profile.max_batched_tokens,
        max_seqs=profile.max_seqs,
    )
    joules = result.window_joules(run.window.start_unix - begin, run.window.end_unix - begin)
    return [
        _entry("binned", "binned, offline", offline.joules, binned),
        _entry("online", "binned profile, online", joules, online),
    ]
