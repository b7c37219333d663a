"""Steps known too late, or not kept: what time their joules are missing from."""

from __future__ import annotations

import numpy as np

from wattmeter.busytime import TAIL_SECONDS, busy_starts
from wattmeter.steps import StepBatch


def busy_stretches(steps: StepBatch, previous_end_ns: int | None, until_ns: int) -> list[tuple[int, int]]:
    """[start, end) of the times before until_ns when the device was busy with the steps, in order.

    Steps that follow each other within TAIL_SECONDS are one stretch: so long a step's own watts outlast it.
    `previous_end_ns` is the end of the step before: one launched while that ran begins when it ends.
    """
    starts, ends = busy_starts(steps, previous_end_ns), np.minimum(steps.end_ns, until_ns)
    begun = starts < until_ns
    starts, ends = starts[begun], ends[begun]
    first = np.ones(len(starts), dtype=bool)
    first[1:] = starts[1:] - ends[:-1] > TAIL_SECONDS * 1e9
    return list(zip(starts[first].tolist(), ends[np.roll(first, -1)].tolist(), strict=True))
