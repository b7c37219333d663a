"""A trace drawn: arrivals over time, lengths, and how they go together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wattload.errors import InputError
from wattload.traces.trace import Trace

_BINS = 120


def plot(trace: Trace, path: Path) -> None:
    """Writes a picture; the suffix (.svg, .png, .pdf) says which kind. Raises InputError for one it cannot
    write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    rate, prompt, output, joint = figure.subplots(2, 2).ravel()
    figure.suptitle(f"{trace.name}: {len(trace):,} requests, {trace.rate_rps:.3g}/s")
    span = trace.span_seconds
    if trace.timed and span > 0:
        counts, edges = np.histogram(trace.seconds, bins=_BINS, range=(0, span))
        unit, label = (
            (3600, "hours") if span > 3 * 3600 else (60, "minutes") if span > 180 else (1, "seconds")
        )
        rate.stairs(counts / np.diff(edges), edges / unit, fill=True, color="#4477aa")
        rate.set(
            title=f"arrivals (bins of {span / _BINS:.3g} s)",
            xlabel=label,
            ylabel="requests/s",
            ylim=(0, None),
        )
    else:
        rate.text(0.5, 0.5, "the trace holds no times", ha="center", va="center")
        rate.set_axis_off()
    for axes, values, title in (
        (prompt, trace.prompt_tokens, "prompt"),
        (output, trace.output_tokens, "output"),
    ):
        bins = np.unique(np.geomspace(values.min(), values.max() + 1, 60).astype(int))
        axes.hist(values, bins=bins if len(bins) > 1 else 1, color="#228833")
        axes.set(
            title=f"{title} tokens (median {np.median(values):.0f})",
            xlabel="tokens",
            ylabel="requests",
            xscale="log",
        )
    picked = np.random.default_rng(0).permutation(len(trace))[:5000]
    joint.scatter(
        trace.prompt_tokens[picked],
        trace.output_tokens[picked],
        s=3,
        alpha=0.3,
        color="#aa3377",
        rasterized=True,
    )
    joint.set(
        title="prompt and output together",
        xlabel="prompt tokens",
        ylabel="output tokens",
        xscale="log",
        yscale="log",
    )
    try:
        figure.savefig(path, dpi=120)
    except (ValueError, OSError) as error:
        raise InputError("plot", f"{path}: {error}") from error
