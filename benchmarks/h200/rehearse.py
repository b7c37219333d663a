"""Rehearses the experiments on the simulated GPU: a `wattserve sim` that records as `wattserve vllm` does.

    python benchmarks/h200/rehearse.py OUT [--scale 0.3] [NAME ...]

Runs the named experiments (all by default) against it on a free port, writes OUT/recording and
OUT/NAME.json.gz, and leaves the analysis to analyse.py. Every joule of it is modelled.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path

import uvicorn
from experiments import PLANS, run

from wattmeter.energy_model.step_model import NO_PADDING
from wattmeter.meters.base import Reading
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.recording import RecordingWriter
from wattserve.sim.app import Simulator
from wattserve.sim.profile import load_profile


def serve(out: Path) -> tuple[uvicorn.Server, RecordingWriter, str]:
    simulator = Simulator(load_profile("h200-llama-3.1-8b"))
    # The simulated GPU computes what it is asked for and no more.
    meta = {"model": "simulated GPU", "source": "modelled", "padding": asdict(NO_PADDING)}
    writer = RecordingWriter(out / "recording", meta)
    read_energy, add_steps = simulator.meter.read_energy, simulator.account.add_steps

    def recorded_energy(device_id: str) -> Reading:
        reading = read_energy(device_id)
        writer.add_reading(reading)
        return reading

    def recorded_steps(batch: StepBatch) -> None:
        writer.add_steps(batch)
        add_steps(batch)

    simulator.meter.read_energy = recorded_energy  # type: ignore[method-assign]
    simulator.engine._on_steps = recorded_steps
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(simulator.app, port=port, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return server, writer, f"http://127.0.0.1:{port}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(sorted(PLANS)))
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--draw", type=int, default=2)
    options = parser.parse_intermixed_args()
    server, writer, url = serve(options.out)
    for name in options.names or sorted(PLANS):
        asyncio.run(run(name, url, options.out / f"{name}.json.gz", options.scale, draw=options.draw))
    server.should_exit = True
    time.sleep(1.0)
    writer.close()


if __name__ == "__main__":
    main()
