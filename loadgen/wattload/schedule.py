"""The schedule: every request of a run, fixed before the first is sent.

Nothing at run time decides when a request is due (the one exception, a later turn of a session, says so), so a
slow server cannot slow the load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Schedule:
    """N planned requests in order of due time; every array has shape (N,).

    `due_seconds`: float64, seconds after the start of the run. `prompt_tokens`, `output_tokens`: int32, exact
    lengths. `session`: int64, -1 where the request belongs to none. `turn`: int32, 0 for a session's first.
    `think_seconds`: float64, for turns > 0 the time between the previous answer and this request (then
    `due_seconds` is NaN until it is known), NaN otherwise. `tag`: int16 index into `tags` (tenants).
    `content_seed`: uint64, what the prompt's content is made from, so that any worker makes the same prompt.
    `prefix_hashes`: per request the ids of its shared prefix blocks of `prefix_block_tokens` tokens, or None
    where the trace has none.
    """

    due_seconds: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    session: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int32]
    think_seconds: npt.NDArray[np.float64]
    tag: npt.NDArray[np.int16]
    content_seed: npt.NDArray[np.uint64]
    tags: tuple[str, ...] = ("",)
    prefix_hashes: tuple[tuple[int, ...], ...] | None = None
    prefix_block_tokens: int = 0

    def __len__(self) -> int:
        return len(self.due_seconds)
