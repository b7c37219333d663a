"""One alarm at a monotonic time, precise to tens of microseconds.

asyncio's and uvloop's own timers round to a millisecond, a fifth of an H200's step. On Linux a timerfd that
the event loop watches has no such rounding; elsewhere the loop's timer has to do, and the delays of the steps
show it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_FLAGS = 0o4000 | 0o2000000  # TFD_NONBLOCK | TFD_CLOEXEC, <sys/timerfd.h>
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """Calls `callback()` on the event loop once, at or soon after the monotonic time given to `set`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                self._libc = ctypes.CDLL(None, use_errno=True)
                self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd >= 0:
            self._spec = _Itimerspec()
            self._reference = ctypes.byref(self._spec)
            loop.add_reader(self._fd, self._fired)

    def set(self, at_ns: int) -> None:
        """Ring at `at_ns` (time.monotonic_ns), replacing an earlier time; a time gone by rings at once."""
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            delay = max(0.0, (at_ns - time.monotonic_ns()) * 1e-9)
            self._handle = self._loop.call_later(delay, self._callback)
            return
        # A value of 0 would disarm it.
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(max(at_ns, 1), 1_000_000_000)
        if self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._reference, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set anew between the wake-up and the read
        self._callback()
