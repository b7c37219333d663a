"""The sensors' self-test on a real GPU under a known load: matrix products switched on and off every second.

    python benchmarks/h200/selftest.py [SECONDS]

Prints the result as JSON. Nothing else may run on the GPU meanwhile.
"""

from __future__ import annotations

import json
import sys
import threading

import torch

from wattmeter.meters import open_meter
from wattmeter.selftest.sensor_test import run_selftest


class Load:
    """Products of two square matrices in bfloat16, in a thread, never more than a few ms queued ahead."""

    def __init__(self, size: int = 8192) -> None:
        self._a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
        self._b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
        self._on = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while self._on.wait():
            self._a @ self._b
            torch.cuda.synchronize()

    def __call__(self, on: bool) -> None:
        if on:
            self._on.set()
        else:
            self._on.clear()


def main(arguments: list[str]) -> int:
    load = Load()
    # The first product loads the library and tunes it.
    load._a @ load._b
    torch.cuda.synchronize()
    result = run_selftest(open_meter("nvml"), float(arguments[0]) if arguments else 20.0, load)
    print(json.dumps(result.as_json(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
