"""What waits for responses: turns for those before them, and a closed loop's slots for a session's end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wattload.schedule.table import Schedule


class Waits:
    """The turns of a share of a schedule that are not due yet, by how many responses each still waits for.

    In arrays, since a long schedule has millions: what waits for a row lies in `_children` from
    `_starts[row]` on.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._left: dict[int, int] = {}
        self._beginnings: dict[int, list[int]] = {}
        self._session = schedule.session
        self._count = 0
        parents = schedule.parents
        if parents is None:
            return
        waits = np.isnan(schedule.due_seconds) & parents.waits
        children = parents.children
        edges = waits[children]
        rows, children = parents.rows[edges], children[edges]
        self._children = children[np.argsort(rows, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(schedule)))])
        self._open = np.where(waits, parents.counts, 0).astype(np.int32)
        self._count = int(waits.sum())
        if schedule.closed_concurrency:
            self._count_sessions(schedule)

    def _count_sessions(self, schedule: Schedule) -> None:
        first: dict[int, int] = {}
        for row in np.flatnonzero(self._session >= 0).tolist():
            session = int(self._session[row])
            self._left[session] = self._left.get(session, 0) + 1
            begins = first.setdefault(session, row)
            if row != begins and not self._open[row]:
                self._beginnings.setdefault(begins, [begins]).append(row)

    @property
    def open(self) -> bool:
        """Whether any turn still waits."""
        return self._count > 0

    def answered(self, row: int) -> Sequence[int]:
        """The turns that waited for the response to `row` alone by now."""
        if not self._count:
            return ()
        free = []
        for child in self._children[self._starts[row] : self._starts[row + 1]].tolist():
            self._open[child] -= 1
            if not self._open[child]:
                self._count -= 1
                free.append(child)
        return free

    def beginnings(self, first: int) -> Sequence[int]:
        """The rows of the session of `first` that wait for no other; `first` where it is alone."""
        return self._beginnings.get(first, (first,))

    def ended(self, row: int) -> bool:
        """Notes that `row` of a closed loop has ended; whether its session has, or it is of none."""
        session = int(self._session[row])
        if session not in self._left:
            return True
        self._left[session] -= 1
        return not self._left[session]
