"""An embedded workload: statistics of a real trace, and requests drawn from them. No row of the trace is
kept.

Lengths: the quantile function of each marginal, joined by a checkerboard copula (a grid of how often a prompt
of one rank goes with an output of another). Arrivals: a binomial cascade, which has the trace's burstiness at
every time scale from milliseconds to the hour.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wattload.traces.trace import Trace

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """Joint distribution of prompt and output tokens.

    `probabilities`, `prompt_quantiles`, `output_quantiles`: shape (Q,), the marginals' quantile functions.
    `copula`: shape (K, K), the probability of (prompt rank in cell i, output rank in cell j), summing to 1.
    """

    probabilities: F64
    prompt_quantiles: F64
    output_quantiles: F64
    copula: F64

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """`count` pairs (prompt tokens, output tokens): a cell of the copula, a rank within it, its
        quantile.
        """
        cells = len(self.copula)
        chosen = rng.choice(cells * cells, size=count, p=self.copula.ravel())
        rank_in = (chosen // cells + rng.random(count)) / cells
        rank_out = (chosen % cells + rng.random(count)) / cells
        prompt = np.interp(rank_in, self.probabilities, self.prompt_quantiles)
        output = np.interp(rank_out, self.probabilities, self.output_quantiles)
        return (
            np.maximum(1, np.rint(prompt)).astype(np.int32),
            np.maximum(1, np.rint(output)).astype(np.int32),
        )


@dataclass(frozen=True, slots=True)
class ArrivalStatistics:
    """Burstiness by time scale: a conservative binomial cascade.

    A block of `block_seconds` holds on average `rate_rps * block_seconds` arrivals. It is halved again and
    again; of the n arrivals of an interval, Binomial(n, p) fall into its first half, p ~ Beta(b, b), with b
    the entry of `shapes` for that scale (`shapes[0]` for the block itself). Small b: nearly all on one side,
    so bursts and silences; large b: even. After Riedi, Crouse, Ribeiro and Baraniuk, "A multifractal wavelet
    model with application to network traffic", IEEE Trans. Information Theory 45(3), 1999, with counts for
    their masses.
    """

    rate_rps: float
    block_seconds: float
    shapes: F64

    def draw(self, count: int, rng: np.random.Generator) -> F64:
        """The first `count` arrival times of a fresh realisation, shape (count,), from 0.0."""
        times: list[F64] = [np.zeros(0)]
        have, block = 0, 0
        while have < count:
            found = self._block(rng) + block * self.block_seconds
            times.append(found)
            have, block = have + len(found), block + 1
        seconds = np.concatenate(times)[:count]
        return seconds - seconds[0] if count else seconds

    def _block(self, rng: np.random.Generator) -> F64:
        counts: I64 = np.array([rng.poisson(self.rate_rps * self.block_seconds)], np.int64)
        starts: I64 = np.zeros(1, np.int64)
        for shape in self.shapes:
            first = rng.binomial(counts, rng.beta(shape, shape, len(counts)))
            counts = np.stack([first, counts - first], axis=1).ravel()
            starts = np.stack([2 * starts, 2 * starts + 1], axis=1).ravel()
            kept = counts > 0  # empty intervals stay empty, so what is tracked never outgrows the arrivals
            counts, starts = counts[kept], starts[kept]
        width = self.block_seconds / 2.0 ** len(self.shapes)
        times = (np.repeat(starts, counts) + rng.random(int(counts.sum()))) * width
        times.sort()
        return times


@dataclass(frozen=True, slots=True)
class Workload:
    """A named pair of length and arrival statistics with their source. `rows`: how many rows they were
    taken from.
    """

    name: str
    title: str
    source: str
    licence: str
    citation: str
    rows: int
    sha256: str
    lengths: LengthStatistics
    arrivals: ArrivalStatistics

    @property
    def rate_rps(self) -> float:
        """The rate of the trace that it describes."""
        return self.arrivals.rate_rps

    @classmethod
    def from_json(cls, text: str, sha256: str) -> Workload:
        """Reads what benchmarks/fit_workloads.py wrote."""
        data: dict[str, Any] = json.loads(text)
        lengths, arrivals = data["lengths"], data["arrivals"]
        copula = np.array(lengths["copula_counts"], np.float64)
        return cls(
            name=data["name"],
            title=data["title"],
            source=data["source"],
            licence=data["licence"],
            citation=data["citation"],
            rows=int(data["rows"]),
            sha256=sha256,
            lengths=LengthStatistics(
                probabilities=np.array(lengths["probabilities"], np.float64),
                prompt_quantiles=np.array(lengths["prompt_tokens"], np.float64),
                output_quantiles=np.array(lengths["output_tokens"], np.float64),
                copula=copula / copula.sum(),
            ),
            arrivals=ArrivalStatistics(
                rate_rps=float(arrivals["rate_rps"]),
                block_seconds=float(arrivals["block_seconds"]),
                shapes=np.array(arrivals["beta_shapes"], np.float64),
            ),
        )

    def sample(self, count: int, seed: int = 0) -> Trace:
        """`count` requests at the workload's own rate and burstiness; the same seed gives the same requests.

        A longer sample of one seed begins with the shorter one's lengths and times.
        """
        time_rng, length_rng = (np.random.default_rng([seed, part]) for part in (1, 2))
        # Drawn in fixed batches, so that the first rows do not depend on how many are asked for.
        batches = [self.lengths.draw(4096, length_rng) for _ in range(-(-count // 4096))]
        empty = np.zeros(0, np.int32)
        return Trace(
            name=self.name,
            format="embedded",
            seconds=self.arrivals.draw(count, time_rng),
            prompt_tokens=np.concatenate([b[0] for b in batches] or [empty])[:count],
            output_tokens=np.concatenate([b[1] for b in batches] or [empty])[:count],
            session=np.full(count, -1, np.int64),
            turn=np.zeros(count, np.int32),
            think_seconds=np.full(count, np.nan),
            tag=np.zeros(count, np.int16),
            sha256=self.sha256,
            licence=self.licence,
            citation=self.citation,
        )
