"""Fits a step model to counter intervals: non-negative least squares, robust, held near what was known."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wattmeter.attribution import busy_starts, overlaps
from wattmeter.stepmodel import ENERGY_TERMS, F64, TIME_TERMS, StepEnergyModel, step_work, sum_by
from wattmeter.steps import I64, StepBatch

TERMS = len(ENERGY_TERMS)
# A counter that moves every 100 ms and is read up to 14 ms late is off by a few joules at each end of an
# interval, and no interval is known better than about 1 %: these set the weight of an interval.
EDGE_JOULES = 3.0
RELATIVE_NOISE = 0.01
STEP_NOISE_SECONDS = 0.002
HUBER = 2.0
# Intervals within 3 % of the power ceiling count as at it; it takes twice MIN_AT_CAP to believe in one.
AT_CAP = 0.97
MIN_AT_CAP = 4


@dataclass(frozen=True, slots=True)
class Intervals:
    """N counter intervals: `joules` above idle, `seconds`, and what the steps inside did, `features` (N, 5).

    The feature columns are steps, prefill tokens, decode tokens, context tokens read in decode and attention
    pairs (the order of ENERGY_TERMS and TIME_TERMS); a step that straddles an edge counts in part.
    `busy_seconds` is the measured length of those steps.
    """

    joules: F64
    seconds: F64
    busy_seconds: F64
    features: F64

    def __len__(self) -> int:
        return len(self.joules)

    def where(self, mask: F64 | I64) -> Intervals:
        return Intervals(self.joules[mask], self.seconds[mask], self.busy_seconds[mask], self.features[mask])


def intervals_of(
    steps: StepBatch, edges_ns: I64, joules: F64, *, previous_end_ns: int | None = None
) -> Intervals:
    """Cut steps at the edges, shape (N+1,), of counter intervals with `joules` above idle, shape (N,)."""
    starts = busy_starts(steps, previous_end_ns)
    work = step_work(steps)
    columns = (
        np.ones(len(steps)),
        work.prefill_tokens,
        work.decode_tokens,
        work.decode_context_tokens,
        work.attention_pairs,
        (steps.end_ns - starts) * 1e-9,
    )
    row, column, part = overlaps(starts, steps.end_ns, edges_ns)
    sums = [sum_by(column, values[row] * part, len(joules)) for values in columns]
    return Intervals(
        joules=np.asarray(joules, dtype=np.float64),
        seconds=np.diff(edges_ns) * 1e-9,
        busy_seconds=sums[TERMS],
        features=np.stack(sums[:TERMS], axis=1),
    )


def fit_model(
    data: Intervals, *, prior: StepEnergyModel | None = None, prior_weight: float = 1.0, fitted_on: str = ""
) -> StepEnergyModel:
    """The step model that explains the intervals best, every coefficient non-negative.

    With a `prior` each coefficient is held to it as by one measurement that is right to 50 % / prior_weight:
    what the traffic cannot tell apart stays where it was. Where the power stays at a ceiling while the work
    would ask for more, that ceiling becomes `power_cap_watts` and intervals at it teach nothing else. Raises
    ValueError for fewer than 8 intervals.
    """
    if len(data) < 8:
        raise ValueError(f"fit: {len(data)} intervals are too few to fit a step model")
    noise = np.hypot(EDGE_JOULES, RELATIVE_NOISE * np.abs(data.joules))
    known = _coefficients(prior, ENERGY_TERMS)
    power = data.joules / np.maximum(data.busy_seconds, 1e-9)
    cap = _ceiling(power, data.busy_seconds > 0.97 * data.seconds)
    energy, covariance = _robust(data.features, data.joules, noise, known, prior_weight)
    if cap is not None:
        below = np.flatnonzero(power < AT_CAP * cap)
        capped: tuple[F64, F64] | None = None
        if len(below) >= 8:
            part = data.where(below)
            capped = _robust(part.features, part.joules, noise[below], known, prior_weight)
        limit = cap * data.busy_seconds
        if capped is None or _misfit(data.joules, np.minimum(data.features @ capped[0], limit), noise) >= (
            _misfit(data.joules, data.features @ energy, noise)
        ):
            cap = None if prior is None else prior.power_cap_watts
        else:
            energy, covariance = capped
    elif prior is not None:
        cap = prior.power_cap_watts
    length_noise = np.hypot(STEP_NOISE_SECONDS, RELATIVE_NOISE * data.busy_seconds)
    time, _ = _robust(
        data.features, data.busy_seconds, length_noise, _coefficients(prior, TIME_TERMS), prior_weight
    )
    return StepEnergyModel(
        **dict(zip(ENERGY_TERMS, energy.tolist(), strict=True)),
        **dict(zip(TIME_TERMS, time.tolist(), strict=True)),
        power_cap_watts=cap,
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        fitted_on=fitted_on,
    )


def _ceiling(watts: F64, busy: npt.NDArray[np.bool_]) -> float | None:
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


def predict(model: StepEnergyModel, data: Intervals) -> F64:
    """Modelled joules above idle of each interval, capped at the model's power for the time that was busy."""
    energy = np.array([getattr(model, name) for name in ENERGY_TERMS])
    joules: F64 = data.features @ energy
    if model.power_cap_watts is not None:
        joules = np.minimum(joules, model.power_cap_watts * data.busy_seconds)
    return joules


