"""The tidy table: a line per cell, with what the study knows of it and the numbers of its run."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wattload.rundir.directory import RunDir, load_run_json
from wattload.rundir.numbers import number_of
from wattload.rundir.result import RunJson
from wattload.study.directory import CellFacts, read_facts

# The columns that are numbers of run.json; where one has an interval, NAME_low and NAME_high are its ends.
NUMBERS = {
    "energy_per_request_joules": "energy.per_request_joules.mean",
    "attributed_energy_per_request_joules": "energy.per_request_joules.attributed_mean",
    "energy_per_output_token_joules": "energy.per_output_token_joules",
    "energy_per_token_joules": "energy.per_token_joules",
    "energy_per_good_request_joules": "slo.joules_per_good_request",
    "mean_watts": "energy.mean_watts",
    "total_joules": "energy.total_joules",
    "idle_joules": "energy.idle_joules",
    "uncertainty_joules": "energy.uncertainty_joules",
    "scheduled_rps": "load.planned_rps",
    "achieved_rps": "load.achieved_rps",
    "output_tokens_per_second": "tokens.output_per_second",
    "ttft_p50_seconds": "latency.ttft_seconds.p50",
    "ttft_p99_seconds": "latency.ttft_seconds.p99",
    "tpot_p50_seconds": "latency.tpot_seconds.p50",
    "tpot_p99_seconds": "latency.tpot_seconds.p99",
    "e2e_p50_seconds": "latency.e2e_seconds.p50",
    "e2e_p99_seconds": "latency.e2e_seconds.p99",
    "slo_met_fraction": "slo.met_fraction",
    "goodput_rps": "slo.goodput_rps",
}
_COUNTS = {
    "requests_in_window": "requests.in_window",
    "requests_completed_in_window": "requests.completed_in_window",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A cell that was made; `run` is None where it left no run."""

    facts: CellFacts
    path: Path
    run: RunJson | None

    @property
    def simulated(self) -> bool:
        return self.run is not None and self.run.energy.simulated

    @property
    def steady(self) -> bool:
        """Whether the total energy of its window is that of the requests due in it."""
        each = self.run.energy.per_request_joules if self.run is not None else None
        return each is not None and each.headline == "mean"

    def value(self, path: str) -> float | None:
        """A number of run.json; None where it is null, or where the cell is not valid."""
        return number_of(path).of(self.run) if self.run is not None and self.facts.valid else None

    def interval(self, path: str) -> tuple[float, float] | None:
        return number_of(path).interval_of(self.run) if self.run is not None and self.facts.valid else None

    def values(self) -> dict[str, Any]:
        """The line of the table. The figures of a cell that is not valid are in it, beside `valid`."""
        facts = dataclasses.asdict(self.facts)
        for name in ("reasons", "notes"):
            facts[name] = "; ".join(facts[name])
        line: dict[str, Any] = {"valid": self.facts.valid, "run": str(self.path), **facts}
        run = self.run
        energy = run.energy if run is not None else None
        line |= {
            "steady": self.steady if run is not None else None,
            "simulated": self.simulated if run is not None else None,
            "energy_source": energy.source if energy is not None else None,
            "model": run.target.model if run is not None else None,
            "engine": run.versions.get("engine") if run is not None else None,
            "devices": ", ".join(str(d.get("name")) for d in run.target.devices) if run is not None else None,
            "device_ids": ", ".join(str(d.get("id")) for d in run.target.devices)
            if run is not None
            else None,
            "flags": ", ".join(energy.flags) if energy is not None else None,
            "run_notes": "; ".join(run.notes) if run is not None else None,
        }
        for name, path in (_COUNTS | NUMBERS).items():
            number = number_of(path)
            line[name] = number.of(run) if run is not None else None
            if number.interval_path is not None:
                low, high = (number.interval_of(run) if run is not None else None) or (None, None)
                line |= {f"{name}_low": low, f"{name}_high": high}
        return line


def read_rows(folder: Path) -> list[Row]:
    """Every cell that was made, in order of time. Raises InputError where a file is broken."""
    return sorted(_rows(folder / "cells", folder), key=lambda row: row.facts.started_unix)


def _rows(cells: Path, folder: Path) -> Iterator[Row]:
    for path in sorted(cells.glob("*/*/cell.json")):
        # What was set aside has a dot and a number at its end.
        if path.parent.suffix.partition("-")[0] in (".cut", ".invalid"):
            continue
        facts = read_facts(path.parent)
        assert facts is not None
        directory = RunDir(path.parent)
        run = load_run_json(directory) if directory.run_json_path.exists() else None
        yield Row(facts, path.parent.relative_to(folder), run)


def write_table(lines: list[dict[str, Any]], path: Path) -> None:
    """`path`.parquet and `path`.csv with the same columns."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    table = pa.Table.from_pylist([{name: line.get(name) for name in names} for line in lines])
    pq.write_table(table, path.with_suffix(".parquet"))
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)
