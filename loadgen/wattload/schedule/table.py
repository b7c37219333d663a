"""The schedule: every request of a run, fixed before the first is sent.

Nothing at run time decides when a request is due (the two exceptions, a later turn of a session and a closed
loop, say so), so a slow server cannot slow the load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wattload.schedule.frame import NO_FRAME, Frame
from wattload.traces.parents import Parents, chains, histories, tasks
from wattload.traces.trace import PrefixBlocks


class Pages(Protocol):
    """The file that holds the arrays of a long schedule, where they are not in memory (mapped.py)."""

    def release(self) -> None:
        """Gives back the memory of the pages that were read."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """N planned requests in order of `nominal_seconds`; every array has shape (N,).

    `due_seconds`: float64, seconds after the start of the run. `prompt_tokens`, `output_tokens`: int32,
    exact lengths. `session`: int64, -1 where the request belongs to none. `turn`: int32, 0 for a
    session's first. `think_seconds`: float64, for a turn that waits the time between the last response
    that it waits for and this request (then `due_seconds` is NaN until it is known), NaN otherwise.
    `parents`: which turns each turn waits for; where none are given, the one before it in its session;
    None where nothing waits. `agent`: int32, which agent of its session a turn is of. `task`: int64,
    equal for the turns of one task of an agent, -1 outside of sessions. `tag`: int16 index into `tags`
    (tenants). `content_seed`: uint64, what the prompt's content is made from, so that any worker makes
    the same prompt; the turns of a conversation have one, and each prompt of it begins with the one
    before. `prefix_hashes`: per request the ids of its shared prefix blocks of `prefix_block_tokens`
    tokens, or None where the trace has none.

    `index`: int64, the request's place in the whole schedule, whichever shard this is. `nominal_seconds`:
    float64, when the request would be due if nothing had to be waited for: `due_seconds` where that is known,
    the arrival process's time for later turns, 0 in a closed loop. `shared_tokens`: int32, how many tokens at
    the prompt's start are the same in every prompt of its tag (`--prefix-share`). `texts`: the prompts, where
    the trace holds text; `text_starts`: int32, where in its text a turn says what is new. `own_answers`:
    later turns hold what the server said, so `prompt_tokens` is what was planned, and a request's row says
    what was sent. `closed_concurrency`: above 0 the loop is closed: `due_seconds` is NaN and a request is due
    when one of so many slots is free. `notes`: sentences for the user. `horizon_seconds`: the time the
    schedule covers. `content_base`: what shared content is made from. `pages`: the file that holds the arrays
    of a long schedule (mapped.py). `frame`: what stands around each prompt, whose tokens `prompt_tokens`
    leaves out. `model`: int16 index into `models`, None where all requests are for one. `images`: int16,
    how many images each request is planned with, -1 where its trace does not tell; None where none does.
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
    text_starts: npt.NDArray[np.int32] | None = None
    own_answers: bool = False
    closed_concurrency: int = 0
    notes: tuple[str, ...] = ()
    horizon_seconds: float = 0.0
    content_base: int = 0
    words: tuple[str, ...] = ()
    extra_tokens: int = 0
    pages: Pages | None = field(default=None, compare=False, repr=False)
    parents: Parents | None = None
    agent: npt.NDArray[np.int32] = None  # type: ignore[assignment]
    task: npt.NDArray[np.int64] = None  # type: ignore[assignment]
    _forks: Mapping[int, int] | None = field(default=None, compare=False, repr=False, init=False)
    frame: Frame = NO_FRAME
    model: npt.NDArray[np.int16] | None = None
    models: tuple[str, ...] = ()
    images: npt.NDArray[np.int16] | None = None

    def __post_init__(self) -> None:
        if self.parents is None:
            object.__setattr__(self, "parents", chains(self.session))
        if self.agent is None:
            object.__setattr__(self, "agent", np.zeros(len(self.session), np.int32))
        if self.task is None:
            tools = np.zeros(len(self.session), np.bool_)
            object.__setattr__(self, "task", tasks(self.parents, tools, self.session))
        if self.index is None:
            object.__setattr__(self, "index", np.arange(len(self.due_seconds)))
        if self.nominal_seconds is None:
            object.__setattr__(self, "nominal_seconds", np.nan_to_num(self.due_seconds))
        if not self.horizon_seconds and len(self.due_seconds):
            object.__setattr__(self, "horizon_seconds", float(self.nominal_seconds[-1]))

    def __len__(self) -> int:
        return len(self.due_seconds)

    @property
    def has_text(self) -> bool:
        """Whether prompts are text: the trace's own, or words. Else they are token ids."""
        return self.texts is not None or bool(self.words)

    @property
    def rate_rps(self) -> float | None:
        """Planned mean rate over the horizon; None for a closed loop and where everything is due at once."""
        if self.closed_concurrency or self.horizon_seconds <= 0:
            return None
        return len(self) / self.horizon_seconds

    def images_planned(self, row: int) -> int | None:
        """Images of a request as planned: as many as its trace tells, else one where the run has images of a
        size. None where it has none.
        """
        told = -1 if self.images is None else int(self.images[row])
        if told >= 0:
            return told
        return 1 if self.frame.image is not None else None

    def images_sent(self, row: int) -> int | None:
        """Images in the body of a request: those planned, or 0 where the run sends none of them."""
        planned = self.images_planned(row)
        return planned if planned is None or self.frame.image is not None else 0

    @property
    def before(self) -> npt.NDArray[np.int64]:
        """For each row the turn whose conversation it continues, -1 for a fresh one, shape (N,)."""
        return histories(self.parents, self.agent)

    @property
    def forks(self) -> Mapping[int, int]:
        """Where conversations branch: the content seed of a branch, and the row after which it leaves."""
        if self._forks is None and self.parents is None:
            object.__setattr__(self, "_forks", {})
        elif self._forks is None:
            before = self.before
            rows = np.flatnonzero(before >= 0)
            rows = rows[self.content_seed[rows] != self.content_seed[before[rows]]]
            found = zip(self.content_seed[rows].tolist(), before[rows].tolist(), strict=True)
            object.__setattr__(self, "_forks", dict(found))
        assert self._forks is not None
        return self._forks

    def take(self, rows: npt.NDArray[np.int64]) -> Schedule:
        """The rows asked for, in that order, with their places in the whole schedule."""
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in ARRAYS},
            prefix_hashes=None if self.prefix_hashes is None else self.prefix_hashes.take(rows),
            shared_tokens=None if self.shared_tokens is None else self.shared_tokens[rows],
            texts=None if self.texts is None else [self.texts[i] for i in rows],
            text_starts=None if self.text_starts is None else self.text_starts[rows],
            pages=None,
            parents=None if self.parents is None else self.parents.take(rows),
            model=None if self.model is None else self.model[rows],
            images=None if self.images is None else self.images[rows],
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
            # Sessions are dealt out in the order in which they begin, however many turns each has.
            owner[in_session] = np.argsort(np.argsort(first))[inverse]
        part = self.take(np.flatnonzero(owner % workers == worker))
        slots = self.closed_concurrency
        return replace(part, closed_concurrency=slots // workers + (worker < slots % workers))


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
    "agent",
    "task",
)
