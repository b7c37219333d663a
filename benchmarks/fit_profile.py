"""Fits the simulated GPU's profile `h200-llama-3.1-8b` to the H200's recordings, and says how far off it is.

    python benchmarks/fit_profile.py RECORDINGS [--write]

RECORDINGS holds `rates/` and `tenants/` (nvml.csv.gz, steps.jsonl.gz, recs.json.gz each). Twice the same fit:
once leaving out the saturated run (`poisson_40`) and the second repeat of every tenant run, whose errors
are then those of a prediction; once on everything, which is what the profile gets. `--write` writes the
profile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, nnls

from wattmeter.energy_model.step_model import ENERGY_TERMS, TIME_TERMS, StepModel, step_work
from wattmeter.steps.recording import Recording
from wattserve.sim.device import PowerLimit, Timing
from wattserve.sim.profile import Profile
from wattserve.sim.scheduler import Limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from line_recording import read_lines
from offline_sim import run_offline

F64 = npt.NDArray[np.float64]

TIMING_TERMS = tuple(Timing.__dataclass_fields__)
# Where the search starts: what the recordings look like by eye.
START = {
    "overhead_seconds": 3e-4, "weights_seconds": 4.6e-3, "token_seconds": 16e-6, "sharpness": 3.0,
    "context_token_seconds": 3.6e-8, "attention_pair_seconds": 3e-9, "sequence_seconds": 1e-6,
    "limit_watts": 560.0, "limit_lag_seconds": 0.05, "energy_exponent": 0.3,
    "fixed_joules": 1.84, "prefill_token_joules": 0.0142, "decode_token_joules": 0.0133,
    "context_token_joules": 2.5e-5, "attention_pair_joules": 3.3e-7,
}  # fmt: skip
# The end of one step jitters by milliseconds (the engine was late to look): lengths are compared over a few.
STEPS_PER_BLOCK = 12
UPDATES_PER_BLOCK = 5  # the counter steps every 100 ms
PROFILE = Path(__file__).resolve().parents[1] / "server/wattserve/profiles/h200-llama-3.1-8b.json"


@dataclass(frozen=True)
class Phase:
    name: str
    start_ns: int
    end_ns: int


class Data:
    """One recording as arrays: per step what it computed, when the device was busy with it, and the
    counter.
    """

    def __init__(self, folder: Path) -> None:
        recording = read_lines(folder)
        steps, work = recording.steps, step_work(recording.steps)
        self.recording = recording
        self.start_ns = steps.launch_ns.copy()
        self.start_ns[1:] = np.maximum(self.start_ns[1:], steps.end_ns[:-1])
        self.end_ns = steps.end_ns
        self.seconds: F64 = np.multiply(self.end_ns - self.start_ns, 1e-9, dtype=np.float64)
        sequences = np.bincount(steps.step, minlength=len(steps))
        self.work = np.stack(
            [
                work.prefill_tokens,
                work.decode_tokens,
                work.decode_context_tokens,
                work.attention_pairs,
                sequences,
            ],
            axis=1,
        )
        (counter,) = recording.devices.values()
        self.update_ns, self.joules = counter.updates()
        self.phases = phases(recording)
        idle = next(phase for phase in self.phases if phase.name == "idle")
        inside = (self.update_ns > idle.start_ns + 500_000_000) & (self.update_ns < idle.end_ns)
        when, what = self.update_ns[inside], self.joules[inside]
        self.idle_watts = float((what[-1] - what[0]) / ((when[-1] - when[0]) * 1e-9))

    def rows(self, skip: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """Steps outside the phases whose names start with one of `skip`."""
        keep = np.ones(len(self.end_ns), dtype=bool)
        for phase in self.phases:
            if phase.name.startswith(skip):
                keep &= ~((self.end_ns > phase.start_ns) & (self.end_ns <= phase.end_ns))
        return keep


def phases(recording: Recording) -> list[Phase]:
    """The recording's marked parts, each with what drained after its last request was sent."""
    marks = [mark for mark in recording.meta["marks"] if not mark[0].endswith("_lastsent")]
    return [
        Phase(name, recording.monotonic_ns_of(start), recording.monotonic_ns_of(end))
        for (name, start), (_, end) in itertools.pairwise(marks)
        if name not in ("end", "idle_end")
    ]


