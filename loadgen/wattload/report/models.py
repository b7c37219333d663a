"""What the requests for each of several models got and cost, as text for the terminal and the page."""

from __future__ import annotations

from wattload.report.formatting import interval, quantity
from wattload.rundir.result import ModelInfo, RunJson


def energy_cells(part: ModelInfo, *, tag: bool) -> tuple[str, str, str, str]:
    """Attributed energy per request and per output token of one model, each with its 95 % interval.

    `tag`: whether joules that no sensor read are to say so themselves.
    """
    each, token = part.attributed_mean_joules, part.attributed_per_output_token_joules
    return (
        quantity(each, "J", modelled=tag),
        interval(part.attributed_ci95, "J", each),
        quantity(token, "J/token", modelled=tag),
        interval(part.attributed_per_output_token_ci95, "J/token", token),
    )


def latency_cells(part: ModelInfo) -> tuple[str, str, str]:
    """Median TTFT, TPOT and end-to-end latency of one model."""
    ttft, tpot, e2e = part.ttft_p50_seconds, part.tpot_p50_seconds, part.e2e_p50_seconds
    return quantity(ttft, "s"), quantity(tpot, "s"), quantity(e2e, "s")


def done(part: ModelInfo) -> str:
    """How many of a model's requests completed."""
    return f"{part.completed:,} of {part.requests:,}"


def partial_energy(run: RunJson) -> list[str]:
    """A sentence for each model whose joules are not of all its completed requests."""
    return [
        f"{name}: energy is of {part.attributed_requests:,} of {part.completed:,} completed requests; that of"
        " the others is not known or not final"
        for name, part in (run.by_model or {}).items()
        if part.attributed_joules is not None and part.attributed_requests < part.completed
    ]
