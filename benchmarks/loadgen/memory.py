"""Memory of a long load: resident megabytes while tens of thousands of short requests go by.

python benchmarks/loadgen/memory.py --rate 800 --seconds 90
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure_self import Mock


def resident_mb(pid: int) -> float | None:
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=800)
    parser.add_argument("--seconds", type=float, default=90)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mock = Mock(folder, "--ttft", "0.01", "--gap", "0.001")
        trace = folder / "trace.csv"
        count = int(options.rate * options.seconds)
        trace.write_text(
            "seconds,prompt_tokens,output_tokens\n" + "".join(f"{i},50,2\n" for i in range(count))
        )
        command = [
            sys.executable, "-m", "wattload.cli", "run", mock.url, "--trace", str(trace), "--energy", "none",
            "--rate", f"{options.rate:g}", "--out", str(folder / "run"), "--progress", "none", "--no-report",
        ]  # fmt: skip
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            elapsed = time.monotonic() - begin
            memory = resident_mb(process.pid)
            if memory is not None and elapsed < options.seconds + 3:
                sent = options.rate * max(0.0, elapsed - 3)
                print(f"{elapsed:6.1f} s  about {sent:7.0f} requests  {memory:6.1f} MB")
            time.sleep(10)
        mock.stop()


if __name__ == "__main__":
    main()
