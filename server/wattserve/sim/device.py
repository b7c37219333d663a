"""How long a step takes and what it costs while a power limit holds the clock down."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

from wattmeter.energy_model.step_model import StepModel

LOWEST_CLOCK = 0.3


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a step at clock x (1: as fast as the device goes without a power limit):

        overhead + (weights^sharpness + (token x tokens / x)^sharpness)^(1 / sharpness)
                 + context_token x context read in decode + attention_pair x pairs / x + sequence x sequences

    A layer's matrix products take the longer of reading the weights and multiplying them (the roofline,
    rounded off by `sharpness`); attention reads the cache; sampling costs each sequence a little. Memory
    does not slow down with the clock. Joules above idle are the energy model's times x **
    `energy_exponent`: a lower clock runs at a lower voltage.

    The limit: watts above idle, averaged over `limit_lag_seconds`, are held at `limit_watts` by the clock.
    """

    overhead_seconds: float
    weights_seconds: float
    token_seconds: float
    sharpness: float
    context_token_seconds: float
    attention_pair_seconds: float
    sequence_seconds: float
    limit_watts: float
    limit_lag_seconds: float
    energy_exponent: float

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ValueError(f"timing: {item.name} must be a finite number of at least 0, not {value!r}")
        if self.overhead_seconds + self.weights_seconds <= 0:
            raise ValueError("timing: an empty step must take some time")
        if self.sharpness < 1:
            raise ValueError("timing: sharpness must be at least 1")
        if self.limit_watts <= 0 or self.limit_lag_seconds <= 0:
            raise ValueError("timing: limit_watts and limit_lag_seconds must be above 0")

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Raises ValueError naming what is wrong."""
        if not isinstance(data, dict):
            raise ValueError("timing is missing")
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"timing: {error}") from None


class PowerLimit:
    """The device's clock over time: falls while the mean power is above the limit, recovers below it.

    `clock` acts on the next step; a device that was idle in between has had time to recover.
    """

    def __init__(self, timing: Timing, energy: StepModel) -> None:
        self._timing = timing
        self._energy = energy
        self.clock = 1.0
        self.mean_watts = 0.0

    def idle(self, seconds: float) -> None:
        """Nothing ran for so long."""
        self._control(0.0, seconds)

    def step(
        self, prefill_tokens: int, decode_tokens: int, context_tokens: int, pairs: float, sequences: int
    ) -> tuple[float, float]:
        """(seconds, joules above idle) of a step that starts now; sums over its entries, as in
        StepModel.
        """
        t, e, clock = self._timing, self._energy, self.clock
        products = t.token_seconds * (prefill_tokens + decode_tokens) / clock
        seconds = (
            t.overhead_seconds
            + (t.weights_seconds**t.sharpness + products**t.sharpness) ** (1.0 / t.sharpness)
            + t.context_token_seconds * context_tokens
            + t.attention_pair_seconds * pairs / clock
            + t.sequence_seconds * sequences
        )
        joules = (
            e.fixed_joules
            + e.prefill_token_joules * prefill_tokens
            + e.decode_token_joules * decode_tokens
            + e.context_token_joules * context_tokens
            + e.attention_pair_joules * pairs
        ) * clock**t.energy_exponent
        self._control(joules / seconds, seconds)
        return seconds, joules

    def _control(self, watts: float, seconds: float) -> None:
        t = self._timing
        weight = 1.0 - math.exp(-seconds / t.limit_lag_seconds)
        self.mean_watts += weight * (watts - self.mean_watts)
        if self.mean_watts > t.limit_watts or self.clock < 1.0:
            # Power goes roughly as clock ** (1 + exponent): the change of clock that would put it right.
            ratio = t.limit_watts / max(self.mean_watts, 1e-9)
            wanted = self.clock * ratio ** (1.0 / (1.0 + t.energy_exponent))
            self.clock += weight * (wanted - self.clock)
            self.clock = min(1.0, max(LOWEST_CLOCK, self.clock))
