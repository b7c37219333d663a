"""What an engine computes beyond the tokens asked for: kernels and graphs have sizes of their own."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Padding:
    """How many tokens a step computes for so many scheduled ones.

    Up to the largest of `graph_sizes` a step runs as a captured graph of the next size up, and computes that
    many; beyond it matrix products work in tiles of `tile_tokens` rows. Without sizes and with tiles of one
    nothing is padded.
    """

    graph_sizes: tuple[int, ...] = ()
    tile_tokens: int = 1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.graph_sizes), self.graph_sizes, strict=False))
        if not rising or self.tile_tokens < 1:
            raise ValueError("padding: graph sizes must rise from above 0, tiles must have at least 1 token")

    def padded(self, tokens: F64) -> F64:
        """Tokens computed, (S,), for `tokens` scheduled in each step, (S,)."""
        result: F64 = (
            np.ceil(tokens / self.tile_tokens) * self.tile_tokens if self.tile_tokens > 1 else tokens
        )
        if self.graph_sizes:
            sizes = np.array((0, *self.graph_sizes), dtype=np.float64)
            row = np.searchsorted(sizes, tokens)
            result = np.where(row < len(sizes), sizes[np.minimum(row, len(sizes) - 1)], result)
        return result

    def padded_one(self, tokens: float) -> float:
        """The same for one step."""
        row = bisect.bisect_left(self.graph_sizes, tokens)
        if row < len(self.graph_sizes):
            return float(self.graph_sizes[row]) if tokens > 0 else 0.0
        return (
            float(math.ceil(tokens / self.tile_tokens) * self.tile_tokens) if self.tile_tokens > 1 else tokens
        )


NO_PADDING = Padding()
# Rows of a tile of the matrix products of a prompt: found on the recorded H200 (docs/validation.md), where
# 64 explained the energy of prompts just above a multiple of it and 1 and 128 did not.
TILE_TOKENS = 64
# vLLM captures graphs of these sizes unless told otherwise (vllm.config.compilation, 0.11 to 0.32).
VLLM_GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
VLLM_PADDING = Padding(VLLM_GRAPH_SIZES, TILE_TOKENS)
