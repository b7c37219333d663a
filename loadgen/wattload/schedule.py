"""The schedule: every request of a run, fixed before the first is sent.

Nothing at run time decides when a request is due (the two exceptions, a later turn of a session and a closed
loop, say so), so a slow server cannot slow the load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wattload import arrivals as processes
from wattload.arrivals import Arrivals, Demand
from wattload.arrivals.demand import demand_of
from wattload.errors import BadInput
from wattload.streams import mixed
from wattload.traces.rows import TraceRows
from wattload.traces.sessions import turns
from wattload.traces.trace import PrefixBlocks, Trace

if TYPE_CHECKING:
    from wattload.schedule_mapped import MappedPages

SESSION_MODES = ("after-answer", "trace-times")
LENGTH_POLICIES = ("error", "drop")


@dataclass(frozen=True, slots=True)
class Schedule:
    """N planned requests in order of `nominal_seconds`; every array has shape (N,).

    `due_seconds`: float64, seconds after the start of the run. `prompt_tokens`, `output_tokens`: int32, exact
    lengths. `session`: int64, -1 where the request belongs to none. `turn`: int32, 0 for a session's first.
    `think_seconds`: float64, for turns > 0 the time between the previous answer and this request (then
    `due_seconds` is NaN until it is known), NaN otherwise. `tag`: int16 index into `tags` (tenants).
    `content_seed`: uint64, what the prompt's content is made from, so that any worker makes the same prompt;
    the turns of a session have one, and each prompt of it begins with the one before. `prefix_hashes`: per
    request the ids of its shared prefix blocks of `prefix_block_tokens` tokens, or None where the trace has
    none.

    `index`: int64, the request's place in the whole schedule, whichever shard this is. `nominal_seconds`:
    float64, when the request would be due if nothing had to be waited for: `due_seconds` where that is known,
    the arrival process's time for later turns, 0 in a closed loop. `shared_tokens`: int32, how many tokens at
    the prompt's start are the same in every prompt of its tag (`--prefix-share`). `texts`: the prompts, where
    the trace holds text. `closed_concurrency`: above 0 the loop is closed: `due_seconds` is NaN and a request
    is due when one of so many slots is free. `notes`: sentences for the user. `horizon_seconds`: the time the
    schedule covers. `content_base`: what shared content is made from. `pages`: the file that holds the arrays
    of a long schedule (schedule_mapped.py).
    """

    due_seconds: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    session: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int32]
    think_seconds: npt.NDArray[np.float64]
    tag: npt.NDArray[np.int16]
    content_seed: npt.NDArray[np.uint64]
    tags: tuple[str, ...] = ("",)
    prefix_hashes: PrefixBlocks | None = None
    prefix_block_tokens: int = 0
    index: npt.NDArray[np.int64] = None  # type: ignore[assignment]
    nominal_seconds: npt.NDArray[np.float64] = None  # type: ignore[assignment]
    shared_tokens: npt.NDArray[np.int32] | None = None
    texts: Sequence[str] | None = None
    closed_concurrency: int = 0
    notes: tuple[str, ...] = ()
    horizon_seconds: float = 0.0
    content_base: int = 0
    words: tuple[str, ...] = ()
    extra_tokens: int = 0
    pages: MappedPages | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.index is None:
            object.__setattr__(self, "index", np.arange(len(self.due_seconds)))
        if self.nominal_seconds is None:
            object.__setattr__(self, "nominal_seconds", np.nan_to_num(self.due_seconds))
        if not self.horizon_seconds and len(self.due_seconds):
            object.__setattr__(self, "horizon_seconds", float(self.nominal_seconds[-1]))

    def __len__(self) -> int:
        return len(self.due_seconds)

    @property
    def rate_rps(self) -> float | None:
        """Planned mean rate over the horizon; None for a closed loop and where everything is due at once."""
        if self.closed_concurrency or self.horizon_seconds <= 0:
            return None
        return len(self) / self.horizon_seconds

    def take(self, rows: npt.NDArray[np.int64]) -> Schedule:
        """The rows asked for, in that order, with their places in the whole schedule."""
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in ARRAYS},
            prefix_hashes=None if self.prefix_hashes is None else self.prefix_hashes.take(rows),
            shared_tokens=None if self.shared_tokens is None else self.shared_tokens[rows],
            texts=None if self.texts is None else [self.texts[i] for i in rows],
            pages=None,
        )

    def shard(self, worker: int, workers: int) -> Schedule:
        """The share of `worker`, from 0, of `workers`: every request is in exactly one, a session's turns
        together.

        A closed loop's slots are dealt out too. Raises ValueError for a worker that is not one of them.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker {worker} of {workers}")
        if workers == 1:
            return self
        owner = np.arange(len(self))
        in_session = np.flatnonzero(self.session >= 0)
        if len(in_session):
            _, first, inverse = np.unique(self.session[in_session], return_index=True, return_inverse=True)
            owner[in_session] = in_session[first][inverse]
        part = self.take(np.flatnonzero(owner % workers == worker))
        slots = self.closed_concurrency
        return replace(part, closed_concurrency=slots // workers + (worker < slots % workers))

    def save(self, path: Path) -> None:
        """Writes schedule.parquet."""
        from wattload import schedule_file

        schedule_file.save(self, path)

    @staticmethod
    def load(path: Path) -> Schedule:
        """Reads what `save` wrote. Raises BadInput where the file is no schedule."""
        from wattload import schedule_file

        return schedule_file.load(path)


ARRAYS = (
    "due_seconds",
    "prompt_tokens",
    "output_tokens",
    "session",
    "turn",
    "think_seconds",
    "tag",
    "content_seed",
    "index",
    "nominal_seconds",
)


def build(
    trace: Trace,
    arrivals: Arrivals | str = "trace",
    *,
    rate: float | str | None = None,
    duration: float | None = None,
    requests: int | None = None,
    seed: int = 0,
    max_model_len: int | None = None,
    max_length: str = "error",
    repeat: bool = False,
    prefix_share: float = 0.0,
    sessions: str = "after-answer",
    tag: str | None = None,
) -> Schedule:
    """What is sent and when: the trace's requests in its order at the times of the arrival process.

    `rate`: mean requests a second, or "3x" for three times the trace's own times. `max_length`: "error" or
    "drop" for requests over `max_model_len` tokens. `sessions`: "after-answer" (a later turn is due its think
    time after the answer before) or "trace-times" (every turn at its own time, whatever the server did).
    `tag` names all requests. Raises BadInput naming the flag, or the trace's file and
    line.
    """
    process = processes.parse(arrivals) if isinstance(arrivals, str) else arrivals
    if not isinstance(prefix_share, (int, float)) or not 0 <= prefix_share <= 1:
        raise BadInput(f"--prefix-share {prefix_share} must be between 0 and 1")
    for flag, value, known in (
        ("--sessions", sessions, SESSION_MODES),
        ("--max-length", max_length, LENGTH_POLICIES),
    ):
        if value not in known:
            raise BadInput(f"{flag} {value}: known are {', '.join(known)}")
    demand = demand_of(rate, duration, requests)
    rows = TraceRows(trace, seed=seed, repeat=repeat)
    nominal = process.due_seconds(demand, rows, np.random.default_rng([seed, 0]))
    if not len(nominal):
        raise BadInput(f"--duration {duration:g}: no request is due within it")
    taken = rows.take(len(nominal))
    nominal = nominal[: len(taken)]
    horizon = _horizon(nominal, demand, rows.limit)
    notes = [*trace.notes, *_ended(trace, rows.limit, len(nominal), horizon, demand)]
    kept = _within(taken, max_model_len, max_length, notes)
    if kept is not None:
        taken, nominal = taken.take(kept), nominal[kept]
    return _planned(
        taken,
        nominal,
        concurrency=process.concurrency,
        base=content_base(seed),
        prefix_share=prefix_share,
        sessions=sessions,
        tag=tag,
        notes=notes,
        horizon=horizon,
    )


def content_base(seed: int) -> int:
    """What all content of a run is made from, below 2^63."""
    return int(mixed(seed & 0x7FFFFFFFFFFFFFFF)[0] >> np.uint64(1))


def _horizon(nominal: npt.NDArray[np.float64], demand: Demand, limit: int | None) -> float:
    """The time the schedule covers: the duration, or the last due time and a mean gap where that comes
    earlier.
    """
    n = len(nominal)
    end = float(nominal[-1]) * n / (n - 1) if n > 1 else float(nominal[-1])
    if not np.isfinite(end):
        return demand.duration_seconds or 0.0
    if demand.duration_seconds is None:
        return end
    whole = n >= min(limit or n + 1, demand.requests or n + 1)
    return min(end, demand.duration_seconds) if whole else demand.duration_seconds


def _ended(trace: Trace, limit: int | None, used: int, horizon: float, demand: Demand) -> list[str]:
    """What to say where the trace ended before the run did."""
    short = demand.duration_seconds is not None and horizon < 0.99 * demand.duration_seconds
    few = demand.requests is not None and used < demand.requests
    if limit is None or used < limit or not (short or few):
        return []
    asked = f"{demand.duration_seconds:g} s" if short else f"{demand.requests} requests"
    return [
        f"{trace.name} ends after {used} requests and {horizon:.1f} s of {asked}; --repeat plays it again"
    ]


def _within(trace: Trace, limit: int | None, policy: str, notes: list[str]) -> npt.NDArray[np.int64] | None:
    """The rows whose prompt and output fit the model's context; None: all of them."""
    if limit is None:
        return None
    total = trace.prompt_tokens.astype(np.int64) + trace.output_tokens
    long = total > limit
    if not long.any():
        return None
    at = int(np.argmax(long))
    where = f", {trace.lines(at)}" if trace.lines else f", request {at + 1}"
    if policy == "error":
        raise BadInput(
            f"{trace.name}{where}: {trace.prompt_tokens[at]} prompt and {trace.output_tokens[at]} output "
            f"tokens are more than the model's limit of {limit}; --max-length drop leaves such requests out "
            f"({int(long.sum())} of {len(trace)} here)"
        )
    if long.all():
        raise BadInput(f"{trace.name}: every request is longer than the model's limit of {limit} tokens")
    left_out = f"{int(long.sum())} of {len(trace)} requests"
    notes.append(f"{left_out} are over the model's limit of {limit} tokens and were left out")
    return np.flatnonzero(~long).astype(np.int64)


def _planned(
    trace: Trace,
    nominal: npt.NDArray[np.float64],
    *,
    concurrency: int,
    base: int,
    prefix_share: float,
    sessions: str,
    tag: str | None,
    notes: list[str],
    horizon: float,
) -> Schedule:
    count = len(trace)
    turn, _ = turns(np.asarray(trace.session))
    if prefix_share and (trace.prefix is not None or trace.texts is not None):
        raise BadInput(f"--prefix-share: {trace.name} says itself what its prompts share")
    waits = (turn > 0) if sessions == "after-answer" and not concurrency else np.zeros(count, bool)
    if concurrency and (turn > 0).any():
        notes.append("a closed loop sends the turns of a session as slots free, without think time")
    # Requests without a session draw their content from their place, those with one from the session.
    own = np.where(trace.session >= 0, trace.session, np.arange(count)).astype(np.uint64)
    return Schedule(
        due_seconds=np.where(waits, np.nan, nominal),
        prompt_tokens=np.array(trace.prompt_tokens, np.int32),
        output_tokens=np.array(trace.output_tokens, np.int32),
        session=np.array(trace.session, np.int64),
        turn=turn,
        think_seconds=np.where(waits, trace.think_seconds, np.nan),
        tag=np.array(trace.tag, np.int16) if tag is None else np.zeros(count, np.int16),
        content_seed=mixed(base, np.where(trace.session >= 0, 1, 0).astype(np.uint64), own),
        tags=trace.tags if tag is None else (tag,),
        prefix_hashes=trace.prefix,
        prefix_block_tokens=0 if trace.prefix is None else trace.prefix.block_tokens,
        nominal_seconds=np.nan_to_num(nominal),
        shared_tokens=_shared(trace, turn, prefix_share) if prefix_share else None,
        texts=trace.texts,
        closed_concurrency=concurrency,
        notes=tuple(notes),
        horizon_seconds=horizon,
        content_base=base,
    )


def _shared(trace: Trace, turn: npt.NDArray[np.int32], share: float) -> npt.NDArray[np.int32]:
    """How many tokens a prompt shares with its tag's others; later turns as many as the first, to begin
    with it.
    """
    shared: npt.NDArray[np.int32] = np.floor(trace.prompt_tokens * share).astype(np.int32)
    first = np.flatnonzero((turn == 0) & (trace.session >= 0))
    later = np.flatnonzero(turn > 0)
    if len(later):
        order = first[np.argsort(trace.session[first])]
        found = order[np.searchsorted(trace.session[order], trace.session[later])]
        shared[later] = np.minimum(shared[found], trace.prompt_tokens[later])
    return shared
