"""The fit finds the model that made the data, withstands outliers, and trusts itself only when right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from step_records import FULL_MODEL, MODEL, random_jobs, run
from wattmeter.arrays import F64, I64
from wattmeter.energy_model.batching import EngineLimits
from wattmeter.energy_model.fit import Intervals, fit_model, intervals_of, nonnegative, predict
from wattmeter.energy_model.online_fit import OnlineFit
from wattmeter.energy_model.step_model import ENERGY_TERMS, TIME_TERMS, StepModel
from wattmeter.steps.batch import StepBatch


def seconds_of_traffic(
    seed: int = 1,
    count: int = 300,
    rate: float = 4.0,
    *,
    noise: float = 0.0,
    cap: float | None = None,
    model: StepModel = MODEL,
) -> tuple[StepBatch, I64, Intervals]:
    steps = run(random_jobs(seed, count, rate), model, EngineLimits())
    edges = np.arange(steps.launch_ns[0], steps.end_ns[-1], 1_000_000_000, dtype=np.int64)
    data = intervals_of(steps, edges, np.zeros(len(edges) - 1), padding=model.padding)
    joules = predict(replace(model, power_cap_watts=cap), data)
    joules = joules * (1 + noise * np.random.default_rng(seed).standard_normal(len(joules)))
    return steps, edges, replace(data, joules=joules)


# At 0.5 a second the context stays below its knee, and nothing tells its two prices apart.
@pytest.mark.parametrize(
    ("rate", "model"), [(0.5, MODEL), (3.0, MODEL), (8.0, MODEL), (3.0, FULL_MODEL), (8.0, FULL_MODEL)]
)
def test_finds_the_model_that_made_the_data(rate: float, model: StepModel) -> None:
    _, _, data = seconds_of_traffic(rate=rate, model=model)
    found = fit_model(data)
    for name in (*ENERGY_TERMS, *TIME_TERMS):
        assert getattr(found, name) == pytest.approx(getattr(model, name), rel=0.05, abs=1e-9), name
    assert found.power_cap_watts is None
    assert found.padding == model.padding


def test_a_model_padded_otherwise_predicts_nothing() -> None:
    _, _, data = seconds_of_traffic()
    with pytest.raises(ValueError, match="padded otherwise"):
        predict(FULL_MODEL, data)


def test_the_ceiling_that_the_device_tells_holds_before_it_is_reached() -> None:
    _, _, data = seconds_of_traffic(rate=3.0, count=150)
    found = fit_model(data, power_limit_watts=480.0)
    assert found.power_cap_watts == 480.0
    _, _, wild = seconds_of_traffic(seed=2, rate=60.0, count=900, cap=480.0)
    assert predict(found, wild).sum() == pytest.approx(wild.joules.sum(), rel=0.02)


def test_outliers_do_not_move_it() -> None:
    _, _, data = seconds_of_traffic(noise=0.005)
    spoilt = data.joules.copy()
    spoilt[::15] *= 3.0
    found = fit_model(replace(data, joules=spoilt))
    assert found.fixed_joules == pytest.approx(MODEL.fixed_joules, rel=0.03)
    assert found.prefill_token_joules == pytest.approx(MODEL.prefill_token_joules, rel=0.05)


def test_finds_the_power_ceiling_and_does_not_learn_work_from_it() -> None:
    _, _, calm = seconds_of_traffic(seed=1, rate=3.0, count=150)
    _, _, wild = seconds_of_traffic(seed=2, rate=60.0, count=900, cap=480.0)
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(calm, name), getattr(wild, name)])
        for name in ("joules", "seconds", "busy_seconds", "features")
    }
    both = replace(calm, **columns)
    found = fit_model(both)
    assert found.power_cap_watts == pytest.approx(480.0, rel=0.02)
    assert found.prefill_token_joules == pytest.approx(MODEL.prefill_token_joules, rel=0.05)
    assert predict(found, wild).sum() == pytest.approx(wild.joules.sum(), rel=0.01)


def test_what_the_traffic_cannot_tell_apart_stays_with_the_prior() -> None:
    _, _, data = seconds_of_traffic()
    no_prefill = replace(data, features=data.features * np.array([1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 1]))
    energy = np.array([getattr(MODEL, name) for name in ENERGY_TERMS])
    priced = replace(no_prefill, joules=no_prefill.features[:, : len(energy)] @ energy)
    found = fit_model(priced, prior=MODEL)
    assert found.prefill_token_joules == pytest.approx(MODEL.prefill_token_joules)


def test_too_little_data_is_refused() -> None:
    _, _, data = seconds_of_traffic(count=20, rate=10.0)
    with pytest.raises(ValueError, match="too few"):
        fit_model(data)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 100_000))
def test_nonnegative_least_squares_is_scipys(seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((20, 5)) * 10.0 ** generator.integers(-3, 3, 5)
    target = matrix @ generator.standard_normal(5) + generator.standard_normal(20)
    mine = nonnegative(matrix.T @ matrix, matrix.T @ target)
    _, residual = nnls(matrix, target)
    assert (mine >= 0).all()
    assert np.linalg.norm(matrix @ mine - target) == pytest.approx(residual, rel=1e-6, abs=1e-9)


def feed(fit: OnlineFit, steps: StepBatch, edges: I64, joules: F64) -> None:
    for row in range(len(joules)):
        inside = steps.between(int(edges[row]), int(edges[row + 1]))
        before = np.searchsorted(steps.end_ns, edges[row], side="right")
        previous = int(steps.end_ns[before - 1]) if before else None
        fit.add(inside, int(edges[row]), int(edges[row + 1]), float(joules[row]), previous_end_ns=previous)


def model_of(fit: OnlineFit) -> StepModel:
    assert fit.model is not None
    return fit.model


def test_trust_comes_with_held_out_accuracy_and_goes_with_it() -> None:
    tripled: dict[str, Any] = {name: 3 * getattr(MODEL, name) for name in ENERGY_TERMS}
    wrong = replace(MODEL, trusted=True, **tripled)
    fit = OnlineFit(wrong)
    assert not model_of(fit).trusted
    steps, edges, data = seconds_of_traffic(noise=0.01, count=400)
    feed(fit, steps, edges[:9], data.joules[:8])
    assert not model_of(fit).trusted
    feed(fit, steps, edges[8:], data.joules[8:])
    assert model_of(fit).trusted
    assert fit.held_out.rms < 0.03
    assert model_of(fit).fixed_joules == pytest.approx(MODEL.fixed_joules, rel=0.05)
    # The machine changes (a lower clock, say): the model must first lose trust, then follow.
    feed(fit, *shifted(steps, edges), 1.4 * data.joules[:20])
    assert not model_of(fit).trusted


def shifted(steps: StepBatch, edges: I64) -> tuple[StepBatch, I64]:
    by = int(edges[-1] - edges[0]) + 1_000_000_000
    return replace(steps, launch_ns=steps.launch_ns + by, end_ns=steps.end_ns + by), edges + by


def test_it_follows_a_machine_that_has_changed() -> None:
    fit = OnlineFit(MODEL)
    steps, edges, data = seconds_of_traffic(noise=0.005, count=300)
    feed(fit, steps, edges, data.joules)
    for _ in range(6):
        steps, edges = shifted(steps, edges)
        feed(fit, steps, edges, 1.3 * data.joules)
    assert fit.held_out.rms < 0.03
    assert model_of(fit).fixed_joules == pytest.approx(1.3 * MODEL.fixed_joules, rel=0.03)


def test_idle_and_faulty_intervals_teach_nothing() -> None:
    fit = OnlineFit(MODEL)
    steps, edges, _ = seconds_of_traffic(count=30)
    fit.add(steps, int(steps.end_ns[-1]) + 10, int(steps.end_ns[-1]) + 10**9, 5.0)
    fit.add(steps, int(edges[0]), int(edges[1]), float("nan"))
    assert fit.held_out.intervals == 0
    assert not fit.fitted
