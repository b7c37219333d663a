"""Keeps a step model fitted to the traffic of the last minutes, and says when it can be trusted."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from wattmeter.arrays import F64
from wattmeter.energy_model.fit import Intervals, fit_model, intervals_of, predict
from wattmeter.energy_model.step_model import NO_PADDING, StepModel, StepWork
from wattmeter.steps.batch import StepBatch


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

    def __init__(self, prior: StepModel | None = None) -> None:
        self._prior = prior
        self._padding = NO_PADDING if prior is None else prior.padding
        self._experts = None if prior is None else prior.experts
        #: the ceiling that the device tells, watts above idle; None where it tells none
        self.power_limit_watts: float | None = None
        self._model = prior
        #: whether the model was fitted here at least once, rather than given
        self.fitted = False
        self._rows: dict[int, deque[tuple[int, float, float, float, F64]]] = {}
        #: (predicted, measured) joules above idle of the last intervals, predicted before they were learnt
        self.predictions: deque[tuple[float, float]] = deque(maxlen=4 * self.TRUST_INTERVALS)
        self._seen = 0

    @property
    def model(self) -> StepModel | None:
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
        steps: StepBatch | StepWork,
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
        data = intervals_of(
            steps,
            edges,
            np.array([joules_above_idle]),
            previous_end_ns=previous_end_ns,
            padding=self._padding,
            experts=self._experts,
        )
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
            self._padding,
            self._experts,
        )
        fitted = fit_model(
            data,
            prior=self._model if self.fitted else self._prior,
            prior_weight=0.3,
            power_limit_watts=self.power_limit_watts,
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
