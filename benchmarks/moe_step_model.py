"""How well the step model's expert term explains a recorded mixture-of-experts model, and what that changes.

    python benchmarks/moe_step_model.py [FOLDER] [--experts 64 --active 8]

FOLDER (benchmarks/h100/olmoe by default) holds `recording/` and `coalitions-*.json.gz`: three tenants, all
subsets, twice, on one H100 with the shape of OLMoE-1B-7B. Prints, in Markdown and for the model without and
with the term, the error of predicted seconds (fitted on the other round of windows), when the online fit is
trusted and how far it was off in what it predicted beforehand, and the error per tenant of the replayed
coalitions against the measured Shapley value, with a model fitted on the joint runs alone, as a server would.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "h200"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "attribution"))
from analyse import TENANTS, load
from evaluate import Evaluation, fit_on, measured_shapley, prediction_error, rules, updates_of

from wattmeter.energy_model.online_fit import OnlineFit
from wattmeter.energy_model.step_model import PRIOR_MODEL, Experts
from wattmeter.steps.recording import read

KEPT = Path(__file__).resolve().parent / "h100" / "olmoe"
OLMOE = Experts(total=64, active=8)
REPLAYED = "wattload, tenants as players, subsets replayed"


@dataclass(frozen=True)
class Online:
    """What the online fit did over a recording: errors as `HeldOut` states them, relative to above idle.

    `trusted_after_seconds` is the time with steps before it was trusted first, None where it never was.
    """

    trusted_after_seconds: float | None
    trusted_at_end: bool
    rms: float
    bias: float


def evaluation(folder: Path, experts: Experts | None) -> Evaluation:
    recording = read(folder / "recording")
    requests = next(iter(sorted(folder.glob("coalitions-*.json.gz"))))
    return replace(load(requests, [recording]).data, experts=experts)


def second_rms(data: Evaluation) -> float:
    """Rms error of a second's joules, idle included; each round of windows predicted from the other."""
    rounds = [[w for w in data.windows if w.name.endswith(end)] for end in ("#0", "#1")]
    errors = [
        prediction_error(data, rounds[held_out], fit_on(data, rounds[1 - held_out])) for held_out in (0, 1)
    ]
    seconds = sum(error.seconds for error in errors)
    return float(np.sqrt(sum(error.seconds * error.rms**2 for error in errors) / seconds))


def online(data: Evaluation) -> Online:
    """The online fit, started from the prior, second by second over the whole recording."""
    fit = OnlineFit(replace(PRIOR_MODEL, padding=data.padding, experts=data.experts))
    steps = data.recording.steps
    when, what = updates_of(data.counter)
    edges, values = when[::10], what[::10]
    busy_seconds, trusted_after = 0.0, None
    for row in range(len(edges) - 1):
        inside = steps.between(int(edges[row]), int(edges[row + 1]))
        if len(inside) == 0:
            continue
        seconds = (edges[row + 1] - edges[row]) * 1e-9
        busy_seconds += seconds
        above = values[row + 1] - values[row] - data.idle_watts * seconds
        fit.add(inside, int(edges[row]), int(edges[row + 1]), float(above))
        if trusted_after is None and fit.model is not None and fit.model.trusted:
            trusted_after = busy_seconds
    held_out, model = fit.held_out, fit.model
    return Online(trusted_after, model is not None and model.trusted, held_out.rms, held_out.bias)


def tenant_errors(data: Evaluation, tenants: Sequence[str] = TENANTS) -> dict[str, float]:
    """Error of the replayed coalitions by tenant: mean of the joint runs over the measured value, less 1."""
    joint = [window for window in data.windows if len(window.tenants) == len(tenants)]
    model = fit_on(data, joint)
    value, _ = measured_shapley(data, tenants)
    split = np.mean([rules(data, window, tenants, model)[REPLAYED] for window in joint], axis=0)
    return dict(zip(tenants, (split / value - 1.0).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=KEPT)
    parser.add_argument("--experts", type=int, default=OLMOE.total)
    parser.add_argument("--active", type=int, default=OLMOE.active)
    options = parser.parse_args()
    print(
        "| step model | rms a second | online rms above idle | trusted after | " + " | ".join(TENANTS) + " |"
    )
    print("|---|---|---|---|" + "---|" * len(TENANTS))
    for name, experts in (("dense", None), ("with experts", Experts(options.experts, options.active))):
        data = evaluation(options.folder, experts)
        fitted = online(data)
        after = fitted.trusted_after_seconds
        cells = [
            f"{100 * second_rms(data):.2f} %",
            f"{100 * fitted.rms:.2f} %",
            "never" if after is None else f"{after:.0f} s",
            *(f"{100 * error:+.1f} %" for error in tenant_errors(data).values()),
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
