"""The client's clock: UNIX time that goes on evenly, whatever happens to the wall clock during a run."""

from __future__ import annotations

import time

# Read once: every time of a run then lies on one scale, and a step of the wall clock moves none of them.
_UNIX_OFFSET = time.time() - time.perf_counter()


def unix_offset() -> float:
    """Seconds to add to `time.perf_counter()` for UNIX seconds of the client's clock."""
    return _UNIX_OFFSET


def unix_now() -> float:
    """UNIX seconds of the client's clock: the wall clock when the process began, and monotonic time since."""
    return time.perf_counter() + _UNIX_OFFSET
