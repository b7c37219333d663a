"""The pictures of docs/research/validation.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from evaluate import measured_shapley, rules

from wattmeter.energy_model.step_model import StepModel

matplotlib.use("Agg")
from matplotlib import pyplot

if TYPE_CHECKING:
    from analyse import Experiment, Marginal

# Okabe and Ito: told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73")


def coalitions(folder: Path, experiment: Experiment, model: StepModel, tenants: Sequence[str]) -> None:
    """Every rule's error of each tenant."""
    data = experiment.data
    value, _ = measured_shapley(data, tenants)
    joint = [w for w in data.windows if len(w.tenants) == len(tenants)]
    split = [rules(data, window, tenants, model) for window in joint]
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    names = list(split[0])
    for column, tenant in enumerate(tenants):
        errors = [100 * (np.mean([s[n][column] for s in split]) / value[column] - 1) for n in names]
        axes.barh(
            np.arange(len(names)) + 0.27 * (column - 1),
            errors,
            height=0.25,
            label=tenant,
            color=COLOURS[column],
        )
    axes.axvspan(-5, 5, color="0.9", zorder=0)
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=10)
    ticks = (-100, -50, -20, -5, 0, 5, 20, 50, 200)
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.set_xlabel("error against the measured Shapley value, % (grey: ±5; linear to ±10)")
    axes.set_title(experiment.name)
    axes.legend()
    figure.savefig(folder / f"validation-{experiment.name}.png", dpi=110)
    pyplot.close(figure)


def duplicates(folder: Path, found: Sequence[Marginal]) -> None:
    """Predicted against measured joules of the copies."""
    figure, axes = pyplot.subplots(figsize=(5, 4.5), layout="constrained")
    most = 1.1 * max(max(m.measured, m.replayed) for m in found)
    axes.plot([0, most], [0, most], color="0.6")
    least = 0.85 * min(min(m.measured, m.replayed) for m in found)
    axes.set(xlim=(least, most), ylim=(least, most))
    axes.fill_between([0, most], [0, 0.95 * most], [0, 1.05 * most], color="0.9")
    for number, marginal in enumerate(sorted(found, key=lambda m: m.measured)):
        x, error = marginal.measured, marginal.deviation
        axes.errorbar(x, marginal.replayed, xerr=error, fmt="o", color=COLOURS[0])
        axes.plot(x, marginal.stepped, "D", mfc="none", color=COLOURS[1])
        # Left and right by turns, since neighbours are close.
        place = ("left", "top") if number % 2 == 0 else ("right", "bottom")
        axes.annotate(f"  {marginal.shape}  ", (x, marginal.replayed), ha=place[0], va=place[1], fontsize=9)
    axes.plot([], [], "o", color=COLOURS[0], label="from the requests alone")
    axes.plot([], [], "D", mfc="none", color=COLOURS[1], label="from the recorded steps")
    axes.legend(loc="upper left")
    axes.set_xlabel("measured joules of the copies")
    axes.set_ylabel("predicted joules (grey: ±5 %)")
    axes.set_title("copies injected into steady traffic")
    figure.savefig(folder / "validation-duplicates.png", dpi=110)
    pyplot.close(figure)
