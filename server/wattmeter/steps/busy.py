"""When the device was busy with which step, and what of it lies in which interval."""

from __future__ import annotations

import numpy as np

from wattmeter.arrays import F64, I64
from wattmeter.steps.batch import StepBatch

# A device that runs out of work does not fall to idle power at once; how long it is counted as falling.
TAIL_SECONDS = 0.1


def busy_starts(steps: StepBatch, previous_end_ns: int | None = None) -> I64:
    """When the device began each step: max(launch, end of the step before), shape (S,), monotonic ns."""
    starts = steps.launch_ns.copy()
    if len(starts) == 0:
        return starts
    np.maximum(starts[1:], steps.end_ns[:-1], out=starts[1:])
    if previous_end_ns is not None:
        starts[0] = max(int(starts[0]), previous_end_ns)
    return np.minimum(starts, steps.end_ns)


def tail_ends(starts: I64, ends: I64, until_ns: int) -> I64:
    """Where the tail of each step ends, (S,): TAIL_SECONDS after its end or where the next one begins.

    `starts` as from `busy_starts`. Nothing is known after `until_ns`; the last tail ends there at the latest.
    """
    if len(ends) == 0:
        return ends.copy()
    following = np.append(starts[1:], max(until_ns, int(ends[-1])))
    result: I64 = np.maximum(np.minimum(ends + round(TAIL_SECONDS * 1e9), following), ends)
    return result


def tail_seconds(steps: StepBatch, starts: I64, until_ns: int) -> F64:
    """Seconds of the tail of each step, (S,); see `tail_ends`."""
    return ((tail_ends(starts, steps.end_ns, until_ns) - steps.end_ns) * 1e-9).astype(np.float64, copy=False)


def overlaps(starts: I64, ends: I64, edges: I64) -> tuple[I64, I64, F64]:
    """(step, interval, fraction of the step inside) for every pair that overlaps."""
    first = np.searchsorted(edges, starts, side="right") - 1
    last = np.searchsorted(edges, ends, side="left") - 1
    first = np.maximum(first, 0)
    last = np.minimum(last, len(edges) - 2)
    number = np.maximum(last - first + 1, 0)
    row = np.repeat(np.arange(len(starts), dtype=np.int64), number)
    offset = np.arange(len(row), dtype=np.int64) - np.repeat(np.cumsum(number) - number, number)
    column = first[row] + offset
    inside = np.minimum(ends[row], edges[column + 1]) - np.maximum(starts[row], edges[column])
    length = ends[row] - starts[row]
    fraction = np.where(length > 0, inside / np.maximum(length, 1), 1.0)
    return row, column, np.clip(fraction, 0.0, 1.0)


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
