"""Joules by tenant estimated from streams, on a real H200's counter and a real engine's steps.

    python benchmarks/h200/streams.py FOLDER NAME [--seed 0]

FOLDER holds `recording/` and NAME.json.gz (an experiment of experiments.py with three tenants at once). The
recorded steps of vLLM are turned into what a proxy would have seen of them: each token as an event of its
stream, 1 ms after its step and later by a random delay of 1 ms on average. `StepsFromStreams` makes steps of
these, and both are divided over the same seconds of the recorded counter, by one model that is fitted on the
other windows. Printed is each tenant's error by the estimate, by the step records, by equal and by token
shares, against its Shapley value as measured by serving every subset, for all windows with all tenants.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from analyse import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attribution"))
from evaluate import Evaluation, Window, fit_on, measured_shapley

from wattmeter.arrays import F64, sum_by
from wattmeter.attribution.split import attribute
from wattmeter.energy_model.step_model import StepModel
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.from_streams import StepsFromStreams
from wattmeter.steps.recording import read

DELAY_NS = 1_000_000
TAKE_NS = 50_000_000


def as_seen(steps: StepBatch, arrivals: Mapping[str, float], rng: np.random.Generator) -> StepBatch:
    """The steps that a proxy reconstructs from the streams of `steps`."""
    names = steps.request_ids
    computed = steps.prefill_tokens + steps.cached_tokens
    prompts = np.bincount(steps.request, weights=computed, minlength=len(names))
    last_prefill = {int(r): i for i, r in enumerate(steps.request) if steps.prefill_tokens[i] > 0}
    happened: list[tuple[int, int, str, int]] = []
    ends: dict[str, int] = {}
    for entry, row in enumerate(steps.request.tolist()):
        tokens = int(steps.decode_tokens[entry])
        if not tokens and last_prefill.get(row) != entry:
            continue  # a part of a prompt gives no token
        end = int(steps.end_ns[steps.step[entry]])
        when = end + DELAY_NS + round(rng.exponential(1.0) * DELAY_NS)
        happened.append((when, 1, names[row], max(1, tokens)))
        ends[names[row]] = max(ends.get(names[row], 0), when)
    first: dict[str, int] = {}
    for entry, row in enumerate(steps.request.tolist()):
        first.setdefault(names[row], int(steps.launch_ns[steps.step[entry]]))
    for row, name in enumerate(names):
        began = round(arrivals[name] * 1e9) if name in arrivals else first[name]
        happened.append((began, 0, name, int(prompts[row])))
    happened += [(when, 2, name, 0) for name, when in ends.items()]
    happened.sort()
    streams = StepsFromStreams()
    parts, taken = [], happened[0][0]
    for when, what, name, count in happened:
        if when - taken > TAKE_NS:
            parts.append(streams.take(when))
            taken = when
        if what == 0:
            streams.started(name, when, prompt_tokens=max(1, count))
        elif what == 1:
            streams.tokens(name, when, count)
        else:
            streams.finished(name, when)
    parts.append(streams.take(happened[-1][0] + 10**9))
    return StepBatch.concat(parts)


def divided(data: Evaluation, window: Window, steps: StepBatch, model: StepModel, tenants: list[str]) -> F64:
    """Joules of each tenant in a window, second by second of the counter."""
    edges = np.linspace(window.start_seconds, window.end_seconds, max(2, round(window.seconds) + 1))
    pairs = itertools.pairwise(edges.tolist())
    joules = np.array([data.joules(start, end) - data.idle_watts * (end - start) for start, end in pairs])
    groups = np.array([tenants.index(data.group_of[name]) for name in steps.request_ids], dtype=np.int32)
    split = attribute(steps, np.round(edges * 1e9).astype(np.int64), joules, model, groups=groups)
    return sum_by(groups, split.request_joules, len(tenants))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recordings = [read(folder) for folder in sorted(arguments.folder.glob("recording*"))]
    data = load(arguments.folder / f"{arguments.name}.json.gz", recordings).data
    tenants = sorted(set(data.group_of.values()))
    windows = [window for window in data.windows if len(window.tenants) == len(tenants)]
    model = fit_on(data, [window for window in data.windows if window not in windows])
    value, _ = measured_shapley(data, tenants)
    rng = np.random.default_rng(arguments.seed)
    found: dict[str, list[F64]] = {
        "estimated from streams": [],
        "step records": [],
        "equal": [],
        "tokens": [],
    }
    for window in windows:
        steps = data.steps(window).renumber()
        total = data.above_idle(window)
        group = np.array([tenants.index(data.group_of[name]) for name in steps.request_ids])
        seen = as_seen(steps, data.arrivals, rng)
        found["estimated from streams"].append(divided(data, window, seen, model, tenants))
        found["step records"].append(divided(data, window, steps, model, tenants))
        count = np.bincount(group, minlength=len(tenants))
        found["equal"].append(total * count / count.sum())
        work = np.bincount(
            group[steps.request], weights=steps.prefill_tokens + steps.decode_tokens, minlength=len(tenants)
        )
        found["tokens"].append(total * work / work.sum())
    print(f"| {arguments.name}, {len(windows)} windows | " + " | ".join(tenants) + " |")
    print("|---" * (1 + len(tenants)) + "|")
    for name, values in found.items():
        error = np.mean(values, axis=0) / value - 1.0
        print(f"| {name} | " + " | ".join(f"{100 * e:+.1f} %" for e in error) + " |")


if __name__ == "__main__":
    main()
