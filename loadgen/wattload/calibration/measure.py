"""Calibrates a live endpoint: which batches to run, and what each of them costs."""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wattload.analysis.settle import settled_window
from wattload.config import RunConfig
from wattload.energy.client import EnergyClient
from wattload.errors import InputError, RunInvalid
from wattload.estimates.calibration_file import ShapeCost, workload_bins
from wattload.rundir.directory import RunDir
from wattload.session import execute
from wattmeter.faults import invalidating
from wattmeter.schema import flag_names

# What an output token weighs against a prompt token when bins are ranked: only the order in which shapes
# are measured depends on it. On an H200 at a batch of 16 a generated token costs about nine times what one
# read does.
_OUTPUT_WEIGHT = 9.0
# Batches of more tokens than this would be split by the engine's memory on most GPUs.
_MOST_TOKENS = 131_072
_PAUSE_SECONDS = 0.4
_MOST_WAVES = 40
_SETTLE_SECONDS = 8.0


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """`batch` requests of `prompt_tokens` and `output_tokens`, sent at once."""

    prompt_tokens: int
    output_tokens: int
    batch: int

    @property
    def key(self) -> tuple[int, int, int]:
        return (self.prompt_tokens, self.output_tokens, self.batch)


def choose_shapes(
    prompt: npt.ArrayLike, output: npt.ArrayLike, *, count: int, max_batch: int, max_model_len: int | None
) -> list[Shape]:
    """At most `count` shapes for a workload of the given lengths, those that matter most first.

    First the heaviest bins at their largest batch, which is what the binning model needs; then the same
    bins at smaller batches, of which the step model learns what a step costs with few requests in it. A
    third of `count` goes to those.
    """
    bins = workload_bins(prompt, output)
    fits = {pair: n for pair, n in bins.items() if max_model_len is None or sum(pair) <= max_model_len}
    weight = {(i, o): n * (i + _OUTPUT_WEIGHT * o) for (i, o), n in fits.items()}
    ranked = sorted(weight, key=lambda pair: (-weight[pair], pair))
    if not ranked:
        raise InputError("no bin of the workload fits into the model's length")
    small = [b for b in (1, max(2, round(math.sqrt(max_batch)))) if b < max_batch]
    for_small = count // 3 if small else 0
    chosen = [Shape(i, o, _batch(i, o, max_batch)) for i, o in ranked[: max(1, count - for_small)]]
    # Small batches: the heaviest bin, and those with the longest prompt and the longest answer, tell costs
    # apart.
    corners = list(dict.fromkeys([ranked[0], max(ranked), max(ranked, key=lambda p: p[1]), *ranked]))
    for i, o in corners:
        for b in small:
            shape = Shape(i, o, min(b, _batch(i, o, max_batch)))
            if len(chosen) < count and shape not in chosen:
                chosen.append(shape)
    return chosen


