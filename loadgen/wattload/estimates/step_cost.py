"""What an engine step costs in time and energy, fitted to the batches of a calibration.

A step's time and its energy above idle are linear in what it does. Five terms of wattmeter's StepModel say
so: a fixed part, the prompt tokens computed, the pairs of those and what they attend to, the tokens
generated, and the context tokens that these read. A batch of B requests of (I, O) takes S steps, B I prompt
tokens, B (O - 1) generated after the first, and reads C context tokens; the sums over its steps are linear
as well, so a grid of batches determines the coefficients. Non-negative least squares on relative errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattload.errors import InputError
from wattload.estimates.calibration_file import Profile
from wattmeter.arrays import F64
from wattmeter.energy_model.fit import nonnegative
from wattmeter.energy_model.step_model import StepModel

# The terms of the model that a grid of batches determines, in the order of `batch_work`.
TERMS = ("fixed", "prefill_token", "attention_pair", "decode_token", "context_token")
# Where a batch's power comes this near to the limit, time is what the limit makes of it, not what the step
# needs.
_NEAR_LIMIT = 0.93
_LEAST_SHAPES = 6


@dataclass(frozen=True, slots=True)
class StepCost:
    """A step model, and what a calibration knows besides.

    `start_seconds`: from sending a request to its first step. `limit_watts`: power above idle that the
    devices cannot exceed, or None. `seconds_error`, `joules_error`: root mean square of the relative error on
    the calibration's own batches.
    """

    model: StepModel
    start_seconds: float
    limit_watts: float | None
    seconds_error: float = 0.0
    joules_error: float = 0.0

    def batch(self, prompt: int, output: int, count: int, max_batched_tokens: int) -> tuple[float, float]:
        """Seconds and joules above idle of `count` requests of one shape sent at once."""
        work = batch_work(prompt, output, count, max_batched_tokens)
        seconds, joules = float(self.terms("seconds") @ work), float(self.terms("joules") @ work)
        if self.limit_watts is not None:
            seconds = max(seconds, joules / self.limit_watts)
        return seconds + self.start_seconds, joules

    def terms(self, of: str) -> F64:
        """The model's coefficients of `seconds` or `joules`, shape (5,), in the order of TERMS."""
        return np.array([getattr(self.model, f"{term}_{of}") for term in TERMS], np.float64)


def step_model(joules: F64, seconds: F64) -> StepModel:
    """The step model of coefficients in the order of TERMS, shape (5,) each."""
    (fixed, prefill, pair, decode, context) = (float(value) for value in joules)
    (fixed_s, prefill_s, pair_s, decode_s, context_s) = (float(value) for value in seconds)
    return StepModel(
        fixed_joules=fixed,
        prefill_token_joules=prefill,
        attention_pair_joules=pair,
        decode_token_joules=decode,
        context_token_joules=context,
        fixed_seconds=fixed_s,
        prefill_token_seconds=prefill_s,
        attention_pair_seconds=pair_s,
        decode_token_seconds=decode_s,
        context_token_seconds=context_s,
    )


def batch_work(prompt: int, output: int, count: int, max_batched_tokens: int) -> F64:
    """Sums over a batch's steps of the five quantities of TERMS."""
    tokens = count * prompt
    steps = -(-tokens // max_batched_tokens) + output - 1
    context = count * ((output - 1) * prompt + (output - 1) * (output - 2) / 2)
    return np.array([steps, tokens, tokens * prompt / 2, count * (output - 1), context], np.float64)


def fit(profile: Profile) -> StepCost:
    """The costs that explain the calibration's batches best.

    Raises InputError where it has too few shapes.
    """
    shapes = [s for s in profile.shapes if s.above_idle_joules > 0]
    if len(shapes) < _LEAST_SHAPES:
        raise InputError(
            f"the profile has {len(shapes)} usable shapes; {_LEAST_SHAPES} are needed for a step model"
        )
    limits = profile.max_batched_tokens
    work = np.array([batch_work(s.prompt_tokens, s.output_tokens, s.batch, limits) for s in shapes])
    joules = np.array([shape.above_idle_joules for shape in shapes])
    seconds = np.array([shape.seconds for shape in shapes])
    energy, energy_error = _relative_fit(work, joules)
    limit = None
    free = np.ones(len(shapes), bool)
    if profile.power_limit_watts is not None:
        limit = profile.power_limit_watts - profile.idle_watts
        free = joules / seconds < _NEAR_LIMIT * limit
    if free.sum() < _LEAST_SHAPES:
        free[:] = True
    timed = np.column_stack((work, np.ones(len(shapes))))
    time, time_error = _relative_fit(timed[free], seconds[free])
    return StepCost(step_model(energy, time[:5]), float(time[5]), limit, time_error, energy_error)


def _relative_fit(design: F64, target: F64) -> tuple[F64, float]:
    """(non-negative coefficients, root mean square of the relative error) of target = design x them."""
    rows = design / target[:, None]
    coefficients = nonnegative(rows.T @ rows, rows.sum(axis=0))
    error = design @ coefficients / target - 1
    return coefficients, float(np.sqrt((error**2).mean()))
