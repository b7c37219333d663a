"""A program that a study starts: until it answers, while it serves, and how it ended."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

_POLL_SECONDS = 0.2
_STOP_SECONDS = 60.0
_KILL_SECONDS = 10.0
_TAIL_BYTES = 65_536
_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|No available memory for the cache blocks|Cannot allocate memory"
    r"|MemoryError|insufficient memory|larger than the available KV cache memory"
)
_FRAME = " \t\r" + "".join(map(chr, range(0x2500, 0x2580)))
# Our own commands are those of this interpreter, whatever is on the PATH.
_OURS = {"wattserve": "wattserve.cli", "wattload": "wattload.cli"}


class ProgramFailed(Exception):  # noqa: N818 - as RunInvalid
    """A program did not come up, or ended: one sentence."""


def own_command(words: tuple[str, ...]) -> list[str]:
    """The words of a command, `wattserve` and `wattload` being this installation's."""
    first, *rest = words
    return [sys.executable, "-m", _OURS[first], *rest] if first in _OURS else [first, *rest]


def free_port() -> int:
    """A port of this host that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of this host."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def this_boot() -> str:
    """Which boot of which host this is: processes and what commands have set are of it. Empty: not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process this is, for another process to find it again: its id may be another's by then."""

    pid: int
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> Identity:
        return cls(pid, _started_ticks(pid) or 0)

    def end(self) -> bool:
        """Ends what is left of it and of its group. True where there was something."""
        alive = _started_ticks(self.pid)
        # A process with this id that started at another time is somebody else's, and so is its group.
        if alive is not None and alive != self.started_ticks:
            return False
        return end_group(self.pid)


def _stat(pid: int) -> list[str] | None:
    """What /proc says of a process after its name: state, parent, group, ...; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _started_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None where there is none (or no /proc)."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def end_group(group: int, wait_seconds: float = _STOP_SECONDS) -> bool:
    """SIGTERM to every process of the group, SIGKILL to those that are left. False where there is none."""
    if not _is_alive(group):
        return False
    for number, seconds in ((signal.SIGTERM, wait_seconds), (signal.SIGKILL, _KILL_SECONDS)):
        _signal(group, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not _is_alive(group):
                return True
            time.sleep(_POLL_SECONDS / 4)
    return True


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _is_alive(group: int) -> bool:
    """Whether a process of the group is left that is more than an entry in the table of processes."""
    if not _signal(group, 0):
        return False
    folder = Path("/proc/self").parent
    if not (folder / "self").exists():
        return True
    for entry in folder.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None and fields[0] != "Z" and int(fields[2]) == group:
                return True
    return False


class Running:
    """A program that was started. `url` is where it serves."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.name, self.url, self.log = name, url, log
        self._process = process
        self.identity = Identity.of(process.pid)
        self.start_seconds = 0.0

    @property
    def ended(self) -> bool:
        """Whether it is over; by itself, unless `stop` was called."""
        return self._process.poll() is not None

    def how_it_ended(self) -> str:
        """One sentence, for a program that is over."""
        return end_sentence(self.name, self._process.poll(), tail(self.log), self.log)

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def memory_trouble(self, since: int) -> str | None:
        """What the log says about memory that ran out, in what was written from byte `since` on."""
        return memory_line(tail(self.log, since))

    def stop(self) -> None:
        end_group(self._process.pid)
        self._process.wait()


def start(
    name: str,
    command: tuple[str, ...],
    *,
    environment: Mapping[str, str],
    port: int,
    log: Path,
    folder: Path,
) -> Running:
    """Starts a program. Raises ProgramFailed where it cannot be, or its port is taken."""
    if not is_free(port):
        raise ProgramFailed(
            f"{name} was not started: port {port} is in use by another program; end that, or give another"
            " `port`"
        )
    words = own_command(command)
    with log.open("ab") as output:
        try:
            # A session of its own: Ctrl-C reaches the load first, and the group can be ended as one.
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise ProgramFailed(f"{name} was not started: {words[0]}: {error.strerror}") from error
    return Running(name, process, f"http://127.0.0.1:{port}", log)


def await_health(program: Running, path: str, *, timeout_seconds: float) -> None:
    """Waits until the program answers. Raises ProgramFailed where it ends before, or takes too long."""
    begun = time.monotonic()
    last = "nothing answers"
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() - begun < timeout_seconds:
            if program.ended:
                raise ProgramFailed(f"{program.how_it_ended()} (while it started)")
            try:
                status = client.get(program.url + path).status_code
            except httpx.HTTPError as error:
                last = f"nothing answers ({type(error).__name__})"
            else:
                if status == httpx.codes.OK:
                    break
                last = f"{path} answers {status}"
            time.sleep(_POLL_SECONDS)
        else:
            program.stop()
            raise ProgramFailed(
                f"{program.name} did not come up within {timeout_seconds:g} s (`start_timeout`): {last}; its"
                f" log is {program.log}"
            )
    time.sleep(_POLL_SECONDS)
    if program.ended:
        # Who has answered then is another program, which took the port in the meantime.
        raise ProgramFailed(f"{program.how_it_ended()} (while it started)")
    program.start_seconds = time.monotonic() - begun


def tail(log: Path, since: int = 0) -> str:
    """The end of a log, not from before byte `since`."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def memory_line(text: str) -> str | None:
    """The last line that says that memory ran out, None where none does."""
    lines = [line.strip() for line in text.splitlines() if _NO_MEMORY.search(line)]
    return _short(lines[-1]) if lines else None


def end_sentence(name: str, status: int | None, text: str, log: Path) -> str:
    """How a program ended, from its exit status and its log."""
    memory = memory_line(text)
    if memory is not None:
        return f"{name} ran out of memory: {memory} (log: {log})"
    if status == -signal.SIGKILL:
        return f"{name} was killed (SIGKILL), as happens when the host's memory runs out (log: {log})"
    # Errors may stand in a frame of lines.
    said = [line.strip(_FRAME) for line in text.splitlines()]
    last = next((line for line in reversed(said) if line), "it printed nothing")
    how = f"was ended by signal {-status}" if status is not None and status < 0 else f"ended with {status}"
    return f"{name} {how}: {_short(last)} (log: {log})"


def _short(line: str) -> str:
    return line if len(line) <= 240 else line[:237] + "..."
