"""Where a meter takes messages: a ZeroMQ address, an ipc socket on this host or tcp between containers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

# The address, for every process of a server; the launcher or the plugin sets it.
VARIABLE = "WATTSERVE_STEP_SOCKET"
# sun_path of sockaddr_un is 108 bytes with its final NUL (unix(7)).
LONGEST_PATH = 107
FOLDER_PREFIX = "wattserve-"


class SocketInUseError(RuntimeError):
    """Another meter owns this socket."""


def new() -> str:
    """A fresh address in a folder of this user's that others cannot enter."""
    folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
    return address_of(str(Path(folder) / "meter.sock"))


def address_of(text: str) -> str:
    """The ZeroMQ address of `ipc://PATH`, `tcp://HOST:PORT` or a socket file's PATH.

    Raises ValueError, with a sentence, where it is none of them or the path is too long for a socket.
    """
    if text.startswith("tcp://"):
        _, _, port = text.rpartition(":")
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{text} needs a host and a port: tcp://HOST:PORT")
        return text
    if "://" in text and not text.startswith("ipc://"):
        raise ValueError(f"{text} is neither tcp://HOST:PORT nor the path of a socket")
    path = str(Path(text.removeprefix("ipc://")).absolute())
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise ValueError(f"the path {path} is longer than the {LONGEST_PATH} bytes that a socket's may have")
    return f"ipc://{path}"


def socket_path(address: str) -> Path | None:
    """The socket file of an address; None for tcp."""
    return Path(address.removeprefix("ipc://")) if address.startswith("ipc://") else None


class Ownership:
    """The right to receive at an address: a lock beside the socket file, given up with the process.

    For tcp the port itself is the lock. Raises SocketInUseError where another process holds it, OSError where
    the folder cannot be written to.
    """

    def __init__(self, address: str) -> None:
        self.path = socket_path(address)
        self._lock: int | None = None
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise SocketInUseError(f"another meter already takes step records at {self.path}") from None
        self._lock = lock

    def release(self) -> None:
        """Gives the address up and removes its files."""
        if self.path is None or self._lock is None:
            return
        for path in (self.path, self.path.with_suffix(".state"), self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None
        if self.path.parent.name.startswith(FOLDER_PREFIX):
            with contextlib.suppress(OSError):  # something else lies there, which is not ours to remove
                self.path.parent.rmdir()
