"""`wattload demo`: conversations, then code completion, on a virtual GPU: two runs, two reports."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from wattload import config as configuration
from wattload.errors import RunInvalid
from wattload.execution import execute

_START_SECONDS = 30.0
_ADDRESS = re.compile(r"listening on (http://\S+)")
# Trace, requests a second, arrivals: what the virtual GPU holds with room to spare. Code completions come in
# bursts so long that half a minute of them is no steady state, so the demo takes their lengths alone.
WORKLOADS = (("conv", 6.0, "trace"), ("code", 5.0, "poisson"))


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Where the two run directories go.")] = Path("runs"),
    duration: Annotated[str, typer.Option(help="Length of each of the two.")] = "28s",
    progress: Annotated[str, typer.Option(help="auto, plain, rich, json or none.")] = "auto",
    profile: Annotated[str | None, typer.Option(help="The virtual GPU's profile.")] = None,
) -> None:
    """Replays the embedded workloads against a virtual GPU: about a minute, no GPU needed."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    reports, failures = [], []
    with virtual_gpu(profile) as url:
        print(
            f"A virtual GPU answers on {url}: its energy is modelled, everything else is as with a real one."
        )
        for trace, rate, arrivals in WORKLOADS:
            how = "its own arrivals" if arrivals == "trace" else f"{arrivals.capitalize()} arrivals"
            print(f"\nReplaying {trace} at {rate:g} requests a second, {how} ...", flush=True)
            settings = {
                "url": url,
                "trace": trace,
                "rate": rate,
                "arrivals": arrivals,
                "duration": duration,
                "warmup": "3s",
                "out": out / f"demo-{stamp}-{trace}",
                "progress": progress,
            }
            done = execute(configuration.load(settings))
            reports.append(done.run.report_path)
            failures += [f"{trace}: {reason}" for reason in done.failures]
    print("\nOpen one of these in a browser:")
    for path in reports:
        print(f"  {path}")
    if failures:
        raise RunInvalid("; ".join(failures))


@contextmanager
def virtual_gpu(profile: str | None = None) -> Iterator[str]:
    """Runs `wattserve sim` on a free port while entered, and gives its address.

    Raises RunInvalid where it does not start.
    """
    command = [sys.executable, "-m", "wattserve.cli", "sim", "--port", "0"]
    if profile is not None:
        command += ["--profile", profile]
    with tempfile.TemporaryFile() as said:
        # A session of its own: Ctrl-C reaches the load first, which then ends the server.
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield _address(process, said)
        finally:
            _end(process)


def _address(process: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    deadline = time.monotonic() + _START_SECONDS
    text = ""
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
        found = _ADDRESS.search(text)
        if found:
            return found[1]
        if ended:
            break
        time.sleep(0.1)
    last = text.strip().splitlines()[-1:] or ["it said nothing"]
    raise RunInvalid(f"the virtual GPU did not start: {last[0]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
