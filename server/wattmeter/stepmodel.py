"""What one engine step costs: joules above idle and seconds, as a linear model of what the step computed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from wattmeter.padding import NO_PADDING, Padding
from wattmeter.steps import StepBatch

F64 = npt.NDArray[np.float64]

ENERGY_TERMS = (
    "fixed_joules",
    "prefill_token_joules",
    "decode_token_joules",
    "context_token_joules",
    "attention_pair_joules",
    "tail_watts",
)
TIME_TERMS = (
    "fixed_seconds",
    "prefill_token_seconds",
    "decode_token_seconds",
    "context_token_seconds",
    "attention_pair_seconds",
    "large_prompt_token_seconds",
    "first_context_token_seconds",
)
# Where time stops being a straight line: the first prompt tokens of a step hide behind reading the weights,
# and context is read at full bandwidth only where there is much of it. Found on the recorded H200.
PROMPT_KNEE_TOKENS = 64.0
CONTEXT_KNEE_TOKENS = 10_000.0
SCHEMA = "wattmeter.stepmodel/2"
# The first had neither tail nor padding, which then are none.
SCHEMAS = (SCHEMA, "wattmeter.stepmodel/1")
# How sharply a power limit bites over a second: at 90 % of the limit a tenth of a per cent is lost, at 100 %
# three. Found on load tests near the limit of the recorded H200 (docs/validation.md).
CAP_SHARPNESS = 24.0


def capped(joules: F64, limit_joules: F64) -> F64:
    """What is left of `joules` where the device cannot spend more than `limit_joules` in that time; (N,).

    joules / (1 + (joules / limit)^CAP_SHARPNESS)^(1 / CAP_SHARPNESS): smooth, since within a second that
    needs nearly the limit on average some moments need more. Where the limit is not above 0 nothing is left
    out.
    """
    ratio = np.divide(joules, limit_joules, out=np.zeros_like(joules), where=limit_joules > 0)
    over = np.clip(ratio, 0.0, 1e6) ** CAP_SHARPNESS
    result: F64 = joules / (1.0 + over) ** (1.0 / CAP_SHARPNESS)
    return result


def uncapped(joules: F64, limit_joules: F64) -> F64:
    """The inverse of `capped`, for joules below the limit; infinite at it and above."""
    ratio = np.divide(joules, limit_joules, out=np.zeros_like(joules), where=limit_joules > 0)
    under = 1.0 - np.clip(ratio, 0.0, 1.0) ** CAP_SHARPNESS
    with np.errstate(divide="ignore"):
        result: F64 = joules / under ** (1.0 / CAP_SHARPNESS)
    return result


@dataclass(frozen=True, slots=True)
class Work:
    """What entries or steps computed, in the model's quantities besides the step; each shape (N,).

    `prefill_tokens` and `decode_tokens` as in StepBatch; `decode_context_tokens` is the context read while
    decoding (each decoding request reads its whole context once a step); `attention_pairs` is the number of
    (prompt token, token it attends to) pairs of prefill, the part of prefill that grows with its square.
    `large_prompt_tokens` are a step's prompt tokens beyond PROMPT_KNEE_TOKENS and `first_context_tokens` its
    context up to CONTEXT_KNEE_TOKENS; of entries, their parts of that in proportion. `prefill_padding` and
    `decode_padding` are tokens computed on top, in steps with and without prompt tokens; entries have none.
    """

    prefill_tokens: F64
    decode_tokens: F64
    decode_context_tokens: F64
    attention_pairs: F64
    large_prompt_tokens: F64
    first_context_tokens: F64
    prefill_padding: F64
    decode_padding: F64

    def __len__(self) -> int:
        return len(self.prefill_tokens)


def sum_by(index: npt.NDArray[np.integer[Any]], values: F64, length: int) -> F64:
    """Sums of `values` (N,) by their `index` (N,) in 0..length-1, shape (length,)."""
    return np.bincount(index, weights=values, minlength=length).astype(np.float64, copy=False)


def work_of(prefill: F64, decode: F64, context: F64, pairs: F64, padding: Padding = NO_PADDING) -> Work:
    """The work of steps, (S,), whose prompt, decode and context tokens and attention pairs are given."""
    extra = padding.padded(prefill + decode) - prefill - decode
    prompt = prefill > 0
    return Work(
        prefill,
        decode,
        context,
        pairs,
        np.maximum(prefill - PROMPT_KNEE_TOKENS, 0.0),
        np.minimum(context, CONTEXT_KNEE_TOKENS),
        np.where(prompt, extra, 0.0),
        np.where(prompt, 0.0, extra),
    )


def entry_work(steps: StepBatch) -> Work:
    """The work of each (step, request) entry, shape (E,)."""
    prefill = steps.prefill_tokens.astype(np.float64)
    decode = steps.decode_tokens.astype(np.float64)
    context = steps.context_tokens.astype(np.float64)
    read = np.where(decode > 0, context, 0.0)
    prompt_total = sum_by(steps.step, prefill, len(steps))
    context_total = sum_by(steps.step, read, len(steps))
    large = np.maximum(1.0 - PROMPT_KNEE_TOKENS / np.maximum(prompt_total, 1.0), 0.0)
    first = np.minimum(CONTEXT_KNEE_TOKENS / np.maximum(context_total, 1.0), 1.0)
    return Work(
        prefill_tokens=prefill,
        decode_tokens=decode,
        decode_context_tokens=read,
        attention_pairs=prefill * (context + 0.5 * prefill),
        large_prompt_tokens=prefill * large[steps.step],
        first_context_tokens=read * first[steps.step],
        prefill_padding=np.zeros(len(prefill)),
        decode_padding=np.zeros(len(prefill)),
    )


def step_work(steps: StepBatch, padding: Padding = NO_PADDING, work: Work | None = None) -> Work:
    """The work of each step, shape (S,): its entries summed, and what padding adds."""
    work = entry_work(steps) if work is None else work
    count = len(steps)
    return work_of(
        sum_by(steps.step, work.prefill_tokens, count),
        sum_by(steps.step, work.decode_tokens, count),
        sum_by(steps.step, work.decode_context_tokens, count),
        sum_by(steps.step, work.attention_pairs, count),
        padding,
    )


@dataclass(frozen=True, slots=True)
class StepEnergyModel:
    """Joules above idle and seconds of one engine step; every coefficient is non-negative.

    joules  = fixed + prefill_token x prefill tokens + decode_token x decode tokens
              + context_token x context tokens read in decode + attention_pair x prefill attention pairs
              + tail_watts x seconds of its tail
    seconds = the same with the `_seconds` terms, neither tail nor padding, but
              + large_prompt_token x prompt tokens beyond PROMPT_KNEE_TOKENS
              + first_context_token x context tokens up to CONTEXT_KNEE_TOKENS

    Joules are of the tokens computed, `padding` included: it costs energy, but no time, where a step is as
    long as reading the weights takes. The tail of a step is the time after it without another,
    at most TAIL_SECONDS: a device that runs out of work falls to idle power only by and by.

    `power_cap_watts` (above idle, None where not known) is the power that the device sustains over a second
    or so, as the clock gives way: see `capped`.

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
    large_prompt_token_seconds: float = 0.0
    first_context_token_seconds: float = 0.0
    tail_watts: float = 0.0
    padding: Padding = NO_PADDING
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
            self.prefill_token_joules * (work.prefill_tokens + work.prefill_padding)
            + self.attention_pair_joules * work.attention_pairs
        )
        decode = (
            self.decode_token_joules * (work.decode_tokens + work.decode_padding)
            + self.context_token_joules * work.decode_context_tokens
        )
        return prefill, decode

    def own_seconds(self, work: Work) -> tuple[F64, F64]:
        """(prefill, decode) seconds by which the work makes its step longer."""
        prefill = (
            self.prefill_token_seconds * work.prefill_tokens
            + self.attention_pair_seconds * work.attention_pairs
            + self.large_prompt_token_seconds * work.large_prompt_tokens
        )
        decode = (
            self.decode_token_seconds * work.decode_tokens
            + self.context_token_seconds * work.decode_context_tokens
            + self.first_context_token_seconds * work.first_context_tokens
        )
        return prefill, decode

    def step_seconds(self, work: Work) -> F64:
        """Seconds of steps whose summed work is given."""
        prefill, decode = self.own_seconds(work)
        return self.fixed_seconds + prefill + decode

    def step_joules(self, work: Work, seconds: F64 | None = None) -> F64:
        """Joules above idle of steps whose summed work is given, without their tails.

        With `seconds`, the steps' measured lengths, `capped` by `power_cap_watts` for so long: right for sums
        over a second or more. Single short steps do exceed what a device sustains, so without `seconds` no
        cap is applied.
        """
        prefill, decode = self.own_joules(work)
        joules = self.fixed_joules + prefill + decode
        if self.power_cap_watts is not None and seconds is not None:
            joules = capped(joules, self.power_cap_watts * seconds)
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
        if not isinstance(data, dict) or data.pop("schema", None) not in SCHEMAS:
            raise ValueError(f"step model: not a {SCHEMA} object")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"step model: unknown field {unknown[0]!r}")
        try:
            if isinstance(data.get("padding"), dict):
                sizes = tuple(int(size) for size in data["padding"].get("graph_sizes", ()))
                data["padding"] = Padding(sizes, int(data["padding"].get("tile_tokens", 1)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"step model: padding: {error}") from None
        if data.get("covariance") is not None:
            data["covariance"] = tuple(tuple(float(x) for x in row) for row in data["covariance"])
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"step model: {error}") from None
