"""Run directories whose truth is known: requests with given joules on a device with given idle power."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wattload.rundir.directory import ENERGY_SCHEMA, REQUEST_SCHEMA, SPLIT_SCHEMA, Capture, RunDir
from wattload.rundir.result import ArrivalsInfo, ClockInfo, SloLimits, TargetInfo, WorkloadInfo
from wattload.rundir.tables import StreamWriter, parquet_writer

F64 = npt.NDArray[np.float64]
BEGIN = 1_700_000_000.0
_SESSIONS_AT_ONCE = 40


@dataclass
class Synthetic:
    """`prefill_token_joules`, `decode_token_joules`: what a token costs; `noise`: relative, per request.

    `turns`: requests of each session, two of them a task; 0: of no session. Sessions run 40 at a time, so
    that one waits between its turns.
    `meter_offset_seconds`: the meter's clock minus the client's. `gaps`: whether to write inter-token gaps.
    """

    rate: float = 10.0
    duration: float = 60.0
    warmup: float | None = 10.0
    seed: int = 1
    idle_watts: float = 120.0
    prefill_token_joules: float = 0.015
    decode_token_joules: float = 0.3
    noise: float = 0.05
    meter_offset_seconds: float = 0.0
    source: str = "nvml"
    failed: float = 0.0
    requests: int | None = None
    turns: int = 0
    gaps: bool = True
    schedule_sha256: str | None = "s1"
    trace: str = "conv"
    tags: tuple[str, ...] = ("",)
    models: tuple[str, ...] = ("",)
    slo: SloLimits | None = None
    model: str = "m"
    device: str = "Synthetic"
    with_answer: bool = True
    overrides: dict[str, Any] = field(default_factory=dict)
    # (due, prompt, output, first, last) in seconds of the run, instead of drawn ones.
    lengths: tuple[Any, Any, Any, F64, F64] | None = None

    def write(self, path: Path) -> RunDir:
        """Writes the directory of a load that is over: its rows are still a stream."""
        run = RunDir.create(path)
        rng = np.random.default_rng(self.seed)
        count = self.requests or int(rng.poisson(self.rate * self.duration))
        due = np.sort(rng.uniform(0, self.duration, count)) + BEGIN
        prompt = np.clip(rng.lognormal(6.5, 0.8, count), 1, 8000).astype(np.int32)
        output = np.clip(rng.lognormal(4.5, 0.8, count), 1, 1000).astype(np.int32)
        if self.lengths is not None:
            due, prompt, output = (np.asarray(values) for values in self.lengths[:3])
            due, prompt, output = due + BEGIN, prompt.astype(np.int32), output.astype(np.int32)
            count = len(due)
        measured = np.random.default_rng(self.seed + 1000)
        joules = prompt * self.prefill_token_joules + output * self.decode_token_joules
        joules = joules * (1 + self.noise * measured.standard_normal(count))
        sent = due + measured.exponential(2e-4, count)
        first = sent + 0.03 + prompt * 1e-5 + measured.exponential(0.01, count)
        last = first + (output - 1) * 0.011
        if self.lengths is not None:
            first, last = self.lengths[3] + BEGIN, self.lengths[4] + BEGIN
        failed = measured.uniform(size=count) < self.failed
        energy = np.where(failed, 0.0, joules)
        self._requests(run, due, sent, first, last, prompt, output, joules, failed, measured)
        grid = BEGIN - 2 + np.arange(int((self.duration + 40) * 10)) / 10
        self.busy = _accumulate(sent, last, energy, grid)
        self.grid = grid
        total = self.busy + self.idle_watts * (grid - grid[0])
        self._energy(run, grid, total)
        start = BEGIN + (self.warmup or 0.0)
        end = BEGIN + self.duration
        capture = Capture(
            name="synthetic",
            started_unix=BEGIN,
            finished_unix=float(BEGIN + self.duration + 20),
            duration_seconds=self.duration,
            warmup_seconds=self.warmup,
            planned_requests=count,
            target=TargetInfo(
                url="http://127.0.0.1:1",
                engine="synthetic",
                model=self.model,
                energy_source=self.source,
                devices=[{"id": "gpu0", "name": self.device, "source": self.source}],
            ),
            workload=WorkloadInfo(
                trace=self.trace,
                sha256="t1",
                rows=count,
                arrivals=ArrivalsInfo(process="poisson", rate_rps=self.rate),
                seed=self.seed,
                schedule_sha256=self.schedule_sha256,
            ),
            slo=self.slo,
            versions={"wattload": "0"},
            clock=ClockInfo(offset_seconds=self.meter_offset_seconds, uncertainty_seconds=0.001),
            energy_window=self.answer(start, end) if self.with_answer else None,
        )
        run.save_capture(capture.model_copy(update=self.overrides))
        return run

    def answer(self, start: float, end: float) -> dict[str, Any]:
        """What GET /energy would say of [start, end) on the client's clock."""
        busy = float(np.interp(end, self.grid, self.busy) - np.interp(start, self.grid, self.busy))
        idle = self.idle_watts * (end - start)
        return {
            "start": start + self.meter_offset_seconds,
            "end": end + self.meter_offset_seconds,
            "complete": True,
            "total_joules": busy + idle,
            "idle_joules": idle,
            "attributed_joules": {"prefill": 0.2 * busy, "decode": 0.8 * busy},
            "unattributed_joules": 0.0,
            "devices": [
                {
                    "id": "gpu0",
                    "name": self.device,
                    "source": self.source,
                    "joules": busy + idle,
                    "uncertainty_joules": 12.0,
                    "flags": [],
                }
            ],
            "flags": [],
        }

    def _requests(
        self,
        run: RunDir,
        due: F64,
        sent: F64,
        first: F64,
        last: F64,
        prompt: npt.NDArray[np.int32],
        output: npt.NDArray[np.int32],
        joules: F64,
        failed: npt.NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        count = len(due)
        stream = StreamWriter(run.requests_partial_path, REQUEST_SCHEMA)
        for start in range(0, count, 32_768):
            part = slice(start, min(start + 32_768, count))
            n = part.stop - part.start
            bad = failed[part]
            lengths = np.where(bad, 0, output[part] - 1) if self.gaps else np.zeros(n, np.int64)
            offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
            gaps = rng.lognormal(np.log(0.011), 0.2, int(offsets[-1])).astype(np.float32)
            number = np.arange(part.start, part.stop)

            session, task = np.full(n, -1), np.full(n, -1)
            if self.turns:
                turn = number // _SESSIONS_AT_ONCE % self.turns
                session = number // (_SESSIONS_AT_ONCE * self.turns) * _SESSIONS_AT_ONCE
                session += number % _SESSIONS_AT_ONCE
                task = session * self.turns + turn // 2

            def known(values: Any, mask: npt.NDArray[np.bool_] = bad) -> pa.Array:
                return pa.array(values, mask=mask)

            columns = {
                "index": number,
                "session": session,
                "task": task,
                "tag": [self.tags[i % len(self.tags)] for i in number],
                "model": [self.models[i % len(self.models)] for i in number],
                "due_unix": due[part],
                "sent_unix": sent[part],
                "first_token_unix": known(first[part]),
                "last_token_unix": known(last[part]),
                "outcome": np.where(bad, "http_5xx", "completed").tolist(),
                "status_code": np.where(bad, 500, 200),
                "prompt_tokens_planned": prompt[part],
                "output_tokens_planned": output[part],
                "prompt_tokens": known(prompt[part]),
                "output_tokens": known(output[part]),
                "cached_tokens": known(np.zeros(n)),
                "chunks": np.where(bad, 0, output[part]),
                "energy_joules": known(joules[part]),
                "prefill_joules": known(0.2 * joules[part]),
                "decode_joules": known(0.8 * joules[part]),
                "energy_status": ["unknown" if b else "settled" for b in bad],
                "request_id": [f"r{i}" for i in number],
                "in_window": pa.nulls(n, pa.bool_()),
                "worker": np.zeros(n),
                "error": pa.nulls(n, pa.string()),
                "itl_seconds": pa.ListArray.from_arrays(pa.array(offsets), pa.array(gaps)),
            }
            # What a synthetic run has nothing to say about is null.
            columns = {f.name: pa.nulls(n, f.type) for f in REQUEST_SCHEMA} | columns
            arrays = [
                values.cast(field_.type)
                if isinstance(values := columns[field_.name], pa.Array)
                else pa.array(values).cast(field_.type)
                for field_ in REQUEST_SCHEMA
            ]
            stream.write(pa.RecordBatch.from_arrays(arrays, schema=REQUEST_SCHEMA))
        stream.close()

    def _energy(self, run: RunDir, grid: F64, total: F64) -> None:
        watts = np.gradient(total, grid)
        n = len(grid)
        table = pa.table(
            [
                pa.array(["gpu0"] * n),
                pa.array(grid + self.meter_offset_seconds),
                pa.array(total),
                pa.array(watts),
                pa.array([self.source] * n),
            ],
            schema=ENERGY_SCHEMA,
        )
        with parquet_writer(run.energy_path, ENERGY_SCHEMA) as writer:
            writer.write_table(table)
        seconds = np.arange(np.ceil(grid[0]), grid[-1] - 1)
        answers = [self.answer(float(s), float(s) + 1) for s in seconds]
        rows = [
            {
                "start_unix": a["start"],
                "end_unix": a["end"],
                "complete": True,
                "total_joules": a["total_joules"],
                "idle_joules": a["idle_joules"],
                "prefill_joules": a["attributed_joules"]["prefill"],
                "decode_joules": a["attributed_joules"]["decode"],
                "unattributed_joules": 0.0,
                "flags": [],
            }
            for a in answers
        ]
        with parquet_writer(run.split_path, SPLIT_SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema=SPLIT_SCHEMA))


def _accumulate(begin: F64, end: F64, joules: F64, at: F64) -> F64:
    """Joules used up to each of `at` by requests that use theirs evenly over [begin, end)."""
    rate = joules / np.maximum(end - begin, 1e-9)
    times = np.concatenate((begin, end))
    steps = np.concatenate((rate, -rate))
    order = np.argsort(times)
    times, watts = times[order], np.cumsum(steps[order])
    used = np.concatenate(([0.0], np.cumsum(watts[:-1] * np.diff(times))))
    return np.interp(at, times, used)
