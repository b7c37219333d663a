"""The array types of this project, sums by index, and a ring buffer of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]


def sum_by(index: npt.NDArray[np.integer[Any]], values: F64, length: int) -> F64:
    """Sums of `values` (N,) by their `index` (N,) in 0..length-1, shape (length,)."""
    return np.bincount(index, weights=values, minlength=length).astype(np.float64, copy=False)


class RingBuffer:
    """The newest `capacity` rows of `times` (int64 nanoseconds) and some float64 columns, oldest first.

    The columns are contiguous, so that NumPy reads them without a copy. All memory is taken, and written to,
    when the buffer is made, so that a process does not grow for an hour while the history fills.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        if capacity < 2:
            raise ValueError("ring buffer: the capacity must be at least 2")
        self._capacity = capacity
        self._times, self._values = _columns(columns, capacity + max(capacity // 4, 16))
        self._begin = 0
        self._end = 0

    def __len__(self) -> int:
        return self._end - self._begin

    def append(self, time_ns: int, *values: float) -> None:
        """Add one row; the oldest one goes where the buffer is full."""
        if self._end == len(self._times):
            self._make_room()
        self._times[self._end] = time_ns
        self._values[:, self._end] = values
        self._end += 1
        if len(self) > self._capacity:
            self._begin += 1

    @property
    def times(self) -> I64:
        """The times of the rows, (N,)."""
        return self._times[self._begin : self._end]

    def column(self, index: int) -> F64:
        """One column of the rows, (N,)."""
        return self._values[index, self._begin : self._end]

    def _make_room(self) -> None:
        # New arrays, as readers may still hold views of the old ones.
        times, values = _columns(len(self._values), len(self._times))
        count = len(self)
        times[:count] = self.times
        values[:, :count] = self._values[:, self._begin : self._end]
        self._times, self._values, self._begin, self._end = times, values, 0, count


def _columns(columns: int, rows: int) -> tuple[I64, F64]:
    """Times, shape (rows,), and columns of values, shape (columns, rows).

    `np.full` writes to the memory now; of `np.zeros` it would become resident row by row.
    """
    return np.full(rows, 0, dtype=np.int64), np.full((columns, rows), 0.0)
