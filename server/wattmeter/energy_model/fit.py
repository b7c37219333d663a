"""Fits a step model to counter intervals: non-negative least squares, robust, held near what was known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from wattmeter.arrays import F64, I64, Bool, sum_by
from wattmeter.energy_model.step_model import (
    ENERGY_TERMS,
    EXPERT_TERM,
    EXPERT_TIME_TERM,
    NO_PADDING,
    TIME_TERMS,
    Experts,
    Padding,
    StepModel,
    StepWork,
    capped,
    uncapped,
)
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import TAIL_SECONDS, overlaps, tail_ends

TERMS = len(ENERGY_TERMS)
# Columns of the features: what energy depends on, and what time depends on; both on experts, where there are.
TAIL_COLUMN = TERMS - 1
EXPERT_COLUMN = TERMS + 4
ENERGY_COLUMNS = np.arange(TERMS)
TIME_COLUMNS = np.array([0, TERMS, TERMS + 1, 3, 4, TERMS + 2, TERMS + 3])
# A counter that moves every 100 ms, whose updates are known to a few ms, is off by a joule or two at each end
# of an interval, and no interval is known better than about half a per cent: these set its weight.
EDGE_JOULES = 2.0
RELATIVE_NOISE = 0.005
STEP_NOISE_SECONDS = 0.002
HUBER = 2.0
# Intervals within 3 % of the power ceiling count as at it; it takes twice MIN_AT_CAP to believe in one that
# the device did not tell. PLATEAU: what `capped` leaves of the ceiling there.
AT_CAP = 0.97
MIN_AT_CAP = 4
PLATEAU = 0.995


@dataclass(frozen=True, slots=True)
class Intervals:
    """N counter intervals: `joules` above idle, `seconds`, and what the steps inside did, `features` (N, 11).

    The feature columns are steps, prefill tokens, decode tokens (both with `padding`), context tokens read in
    decode, attention pairs and seconds of tails (the order of ENERGY_TERMS); then, for time, prefill and
    decode tokens without padding and the last two of TIME_TERMS; then the experts that the tokens need,
    `padding` included (0 where `experts` is None). A step that straddles an edge counts in part.
    `busy_seconds` is the measured length of those steps.
    """

    joules: F64
    seconds: F64
    busy_seconds: F64
    features: F64
    padding: Padding = NO_PADDING
    experts: Experts | None = None

    def __len__(self) -> int:
        return len(self.joules)

    @property
    def drawing_seconds(self) -> F64:
        """Time over which a power ceiling acts, (N,): busy, and the tails.

        A prompt of 20 ms draws more than the ceiling unpunished where the device rests after it.
        """
        return self.busy_seconds + self.features[:, TAIL_COLUMN]

    def where(self, mask: F64 | I64) -> Intervals:
        return Intervals(
            self.joules[mask],
            self.seconds[mask],
            self.busy_seconds[mask],
            self.features[mask],
            self.padding,
            self.experts,
        )

    @property
    def energy_columns(self) -> I64:
        """The features that energy depends on, in the order of `StepModel.energy_terms`."""
        return ENERGY_COLUMNS if self.experts is None else np.append(ENERGY_COLUMNS, EXPERT_COLUMN)


def intervals_of(
    steps: StepBatch | StepWork,
    edges_ns: I64,
    joules: F64,
    *,
    previous_end_ns: int | None = None,
    padding: Padding = NO_PADDING,
    experts: Experts | None = None,
) -> Intervals:
    """Cut steps at the edges, shape (N+1,), of counter intervals with `joules` above idle, shape (N,).

    `previous_end_ns` is the end of the step before these; its tail may reach into the first interval. It,
    `padding` and `experts` are those of the work where `steps` is given as StepWork.
    """
    done = (
        steps
        if isinstance(steps, StepWork)
        else StepWork.of(steps, padding, previous_end_ns, experts=experts)
    )
    steps, starts, work = done.batch, done.starts_ns, done.steps
    columns = (
        np.ones(len(steps)),
        work.prefill_tokens + work.prefill_padding,
        work.decode_tokens + work.decode_padding,
        work.decode_context_tokens,
        work.attention_pairs,
        work.prefill_tokens,
        work.decode_tokens,
        work.large_prompt_tokens,
        work.first_context_tokens,
        work.experts + work.expert_padding,
        (steps.end_ns - starts) * 1e-9,
    )
    row, column, part = overlaps(starts, steps.end_ns, edges_ns)
    sums = [sum_by(column, values[row] * part, len(joules)) for values in columns]
    tails = _tail_seconds(steps, starts, edges_ns, done.previous_end_ns)
    return Intervals(
        joules=np.asarray(joules, dtype=np.float64),
        seconds=np.diff(edges_ns) * 1e-9,
        busy_seconds=sums[-1],
        features=np.stack([*sums[:5], tails, *sums[5:-1]], axis=1),
        padding=done.padding,
        experts=done.experts,
    )


def _tail_seconds(steps: StepBatch, starts: I64, edges_ns: I64, previous_end_ns: int | None) -> F64:
    """Seconds of each interval, (N,), that are tails of steps."""
    begins, ends = steps.end_ns, tail_ends(starts, steps.end_ns, int(edges_ns[-1]))
    if previous_end_ns is not None and len(starts):
        first = min(previous_end_ns + round(TAIL_SECONDS * 1e9), int(starts[0]))
        begins = np.append(previous_end_ns, begins)
        ends = np.append(max(first, previous_end_ns), ends)
    inside = (ends > begins) & (ends > edges_ns[0]) & (begins < edges_ns[-1])
    begins, ends = begins[inside], ends[inside]
    row, column, part = overlaps(begins, ends, edges_ns)
    return sum_by(column, ((ends - begins) * 1e-9)[row] * part, len(edges_ns) - 1)


def fit_model(
    data: Intervals,
    *,
    prior: StepModel | None = None,
    prior_weight: float = 1.0,
    power_limit_watts: float | None = None,
    fitted_on: str = "",
) -> StepModel:
    """The step model that explains the intervals best, every coefficient non-negative.

    With a `prior` each coefficient is held to it as by one measurement that is right to 50 % / prior_weight:
    what the traffic cannot tell apart stays where it was. `power_limit_watts` (above idle) is the ceiling
    that the device tells; where the power stays at a lower one while the work would ask for more, that one
    becomes `power_cap_watts`. Intervals at the ceiling teach nothing else. Raises ValueError for fewer than 8
    intervals.
    """
    if len(data) < 8:
        raise ValueError(f"fit: {len(data)} intervals are too few to fit a step model")
    noise = np.hypot(EDGE_JOULES, RELATIVE_NOISE * np.abs(data.joules))
    energy_terms: tuple[str, ...] = ENERGY_TERMS
    time_terms: tuple[str, ...] = TIME_TERMS
    time_columns: I64 = TIME_COLUMNS
    if data.experts is not None:
        energy_terms, time_terms = (*ENERGY_TERMS, EXPERT_TERM), (*TIME_TERMS, EXPERT_TIME_TERM)
        time_columns = np.append(TIME_COLUMNS, EXPERT_COLUMN)
    known = _coefficients(prior, energy_terms)
    power = data.joules / np.maximum(data.busy_seconds, 1e-9)
    cap = power_limit_watts
    if cap is None and prior is not None:
        cap = prior.power_cap_watts
    energy, covariance, misfit = _below(data, noise, cap, known, prior_weight)
    seen = _ceiling(power, data.busy_seconds > 0.97 * data.seconds)
    if seen is not None and (cap is None or seen / PLATEAU < AT_CAP * cap):
        other = _below(data, noise, seen / PLATEAU, known, prior_weight)
        if other[2] < misfit:
            cap, (energy, covariance, misfit) = seen / PLATEAU, other
    length_noise = np.hypot(STEP_NOISE_SECONDS, RELATIVE_NOISE * data.busy_seconds)
    times = _coefficients(prior, time_terms)
    # At the ceiling the clock is slower, and so is every step: that is not the work's doing.
    free = np.full(len(data), True) if cap is None else data.joules < AT_CAP * cap * data.drawing_seconds
    rows = np.flatnonzero(free if np.count_nonzero(free) >= 8 else np.full(len(data), True))
    time, _ = _robust(
        data.features[rows][:, time_columns], data.busy_seconds[rows], length_noise[rows], times, prior_weight
    )
    return StepModel(
        **dict(zip(energy_terms, energy.tolist(), strict=True)),
        **dict(zip(time_terms, time.tolist(), strict=True)),
        padding=data.padding,
        experts=data.experts,
        power_cap_watts=cap,
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        fitted_on=fitted_on,
    )


def _below(
    data: Intervals, noise: F64, cap: float | None, prior: F64 | None, prior_weight: float
) -> tuple[F64, F64, float]:
    """(coefficients, their covariance, misfit of all data) with a ceiling: fitted to what lies below it."""
    features = data.features[:, data.energy_columns]
    if cap is None:
        energy, covariance = _robust(features, data.joules, noise, prior, prior_weight)
        return energy, covariance, _misfit(data.joules, features @ energy, noise)
    limit = cap * data.drawing_seconds
    at_cap = data.joules >= AT_CAP * limit
    below = np.flatnonzero(~at_cap)
    if len(below) < 8:
        if prior is None:
            below = np.arange(len(data))
        elif len(below) == 0:
            return (
                prior,
                np.zeros((features.shape[1], features.shape[1])),
                _misfit(data.joules, capped(features @ prior, limit), noise),
            )
    needed = np.where(at_cap, data.joules, uncapped(np.where(at_cap, 0.0, data.joules), limit))
    energy, covariance = _robust(features[below], needed[below], noise[below], prior, prior_weight)
    return energy, covariance, _misfit(data.joules, capped(features @ energy, limit), noise)


def _ceiling(watts: F64, busy: Bool) -> float | None:
    """The power above idle at which busy intervals crowd, if the highest of them do; None otherwise.

    A ceiling is a plateau: at least 2 MIN_AT_CAP intervals above AT_CAP of the median of the top MIN_AT_CAP.
    """
    top = np.sort(watts[busy])
    if len(top) < 2 * MIN_AT_CAP:
        return None
    high = float(np.median(top[-MIN_AT_CAP:]))
    plateau = top[top > AT_CAP * high]
    return float(np.median(plateau)) if len(plateau) >= 2 * MIN_AT_CAP else None


def _misfit(measured: F64, predicted: F64, noise: F64) -> float:
    """Sum of Huber's loss of the errors in units of their noise."""
    error = np.abs(measured - predicted) / noise
    return float(np.sum(np.where(error < HUBER, 0.5 * error**2, HUBER * (error - 0.5 * HUBER))))


