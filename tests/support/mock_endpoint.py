"""The benchmarks' mock server, which streams tokens without model and meter, for tests that need no more."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loadgen" / "mock_server.py"


@contextmanager
def mock_endpoint(*flags: str) -> Iterator[str]:
    """Its address, as long as it is needed."""
    process = subprocess.Popen([sys.executable, str(_SCRIPT), *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
    finally:
        process.terminate()
        process.wait(10)
