"""The figures of docs/validation.md, recomputed from the H200 data that the repository keeps."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "benchmarks" / "h200" / "results"
sys.path[:0] = [str(ROOT / "benchmarks" / "h200"), str(ROOT / "benchmarks" / "attribution")]

analyse = importlib.import_module("analyse")
evaluate = importlib.import_module("evaluate")
steady_mix = importlib.import_module("steady_mix")

OURS = "ours, tenants as players, coalitions replayed"
BEST_OF_THE_OTHERS = 0.20  # the least bad of the other rules errs by 20.4 % for its worst tenant


@pytest.fixture(scope="module")
def experiments() -> dict[str, Any]:
    from wattmeter.recording import read

    recording = read(KEPT / "recording")
    found = [analyse.load(file, [recording]) for file in sorted(KEPT.glob("*.json.gz"))]
    return {experiment.name: experiment for experiment in found}


def fitted_without(experiments: dict[str, Any], name: str) -> Any:
    return evaluate.fit_intervals(analyse.intervals([e for n, e in experiments.items() if n != name]))


def errors_of(data: Any, model: Any) -> dict[str, np.ndarray]:
    value, _ = evaluate.measured_shapley(data, analyse.TENANTS)
    joint = [w for w in data.windows if len(w.tenants) == len(analyse.TENANTS)]
    assert len(joint) == 2
    found = [evaluate.rules(data, window, analyse.TENANTS, model) for window in joint]
    return {name: np.mean([f[name] for f in found], axis=0) / value - 1.0 for name in found[0]}


def documented(section: str, rule: str) -> list[float]:
    """The per cents of the first row `rule` after `section` in the document."""
    text = (ROOT / "docs" / "validation.md").read_text()
    rows = text[text.index(section) :].splitlines()
    line = next(row for row in rows if row.startswith(f"| {rule} |"))
    return [float(number) for number in re.findall(r"([+-]\d+\.\d) %", line)]


@pytest.mark.parametrize("name", ["coalitions-low", "coalitions-high"])
def test_each_tenant_is_within_five_per_cent_of_its_measured_shapley_value(
    name: str, experiments: dict[str, Any]
) -> None:
    data = experiments[name].data
    errors = errors_of(data, fitted_without(experiments, name))
    assert np.max(np.abs(errors[OURS])) < 0.05
    for rule, found in errors.items():
        if not rule.startswith("ours"):
            assert np.max(np.abs(found)) > BEST_OF_THE_OTHERS, rule
    joint_only = evaluate.fit_intervals(
        data.intervals([w for w in data.windows if len(w.tenants) == len(analyse.TENANTS)])
    )
    assert np.max(np.abs(errors_of(data, joint_only)[OURS])) < 0.05


@pytest.mark.parametrize("name", ["coalitions-low", "coalitions-high"])
def test_the_document_says_what_the_data_give(name: str, experiments: dict[str, Any]) -> None:
    errors = errors_of(experiments[name].data, fitted_without(experiments, name))
    for rule, found in errors.items():
        assert documented(f"### {name}", rule) == pytest.approx(100 * found, abs=0.11), rule


@pytest.mark.parametrize("name", ["coalitions-low", "coalitions-high"])
def test_a_servers_books_are_within_five_per_cent_while_the_mix_changes(
    name: str, experiments: dict[str, Any]
) -> None:
    data = experiments[name].data
    value, _ = evaluate.measured_shapley(data, analyse.TENANTS)
    books = steady_mix.Books(data, fitted_without(experiments, name))
    books.run(data.windows[0].start_seconds - 5.0, data.windows[-1].end_seconds + 5.0)
    joint = [w for w in data.windows if len(w.tenants) == len(analyse.TENANTS)]
    assert len(joint) == 2
    for window in joint:
        cells = books.errors(window, value)
        errors = [float(cell.removesuffix(" %")) for cell in cells]
        assert max(map(abs, errors)) < 5.0
        said = documented("(one step model throughout", window.name)
        assert said == pytest.approx(errors, abs=0.11)
    assert books.longest_wait_seconds < 15.0


def test_copies_of_long_prompts_are_predicted_and_those_of_many_short_ones_are_not(
    experiments: dict[str, Any],
) -> None:
    """Four of seven shapes meet 5 %; the document says which three do not, and so must this."""
    model = evaluate.fit_intervals(
        analyse.intervals([experiments["coalitions-low"], experiments["coalitions-high"]])
    )
    experiment = experiments["duplicates"]
    limits = analyse.limits_of(experiment.data.recording.steps)
    found = {m.shape: m.errors()[0] for m in analyse.marginals(experiment, model, limits)}
    assert len(found) == 7
    within = {shape for shape, error in found.items() if abs(error) <= 5.0}
    assert within == {"2048x16", "4096x8", "1024x128", "256x512"}
    assert max(abs(error) for error in found.values()) < 22.0
    for shape, error in found.items():
        assert documented("## Duplicates", shape)[0] == pytest.approx(error, abs=0.11)


@pytest.mark.parametrize("name", ["coalitions-low", "coalitions-high", "duplicates"])
def test_held_out_seconds_and_their_sum_are_predicted(name: str, experiments: dict[str, Any]) -> None:
    data = experiments[name].data
    error = evaluate.prediction_error(data, data.windows, fitted_without(experiments, name))
    assert error.seconds > 150
    assert error.rms < 0.03
    assert abs(error.total) < 0.01


def test_what_the_server_booked_adds_up_to_the_raw_counter(experiments: dict[str, Any]) -> None:
    for experiment in experiments.values():
        assert max(map(abs, experiment.conservation)) < 1e-3
        answers = experiment.books["windows"][1:]
        complete = [
            ratio
            for ratio, answer in zip(experiment.against_counter, answers, strict=True)
            if "partial_coverage" not in answer["flags"]
        ]
        assert len(complete) == len(answers) - 1
        assert max(map(abs, complete)) < 1e-3
