"""What one engine step costs: joules above idle and seconds, as a linear model of what the step computed."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from wattmeter.arrays import F64, I32, I64, sum_by
from wattmeter.steps.batch import StepBatch
from wattmeter.steps.busy import busy_starts, tail_seconds

ENERGY_TERMS = (
    "fixed_joules",
    "prefill_token_joules",
    "decode_token_joules",
    "context_token_joules",
    "attention_pair_joules",
    "tail_watts",
)
EXPERT_TERM = "expert_joules"
TIME_TERMS = (
    "fixed_seconds",
    "prefill_token_seconds",
    "decode_token_seconds",
    "context_token_seconds",
    "attention_pair_seconds",
    "large_prompt_token_seconds",
    "first_context_token_seconds",
)
EXPERT_TIME_TERM = "expert_seconds"
# Where time stops being a straight line: the first prompt tokens of a step hide behind reading the weights,
# and context is read at full bandwidth only where there is much of it. Found on the recorded H200.
PROMPT_KNEE_TOKENS = 64.0
CONTEXT_KNEE_TOKENS = 10_000.0
SCHEMA = "wattmeter.stepmodel/2"
# The first had neither tail nor padding, which then are none.
SCHEMAS = (SCHEMA, "wattmeter.stepmodel/1")
# How sharply a power limit bites over a second: at 90 % of the limit a tenth of a per cent is lost, at 100 %
# three. Found on load tests near the limit of the recorded H200 (docs/research/validation.md).
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
class Padding:
    """How many tokens a step computes for so many scheduled ones.

    Up to the largest of `graph_sizes` a step runs as a captured graph of the next size up, and computes that
    many; beyond it matrix products work in tiles of `tile_tokens` rows. Without sizes and with tiles of one
    nothing is padded.
    """

    graph_sizes: tuple[int, ...] = ()
    tile_tokens: int = 1

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.graph_sizes), self.graph_sizes, strict=False))
        if not rising or self.tile_tokens < 1:
            raise ValueError("padding: graph sizes must rise from above 0, tiles must have at least 1 token")

    def padded(self, tokens: F64) -> F64:
        """Tokens computed, (S,), for `tokens` scheduled in each step, (S,)."""
        result: F64 = (
            np.ceil(tokens / self.tile_tokens) * self.tile_tokens if self.tile_tokens > 1 else tokens
        )
        if self.graph_sizes:
            sizes = np.array((0, *self.graph_sizes), dtype=np.float64)
            row = np.searchsorted(sizes, tokens)
            result = np.where(row < len(sizes), sizes[np.minimum(row, len(sizes) - 1)], result)
        return result

    def padded_one(self, tokens: float) -> float:
        """The same for one step."""
        row = bisect.bisect_left(self.graph_sizes, tokens)
        if row < len(self.graph_sizes):
            return float(self.graph_sizes[row]) if tokens > 0 else 0.0
        return (
            float(math.ceil(tokens / self.tile_tokens) * self.tile_tokens) if self.tile_tokens > 1 else tokens
        )


NO_PADDING = Padding()


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a mixture-of-experts model: each token of a layer goes to `active` of `total`.

    A step reads the weights of every expert that any of its tokens goes to, once. Counted are the experts of
    one layer, as if each token chose at random.
    """

    total: int
    active: int

    def __post_init__(self) -> None:
        if not 0 < self.active <= self.total:
            raise ValueError("experts: at least one must be active, and no more than there are")

    @classmethod
    def of_shape(cls, shape: Mapping[str, object]) -> Self | None:
        """From a model's facts `experts` and `experts_per_token`; None for a dense model."""
        total, active = shape.get("experts"), shape.get("experts_per_token")
        if not isinstance(total, int) or not isinstance(active, int) or not 0 < active < total:
            return None
        return cls(total, active)

    def distinct(self, tokens: F64) -> F64:
        """Expected number of different experts of `tokens` (N,) tokens: E (1 - (1 - k/E)^n)."""
        result: F64 = self.total * -np.expm1(tokens * self._log_missed)
        return result

    def distinct_one(self, tokens: float) -> float:
        """The same for one step."""
        return self.total * -math.expm1(tokens * self._log_missed)

    @property
    def _log_missed(self) -> float:
        """The logarithm of the chance that one token does not go to a given expert."""
        return math.log1p(-self.active / self.total) if self.active < self.total else -1e6

    def shares(self, step: I32, tokens: F64, steps: int) -> F64:
        """The experts that each entry brings to its step, (E,): the Shapley value among the step's entries.

        `step` (E,) is the row of each entry's step, `tokens` (E,) are its own. An entry that meets a given
        expert with chance a brings it where nobody before it did: a x the mean, over the time t at which it
        comes in, of the chance that none of the others came before and met it. Sums over a step are
        `distinct` of all its tokens.
        """
        met = -np.expm1(tokens * self._log_missed)
        share = np.zeros(len(tokens))
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            missed = np.log1p(-node * met)
            share += weight * np.exp(sum_by(step, missed, steps)[step] - missed)
        share *= met
        total = sum_by(step, share, steps)
        whole = self.distinct(sum_by(step, tokens, steps))
        scale = np.divide(whole, total, out=np.zeros(steps), where=total > 0)
        result: F64 = share * scale[step]
        return result


