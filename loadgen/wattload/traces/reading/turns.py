"""Recorded turns of sessions in, columns out: when turns began and ended tells which waited for which.

A turn waits for its agent's turns that had ended when it began, and for the last turns of the agents that
this one had started, as far as no other turn had waited for these already; the first turn of an agent waits
for what the agent above it would. So turns at the same time become branches, and the first after them joins
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattload.traces.parents import of_lists
from wattload.traces.reading.raw import RawTrace
from wattload.traces.trace import PrefixBlocks

I64 = npt.NDArray[np.int64]
Path = tuple[str, ...]

_LARGEST = 2**62


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
        # What no column can hold is refused as too long, where all traces' lengths are.
        prompt_tokens=np.array([min(turn.prompt_tokens, _LARGEST) for turn in chosen], np.int64),
        output_tokens=np.array([min(turn.output_tokens, _LARGEST) for turn in chosen], np.int64),
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
    last = {turn.agent: at for at, turn in enumerate(turns)}
    found: list[list[int]] = []
    live: list[int] = []
    children: list[list[int]] = [[] for _ in turns]
    for at, turn in enumerate(turns):
        # What had ended, and had been gone on from by nobody of its own agent or of those above it.
        live = [i for i in live if not _gone_on(turns, i, children[i], turn.start)]
        ended = [i for i in live if turns[i].end <= turn.start]
        waits: list[int] = []
        for length in range(len(turn.agent), -1, -1):
            scope = turn.agent[:length]
            waits = [
                i
                for i in ended
                if turns[i].agent == scope or (turns[i].agent[:length] == scope and i == last[turns[i].agent])
            ]
            if waits:
                break
        waits.sort(key=lambda i: (turns[i].agent != turn.agent, -turns[i].end))
        for i in waits:
            children[i].append(at)
        found.append(waits)
        live.append(at)
    return found


def _gone_on(turns: Sequence[Turn], at: int, children: Sequence[int], when: float) -> bool:
    """Whether a turn of the agent of turn `at`, or of one above it, waited for it and had ended by `when`."""
    own = turns[at].agent
    return any(turns[c].end <= when and own[: len(turns[c].agent)] == turns[c].agent for c in children)


def _blocks(turns: Sequence[Turn], session: I64, block_tokens: int) -> PrefixBlocks | None:
    """The blocks of all prompts; equal ids of different sessions are different blocks."""
    if not any(turn.blocks for turn in turns):
        return None
    lengths = np.array([len(turn.blocks or ()) for turn in turns], np.int64)
    ids = np.concatenate([np.asarray(turn.blocks or (), np.int64) for turn in turns])
    owner = np.repeat(session, lengths)
    most = np.zeros(int(session.max()) + 1, np.int64)
    np.maximum.at(most, owner, ids + 1)
    bases = np.concatenate([np.zeros(1, np.int64), np.cumsum(most)])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return PrefixBlocks(ids + bases[owner], offsets, block_tokens)
