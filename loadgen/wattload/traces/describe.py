"""What a trace is like in numbers: lengths, arrivals, sessions and what its prompts share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wattload.traces.trace import Trace

# Windows in which arrivals are counted for the index of dispersion.
_WINDOWS_SECONDS = (0.1, 1.0, 10.0, 60.0)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of token counts."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: npt.NDArray[np.int32]) -> Lengths:
        p50, p90, p99 = np.percentile(values, [50, 90, 99])
        return cls(float(values.mean()), float(p50), float(p90), float(p99), float(values.max()))


@dataclass(frozen=True, slots=True)
class AgentStatistics:
    """Of sessions of agents. `branches`: turns that several wait for. `joins`: turns that wait for several.
    Seconds are those between the last response that a turn waits for and the turn.
    """

    agents_per_session: float
    branches: int
    joins: int
    tool_turns: int
    tool_seconds_p50: float
    tool_seconds_p90: float

    @classmethod
    def of(cls, trace: Trace) -> AgentStatistics | None:
        """None where no turn waits for tools or other agents."""
        parents = trace.parents
        if parents is None or not (trace.tool & parents.waits).any():
            return None
        seconds = trace.think_seconds[trace.tool & parents.waits]
        agents = len(np.unique(np.stack([trace.session, trace.agent]), axis=1)[0])
        return cls(
            agents_per_session=agents / len(np.unique(trace.session)),
            branches=int((np.bincount(parents.rows) > 1).sum()),
            joins=int((parents.counts > 1).sum()),
            tool_turns=len(seconds),
            tool_seconds_p50=float(np.median(seconds)),
            tool_seconds_p90=float(np.percentile(seconds, 90)),
        )


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """`requests`: those that have images. `images`: of all of them. `most`: in one request."""

    requests: int
    images: int
    most: int

    @classmethod
    def of(cls, trace: Trace) -> ImageStatistics | None:
        """None where no request has an image."""
        if trace.images is None or not trace.images.any():
            return None
        images = trace.images
        return cls(int((images > 0).sum()), int(images.sum(dtype=np.int64)), int(images.max()))


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """`dispersion`: variance over mean of the number of requests in windows of so many seconds, 1 for a
    Poisson process, more in bursts; None where the trace is shorter than 20 windows. `gap_cv`: standard
    deviation over mean of the time between requests. `rank_correlation`: Spearman's, of prompt and output
    tokens. `shared_fraction`: of the prompt tokens, how many stand in a prefix that an earlier prompt had
    too; None without `hash_ids`. `agents`: None for sessions without tools. `images`: None where the trace
    does not tell of any.
    """

    rows: int
    span_seconds: float
    rate_rps: float
    peak_rps: float | None
    gap_cv: float | None
    dispersion: dict[str, float | None]
    prompt_tokens: Lengths
    output_tokens: Lengths
    rank_correlation: float | None
    sessions: int
    turns_per_session: float | None
    agents: AgentStatistics | None
    shared_fraction: float | None
    images: ImageStatistics | None
    tags: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def statistics_of(trace: Trace) -> TraceStatistics:
    """The statistics of a trace; those of arrivals are None where it holds no times."""
    spaced = trace.timed and trace.span_seconds > 0
    gaps = np.diff(trace.seconds)
    in_session = trace.session[trace.session >= 0]
    sessions = len(np.unique(in_session))
    counts = np.bincount(trace.tag, minlength=len(trace.tags))
    return TraceStatistics(
        rows=len(trace),
        span_seconds=trace.span_seconds,
        rate_rps=trace.rate_rps,
        peak_rps=_peak(trace.seconds) if spaced else None,
        gap_cv=float(gaps.std() / gaps.mean()) if spaced and len(gaps) > 1 else None,
        dispersion={f"{w:g}": dispersion(trace.seconds, w) if spaced else None for w in _WINDOWS_SECONDS},
        prompt_tokens=Lengths.of(trace.prompt_tokens),
        output_tokens=Lengths.of(trace.output_tokens),
        rank_correlation=_spearman(trace.prompt_tokens, trace.output_tokens),
        sessions=sessions,
        turns_per_session=len(in_session) / sessions if sessions else None,
        agents=AgentStatistics.of(trace),
        shared_fraction=shared_fraction(trace),
        images=ImageStatistics.of(trace),
        tags={tag: int(n) for tag, n in zip(trace.tags, counts, strict=True) if tag},
    )


def dispersion(seconds: npt.NDArray[np.float64], width: float) -> float | None:
    """Index of dispersion of the counts in whole windows of `width`; None for fewer than 20 of them."""
    windows = int(seconds[-1] / width)
    if windows < 20:
        return None
    inside = seconds[seconds < windows * width]
    counts = np.bincount((inside / width).astype(np.int64), minlength=windows)[:windows]
    return float(counts.var() / counts.mean())


def shared_fraction(trace: Trace) -> float | None:
    """Share of prompt tokens in whole prefixes of blocks that an earlier prompt had: what a cache without
    end hits.
    """
    if trace.prefix is None:
        return None
    size = trace.prefix.block_tokens
    # A prefix is known by its last block and the number of the prefix before it, as in a radix tree.
    known: dict[tuple[int, int], int] = {}
    hit = 0
    for row, tokens in enumerate(trace.prompt_tokens.tolist()):
        node, same = -1, 0
        ids = trace.prefix[row]
        for place, block in enumerate(ids):
            step = (node, block)
            if step not in known:
                known[step] = len(known)
            elif same == place:
                same += 1
            node = known[step]
        hit += min(same * size, tokens)
    return hit / float(trace.prompt_tokens.sum(dtype=np.int64))


def _peak(seconds: npt.NDArray[np.float64]) -> float:
    """Most requests in any second of the trace."""
    return float(np.unique(np.floor(seconds), return_counts=True)[1].max())


def _spearman(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> float | None:
    if len(a) < 3 or (a == a[0]).all() or (b == b[0]).all():
        return None
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)