# Where a mean over [0, 1] is taken (Gauss-Legendre).
_POINTS, _HALF_WEIGHTS = np.polynomial.legendre.leggauss(6)
_NODES, _WEIGHTS = 0.5 * (_POINTS + 1.0), 0.5 * _HALF_WEIGHTS
# Rows of a tile of the matrix products of a prompt: found on the recorded H200 (docs/research/validation.md),
# where 64 explained the energy of prompts just above a multiple of it and 1 and 128 did not.
TILE_TOKENS = 64
# vLLM captures graphs of these sizes unless told otherwise (vllm.config.compilation, 0.11 to 0.32).
VLLM_GRAPH_SIZES = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
VLLM_PADDING = Padding(VLLM_GRAPH_SIZES, TILE_TOKENS)


@dataclass(frozen=True, slots=True)
class WorkTerms:
    """What entries or steps computed, in the model's quantities besides the step; each shape (N,).

    `prefill_tokens` and `decode_tokens` as in StepBatch; `decode_context_tokens` is the context read while
    decoding (each decoding request reads its whole context once a step); `attention_pairs` is the number of
    (prompt token, token it attends to) pairs of prefill, the part of prefill that grows with its square.
    `large_prompt_tokens` are a step's prompt tokens beyond PROMPT_KNEE_TOKENS and `first_context_tokens` its
    context up to CONTEXT_KNEE_TOKENS; of entries, their parts of that in proportion. `prefill_padding` and
    `decode_padding` are tokens computed on top, in steps with and without prompt tokens; entries have none.
    `experts` are those whose weights the tokens need (none in a dense model), `expert_padding` those that
    only the padding needs.
    """

    prefill_tokens: F64
    decode_tokens: F64
    decode_context_tokens: F64
    attention_pairs: F64
    large_prompt_tokens: F64
    first_context_tokens: F64
    prefill_padding: F64
    decode_padding: F64
    experts: F64
    expert_padding: F64

    def __len__(self) -> int:
        return len(self.prefill_tokens)


def work_of(
    prefill: F64,
    decode: F64,
    context: F64,
    pairs: F64,
    padding: Padding = NO_PADDING,
    *,
    experts: Experts | None = None,
) -> WorkTerms:
    """The work of steps, (S,), whose prompt, decode and context tokens and attention pairs are given."""
    extra = padding.padded(prefill + decode) - prefill - decode
    prompt = prefill > 0
    none = np.zeros(len(prefill))
    needed = none if experts is None else experts.distinct(prefill + decode)
    padded = none if experts is None else experts.distinct(prefill + decode + extra)
    return WorkTerms(
        prefill,
        decode,
        context,
        pairs,
        np.maximum(prefill - PROMPT_KNEE_TOKENS, 0.0),
        np.minimum(context, CONTEXT_KNEE_TOKENS),
        np.where(prompt, extra, 0.0),
        np.where(prompt, 0.0, extra),
        needed,
        padded - needed,
    )


