"""The figures of docs/research/validation.md, recomputed from the H200 data that the repository keeps."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = ROOT / "benchmarks" / "h200" / "held-out"
DEVELOPMENT = ROOT / "benchmarks" / "h200" / "results"
sys.path[:0] = [str(ROOT / "benchmarks" / "h200"), str(ROOT / "benchmarks" / "attribution")]

analyse = importlib.import_module("analyse")
evaluate = importlib.import_module("evaluate")
steady_mix = importlib.import_module("steady_mix")

OURS = "wattload, tenants as players, subsets replayed"
BEST_OF_THE_OTHERS = 0.20  # the least bad of the other rules errs by 20.4 % for its worst tenant


@pytest.fixture(scope="module")
def experiments() -> dict[str, Any]:
    found, _ = analyse.read_folders([HELD_OUT / "tenants"])
    return dict(found)


@pytest.fixture(scope="module")
def development() -> dict[str, Any]:
    found, _ = analyse.read_folders([DEVELOPMENT])
    return dict(found)


@pytest.fixture(scope="module")
def phases_and_loads() -> tuple[Any, dict[str, Any]]:
    found, loads = analyse.read_folders([HELD_OUT / "loads"])
    return found["phases"], dict(loads)


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
    text = (ROOT / "docs" / "research" / "validation.md").read_text()
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
        if not rule.startswith("wattload"):
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
def test_a_servers_books_were_within_five_per_cent_while_the_mix_changed(
    name: str, experiments: dict[str, Any]
) -> None:
    experiment = experiments[name]
    value, _ = evaluate.measured_shapley(experiment.data, analyse.TENANTS)
    joint = [w for w in experiment.data.windows if len(w.tenants) == len(analyse.TENANTS)]
    assert len(joint) == 2
    for window in joint:
        row = 1 + [w.name for w in experiment.data.windows].index(window.name)
        groups = experiment.answers["windows"][row]["groups"]
        errors = 100 * (np.array([groups[tenant] for tenant in analyse.TENANTS]) / value - 1.0)
        assert np.max(np.abs(errors)) < 5.0
        said = documented("### The server's own accounting", window.name)
        assert said == pytest.approx(errors.tolist(), abs=0.11)


@pytest.mark.parametrize("name", ["coalitions-low", "coalitions-high"])
def test_books_kept_again_over_the_development_recording_are_within_five_per_cent(
    name: str, development: dict[str, Any]
) -> None:
    data = development[name].data
    value, _ = evaluate.measured_shapley(data, analyse.TENANTS)
    settling = steady_mix.Settling(data, fitted_without(development, name))
    settling.run(data.windows[0].start_seconds - 5.0, data.windows[-1].end_seconds + 5.0)
    joint = [w for w in data.windows if len(w.tenants) == len(analyse.TENANTS)]
    assert len(joint) == 2
    for window in joint:
        errors = [float(cell.removesuffix(" %")) for cell in settling.errors(window, value)]
        assert max(map(abs, errors)) < 5.0
    assert settling.longest_wait_seconds < 15.0


def test_the_document_says_which_copies_are_predicted_and_which_are_not(experiments: dict[str, Any]) -> None:
    """Six of seven shapes meet 5 % from the requests alone, three from the recorded steps."""
    model = fitted_without(experiments, "duplicates")
    experiment = experiments["duplicates"]
    limits = analyse.limits_of(experiment.data.recording.steps)
    found = {m.shape: m.errors() for m in analyse.marginals(experiment, model, limits)}
    assert len(found) == 7
    assert {shape for shape, errors in found.items() if abs(errors[0]) > 5.0} == {"96x200"}
    assert sum(abs(errors[1]) <= 5.0 for errors in found.values()) == 3
    assert max(abs(error) for errors in found.values() for error in errors) < 7.0
    for shape, errors in found.items():
        assert documented("## Duplicates", shape) == pytest.approx(errors, abs=0.11)


@pytest.mark.parametrize("name", ["coalitions-low", "coalitions-high", "duplicates"])
def test_held_out_seconds_and_runs_are_predicted(name: str, experiments: dict[str, Any]) -> None:
    data = experiments[name].data
    model = fitted_without(experiments, name)
    error = evaluate.prediction_error(data, data.windows, model)
    assert error.seconds > 200
    assert error.rms < 0.03
    assert abs(error.total) < 0.01
    runs = [analyse.run_error(data, window, model) for window in data.windows]
    missed = sum(abs(run) > 0.01 for run in runs)
    assert missed == (1 if name == "coalitions-low" else 0)


def test_pure_phases_are_predicted_from_mixed_traffic(phases_and_loads: tuple[Any, dict[str, Any]]) -> None:
    experiment, loads = phases_and_loads
    mixed = evaluate.joined(analyse.loads_intervals(loads.values()))
    model = evaluate.fit_intervals(mixed, analyse.BOARD_WATTS - experiment.data.idle_watts)
    rows = analyse.phase_rows(experiment, model)
    assert len(rows) == 4
    for row in rows:
        assert abs(row.error_percent) < 5.0
        assert documented("## Pure phases", row.name)[-1] == pytest.approx(row.error_percent, abs=0.11)


def test_load_tests_up_to_the_boards_limit_are_predicted(
    phases_and_loads: tuple[Any, dict[str, Any]],
) -> None:
    experiment, loads = phases_and_loads
    assert len(loads) == 7
    for name, data in loads.items():
        others = analyse.loads_intervals(each for other, each in loads.items() if other != name)
        mixed = evaluate.joined([*others, analyse.intervals([experiment])])
        model = evaluate.fit_intervals(mixed, analyse.BOARD_WATTS - data.idle_watts)
        error = evaluate.prediction_error(data, data.windows, model)
        assert error.rms < 0.03
        assert abs(error.total) < 0.01


def test_what_the_server_booked_adds_up_to_the_raw_counter(experiments: dict[str, Any]) -> None:
    for experiment in experiments.values():
        assert max(map(abs, experiment.conservation)) < 1e-3
        answers = experiment.answers["windows"][1:]
        assert not any("partial_coverage" in answer["flags"] for answer in answers)
        assert max(map(abs, experiment.against_counter)) < 1e-3
