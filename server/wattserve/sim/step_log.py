"""Collects steps as they are run and turns them into the columns of a StepBatch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wattmeter.steps.batch import StepBatch
from wattserve.sim.scheduler import Step


class StepLog:
    """Steps not yet handed on, in the order they ran."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, int, Step]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, index: int, launch_ns: int, end_ns: int, step: Step) -> None:
        self._steps.append((index, launch_ns, end_ns, step))

    def take(self) -> StepBatch:
        """All of them as one batch, and start again."""
        steps, self._steps = self._steps, []
        ids: dict[str, int] = {}
        number = ids.setdefault
        rows = [
            (row, number(seq.request_id, len(ids)), tokens, context, decode)
            for row, (_, _, _, step) in enumerate(steps)
            for seq, tokens, context, decode in step.entries
        ]
        columns = np.array(rows, dtype=np.int32).reshape(-1, 5)
        tokens = columns[:, 2]
        decode = columns[:, 4].astype(bool)
        cached = np.zeros(len(rows), dtype=np.int32)
        first = 0
        for _, _, _, step in steps:
            for position, count in step.cached.items():
                cached[first + position] = count
            first += len(step.entries)
        values: dict[str, npt.ArrayLike] = {
            "index": [s[0] for s in steps],
            "launch_ns": [s[1] for s in steps],
            "end_ns": [s[2] for s in steps],
            "step": columns[:, 0],
            "request": columns[:, 1],
            "prefill_tokens": np.where(decode, 0, tokens),
            "decode_tokens": np.where(decode, tokens, 0),
            "context_tokens": columns[:, 3],
            "cached_tokens": cached,
        }
        return StepBatch.of(tuple(ids), values)
