"""Room for as many connections as the system allows, made before the load.

Linux doubles a process's table of descriptors when one is needed beyond its end, and with more than one
thread it waits there until no other CPU reads the old table (expand_fdtable, fs/file.c): 5 to 20 ms in which
nothing is sent, at the 257th connection, the 513th and so on. One high descriptor, opened and closed before,
makes the table large at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
from pathlib import Path

# How the error of a request begins that found none left.
OUT_OF_DESCRIPTORS = "the client ran out of file descriptors"
# 8 bytes each.
_TABLE = 65_536


def reserve_descriptors() -> int:
    """Raises the soft limit of open files to the hard one and makes the table; the limit that holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    highest = (_TABLE if soft == resource.RLIM_INFINITY else min(soft, _TABLE)) - 1
    with contextlib.suppress(OSError), Path(os.devnull).open("rb") as some:
        os.close(fcntl.fcntl(some.fileno(), fcntl.F_DUPFD_CLOEXEC, highest))
    return soft


def out_of_descriptors(error: OSError) -> bool:
    """Whether a connection failed for want of a descriptor: the client's own fault, not the server's."""
    return error.errno in (errno.EMFILE, errno.ENFILE)
