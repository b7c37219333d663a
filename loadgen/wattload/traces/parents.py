"""Which turns a turn waits for: the graph of a session, of which a chain of turns is the plainest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parents:
    """Ragged rows: row i waits for the responses of rows `rows[offsets[i]:offsets[i + 1]]`, all before it.

    `rows`: int64, shape (M,). `offsets`: int64, shape (N + 1,). A row without parents waits for nothing. The
    first parent of a turn's own agent is the one whose conversation the turn continues.
    """

    rows: I64
    offsets: I64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[int, ...]:
        """The parents of row `index`."""
        return tuple(self.rows[self.offsets[index] : self.offsets[index + 1]].tolist())

    @property
    def counts(self) -> I64:
        """How many parents each row has, shape (N,)."""
        return np.diff(self.offsets)

    @property
    def waits(self) -> npt.NDArray[np.bool_]:
        """Which rows have any, shape (N,)."""
        return self.counts > 0

    @property
    def children(self) -> I64:
        """The row that waits, of each of `rows`, shape (M,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def head(self, count: int) -> Parents:
        """Those of the first `count` rows."""
        offsets = self.offsets[: count + 1]
        return Parents(self.rows[: offsets[-1]], offsets)

    def take(self, rows: I64) -> Parents:
        """Those of `rows`, shape (K,), each once, in that order.

        In the place of a parent that is not among them stand its own parents.
        """
        place = np.full(len(self), -1, np.int64)
        place[rows] = np.arange(len(rows))
        counts = self.counts[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        found = place[self.rows[np.repeat(self.offsets[rows], counts) + within]]
        if (found >= 0).all():
            return Parents(found, offsets)
        return of_lists([[int(place[p]) for p in self._kept(int(row), place)] for row in rows])

    def _kept(self, row: int, place: I64) -> list[int]:
        """The nearest rows before `row` that have a place, each once, in their order."""
        found: dict[int, None] = {}
        pending = list(reversed(self[row]))
        while pending:
            parent = pending.pop()
            if place[parent] >= 0:
                found[parent] = None
            else:
                pending.extend(reversed(self[parent]))
        return list(found)

    def repeated(self, count: int) -> Parents:
        """Those of `count` rows that are these over and over, each round after its own rows."""
        rounds = -(-count // len(self))
        shift = np.arange(rounds) * len(self)
        rows = (self.rows[None, :] + shift[:, None]).ravel()
        counts = np.tile(self.counts, rounds)
        return Parents(rows, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])).head(count)


def of_lists(parents: list[list[int]]) -> Parents:
    """From the parents of each row."""
    counts = np.array([len(each) for each in parents], np.int64)
    rows = np.array([row for each in parents for row in each], np.int64)
    return Parents(rows, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))


def chains(session: I64) -> Parents | None:
    """Each turn after the one before it in its session; None where no session has two turns."""
    rows = np.flatnonzero(session >= 0)
    order = rows[np.argsort(session[rows], kind="stable")]
    linked = session[order[:-1]] == session[order[1:]]
    before = np.full(len(session), -1, np.int64)
    before[order[1:][linked]] = order[:-1][linked]
    has = before >= 0
    if not has.any():
        return None
    return Parents(before[has], np.concatenate([np.zeros(1, np.int64), np.cumsum(has)]))


def places(session: I64) -> npt.NDArray[np.int32]:
    """For each row its place in its session, from 0, shape (N,)."""
    count = len(session)
    order = np.argsort(session, kind="stable")
    ordered = session[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    place = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    place[ordered < 0] = 0
    turn = np.zeros(count, np.int32)
    turn[order] = place
    return turn


def joined(parts: list[Parents | None], lengths: list[int]) -> Parents | None:
    """The graphs of tables that are laid one behind the other; None where none has one."""
    if all(part is None for part in parts):
        return None
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    counts = [
        np.zeros(n, np.int64) if part is None else part.counts for part, n in zip(parts, lengths, strict=True)
    ]
    rows = [part.rows + start for part, start in zip(parts, starts, strict=False) if part is not None]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return Parents(np.concatenate(rows), offsets)


def histories(parents: Parents | None, agent: npt.NDArray[np.int32]) -> I64:
    """For each row the turn whose conversation it continues, -1 for a fresh one, shape (N,).

    That is its first parent of the same agent of its session: what another agent said is told in new words.
    """
    before = np.full(len(agent), -1, np.int64)
    if parents is None or not len(parents.rows):
        return before
    children = parents.children
    same = np.flatnonzero(agent[children] == agent[parents.rows])
    rows, first = np.unique(children[same], return_index=True)
    before[rows] = parents.rows[same[first]]
    return before


def tasks(parents: Parents | None, tool: npt.NDArray[np.bool_], session: I64) -> I64:
    """For each row the task it belongs to, -1 for a request of no session, shape (N,).

    A user's turn begins a task, which is called by its row; what follows it after tools or other agents, up
    to the next turn of the user, belongs to it.
    """
    found = np.where(session >= 0, np.arange(len(session)), -1)
    if parents is not None:
        first = parents.rows[np.minimum(parents.offsets[:-1], max(0, len(parents.rows) - 1))]
        for row in np.flatnonzero(tool & parents.waits).tolist():
            found[row] = found[first[row]]
    return found
