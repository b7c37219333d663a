"""Keeps a meter running: starts it, starts it again when it dies, and ends it when its server ends.

    python -m wattserve.meter.keeper FD OPTIONS

FD is the reading end of a pipe whose other end the server holds; OPTIONS are those of
`wattserve.meter.process`. A process of its own, so that nothing in the server waits for the meter.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

from wattmeter.standard_streams import say

# Exit statuses of the meter after which it is not started again: an ordinary end, arguments or a machine that
# cannot work, another meter at the same socket.
FINAL_STATUSES = (0, 2, 3)
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
STEADY_SECONDS = 30.0
END_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    """Returns the meter's last exit status."""
    server, options = int(arguments[0]), arguments[1]
    pause = FIRST_PAUSE_SECONDS
    while True:
        started = time.monotonic()
        # The meter's standard input is a pipe of ours: it ends where this process does, however that happens.
        meter = subprocess.Popen(
            [sys.executable, "-m", "wattserve.meter.process", options], stdin=subprocess.PIPE
        )
        if _server_ended(server, meter):
            return _ended(meter)
        status = meter.wait()
        if status in FINAL_STATUSES:
            return status
        pause = FIRST_PAUSE_SECONDS if time.monotonic() - started > STEADY_SECONDS else pause
        say(f"wattserve: the meter ended with status {status}; it is started again", error=True)
        if select.select([server], [], [], pause)[0]:
            return 0
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _server_ended(server: int, meter: subprocess.Popen[bytes]) -> bool:
    """Waits for the end of the server or the meter; True where it is the server's."""
    process = os.pidfd_open(meter.pid)
    try:
        ready, _, _ = select.select([server, process], [], [])
    finally:
        os.close(process)
    return server in ready


def _ended(meter: subprocess.Popen[bytes]) -> int:
    meter.send_signal(signal.SIGTERM)
    try:
        return meter.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        meter.kill()
        return meter.wait()


if __name__ == "__main__":
    # The server is told to end by the same signals; the meter ends after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))