def predict(model: StepModel, data: Intervals) -> F64:
    """Modelled joules above idle of each interval, `capped` by the model's power over `drawing_seconds`.

    Raises ValueError where the intervals were padded by another rule than the model's, or have other experts.
    """
    if data.padding != model.padding or data.experts != model.experts:
        raise ValueError("predict: the intervals are padded otherwise than the model, or have other experts")
    energy = np.array([getattr(model, name) for name in model.energy_terms])
    joules: F64 = data.features[:, data.energy_columns] @ energy
    if model.power_cap_watts is not None:
        joules = capped(joules, model.power_cap_watts * data.drawing_seconds)
    return joules


def _coefficients(model: StepModel | None, terms: tuple[str, ...]) -> F64 | None:
    return None if model is None else np.array([getattr(model, name) for name in terms])


def _robust(
    features: F64, target: F64, noise: F64, prior: F64 | None, prior_weight: float
) -> tuple[F64, F64]:
    """Huber-weighted non-negative least squares: (coefficients, their covariance)."""
    weight = 1.0 / noise**2
    terms = features.shape[1]
    held = np.zeros(terms)
    center = np.zeros(terms)
    if prior is not None:
        known = prior > 0.0
        held[known] = (prior_weight / (0.5 * prior[known])) ** 2
        center = prior
    result = center
    spread = 1.0
    normal = np.zeros((terms, terms))
    for _ in range(4):
        normal = (features * weight[:, None]).T @ features + np.diag(held)
        right = features.T @ (weight * target) + held * center
        result = nonnegative(normal, right)
        error = np.abs(target - features @ result) / noise
        spread = max(1.4826 * float(np.median(error)), 1e-6)
        weight = np.minimum(1.0, HUBER * spread / np.maximum(error, 1e-12)) / noise**2
    active = result > 0.0
    covariance = np.zeros((terms, terms))
    if np.any(active):
        inner = normal[np.ix_(active, active)]
        covariance[np.ix_(active, active)] = np.linalg.pinv(inner, hermitian=True) * max(spread, 1.0) ** 2
    return result, covariance


def nonnegative(normal: F64, right: F64) -> F64:
    """The x >= 0 that minimises x'Nx/2 - r'x for a positive semidefinite N of a few rows.

    Every support is tried, the largest first; the first whose solution is positive and whose left-out terms
    would only hurt (Karush-Kuhn-Tucker) is the optimum.
    """
    size = len(right)
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    usable = np.diag(normal) > 0.0
    matrix = normal / np.outer(scale, scale)
    vector = right / scale
    best = np.zeros(size)
    best_value = 0.0
    for count in range(int(usable.sum()), 0, -1):
        for support in itertools.combinations(np.flatnonzero(usable).tolist(), count):
            index = np.array(support)
            try:
                part = np.linalg.solve(matrix[np.ix_(index, index)], vector[index])
            except np.linalg.LinAlgError:
                continue
            if np.any(part < 0.0):
                continue
            candidate = np.zeros(size)
            candidate[index] = part
            slope = matrix @ candidate - vector
            if np.all(slope >= -1e-9 * (1.0 + np.abs(vector))):
                return candidate / scale
            value = float(0.5 * candidate @ matrix @ candidate - vector @ candidate)
            if value < best_value:
                best, best_value = candidate, value
    return best / scale
