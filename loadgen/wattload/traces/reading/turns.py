"""Recorded turns of sessions in, columns out: when turns began and ended tells which waited for which.

A turn waits for its agent's turns that had ended when it began, and for the last turns of the agents that
this one had started, as far as no other turn had waited for these already; the first turn of an agent waits
for what the agent above it would. So turns at the same time become branches, and the first after them joins
them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from wattload.traces.parents import of_lists
from wattload.traces.reading.raw import LARGEST, RawTrace
from wattload.traces.trace import PrefixBlocks

I64 = npt.NDArray[np.int64]
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One request to a model. `agent`: who asked, as the way from the session's first agent, which is ().

    `start` and `end`, in seconds, count from any one moment of its session, or of the trace where `timed`.
    `by_user`: whether a user asked; else tools or other agents did. `place`: its line or entry in the file.
    `blocks`: the ids of the blocks of its prompt, whose scope is the session.
    """

    session: str
    agent: Path
    start: float
    end: float
    prompt_tokens: int
    output_tokens: int
    by_user: bool
    place: int
    blocks: Sequence[int] | None = None


def raw_of(
    turns: Iterable[Turn],
    *,
    timed: bool,
    unit: str,
    names: Mapping[str, str],
    block_tokens: int = 0,
    notes: Sequence[str] = (),
    licence: str = "",
    citation: str = "",
) -> RawTrace:
    """The columns of `turns`, which may come in any order; there must be some.

    Of a trace that is not `timed` the sessions come one after the other, each in the order of its turns.
    """
    sessions: dict[str, list[Turn]] = {}
    for turn in turns:
        sessions.setdefault(turn.session, []).append(turn)
    rows: list[Turn] = []
    parents: list[list[int]] = []
    number: list[int] = []
    agents: list[int] = []
    for place, recorded in enumerate(sessions.values()):
        ordered = sorted(recorded, key=lambda turn: (turn.start, turn.end))
        first = len(rows)
        known: dict[Path, int] = {ordered[0].agent: 0}
        agents += [known.setdefault(turn.agent, len(known)) for turn in ordered]
        parents += [[first + i for i in waits] for waits in waited_for(ordered)]
        rows += ordered
        number += [place] * len(ordered)
    starts = np.array([turn.start for turn in rows])
    ends = np.array([turn.end for turn in rows])
    wait = [
        max(0.0, turn.start - max(ends[p] for p in waits)) if waits else np.nan
        for turn, waits in zip(rows, parents, strict=True)
    ]
    graph = of_lists(parents)
    order = np.argsort(starts, kind="stable") if timed else np.arange(len(rows))
    chosen = [rows[i] for i in order]
    tool = np.array([not turn.by_user for turn in rows]) & graph.waits
    return RawTrace(
        prompt_tokens=np.array([min(turn.prompt_tokens, LARGEST) for turn in chosen], np.int64),
        output_tokens=np.array([min(turn.output_tokens, LARGEST) for turn in chosen], np.int64),
        seconds=starts[order] - starts.min() if timed else None,
        session=np.array(number, np.int64)[order],
        think=np.array(wait)[order],
        parents=graph.take(order),
        agent=np.array(agents, np.int64)[order],
        tool=tool[order],
        prefix=_blocks(chosen, np.array(number, np.int64)[order], block_tokens),
        coarse_clock=True,
        drop_empty=True,
        line_of=[turn.place for turn in chosen].__getitem__,
        unit=unit,
        names=names,
        notes=list(notes),
        licence=licence,
        citation=citation,
    )


def waited_for(turns: Sequence[Turn]) -> list[list[int]]:
    """For each turn of one session, in order of their starts, the places of those that it waited for.

    Those of its own agent come first, the latest of them before the others.
    """
    ended = _Ended(turns)
    found: list[list[int]] = []
    for at, turn in enumerate(turns):
        ended.until(turn.start)
        waits = ended.waited_by(turn.agent)
        waits.sort(key=lambda i: (turns[i].agent != turn.agent, -turns[i].end, i))
        ended.add(at, waits)
        found.append(waits)
    return found


class _Ended:
    """The turns of a session that have ended by a time which moves on, and that nobody has gone on from.

    A turn has been gone on from when a turn of its own agent, or of one above it, that waited for it has
    ended too. Both are told by their times alone: each turn is looked at a few times, however many are open.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._turns = turns
        self._last = {turn.agent: at for at, turn in enumerate(turns)}
        # Of each agent, and of the agents below it the last turns of each.
        self._own: dict[Path, set[int]] = {}
        self._below: dict[Path, set[int]] = {}
        self._open: list[tuple[float, int]] = []
        self._going: list[tuple[float, int]] = []
        self._gone: set[int] = set()

    def until(self, when: float) -> None:
        """Moves the time on."""
        while self._going and self._going[0][0] <= when:
            at = heapq.heappop(self._going)[1]
            self._gone.add(at)
            for places in self._places(at):
                places.discard(at)
        while self._open and self._open[0][0] <= when:
            at = heapq.heappop(self._open)[1]
            if at not in self._gone:
                for places in self._places(at):
                    places.add(at)

    def waited_by(self, agent: Path) -> list[int]:
        """What a turn of `agent` that begins now waited for."""
        for length in range(len(agent), -1, -1):
            scope = agent[:length]
            waits = [*self._own.get(scope, ()), *self._below.get(scope, ())]
            if waits:
                return waits
        return []

    def add(self, at: int, waits: Sequence[int]) -> None:
        """Takes a turn that begins now, and what it waited for."""
        turn = self._turns[at]
        heapq.heappush(self._open, (turn.end, at))
        for i in waits:
            if self._turns[i].agent[: len(turn.agent)] == turn.agent:
                heapq.heappush(self._going, (turn.end, i))

    def _places(self, at: int) -> list[set[int]]:
        agent = self._turns[at].agent
        places = [self._own.setdefault(agent, set())]
        if self._last[agent] == at:
            above = (agent[:length] for length in range(len(agent)))
            places += [self._below.setdefault(scope, set()) for scope in above]
        return places


def _blocks(turns: Sequence[Turn], session: I64, block_tokens: int) -> PrefixBlocks | None:
    """The blocks of all prompts; equal ids of different sessions are different blocks."""
    if not any(turn.blocks for turn in turns):
        return None
    lengths = np.array([len(turn.blocks or ()) for turn in turns], np.int64)
    every = chain.from_iterable(turn.blocks or () for turn in turns)
    ids = np.fromiter(every, np.int64, count=int(lengths.sum()))
    owner = np.repeat(session, lengths)
    most = np.zeros(int(session.max()) + 1, np.int64)
    np.maximum.at(most, owner, ids + 1)
    bases = np.concatenate([np.zeros(1, np.int64), np.cumsum(most)])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return PrefixBlocks(ids + bases[owner], offsets, block_tokens)
