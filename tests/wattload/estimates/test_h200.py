"""The online estimate against a real H200's counter, on its recordings (where present)."""

from __future__ import annotations

import numpy as np
import pytest

from h200_recording import Recording, profile_of
from wattload.estimates.gpu_table import require_gpu
from wattload.estimates.model_shape import known_shape
from wattload.estimates.online import simulate
from wattload.estimates.roofline import InsideWindow, least_steps, roofline
from wattload.estimates.step_cost import StepCost, fit, step_model

# The step model that was fitted to the recording `tenants`, and the power at which this board stops: not
# fitted here.
PUBLISHED = StepCost(
    step_model(
        joules=np.array([1.84, 0.0143, 0.0, 0.0148, 25e-6]),
        seconds=np.array([5.03e-3, 8.5e-6, 0.0, 0.0, 4.2e-8]),
    ),
    start_seconds=0.004,
    limit_watts=690.0 - 125.0,
    seconds_error=0.014,
    joules_error=0.014,
)
POISSON = ("poisson_1", "poisson_4", "poisson_16", "poisson_40")
ALONE = ("code#0|code", "conv#0|conv", "long#0|long")


@pytest.fixture(scope="module")
def rates() -> Recording:
    return Recording("rates")


@pytest.fixture(scope="module")
def tenants() -> Recording:
    return Recording("tenants")


def error(recording: Recording, name: str, cost: StepCost) -> float:
    phase = recording.phases[name]
    done = simulate(phase.due, phase.prompt, phase.output, cost, recording.idle_watts, max_seqs=1024)
    end = float(phase.last.max())
    return done.window_joules(0.0, end) / recording.joules(phase.begin_unix, phase.begin_unix + end) - 1


@pytest.mark.parametrize("name", POISSON)
def test_online_at_rates_it_was_not_fitted_on(rates: Recording, name: str) -> None:
    assert abs(error(rates, name, PUBLISHED)) < 0.03


@pytest.mark.parametrize("name", ALONE)
def test_online_on_tenants_alone(tenants: Recording, name: str) -> None:
    assert abs(error(tenants, name, PUBLISHED)) < 0.02


@pytest.mark.parametrize("name", POISSON)
def test_online_from_a_profile_of_eight_shapes(rates: Recording, name: str) -> None:
    """Eight shapes, five of them lone requests, tell little of what contexts cost: hence the wide limit."""
    profile = profile_of(rates)
    assert len(profile.shapes) == 8
    cost = fit(profile)
    assert cost.joules_error < 0.02
    assert abs(error(rates, name, cost)) < 0.12


@pytest.mark.parametrize(
    ("folder", "name"), [*(("rates", n) for n in POISSON), *(("tenants", n) for n in ALONE)]
)
def test_the_bound_is_below_the_counter(rates: Recording, tenants: Recording, folder: str, name: str) -> None:
    recording = rates if folder == "rates" else tenants
    phase = recording.phases[name]
    end = float(phase.last.max())
    output = phase.output.astype(np.float64)
    shape = known_shape("llama-3.1-8b")
    assert shape is not None
    bound = roofline(
        InsideWindow(
            phase.prompt.astype(np.float64),
            output,
            np.zeros_like(output),
            np.ones_like(output),
            np.ones_like(output),
        ),
        shape,
        require_gpu("h200"),
        seconds=end,
        idle_watts=recording.idle_watts,
        devices=1,
        steps=least_steps(phase.first, phase.last, output, 0.0, end),
    )
    ratio = bound.joules / recording.joules(phase.begin_unix, phase.begin_unix + end)
    assert 0.3 < ratio < 1.0
