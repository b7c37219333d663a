"""Where the step records of one server travel: an ipc socket that one API process owns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

VARIABLE = "WATTSERVE_STEP_SOCKET"
# sun_path of sockaddr_un is 108 bytes with its final NUL (unix(7)).
LONGEST_PATH = 107


class SocketInUseError(RuntimeError):
    """Another server owns this socket."""


def new() -> str:
    """A fresh address in a folder of this user's that others cannot enter."""
    folder = tempfile.mkdtemp(prefix="wattserve-")
    return address_of(Path(folder) / "steps.sock")


def address_of(path: Path) -> str:
    """The ZeroMQ address of a socket file. Raises ValueError where the path is too long for a socket."""
    text = str(path.absolute())
    if len(os.fsencode(text)) > LONGEST_PATH:
        raise ValueError(f"the path {text} is longer than the {LONGEST_PATH} bytes that a socket's may have")
    return f"ipc://{text}"


class Ownership:
    """The right to receive at an address: a lock beside the socket file, given up with the process.

    Raises SocketInUseError where another process holds it, OSError where the folder cannot be written to.
    """

    def __init__(self, address: str) -> None:
        self.path = Path(address.removeprefix("ipc://"))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise SocketInUseError(f"another server already receives step records at {self.path}") from None

    def release(self) -> None:
        """Gives the address up and removes its files."""
        for path in (self.path, self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        os.close(self._lock)
        if self.path.parent.name.startswith("wattserve-"):
            with contextlib.suppress(OSError):  # something else lies there, which is not ours to remove
                self.path.parent.rmdir()