class Target:
    """What a model has to meet in one recording: lengths of blocks of steps, joules of half seconds."""

    def __init__(self, data: Data, rows: npt.NDArray[np.bool_]) -> None:
        self.work: list[list[float]] = data.work[rows].tolist()
        self.start_ns, self.end_ns = data.start_ns[rows], data.end_ns[rows]
        self.seconds = data.seconds[rows]
        gaps = (self.start_ns[1:] - self.end_ns[:-1]) * 1e-9
        self.gaps: list[float] = [0.0, *gaps.tolist()]
        self.block_seconds = self.in_blocks(self.seconds)
        self.edge_ns = data.update_ns[::UPDATES_PER_BLOCK]
        length = np.diff(self.edge_ns) * 1e-9
        self.above_idle = np.diff(data.joules[::UPDATES_PER_BLOCK]) - data.idle_watts * length
        busy = self.over_updates(self.seconds)
        all_busy = _over(data.start_ns, data.end_ns, data.seconds, self.edge_ns)
        # Only intervals whose steps are all in `rows`, and busy enough for a percentage to mean much.
        self.usable = (busy > 0.3 * length) & (busy > 0.999 * all_busy) & (length < 1.0)

    def in_blocks(self, values: F64) -> F64:
        count = len(values) // STEPS_PER_BLOCK * STEPS_PER_BLOCK
        return np.asarray(values[:count].reshape(-1, STEPS_PER_BLOCK).sum(axis=1))

    def over_updates(self, values: F64) -> F64:
        return _over(self.start_ns, self.end_ns, values, self.edge_ns)

    def predict(self, timing: Timing, energy: StepModel) -> tuple[F64, F64]:
        """(seconds, joules) of each step, given what each computed and the pauses between them."""
        device = PowerLimit(timing, energy)
        found = np.empty((len(self.work), 2))
        for row, (work, gap) in enumerate(zip(self.work, self.gaps, strict=True)):
            if gap > 1e-4:
                device.idle(gap)
            found[row] = device.step(*work)  # type: ignore[arg-type]
        return found[:, 0], found[:, 1]

    def residuals(self, seconds: F64, joules: F64) -> tuple[F64, F64]:
        """(of block lengths, of half seconds' joules): model over recording, minus 1."""
        times = self.in_blocks(seconds) / self.block_seconds - 1.0
        energy = (self.over_updates(joules) - self.above_idle) / np.maximum(self.above_idle, 50.0)
        return times, energy[self.usable]


def _over(start_ns: Any, end_ns: Any, values: F64, edges_ns: Any) -> F64:
    """Each step's value spread evenly over its time, summed between the edges."""
    times = np.stack([start_ns, end_ns], axis=1).ravel()
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.diff(np.interp(edges_ns, times, np.stack([sums[:-1], sums[1:]], axis=1).ravel()))


def models(values: F64) -> tuple[Timing, StepModel]:
    named: dict[str, Any] = dict(zip(START, (float(value) for value in values), strict=True))
    timing = {name: named[name] for name in TIMING_TERMS}
    timing["sharpness"] = max(timing["sharpness"], 1.0)
    timing["limit_lag_seconds"] = max(timing["limit_lag_seconds"], 1e-3)
    return Timing(**timing), StepModel(**{name: named[name] for name in ENERGY_TERMS if name in named})


def fit(targets: list[Target]) -> tuple[Timing, StepModel]:
    """Least squares over all targets at once, tolerant of outliers; each kind of residual weighs the same."""
    scale = np.array(list(START.values()))

    def residuals(factors: F64) -> F64:
        timing, energy = models(factors * scale)
        parts = []
        for target in targets:
            for part in target.residuals(*target.predict(timing, energy)):
                parts.append(part / np.sqrt(len(part)) * 10.0)
        return np.concatenate(parts)

    found = least_squares(
        residuals,
        np.ones(len(scale)),
        bounds=(0, 10),
        loss="soft_l1",
        f_scale=0.03,
        max_nfev=25,
        diff_step=np.full(len(scale), 1e-3),
    )
    rounded = np.array([float(f"{value:.4g}") for value in np.where(found.x > 1e-9, found.x, 0.0) * scale])
    return models(rounded)


def spread(residuals: F64) -> dict[str, float]:
    return {
        "median_absolute": round(float(np.median(np.abs(residuals))), 4),
        "rms": round(float(np.sqrt(np.mean(residuals**2))), 4),
        "bias": round(float(np.mean(residuals)), 4),
        "count": len(residuals),
    }


