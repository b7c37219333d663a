"""What a step of the engine cost in the cells of a study, and how many requests it computed.

    python benchmarks/step_costs.py studies/results/software-h100

A row per cell that kept its server's metrics: steps per second and requests running (means over the
measurement window, of the server's own counters), energy above idle that went into decoding per step, energy
per output token, and mean power.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Figures of one cell; energy in joules. `decode_joules_per_step` is above idle."""

    steps_per_second: float
    requests_running: float
    decode_joules_per_step: float
    joules_per_output_token: float
    mean_watts: float


def step_costs(cell: Path) -> StepCosts:
    """The figures of a cell. Raises OSError or KeyError where it kept no metrics of `wattserve vllm`."""
    run = json.loads((cell / "run.json").read_text(encoding="utf-8"))
    start, end = run["window"]["start_unix"], run["window"]["end_unix"]
    rows = pq.read_table(cell / "server_metrics.parquet").to_pydict()
    values = defaultdict(list)
    for unix, metric, value in zip(rows["unix_seconds"], rows["metric"], rows["value"], strict=True):
        if start <= unix <= end:
            values[metric].append((unix, value))
    (began, first), (ended, last) = (values["wattserve_engine_steps_total"][at] for at in (0, -1))
    steps_per_second = (last - first) / (ended - began)
    running = [value for _, value in values["vllm:num_requests_running"]]
    energy = run["energy"]
    return StepCosts(
        steps_per_second=steps_per_second,
        requests_running=sum(running) / len(running),
        decode_joules_per_step=energy["decode_joules"] / (steps_per_second * (end - start)),
        joules_per_output_token=energy["per_output_token_joules"],
        mean_watts=energy["mean_watts"],
    )


def main(folders: list[str]) -> int:
    for folder in folders:
        for cell in sorted(Path(folder).glob("cells/*/*")):
            if (cell / "server_metrics.parquet").exists():
                of = step_costs(cell)
                print(
                    f"{cell.parent.name:16s} {cell.name:18s} {of.steps_per_second:6.1f} steps/s"
                    f" {of.requests_running:6.1f} running {of.decode_joules_per_step:6.2f} J/step"
                    f" {of.joules_per_output_token:6.3f} J/token {of.mean_watts:4.0f} W"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
