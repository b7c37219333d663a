"""The sensors' self-test while the meter already reads them: in a process of its own.

A process of its own, because the test times the sensors' calls and the meter's threads would disturb that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.5
# A test takes 60 s at most; a process that has not answered long after that died without a word.
LONGEST_SECONDS = 180.0


def start(seconds: float, devices: Sequence[str] | None = None, *, kind: str = "nvml") -> Path:
    """Starts a test of the sensors of GPUs; `follow` finds its outcome in the file."""
    handle, path = tempfile.mkstemp(prefix="wattserve-selftest-", suffix=".json")
    command = [sys.executable, "-m", "wattserve.meter.selftest_process", kind, str(seconds)]
    subprocess.Popen(
        [*command, *(devices or ())],
        stdout=handle,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    os.close(handle)
    return Path(path)


def follow(path: Path, tell: Callable[[dict[str, Any]], None], *, wait: Callable[[float], bool]) -> None:
    """Tells what is known of the test, and again what it found once it ends.

    What is told has a `status`: `running`, `done` (with what `SelfTest.as_json` says) or `failed` (with the
    reason under `failed`). `wait(seconds)` waits, and is True where the meter stops.
    """
    found = _found(path)
    if found is None:
        tell({"status": "running"})
    for _ in range(round(LONGEST_SECONDS / POLL_SECONDS)):
        if found is not None or wait(POLL_SECONDS):
            break
        found = _found(path)
    else:
        found = found or {"failed": f"no result within {LONGEST_SECONDS:.0f} s"}
    if found is not None:
        path.unlink(missing_ok=True)
        tell({"status": "failed" if "failed" in found else "done", **found})


def _found(path: Path) -> dict[str, Any] | None:
    """What the test wrote; None until it has written all of it."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return None
    except OSError as error:
        return {"failed": f"its result cannot be read: {error.strerror}"}
    return found if isinstance(found, dict) else {"failed": "its result is not a JSON object"}


def main(arguments: list[str]) -> int:
    """`METER SECONDS [GPU ...]`: prints the result as JSON, or `{"failed": reason}`."""
    from wattmeter.meters import open_meter
    from wattmeter.selftest.sensor_test import run_selftest

    try:
        meter = open_meter(arguments[0], gpus=arguments[2:] or None)
        print(json.dumps(run_selftest(meter, float(arguments[1])).as_json()))
        meter.close()
    except Exception as error:
        print(json.dumps({"failed": str(error) or type(error).__name__}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