def errors(data: Data, timing: Timing, energy: StepModel) -> dict[str, dict[str, Any]]:
    """Of each phase: block lengths, half seconds' joules, and the phase as a whole; fractions of the
    recording.
    """
    every = Target(data, data.rows(()))
    seconds, joules = every.predict(timing, energy)
    modelled, edges = every.over_updates(joules), every.edge_ns
    table = {}
    for phase in data.phases:
        steps = (data.end_ns > phase.start_ns) & (data.end_ns <= phase.end_ns)
        if not steps.any():
            continue
        inside = (edges[:-1] >= phase.start_ns) & (edges[1:] <= phase.end_ns) & every.usable
        half = (modelled[inside] - every.above_idle[inside]) / np.maximum(every.above_idle[inside], 50.0)
        whole = _whole_phase(data, phase, joules, every)
        blocks = every.in_blocks(seconds[steps]) / every.in_blocks(data.seconds[steps]) - 1.0
        table[phase.name] = {
            "steps": int(steps.sum()),
            "step_seconds": spread(blocks) if len(blocks) else None,
            "half_second_joules": spread(half) if len(half) else None,
            "run_seconds": round(float(seconds[steps].sum() / data.seconds[steps].sum() - 1), 4),
            "run_joules_above_idle": whole,
        }
    return table


def _whole_phase(data: Data, phase: Phase, joules: F64, target: Target) -> float | None:
    inside = np.flatnonzero((data.update_ns >= phase.start_ns) & (data.update_ns <= phase.end_ns))
    if len(inside) < 5:
        return None
    edges = data.update_ns[inside[[0, -1]]]
    measured = np.diff(data.joules[inside[[0, -1]]])[0] - data.idle_watts * (edges[1] - edges[0]) * 1e-9
    return round(float(_over(target.start_ns, target.end_ns, joules, edges)[0] / measured - 1), 4)


