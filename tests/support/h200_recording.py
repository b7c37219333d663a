"""The recordings of a real H200 as profiles and workloads, for estimates to be held against."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared import shared_file
from wattload.estimates.calibration_file import PROFILE_SCHEMA, Profile, ShapeCost
from wattload.rundir.result import TargetInfo

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
POWER_LIMIT_WATTS = 700.0


@dataclass(frozen=True)
class Phase:
    """Requests of one phase in order of sending, shape (N,); seconds count from its first."""

    begin_unix: float
    due: F64
    first: F64
    last: F64
    prompt: I64
    output: I64


class Recording:
    """One recorded session: its phases, and the joules of the board between two moments."""

    def __init__(self, folder: str) -> None:
        raw = json.loads(_text(shared_file("h200", folder, "recs.json.gz")))
        table = np.loadtxt(
            _text(shared_file("h200", folder, "nvml.csv.gz")).splitlines(), delimiter=",", skiprows=1
        )
        seconds, joules = table[:, 0], table[:, 1] / 1000
        fresh = np.concatenate(([True], np.diff(joules) > 0))
        self._seconds, self._joules = seconds[fresh], joules[fresh]
        self.marks = raw["marks"]
        self.phases: dict[str, Phase] = {}
        for name in dict.fromkeys(r[0] for r in raw["recs"]):
            rows = sorted((r for r in raw["recs"] if r[0] == name and not r[9]), key=lambda r: r[2])
            begin = rows[0][2]
            times = np.array([[r[2], r[3], r[4]] for r in rows]).T - begin
            tokens = np.array([[r[5], r[6]] for r in rows], np.int64).T
            self.phases[name] = Phase(begin, *times, *tokens)
        idle = {name: when for name, when in self.marks if name in {"idle", "idle_end"}}
        self.idle_watts = self.joules(idle["idle"] + 0.5, idle["idle_end"]) / (
            idle["idle_end"] - idle["idle"] - 0.5
        )

    def joules(self, start: float, end: float) -> float:
        at = np.interp([start, end], self._seconds, self._joules)
        return float(at[1] - at[0])


def profile_of(recording: Recording) -> Profile:
    """The batches and the lone requests of the recording `rates` as a profile: eight shapes."""
    shapes = []
    for name, phase in recording.phases.items():
        if not name.startswith(("iso_", "batch_")):
            continue
        batch = len(phase.due) if name.startswith("batch_") else 1
        waves = len(phase.due) // batch
        end = float(phase.last.max())
        busy = float((phase.last - phase.due).sum()) if batch == 1 else end
        above = recording.joules(phase.begin_unix, phase.begin_unix + end) - recording.idle_watts * end
        shapes.append(
            ShapeCost(
                prompt_tokens=int(phase.prompt[0]),
                output_tokens=int(phase.output[0]),
                batch=batch,
                waves=waves,
                seconds=busy / waves,
                above_idle_joules=above / waves,
                ttft_seconds=float(np.median(phase.first - phase.due)),
            )
        )
    return Profile(
        schema=PROFILE_SCHEMA,
        created_unix=recording.marks[0][1],
        target=TargetInfo(url="recording", model="llama-3.1-8b", energy_source="nvml"),
        idle_watts=recording.idle_watts,
        power_limit_watts=POWER_LIMIT_WATTS,
        max_batched_tokens=8192,
        max_seqs=1024,
        shapes=shapes,
    )


def _text(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read()
