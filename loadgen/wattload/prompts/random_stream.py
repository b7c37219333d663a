"""Endless streams of random numbers that any worker can read at any place: counter-based, so there is no
state.

splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) of a key
plus a counter. NumPy's generators are better generators, but making one costs more than a whole prompt may.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


def scrambled(values: U64) -> U64:
    """splitmix64's output function, elementwise; overwrites and returns `values`."""
    values ^= values >> _S30
    values *= _M1
    values ^= values >> _S27
    values *= _M2
    values ^= values >> _S31
    return values


def mixed(*parts: int | U64) -> U64:
    """One key for each combination of `parts` (broadcast against each other), shape as theirs."""
    key: U64 = np.zeros(1, np.uint64)
    for part in parts:
        value = np.atleast_1d(np.asarray(part)).astype(np.uint64)
        key = scrambled((key + _GAMMA) ^ scrambled(value * _GAMMA + _M2))
    return key


def stream(key: np.uint64, start: int, stop: int) -> U64:
    """Numbers `start` to `stop` of the stream of `key`, shape (stop - start,)."""
    counters = np.arange(start + 1, stop + 1, dtype=np.uint64)
    counters *= _GAMMA
    counters += key
    return scrambled(counters)
