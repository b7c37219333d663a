"""What an engine step costs in time and energy, fitted to a profile's batches.

A step's time and its energy above idle are linear in what it does: a fixed part, the prompt tokens it
computes, the tokens it generates, the context tokens they read. A batch of B requests of (I, O) takes S
steps, B I prompt tokens, B (O - 1) generated after the first, and reads C context tokens; the sums over its
steps are linear as well, so a grid of batches determines the coefficients. Non-negative least squares on
relative errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from wattload.errors import BadInput
from wattload.estimates.profile import Profile, ShapeCost

F64 = npt.NDArray[np.float64]

# Where a batch's power comes this near to the limit, time is what the limit makes of it, not what the step
# needs.
_NEAR_LIMIT = 0.93
_LEAST_SHAPES = 6


@dataclass(frozen=True, slots=True)
class StepCost:
    """Coefficients of a step:

    (fixed, prompt token, prompt token x its position, generated token, context token).

    `seconds`, `joules` (above idle): shape (5,). `start_seconds`: from sending to the first step.
    `limit_watts`: power above idle that the devices cannot exceed, or None. `seconds_error`,
    `joules_error`: root mean square of the relative error on the profile's own batches.
    """

    seconds: F64
    joules: F64
    start_seconds: float
    limit_watts: float | None
    seconds_error: float
    joules_error: float

    def step(self, work: F64) -> tuple[float, float]:
        """Seconds and joules above idle of a step that does `work`, shape (5,)."""
        seconds, joules = float(self.seconds @ work), float(self.joules @ work)
        if self.limit_watts is not None and joules > self.limit_watts * seconds:
            seconds = joules / self.limit_watts
        return seconds, joules

    def batch(self, prompt: int, output: int, count: int, max_batched_tokens: int) -> tuple[float, float]:
        """Seconds and joules above idle of `count` requests of one shape sent at once."""
        work = batch_work(prompt, output, count, max_batched_tokens)
        seconds, joules = self.step(work)
        return seconds + self.start_seconds, joules


def batch_work(prompt: int, output: int, count: int, max_batched_tokens: int) -> F64:
    """Sums over a batch's steps of the five quantities of `StepCost`."""
    tokens = count * prompt
    steps = -(-tokens // max_batched_tokens) + output - 1
    context = count * ((output - 1) * prompt + (output - 1) * output / 2)
    return np.array([steps, tokens, tokens * (prompt - 1) / 2, count * (output - 1), context], np.float64)


def fit(profile: Profile) -> StepCost:
    """Raises BadInput where the profile has too few shapes, or shapes that tell prompt and output not
    apart.
    """
    shapes = [s for s in profile.shapes if s.above_idle_joules > 0]
    if len(shapes) < _LEAST_SHAPES:
        raise BadInput(
            f"the profile has {len(shapes)} usable shapes; {_LEAST_SHAPES} are needed for a step model"
        )
    work = np.array([_work(shape, profile) for shape in shapes])
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
    return StepCost(time[:5], energy, float(time[5]), limit, time_error, energy_error)


def _work(shape: ShapeCost, profile: Profile) -> F64:
    return batch_work(shape.prompt_tokens, shape.output_tokens, shape.batch, profile.max_batched_tokens)


def _relative_fit(design: F64, target: F64) -> tuple[F64, float]:
    scale = np.maximum(design.max(axis=0), 1e-12)
    found, _ = nnls(design / target[:, None] / scale, np.ones(len(target)))
    coefficients: F64 = found / scale
    error = design @ coefficients / target - 1
    return coefficients, float(np.sqrt((error**2).mean()))
