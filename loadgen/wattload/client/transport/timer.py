"""A timer that is right to tens of microseconds without spinning.

libev, under gevent, hands epoll a timeout in whole milliseconds, so its timers are up to 1 ms late. A
timerfd is a file descriptor that becomes readable when the kernel's high-resolution timer expires
(timerfd_create(2)).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

import gevent

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
_READ = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class PreciseTimer:
    """Wakes one greenlet at a time of `time.perf_counter()`, or earlier by `wake`.

    For the greenlet that made it. Raises OSError where the system has no timerfd (not Linux).
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        hub = gevent.get_hub()
        self._hub = hub
        self._watcher: Any = hub.loop.io(self._fd, _READ)
        # Before the sockets that are ready in the same turn of the loop: a due request goes first.
        self._watcher.priority = hub.loop.MAXPRI
        self._spec = _Itimerspec()
        self._woken = False

    def wait_until(self, when: float) -> None:
        """Returns at `when`, seconds of `time.perf_counter()`, or at once where that has passed or `wake`
        was called.
        """
        delay = when - time.perf_counter()
        if self._woken:
            self._woken = False
            return
        if delay <= 0:
            return
        self._arm(delay)
        self._hub.wait(self._watcher)
        self._woken = False

    def wake(self) -> None:
        """Ends the present `wait_until`, or the next one. From any callback of the loop."""
        self._woken = True
        self._arm(1e-9)

    def _arm(self, delay: float) -> None:
        whole = int(delay)
        self._spec.value.seconds = whole
        self._spec.value.nanoseconds = max(1, int((delay - whole) * 1e9))
        # Setting the timer also clears what a past expiry left to read.
        if self._libc.timerfd_settime(self._fd, 0, ctypes.byref(self._spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        os.close(self._fd)


class Ticker:
    """Calls `tick` every `seconds` from the loop, for work that needs no precision."""

    def __init__(self, seconds: float, tick: Callable[[], None]) -> None:
        self._watcher: Any = gevent.get_hub().loop.timer(seconds, seconds)
        self._watcher.start(tick)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