def _coefficients(model: StepEnergyModel | None, terms: tuple[str, ...]) -> F64 | None:
    return None if model is None else np.array([getattr(model, name) for name in terms])


def _robust(
    features: F64, target: F64, noise: F64, prior: F64 | None, prior_weight: float
) -> tuple[F64, F64]:
    """Huber-weighted non-negative least squares: (coefficients, their covariance)."""
    weight = 1.0 / noise**2
    held = np.zeros(TERMS)
    center = np.zeros(TERMS)
    if prior is not None:
        known = prior > 0.0
        held[known] = (prior_weight / (0.5 * prior[known])) ** 2
        center = prior
    result = center
    spread = 1.0
    normal = np.zeros((TERMS, TERMS))
    for _ in range(4):
        normal = (features * weight[:, None]).T @ features + np.diag(held)
        right = features.T @ (weight * target) + held * center
        result = nonnegative(normal, right)
        error = np.abs(target - features @ result) / noise
        spread = max(1.4826 * float(np.median(error)), 1e-6)
        weight = np.minimum(1.0, HUBER * spread / np.maximum(error, 1e-12)) / noise**2
    active = result > 0.0
    covariance = np.zeros((TERMS, TERMS))
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


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Errors of predictions made before the interval was fitted, relative to the energy above idle.

    `rms` over intervals, weighted by energy; `bias` of their sum; both nan before the first prediction.
    """

    intervals: int
    rms: float
    bias: float


class OnlineFit:
    """Keeps a step model fitted to the traffic of the last minutes.

    Each interval is first predicted with the model as it stands and then learnt from, so the errors are held
    out. `model.trusted` holds while the last TRUST_INTERVALS predictions of a fitted model were within
    TRUST_RMS an interval and TRUST_BIAS in sum, and is False before and after. Not thread-safe: one thread
    owns it. Deterministic. A second of data costs about a millisecond.
    """

    TRUST_INTERVALS = 20
    TRUST_RMS = 0.05
    TRUST_BIAS = 0.02
    REFIT_INTERVALS = 5
    KEEP_PER_REGIME = 100
    KEEP_SECONDS = 900.0
    FIRST_FIT_INTERVALS = 10

    def __init__(self, prior: StepEnergyModel | None = None) -> None:
        self._prior = prior
        self._model = prior
        #: whether the model was fitted here at least once, rather than given
        self.fitted = False
        self._rows: dict[int, deque[tuple[int, float, float, float, F64]]] = {}
        #: (predicted, measured) joules above idle of the last intervals, predicted before they were learnt
        self.predictions: deque[tuple[float, float]] = deque(maxlen=4 * self.TRUST_INTERVALS)
        self._seen = 0

    @property
    def model(self) -> StepEnergyModel | None:
        """The model as it stands; None before the first fit where no prior was given."""
        if self._model is None:
            return None
        errors = self.held_out
        trusted = (
            self.fitted
            and errors.intervals >= self.TRUST_INTERVALS
            and errors.rms <= self.TRUST_RMS
            and abs(errors.bias) <= self.TRUST_BIAS
        )
        residual = errors.rms if errors.intervals >= 5 else self._model.residual_fraction
        return replace(self._model, trusted=trusted, residual_fraction=residual)

    @property
    def held_out(self) -> HeldOut:
        """Errors over the last predictions by a fitted model."""
        if not self.predictions:
            return HeldOut(0, math.nan, math.nan)
        predicted, measured = np.array(self.predictions).T
        total = max(float(np.sum(measured)), 1e-9)
        error = predicted - measured
        rms = math.sqrt(float(np.sum(error**2)) / max(float(np.sum(measured**2)), 1e-9))
        return HeldOut(len(self.predictions), rms, float(np.sum(error)) / total)

    def add(
        self,
        steps: StepBatch,
        start_ns: int,
        end_ns: int,
        joules_above_idle: float,
        *,
        previous_end_ns: int | None = None,
    ) -> None:
        """One settled interval and the steps that overlap it (parts outside are not counted).

        Intervals of 0.5 to 2 s are best. Do not give intervals whose joules are faulty or whose step records
        were lost; an interval without steps is ignored.
        """
        edges = np.array([start_ns, end_ns], dtype=np.int64)
        data = intervals_of(steps, edges, np.array([joules_above_idle]), previous_end_ns=previous_end_ns)
        if data.features[0, 0] <= 0.0 or not math.isfinite(joules_above_idle):
            return
        if self._model is not None and self.fitted:
            self.predictions.append((float(predict(self._model, data)[0]), joules_above_idle))
        regime = _regime(data)
        rows = self._rows.setdefault(regime, deque(maxlen=self.KEEP_PER_REGIME))
        lengths = float(data.seconds[0]), float(data.busy_seconds[0])
        rows.append((end_ns, joules_above_idle, *lengths, data.features[0]))
        self._seen += 1
        if self._seen >= self.FIRST_FIT_INTERVALS and self._seen % self.REFIT_INTERVALS == 0:
            self._refit(end_ns - round(self.KEEP_SECONDS * 1e9))

    def _refit(self, oldest_ns: int) -> None:
        for rows in self._rows.values():
            while rows and rows[0][0] < oldest_ns:
                rows.popleft()
        kept = [row[1:] for rows in self._rows.values() for row in rows]
        data = Intervals(
            np.array([row[0] for row in kept]),
            np.array([row[1] for row in kept]),
            np.array([row[2] for row in kept]),
            np.stack([row[3] for row in kept]),
        )
        fitted = fit_model(
            data,
            prior=self._model if self.fitted else self._prior,
            prior_weight=0.3,
            fitted_on=f"online, {len(data)} intervals",
        )
        self._model = fitted
        self.fitted = True


def _regime(data: Intervals) -> int:
    """Where an interval lies, so that rare traffic is not forgotten under much of one kind.

    Two halves each by how busy the device was, by prefill tokens a busy second, by decode tokens a step.
    """
    steps, prefill, decode = (float(value) for value in data.features[0, :3])
    busy = float(data.busy_seconds[0])
    return (
        int(busy > 0.7 * float(data.seconds[0]))
        + 2 * int(prefill > 10_000.0 * max(busy, 1e-9))
        + 4 * min(int(math.log2(max(decode / steps, 1.0)) / 2), 4)
    )