def _batch(prompt: int, output: int, max_batch: int) -> int:
    return max(1, min(max_batch, _MOST_TOKENS // (prompt + output)))


def covered_mass(prompt: npt.ArrayLike, output: npt.ArrayLike, shapes: Iterable[tuple[int, int]]) -> float:
    """The share of the workload's requests whose bin is among `shapes`."""
    bins = workload_bins(prompt, output)
    known = set(shapes)
    return sum(n for pair, n in bins.items() if pair in known) / sum(bins.values())


def measure_shape(
    settings: dict[str, Any],
    shape: Shape,
    *,
    seed: int,
    seconds: float,
    warm: bool,
    say: Callable[[str], None],
) -> ShapeCost:
    """Runs waves of the batch until about `seconds` of work are measured.

    `settings` are those of `wattload run`.

    A first wave tells how long one takes, and is the measurement itself where it is long enough and the
    endpoint was `warm` before it. Raises RunInvalid where requests failed, and InputError where the endpoint
    has no energy.
    """
    with tempfile.TemporaryDirectory(prefix="wattload-profile-") as folder:
        pilot = _wave_run(settings, shape, waves=1, period=1.0, seed=seed, folder=Path(folder) / "pilot")
        measured = pilot
        if not warm or pilot.seconds < seconds or invalidating(pilot.flags):
            waves = int(min(_MOST_WAVES, max(1, math.ceil(seconds / pilot.seconds))))
            period = pilot.seconds * 1.25 + _PAUSE_SECONDS
            again = Path(folder) / "waves"
            measured = _wave_run(settings, shape, waves=waves, period=period, seed=seed + 1, folder=again)
            # What disturbs a machine for a moment should not cost the profile.
            if invalidating(measured.flags):
                measured = _wave_run(
                    settings, shape, waves=waves, period=period, seed=seed + 2, folder=Path(folder) / "more"
                )
    wrong = [fault.clause for fault in invalidating(measured.flags)]
    if wrong:
        raise RunInvalid(f"shape {shape.key}: {'; '.join(wrong)}")
    say(
        f"{shape.prompt_tokens} in, {shape.output_tokens} out, {shape.batch} at once: "
        f"{measured.above_idle_joules:.1f} J above idle and {measured.seconds:.3f} s per batch "
        f"(waves: {measured.waves})"
    )
    return measured


def _wave_run(
    settings: dict[str, Any], shape: Shape, *, waves: int, period: float, seed: int, folder: Path
) -> ShapeCost:
    folder.mkdir()
    trace = folder / "waves.csv"
    with trace.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "prompt_tokens", "output_tokens"])
        for wave in range(waves):
            for member in range(shape.batch):
                # A microsecond apart, since a trace's times must differ; far less than a step.
                seconds = f"{wave * period + member * 1e-6:.6f}"
                writer.writerow([seconds, shape.prompt_tokens, shape.output_tokens])
    config = RunConfig.of(
        {
            **settings,
            "trace": str(trace),
            "arrivals": "trace",
            "warmup": 0.0,
            "seed": seed,
            "out": folder / "run",
            "progress": "none",
            "report": False,
        }
    )
    done = execute(config, quiet=True)
    return _cost(done.run, shape, waves, period)


def _cost(run: RunDir, shape: Shape, waves: int, period: float) -> ShapeCost:
    capture = run.load_capture()
    if capture.energy_url is None or capture.clock is None:
        raise InputError(f"{capture.target.url} has no energy to profile: {capture.no_energy_reason}")
    names = ["due_unix", "sent_unix", "first_token_unix", "last_token_unix", "outcome", "output_tokens"]
    rows = run.read_requests(names)
    outcomes = rows.column("outcome").to_pylist()
    failed = sorted({str(o) for o in outcomes if o != "completed"})
    if failed:
        raise RunInvalid(f"shape {shape.key}: requests ended as {', '.join(failed)}")
    due, sent, first, last = (rows.column(name).to_numpy() for name in names[:4])
    wave = np.floor((due - capture.started_unix) / period + 1e-3).astype(np.int64)
    lengths = [float(last[wave == k].max() - sent[wave == k].min()) for k in range(waves)]
    offset = capture.clock.offset_seconds
    # A tenth of a second at each end: a meter that steps that often counts the last joules of a batch late.
    client = EnergyClient(capture.energy_url)
    try:
        begin, end = float(sent.min()) + offset - 0.1, float(last.max()) + offset + 0.1
        energy = settled_window(client, begin, end, timeout_seconds=_SETTLE_SECONDS)
    finally:
        client.close()
    if not energy.complete or energy.total_joules is None or energy.idle_joules is None:
        named = ", ".join(flag_names(energy.flags))
        raise RunInvalid(f"shape {shape.key}: the meter did not cover the batches (flags: {named})")
    tokens = rows.column("output_tokens").to_numpy().astype(np.float64)
    gaps = (last - first)[tokens > 1] / (tokens[tokens > 1] - 1)
    return ShapeCost(
        prompt_tokens=shape.prompt_tokens,
        output_tokens=shape.output_tokens,
        batch=shape.batch,
        waves=waves,
        seconds=float(np.mean(lengths)),
        above_idle_joules=(energy.total_joules - energy.idle_joules) / waves,
        ttft_seconds=float(np.median(first - sent)),
        tpot_seconds=float(np.median(gaps)) if len(gaps) else None,
        flags=flag_names(energy.flags),
    )