def entry_work(steps: StepBatch, experts: Experts | None = None) -> WorkTerms:
    """The work of each (step, request) entry, shape (E,)."""
    prefill = steps.prefill_tokens.astype(np.float64)
    decode = steps.decode_tokens.astype(np.float64)
    context = steps.context_tokens.astype(np.float64)
    read = np.where(decode > 0, context, 0.0)
    prompt_total = sum_by(steps.step, prefill, len(steps))
    context_total = sum_by(steps.step, read, len(steps))
    none = np.zeros(len(prefill))
    large = np.maximum(1.0 - PROMPT_KNEE_TOKENS / np.maximum(prompt_total, 1.0), 0.0)
    first = np.minimum(CONTEXT_KNEE_TOKENS / np.maximum(context_total, 1.0), 1.0)
    return WorkTerms(
        prefill_tokens=prefill,
        decode_tokens=decode,
        decode_context_tokens=read,
        attention_pairs=prefill * (context + 0.5 * prefill),
        large_prompt_tokens=prefill * large[steps.step],
        first_context_tokens=read * first[steps.step],
        prefill_padding=none,
        decode_padding=none,
        experts=none if experts is None else experts.shares(steps.step, prefill + decode, len(steps)),
        expert_padding=none,
    )


def step_work(
    steps: StepBatch,
    padding: Padding = NO_PADDING,
    work: WorkTerms | None = None,
    experts: Experts | None = None,
) -> WorkTerms:
    """The work of each step, shape (S,): its entries summed, and what padding adds."""
    work = entry_work(steps) if work is None else work
    count = len(steps)
    return work_of(
        sum_by(steps.step, work.prefill_tokens, count),
        sum_by(steps.step, work.decode_tokens, count),
        sum_by(steps.step, work.decode_context_tokens, count),
        sum_by(steps.step, work.attention_pairs, count),
        padding,
        experts=experts,
    )


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a batch of steps did, derived once for the split, the tenant factors, the estimates and the fit.

    `starts_ns` (S,) is when the device began each step; `entries` (E,) and `steps` (S,) are the work of the
    entries and their sums by step, the latter with `padding`; `equal_share` (E,) is one over the number of
    entries of the same step.
    """

    batch: StepBatch
    padding: Padding
    experts: Experts | None
    previous_end_ns: int | None
    starts_ns: I64
    entries: WorkTerms
    steps: WorkTerms
    equal_share: F64

    @classmethod
    def of(
        cls,
        batch: StepBatch,
        padding: Padding = NO_PADDING,
        previous_end_ns: int | None = None,
        *,
        experts: Experts | None = None,
    ) -> Self:
        """The work of a batch; `previous_end_ns` is the end of the step before its first one."""
        entries = entry_work(batch, experts)
        sharers = np.bincount(batch.step, minlength=len(batch))[batch.step].astype(np.float64)
        return cls(
            batch,
            padding,
            experts,
            previous_end_ns,
            busy_starts(batch, previous_end_ns),
            entries,
            step_work(batch, padding, entries, experts),
            1.0 / sharers,
        )

    def tail_seconds(self, until_ns: int) -> F64:
        """Seconds of the tail of each step, (S,), none of them beyond `until_ns`; see `busy.tail_ends`."""
        return tail_seconds(self.batch, self.starts_ns, until_ns)


@dataclass(frozen=True, slots=True)
class StepModel:
    """Joules above idle and seconds of one engine step; every coefficient is non-negative.

    joules  = fixed + prefill_token x prefill tokens + decode_token x decode tokens
              + context_token x context tokens read in decode + attention_pair x prefill attention pairs
              + tail_watts x seconds of its tail + expert x experts that its tokens need
    seconds = the same with the `_seconds` terms, neither tail nor padding, but
              + large_prompt_token x prompt tokens beyond PROMPT_KNEE_TOKENS
              + first_context_token x context tokens up to CONTEXT_KNEE_TOKENS

    Joules are of the tokens computed, `padding` included: it costs energy, but no time, where a step is as
    long as reading the weights takes. The tail of a step is the time after it without another,
    at most TAIL_SECONDS: a device that runs out of work falls to idle power only by and by.

    `experts` are those of a mixture-of-experts model, None for a dense one, which has no term for them.

    `power_cap_watts` (above idle, None where not known) is the power that the device sustains over a second
    or so, as the clock gives way: see `capped`.

    `covariance` is that of `energy_terms` in their order (joules^2), None where unknown;
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
    expert_joules: float = 0.0
    expert_seconds: float = 0.0
    padding: Padding = NO_PADDING
    experts: Experts | None = None
    power_cap_watts: float | None = None
    covariance: tuple[tuple[float, ...], ...] | None = None
    residual_fraction: float | None = None
    trusted: bool = False
    fitted_on: str = ""

    def __post_init__(self) -> None:
        for name in (*ENERGY_TERMS, EXPERT_TERM, *TIME_TERMS, EXPERT_TIME_TERM):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"step model: {name} must be a finite number of at least 0, not {value!r}")

    @property
    def energy_terms(self) -> tuple[str, ...]:
        """The names of the terms that its joules are made of."""
        return ENERGY_TERMS if self.experts is None else (*ENERGY_TERMS, EXPERT_TERM)

    def work(self, batch: StepBatch, previous_end_ns: int | None = None) -> StepWork:
        """The work of a batch as this model counts it; see `StepWork.of`."""
        return StepWork.of(batch, self.padding, previous_end_ns, experts=self.experts)

    # --- joules -------------------------------------------------------------------------------------------

    def work_joules(self, work: WorkTerms) -> tuple[F64, F64]:
        """(prefill, decode) joules above idle of the work itself, without the fixed part of the step."""
        prefill = (
            self.prefill_token_joules * (work.prefill_tokens + work.prefill_padding)
            + self.attention_pair_joules * work.attention_pairs
        )
        decode = (
            self.decode_token_joules * (work.decode_tokens + work.decode_padding)
            + self.context_token_joules * work.decode_context_tokens
        )
        if self.experts is not None:
            joules = self.expert_joules * (work.experts + work.expert_padding)
            prompt = _prompt_part(work)
            prefill, decode = prefill + joules * prompt, decode + joules * (1.0 - prompt)
        return prefill, decode

    def work_seconds(self, work: WorkTerms) -> tuple[F64, F64]:
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
        if self.experts is not None:
            seconds = self.expert_seconds * (work.experts + work.expert_padding)
            prompt = _prompt_part(work)
            prefill, decode = prefill + seconds * prompt, decode + seconds * (1.0 - prompt)
        return prefill, decode

    def step_seconds(self, work: WorkTerms) -> F64:
        """Seconds of steps whose summed work is given."""
        prefill, decode = self.work_seconds(work)
        return self.fixed_seconds + prefill + decode

    def step_joules(self, work: WorkTerms, seconds: F64 | None = None) -> F64:
        """Joules above idle of steps whose summed work is given, without their tails.

        With `seconds`, the steps' measured lengths, `capped` by `power_cap_watts` for so long: right for sums
        over a second or more. Single short steps do exceed what a device sustains, so without `seconds` no
        cap is applied.
        """
        prefill, decode = self.work_joules(work)
        joules = self.fixed_joules + prefill + decode
        if self.power_cap_watts is not None and seconds is not None:
            joules = capped(joules, self.power_cap_watts * seconds)
        return joules

    # --- files --------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        content = {"schema": SCHEMA, **asdict(self)}
        if self.experts is None:
            for name in ("experts", EXPERT_TERM, EXPERT_TIME_TERM):
                del content[name]
        return content

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
        try:
            if isinstance(data.get("experts"), dict):
                data["experts"] = Experts(int(data["experts"]["total"]), int(data["experts"]["active"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"step model: experts: {error}") from None
        if data.get("covariance") is not None:
            data["covariance"] = tuple(tuple(float(x) for x in row) for row in data["covariance"])
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"step model: {error}") from None


def _prompt_part(work: WorkTerms) -> F64:
    """The part of the tokens that are prompt tokens, (N,)."""
    tokens = work.prefill_tokens + work.decode_tokens
    return np.divide(work.prefill_tokens, tokens, out=np.zeros(len(tokens)), where=tokens > 0)


# Fitted to 1,065 s of the recorded H200 with Llama-3.1-8B in bf16 (docs/research/validation.md), rms 0.9 %.
# On another machine the proportions are a first guess until a model is fitted there: the counter sets the
# sum, and every figure is flagged model_not_trusted.
PRIOR_MODEL = StepModel(
    fixed_joules=1.82,
    prefill_token_joules=13.33e-3,
    decode_token_joules=15.6e-3,
    context_token_joules=23.7e-6,
    attention_pair_joules=0.57e-6,
    fixed_seconds=4.82e-3,
    prefill_token_seconds=10.2e-6,
    decode_token_seconds=10.5e-6,
    context_token_seconds=35.6e-9,
    attention_pair_seconds=1.56e-9,
    large_prompt_token_seconds=8.4e-6,
    first_context_token_seconds=10.4e-9,
    tail_watts=36.4,
    fitted_on="prior: H200, Llama-3.1-8B, bf16",
)
