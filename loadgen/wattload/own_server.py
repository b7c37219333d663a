"""A server that this process has started for itself: where it listens, and its end."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from typing import IO

START_SECONDS = 30.0
_ADDRESS = re.compile(r"listening on (http://\S+)")


def announced(process: subprocess.Popen[bytes], output: IO[bytes]) -> tuple[str | None, str]:
    """(the address that a server says it listens on, None where it ended or said none in time; its last
    line)."""
    deadline = time.monotonic() + START_SECONDS
    text = ""
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
        found = _ADDRESS.search(text)
        if found:
            return found[1], text
        if ended:
            break
        time.sleep(0.1)
    return None, (text.strip().splitlines()[-1:] or ["it printed nothing"])[0]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server, in order where it lets us."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
