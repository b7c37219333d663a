"""What one engine step costs: joules above idle and seconds, as a linear model of what the step computed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wattmeter.steps import StepBatch

F64 = npt.NDArray[np.float64]

ENERGY_TERMS = (
    "fixed_joules",
    "prefill_token_joules",
    "decode_token_joules",
    "context_token_joules",
    "attention_pair_joules",
)
TIME_TERMS = (
    "fixed_seconds",
    "prefill_token_seconds",
    "decode_token_seconds",
    "context_token_seconds",
    "attention_pair_seconds",
)
SCHEMA = "wattmeter.stepmodel/1"


@dataclass(frozen=True, slots=True)
class Work:
    """What entries or steps computed, in the model's four quantities besides the step; each shape (N,).

    `prefill_tokens` and `decode_tokens` as in StepBatch; `decode_context_tokens` is the context read while
    decoding (each decoding request reads its whole context once a step); `attention_pairs` is the number of
    (prompt token, token it attends to) pairs of prefill, the part of prefill that grows with its square.
    """

    prefill_tokens: F64
    decode_tokens: F64
    decode_context_tokens: F64
    attention_pairs: F64

    def __len__(self) -> int:
        return len(self.prefill_tokens)


def sum_by(index: npt.NDArray[np.integer[Any]], values: F64, length: int) -> F64:
    """Sums of `values` (N,) by their `index` (N,) in 0..length-1, shape (length,)."""
    return np.bincount(index, weights=values, minlength=length).astype(np.float64, copy=False)


def entry_work(steps: StepBatch) -> Work:
    """The work of each (step, request) entry, shape (E,)."""
    prefill = steps.prefill_tokens.astype(np.float64)
    decode = steps.decode_tokens.astype(np.float64)
    context = steps.context_tokens.astype(np.float64)
    return Work(
        prefill_tokens=prefill,
        decode_tokens=decode,
        decode_context_tokens=np.where(decode > 0, context, 0.0),
        attention_pairs=prefill * (context + 0.5 * prefill),
    )


def step_work(steps: StepBatch, work: Work | None = None) -> Work:
    """The work of each step, shape (S,): its entries summed."""
    work = entry_work(steps) if work is None else work
    count = len(steps)

    return Work(
        sum_by(steps.step, work.prefill_tokens, count),
        sum_by(steps.step, work.decode_tokens, count),
        sum_by(steps.step, work.decode_context_tokens, count),
        sum_by(steps.step, work.attention_pairs, count),
    )


@dataclass(frozen=True, slots=True)
class StepEnergyModel:
    """Joules above idle and seconds of one engine step; every coefficient is non-negative.

    joules  = fixed + prefill_token x prefill tokens + decode_token x decode tokens
              + context_token x context tokens read in decode + attention_pair x prefill attention pairs
    seconds = the same with the `_seconds` terms.

    `power_cap_watts` (above idle, None where never reached) is the power that the device sustains over a
    second or so: stretches that would need more take power_cap_watts x their busy seconds, as the clock
    gives way.

    `covariance` is that of the energy terms in the order of ENERGY_TERMS (joules^2), None where unknown;
    `residual_fraction` is the standard deviation of (counter - model) / counter over held-out seconds;
    `trusted` says that this residual was checked on held-out time and was small.
    """

    fixed_joules: float
    prefill_token_joules: float
    decode_token_joules: float
    context_token_joules: float
    attention_pair_joules: float = 0.0
    fixed_seconds: float = 0.0
    prefill_token_seconds: float = 0.0
    decode_token_seconds: float = 0.0
    context_token_seconds: float = 0.0
    attention_pair_seconds: float = 0.0
    power_cap_watts: float | None = None
    covariance: tuple[tuple[float, ...], ...] | None = None
    residual_fraction: float | None = None
    trusted: bool = False
    fitted_on: str = ""

    def __post_init__(self) -> None:
        for name in (*ENERGY_TERMS, *TIME_TERMS):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"step model: {name} must be a finite number of at least 0, not {value!r}")

    # --- joules -------------------------------------------------------------------------------------------

    def own_joules(self, work: Work) -> tuple[F64, F64]:
        """(prefill, decode) joules above idle of the work itself, without the fixed part of the step."""
        prefill = (
            self.prefill_token_joules * work.prefill_tokens
            + self.attention_pair_joules * work.attention_pairs
        )
        decode = (
            self.decode_token_joules * work.decode_tokens
            + self.context_token_joules * work.decode_context_tokens
        )
        return prefill, decode

    def own_seconds(self, work: Work) -> tuple[F64, F64]:
        """(prefill, decode) seconds by which the work makes its step longer."""
        prefill = (
            self.prefill_token_seconds * work.prefill_tokens
            + self.attention_pair_seconds * work.attention_pairs
        )
        decode = (
            self.decode_token_seconds * work.decode_tokens
            + self.context_token_seconds * work.decode_context_tokens
        )
        return prefill, decode

    def step_seconds(self, work: Work) -> F64:
        """Seconds of steps whose summed work is given."""
        prefill, decode = self.own_seconds(work)
        return self.fixed_seconds + prefill + decode

    def step_joules(self, work: Work, seconds: F64 | None = None) -> F64:
        """Joules above idle of steps whose summed work is given.

        With `seconds`, the steps' measured lengths, at most `power_cap_watts` for so long: right for sums
        over a second or more. Single short steps do exceed what a device sustains, so without `seconds` no
        cap is applied.
        """
        prefill, decode = self.own_joules(work)
        joules = self.fixed_joules + prefill + decode
        if self.power_cap_watts is not None and seconds is not None:
            joules = np.where(seconds > 0, np.minimum(joules, self.power_cap_watts * seconds), joules)
        return joules

    # --- files --------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.as_json(), indent=2)

    @classmethod
    def from_json(cls, text: str | dict[str, Any]) -> Self:
        """Read what `to_json` or `as_json` gave; raises ValueError naming the field that is wrong."""
        data = json.loads(text) if isinstance(text, str) else dict(text)
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise ValueError(f"step model: not a {SCHEMA} object")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"step model: unknown field {unknown[0]!r}")
        if data.get("covariance") is not None:
            data["covariance"] = tuple(tuple(float(x) for x in row) for row in data["covariance"])
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"step model: {error}") from None