def pooled(table: dict[str, dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The phases of one load level as one line: rms over phases' blocks, worst run."""
    rows = [table[name] for name in names]

    def rms(key: str) -> float:
        parts = [(row[key]["rms"], row[key]["count"]) for row in rows if row[key]]
        return round(float(np.sqrt(sum(r * r * n for r, n in parts) / sum(n for _, n in parts))), 4)

    def worst(key: str) -> float:
        return max((float(row[key]) for row in rows if row[key] is not None), key=abs)

    return {
        "phases": len(rows),
        "step_seconds_rms": rms("step_seconds"),
        "half_second_joules_rms": rms("half_second_joules"),
        "run_seconds_worst": worst("run_seconds"),
        "run_joules_above_idle_worst": worst("run_joules_above_idle"),
    }


def linear_seconds(targets: list[Target]) -> dict[str, Any]:
    """The step model's own linear terms of time, for uses that have no clock to follow."""
    rows, lengths = [], []
    for target in targets:
        work = np.asarray(target.work)
        columns = np.concatenate([np.ones((len(work), 1)), work[:, :4]], axis=1)
        rows.append(np.stack([target.in_blocks(column) for column in columns.T], axis=1))
        lengths.append(target.block_seconds)
    matrix, seconds = np.concatenate(rows), np.concatenate(lengths)
    solution, _ = nnls(matrix / seconds[:, None], np.ones(len(seconds)))
    return {name: float(f"{value:.4g}") for name, value in zip(TIME_TERMS[:5], solution, strict=True)}


def replay(profile: Profile, data: Data, skip: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """The recorded arrivals through scheduler and device in virtual time, beside what the clients saw."""
    groups: dict[str, list[Any]] = {}
    for row in data.recording.meta["recs"]:
        groups.setdefault(row[0].split("|")[0], []).append(row)
    table = {}
    for name, rows in groups.items():
        if name == "warm" or name.startswith(skip):
            continue
        rows.sort(key=lambda row: row[2])
        sent, first, last = (np.array([row[i] for row in rows]) - rows[0][2] for i in (2, 3, 4))
        prompt, output = [row[5] for row in rows], [row[6] for row in rows]
        arrivals = (sent + profile.frontend_seconds).tolist()
        found = run_offline(profile, profile.limits, arrivals, prompt, output)
        gaps = np.maximum(np.array(output) - 1, 1)
        table[name] = {
            "requests": len(rows),
            "ttft_ms": _beside(found.first_seconds - sent, first - sent),
            "tpot_ms": _beside((found.last_seconds - found.first_seconds) / gaps, (last - first) / gaps),
            "run_seconds": [round(float(found.last_seconds.max()), 3), round(float(last.max()), 3)],
            "run_joules": _replayed_joules(data, rows[0][2], float(last.max()), found, profile),
        }
    return table


def _beside(modelled: F64, recorded: F64) -> dict[str, list[float]]:
    return {
        f"p{round(q * 100)}": [round(float(np.quantile(v, q)) * 1e3, 1) for v in (modelled, recorded)]
        for q in (0.5, 0.9, 0.99)
    }


def _replayed_joules(
    data: Data, start_unix: float, length: float, found: Any, profile: Profile
) -> list[float]:
    """[modelled, recorded] with idle, between the counter updates around the run."""
    begin = data.recording.monotonic_ns_of(start_unix)
    low = int(np.searchsorted(data.update_ns, begin, "right")) - 1
    high = min(int(np.searchsorted(data.update_ns, begin + length * 1e9)), len(data.update_ns) - 1)
    edges = (data.update_ns[[low, high]] - begin) * 1e-9
    modelled = found.joules_above_idle(*edges) + profile.idle_watts * (edges[1] - edges[0])
    return [round(modelled, 1), round(float(data.joules[high] - data.joules[low]), 1)]


def frontend_seconds(profile: Profile, recordings: list[Data]) -> float:
    """What a request spends before the engine and an answer after it: the TTFT that the engine does not
    explain.
    """
    missing = []
    for data in recordings:
        for row in replay(
            replace(profile, frontend_seconds=0.0), data, skip=("batch", "poisson_16", "poisson_40")
        ).values():
            modelled, recorded = row["ttft_ms"]["p50"]
            missing.append((recorded - modelled) * 1e-3)
    return float(f"{np.median(missing):.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    began = time.time()
    rates, tenants = Data(arguments.recordings / "rates"), Data(arguments.recordings / "tenants")

    second = tuple(p.name for p in tenants.phases if p.name.endswith("#1"))
    checked = fit([Target(rates, rates.rows(("poisson_40",))), Target(tenants, tenants.rows(second))])
    check = errors(rates, *checked) | errors(tenants, *checked)
    held_out = {"low_load": pooled(check, list(second)), "saturated": pooled(check, ["poisson_40"])}

    everything = [Target(data, data.rows(())) for data in (rates, tenants)]
    timing, energy = fit(everything)
    table = errors(rates, timing, energy) | errors(tenants, timing, energy)
    low = [p.name for p in tenants.phases if p.name in table] + ["poisson_1", "poisson_4"]
    step_model = replace(
        energy, **linear_seconds(everything), trusted=True, fitted_on="H200 rates and tenants recordings"
    )
    profile = Profile(
        name="h200-llama-3.1-8b",
        device_name="NVIDIA H200",
        model="llama-3.1-8b",
        vocab_size=128256,
        idle_watts=round((rates.idle_watts + tenants.idle_watts) / 2, 2),
        power_limit_watts=700.0,
        # As the recorded server said in its log and metrics (vLLM 0.24, one H200, bf16).
        limits=Limits(
            max_num_seqs=1024, max_num_batched_tokens=8192, kv_cache_tokens=896912, max_model_len=16384
        ),
        step_model=step_model,
        timing=timing,
    )
    profile = replace(profile, frontend_seconds=frontend_seconds(profile, [rates, tenants]))
    runs = replay(profile, rates) | replay(profile, tenants)
    report = {
        "recordings": "vLLM 0.24.0, Llama-3.1-8B shape, bf16, one H200: rates and tenants",
        "script": "benchmarks/fit_profile.py",
        "errors_are": "fractions of the recording, model / recording - 1; joules above idle",
        "held_out": held_out
        | {"means": "fitted without the saturated run and the tenants' second repeat, judged on those"},
        "in_sample": {
            "low_load": pooled(table, low),
            "saturated": pooled(table, ["poisson_16", "poisson_40", "batch_512_128_256"]),
        },
        "phases": table,
        "replayed_arrivals": {
            "means": "recorded arrivals through scheduler and device in virtual time, [modelled, recorded]",
            **runs,
        },
    }
    profile = replace(profile, fit=report)
    print(json.dumps({"timing": asdict(timing), "frontend_seconds": profile.frontend_seconds}, indent=1))
    print(json.dumps({k: report[k] for k in ("held_out", "in_sample")}, indent=1))
    for name, row in runs.items():
        print(f"{name:20} {json.dumps({k: v for k, v in row.items() if k != 'requests'})}")
    if arguments.write:
        PROFILE.write_text(json.dumps(profile.as_json(), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {PROFILE.name} in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
