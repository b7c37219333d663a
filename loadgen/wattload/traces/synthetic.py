"""`random:prompt=512,output=128`: requests of lengths drawn from given distributions, without a trace.

Its times are a Poisson process of one request per second, which `rate` stretches as it does a trace's. With
`turns` the requests come in sessions, whose first turns are that process.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattload.errors import InputError
from wattload.traces.trace import MAX_TOKENS, Trace

PREFIX = "random:"
_BATCH = 4096
# So many rows stand for the workload where it is described, as by `wattload traces show`.
_ROWS_SHOWN = 10_000
_TRIES = 200
# What is drawn, and the most it may be: tokens, turns, seconds.
_FIELDS = {"prompt": MAX_TOKENS, "output": MAX_TOKENS, "turns": 10_000, "think": 86_400}

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A distribution within [least, most]; what falls outside is drawn again. `whole`: of whole numbers."""

    text: str
    draw: Callable[[np.random.Generator, int], F64]
    least: float
    most: float
    whole: bool = True

    def sample(self, count: int, rng: np.random.Generator) -> F64:
        """`count` values, shape (count,). Raises InputError where hardly any falls inside."""
        found = self._some(rng, count)
        for _ in range(_TRIES):
            outside = np.flatnonzero((found < self.least) | (found > self.most))
            if not len(outside):
                return found
            found[outside] = self._some(rng, len(outside))
        raise InputError("trace", f"{self.text}: hardly any value falls into {self.least:g}..{self.most:g}")

    def _some(self, rng: np.random.Generator, count: int) -> F64:
        found = self.draw(rng, count)
        return np.round(found) if self.whole else found


