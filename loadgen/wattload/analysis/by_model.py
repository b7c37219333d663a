"""What the requests for each of several models got and cost."""

from __future__ import annotations

import numpy as np

from wattload.analysis.statistics import mean_interval, quantile, ratio_interval
from wattload.rundir.requests import F64, Bool
from wattload.rundir.result import ModelInfo
from wattload.rundir.run import RunData


def by_model(data: RunData) -> dict[str, ModelInfo] | None:
    """By name, over the requests scheduled in the window; None where one model was asked for."""
    requests = data.requests
    names = sorted({str(name) for name in requests.model} - {""})
    if not names:
        return None
    return {name: _one(data, requests.model == name) for name in names}


def _one(data: RunData, mine: Bool) -> ModelInfo:
    requests, done = data.requests, data.done & mine
    final = done & requests.settled & ~np.isnan(requests.joules)
    own = requests.joules[final]
    interval = mean_interval(own)
    counted = final & (requests.output > 0)
    joules, tokens = requests.joules[counted], requests.output[counted]
    per_token = ratio_interval(joules, tokens)
    return ModelInfo(
        requests=int((data.inside & mine).sum()),
        completed=int(done.sum()),
        prompt_tokens=_sum(requests.prompt[done]),
        output_tokens=_sum(requests.output[done]),
        attributed_requests=len(own),
        attributed_joules=float(own.sum()) if len(own) else None,
        attributed_mean_joules=float(own.mean()) if len(own) else None,
        attributed_ci95=interval.pair if interval is not None else None,
        attributed_per_output_token_joules=float(joules.sum() / tokens.sum()) if len(tokens) else None,
        attributed_per_output_token_ci95=per_token.pair if per_token is not None else None,
        ttft_p50_seconds=_median(requests.ttft[done]),
        tpot_p50_seconds=_median(requests.tpot[done]),
        e2e_p50_seconds=_median(requests.e2e[done]),
    )


def _sum(values: F64) -> int | None:
    known = values[~np.isnan(values)]
    return int(known.sum()) if len(known) else None


def _median(values: F64) -> float | None:
    known = values[~np.isnan(values)]
    return quantile(known, 0.5) if len(known) else None
