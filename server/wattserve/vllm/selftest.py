"""The sensors' self-test of a server that starts: in a process of its own, while vLLM loads the model.

A process of its own, because the test times the sensors' calls and vLLM's start-up keeps Python busy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from wattserve.vllm.settings import Settings

VARIABLE = "WATTSERVE_SELFTEST_FILE"


def start(settings: Settings) -> None:
    """Starts the test where the meter is a real one; `result` finds its outcome through the environment."""
    if settings.meter != "nvml" or settings.selftest_seconds == 0:
        return
    handle, path = tempfile.mkstemp(prefix="wattserve-selftest-", suffix=".json")
    command = [sys.executable, "-m", "wattserve.vllm.selftest", str(settings.selftest_seconds)]
    subprocess.Popen(
        [*command, *(settings.devices or ())],
        stdout=handle,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    os.close(handle)
    os.environ[VARIABLE] = path


def result() -> dict[str, Any] | None:
    """What the test found, as `SelfTest.as_json`; None where none ran, or none has ended."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    Path(path).unlink(missing_ok=True)
    return found if isinstance(found, dict) else None


def main(arguments: list[str]) -> int:
    """`SECONDS [GPU ...]`: prints the result as JSON."""
    from wattmeter.meters import open_meter
    from wattmeter.selftest import run_selftest

    meter = open_meter("nvml", gpus=arguments[1:] or None)
    print(json.dumps(run_selftest(meter, float(arguments[0])).as_json()))
    meter.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