@dataclass(frozen=True, slots=True)
class RandomWorkload:
    """Requests of random lengths; `sample` draws as many as a run needs.

    With `turns`, requests come in sessions: `prompt` is what a turn says anew, to which all that was said
    before is added, and `think` the seconds between an answer and the next turn.
    """

    text: str
    prompt: Drawn
    output: Drawn
    turns: Drawn | None = None
    think: Drawn | None = None

    @property
    def rows(self) -> int:
        return _ROWS_SHOWN

    def sample(self, count: int, seed: int = 0) -> Trace:
        """`count` requests; the same seed gives the same, and a longer sample begins with a shorter one."""
        columns = self._single(count, seed) if self.turns is None else self._sessions(count, seed)
        seconds, prompt, output, session, turn, think = (column[:count] for column in columns)
        return Trace(
            name=self.text,
            format="random",
            seconds=seconds - seconds[0] if count else seconds,
            prompt_tokens=prompt.astype(np.int32),
            output_tokens=output.astype(np.int32),
            session=session.astype(np.int64),
            turn=turn.astype(np.int32),
            think_seconds=think,
            tag=np.zeros(count, np.int16),
            sha256=hashlib.sha256(self.text.encode()).hexdigest(),
            notes=(
                "lengths are drawn at random, and requests come as a Poisson process of 1 per second unless"
                " `rate` or another process is given",
            ),
        )

    def _single(self, count: int, seed: int) -> tuple[F64, ...]:
        times, prompts, outputs = (np.random.default_rng([seed, part]) for part in (1, 2, 3))
        # Drawn in fixed batches, so that the first rows do not depend on how many are asked for.
        batches = range(max(1, -(-count // _BATCH)))
        seconds = np.cumsum(np.concatenate([times.exponential(1.0, _BATCH) for _ in batches]))
        prompt = np.concatenate([self.prompt.sample(_BATCH, prompts) for _ in batches])
        output = np.concatenate([self.output.sample(_BATCH, outputs) for _ in batches])
        nothing = np.zeros(len(seconds))
        return seconds, prompt, output, nothing - 1, nothing, nothing + np.nan

    def _sessions(self, count: int, seed: int) -> tuple[F64, ...]:
        """The rows of as many sessions as begin before the `count`th row, in order of time."""
        assert self.turns is not None
        # One request a second in the long run.
        gap = float(self.turns.sample(_BATCH, np.random.default_rng(0)).mean())
        begins = np.random.default_rng([seed, 1])
        start, number, before = 0.0, 0, 0
        parts: list[F64] = []
        pending: list[float] = []
        while before < count or not parts:
            parts.append(self._session(start, number, np.random.default_rng([seed, 2, number])))
            for when in parts[-1][0]:
                heapq.heappush(pending, float(when))
            start, number = start + float(begins.exponential(gap)), number + 1
            while pending and pending[0] < start:
                heapq.heappop(pending)
                before += 1
        rows = np.concatenate(parts, axis=1)
        return tuple(rows[:, np.argsort(rows[0], kind="stable")])

    def _session(self, start: float, number: int, rng: np.random.Generator) -> F64:
        """One session's rows, shape (6, turns), a later turn at the time it had if answers took none."""
        assert self.turns is not None
        turns = int(self.turns.sample(1, rng)[0])
        new, output = self.prompt.sample(turns, rng), self.output.sample(turns, rng)
        think = np.zeros(turns) if self.think is None else self.think.sample(turns, rng)
        think[0] = 0.0
        seconds = start + np.cumsum(think)
        prompt = np.cumsum(new) + np.concatenate(([0.0], np.cumsum(output)[:-1]))
        think[0] = np.nan
        return np.stack([seconds, prompt, output, np.full(turns, float(number)), np.arange(turns), think])


def parse_random(text: str) -> RandomWorkload:
    """`random:prompt=LENGTHS,output=LENGTHS[,turns=NUMBER,think=SECONDS]`. Raises InputError saying what is
    wrong.

    Each is `512`, `256..1024` (uniform), `normal:mean=M:sd=S`, `lognormal:mean=M:cv=C` or
    `exponential:mean=M`, the last three with `:min=A` and `:max=B` where these are not to be 1 (of seconds:
    0) and none.
    """
    values: dict[str, Drawn] = {}
    for part in text.removeprefix(PREFIX).split(","):
        name, equals, given = (word.strip() for word in part.partition("="))
        if name not in _FIELDS or not equals or name in values:
            raise InputError(
                "trace",
                f"{text}: {part!r} is not one of prompt=LENGTHS, output=LENGTHS, turns=NUMBER and"
                " think=SECONDS, each once",
            )
        values[name] = _drawn(text, given, whole=name != "think", most=_FIELDS[name])
    missing = next((name for name in ("prompt", "output") if name not in values), None)
    if missing is not None:
        raise InputError("trace", f"{text}: {missing}= is missing, as random:prompt=512,output=128")
    if "think" in values and "turns" not in values:
        raise InputError("trace", f"{text}: think= is the time between turns=")
    return RandomWorkload(text, **values)


def _drawn(whole_text: str, text: str, *, whole: bool, most: float) -> Drawn:
    name, *parts = text.split(":")
    low, dots, high = name.partition("..")
    if not parts and (dots or name not in _DISTRIBUTIONS):
        first = _bound(whole_text, low, whole=whole, most=most)
        last = _bound(whole_text, high, whole=whole, most=most) if dots else first
        if last < first:
            raise InputError("trace", f"{whole_text}: {text}: the second number is below the first")
        if whole:
            return Drawn(
                text,
                lambda rng, n: rng.integers(int(first), int(last) + 1, n).astype(np.float64),
                first,
                last,
            )
        return Drawn(text, lambda rng, n: rng.uniform(first, last, n), first, last, whole)
    if name not in _DISTRIBUTIONS:
        known = ", ".join(_DISTRIBUTIONS)
        raise InputError("trace", f"{whole_text}: {name!r}: write a number, A..B or one of {known}")
    given: dict[str, float] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or key in given:
            raise InputError("trace", f"{whole_text}: {part!r} is not KEY=NUMBER, each key once")
        given[key] = _number(whole_text, key, value)
    wanted, make = _DISTRIBUTIONS[name]
    least, limit = given.pop("min", 1.0 if whole else 0.0), given.pop("max", most)
    if set(given) != set(wanted):
        raise InputError("trace", f"{whole_text}: {name} takes {' and '.join(wanted)}, and min and max")
    if not least <= limit <= most:
        raise InputError("trace", f"{whole_text}: {name}: min and max must be up to {most:g}, in this order")
    return Drawn(text, make(*(given[key] for key in wanted)), least, limit, whole)


def _bound(whole_text: str, text: str, *, whole: bool, most: float) -> float:
    value = _number(whole_text, "a number", text)
    if (whole and value != int(value)) or value > most or (whole and value < 1):
        kind = "a whole number from 1" if whole else "a number"
        raise InputError("trace", f"{whole_text}: {text}: must be {kind} up to {most:g}")
    return value


def _number(whole: str, what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError("trace", f"{whole}: {text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise InputError("trace", f"{whole}: {what} {text} must be a finite number above 0")
    return value


Draw = Callable[[np.random.Generator, int], F64]


def _normal(mean: float, sd: float) -> Draw:
    return lambda rng, n: rng.normal(mean, sd, n)


def _lognormal(mean: float, cv: float) -> Draw:
    """`mean` and `cv` (standard deviation over mean) are of the lengths, not of their logarithms."""
    variance = np.log1p(cv**2)
    return lambda rng, n: rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), n)


def _exponential(mean: float) -> Draw:
    return lambda rng, n: rng.exponential(mean, n)


_DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], Callable[..., Draw]]] = {
    "normal": (("mean", "sd"), _normal),
    "lognormal": (("mean", "cv"), _lognormal),
    "exponential": (("mean",), _exponential),
}
