"""When bytes came to this host, as the kernel wrote it down.

With SO_TIMESTAMPNS (Documentation/networking/timestamping.rst of Linux) the kernel notes the time of each
packet as the network hands it over, and `recvmsg` tells that of the last byte it gives. A token's time is
then right however late the process looked.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from typing import Any

# <asm-generic/socket.h>; Python 3.11 has no name for it.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
# What `recvmsg` is to be given room for.
ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)


def stamp_arrivals(sock: Any) -> bool:
    """Asks the kernel for the time of what arrives on `sock`; False where it keeps none."""
    if sys.platform != "linux":
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


def keeps_stamps() -> bool:
    """Whether this host's kernel keeps the time of what arrives."""
    with socket.socket() as some:
        return stamp_arrivals(some)


def arrived(ancillary: list[tuple[int, int, bytes]], after: float, now: float) -> float:
    """When it arrived, in seconds of `time.perf_counter()`, given what `recvmsg` told at `now`.

    The stamp is of the wall clock, compared with the wall clock at once. One that is not between `after`
    (what happened on this connection before) and `now` was made across a step of that clock: `now` is taken
    then, as it is where there is no stamp.
    """
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            waited = (time.time_ns() - seconds * 1_000_000_000 - nanoseconds) * 1e-9
            return now - waited if 0.0 <= waited <= now - after else now
    return now
