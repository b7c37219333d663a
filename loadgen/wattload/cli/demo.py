"""`wattload demo`: conversations, then code completion, on the simulator: two runs, two reports."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from wattload import config as configuration
from wattload.errors import RunInvalid
from wattload.own_server import announced, end
from wattload.session import execute

# Workload, requests per second, arrivals: what the simulated GPU serves with room to spare. Code completions
# come in bursts so long that half a minute of them is not steady, so the demo takes their lengths alone.
WORKLOADS = (("conv", 6.0, "trace"), ("code", 5.0, "poisson"))


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Write the two run directories here.")] = Path("runs"),
    duration: Annotated[str, typer.Option(help="How long each of the two runs: 28s, 1m.")] = "28s",
    progress: Annotated[str, typer.Option(help="auto, plain, rich, json or none.")] = "auto",
    profile: Annotated[
        str | None, typer.Option(help="The GPU model to simulate; wattserve profiles lists them.")
    ] = None,
) -> None:
    """Run both embedded workloads against a simulated GPU: about a minute, no GPU needed."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    reports, failures = [], []
    with virtual_gpu(profile) as url:
        print(f"A simulated GPU serves on {url}: no sensor reads its energy; all else is as with a real one.")
        for trace, rate, arrivals in WORKLOADS:
            how = "its own arrivals" if arrivals == "trace" else f"{arrivals.capitalize()} arrivals"
            print(f"\nReplaying {trace} at {rate:g} requests per second, {how} ...", flush=True)
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
    with tempfile.TemporaryFile() as output:
        # A session of its own: Ctrl-C reaches the load first, which then ends the server.
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            address, last = announced(process, output)
            if address is None:
                raise RunInvalid(f"the simulator did not start: {last}")
            yield address
        finally:
            end(process)
