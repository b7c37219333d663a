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

    The columns are contiguous, so that NumPy reads them without a copy.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        if capacity < 2:
            raise ValueError("ring buffer: the capacity must be at least 2")
        self._capacity = capacity
        room = min(capacity, 1024)
        self._times = np.zeros(room, dtype=np.int64)
        self._values = np.zeros((columns, room), dtype=np.float64)
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
        size = min(2 * max(len(self), 512), 2 * self._capacity)
        times = np.zeros(size, dtype=np.int64)
        values = np.zeros((len(self._values), size), dtype=np.float64)
        count = len(self)
        times[:count] = self.times
        values[:, :count] = self._values[:, self._begin : self._end]
        self._times, self._values, self._begin, self._end = times, values, 0, count
