"""Step records: what the engine did in each iteration, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """S consecutive steps of one engine and the E (step, request) entries in them, entries sorted by step.

    Per step, shape (S,): `index` counts the engine's steps from 0 without gaps (a gap is lost records);
    `launch_ns` and `end_ns` are `time.monotonic_ns` of the launch and of the moment its result was seen.
    The device was busy with the step over [max(launch, previous end), end].

    Per entry, shape (E,): `step` is the row of the step in this batch; `request` indexes `request_ids`;
    `prefill_tokens` and `decode_tokens` were computed for the request in this step (a request has one kind or
    the other, except where an engine mixes them); `context_tokens` is what stood in its KV cache before it;
    `cached_tokens` is the part of the context that came from the prefix cache (non-zero only in the request's
    first step); `draft_tokens` were proposed by speculation, `accepted_tokens` of them kept.
    """

    index: I64
    launch_ns: I64
    end_ns: I64
    step: I32
    request: I32
    prefill_tokens: I32
    decode_tokens: I32
    context_tokens: I32
    cached_tokens: I32
    draft_tokens: I32
    accepted_tokens: I32
    request_ids: tuple[str, ...]
    lost_steps: int = 0

    def __len__(self) -> int:
        return len(self.index)
