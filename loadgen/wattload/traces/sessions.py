"""Sessions of a trace: which turn a request is, and how long its user thought before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from wattload.errors import InputError
from wattload.traces.parents import Parents, chains, places
from wattload.traces.reading.raw import RawTrace

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


def session_columns(
    raw: RawTrace, rows: I64 | None, seconds: F64, path: Path, notes: list[str]
) -> tuple[I64, I32, F64, Parents | None]:
    """session, turn, think_seconds, each of shape (N,), and parents of a Trace.

    Turns count from 0 in order of time within a session, and wait for those that the trace says, or for the
    one before. Think time is the trace's own where it has one; else the time since the turn before less what
    its answer took, where the trace says that; else the time since the turn before, and a note says so.
    `rows` picks and orders rows of `raw` (None: all as they are).
    """
    count = len(seconds)
    if raw.session is None or not (raw.session >= 0).any():
        return (
            np.broadcast_to(np.int64(-1), count),
            np.broadcast_to(np.int32(0), count),
            np.broadcast_to(np.float64(np.nan), count),
            None,
        )

    def pick(values: npt.NDArray[np.generic] | None) -> npt.NDArray[np.generic] | None:
        return values if values is None or rows is None else values[rows]

    session = np.asarray(pick(raw.session), np.int64)
    turn = places(session)
    graph = chains(session) if raw.parents is None else raw.parents
    if graph is None:
        return session, turn, np.full(count, np.nan), None
    if raw.parents is not None and rows is not None:
        graph = graph.take(rows)
    if (graph.rows >= graph.children).any():
        raise InputError(f"{path}: a turn comes before one that it waits for")
    later = graph.waits
    # The last of those that a turn waits for.
    before = np.full(count, -1, np.int64)
    np.maximum.at(before, graph.children, graph.rows)
    think = np.full(count, np.nan)
    given, elapsed = pick(raw.think), pick(raw.elapsed)
    if given is not None:
        think[later] = np.asarray(given, np.float64)[later]
        wrong = later & ~(think >= 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            row = at if rows is None else int(rows[at])
            raise InputError(
                f"{path}, {raw.unit} {raw.line_of(row)}: turn {turn[at]} of a session needs a "
                f"{raw.name('think_seconds')} of 0 or more"
            )
        return session, turn, think, graph
    gap = seconds[later] - seconds[before[later]]
    if elapsed is not None:
        took = np.nan_to_num(np.asarray(elapsed, np.float64)[before[later]], nan=0.0)
        think[later] = np.maximum(gap - took, 0.0)
        return session, turn, think, graph
    think[later] = gap
    if later.any():
        notes.append(
            "the trace does not say when responses ended: a turn's think time is taken as the whole time "
            "since the turn before was sent"
        )
    return session, turn, think, graph
