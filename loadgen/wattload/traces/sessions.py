"""Sessions of a trace: which turn a request is, and how long its user thought before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from wattload.errors import BadInput
from wattload.traces.raw import RawTrace

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]


def session_columns(
    raw: RawTrace, rows: I64 | None, seconds: F64, path: Path, notes: list[str]
) -> tuple[I64, I32, F64]:
    """session, turn and think_seconds of a Trace, each of shape (N,).

    Turns count from 0 in order of time within a session. Think time is the trace's own where it has one; else
    the time since the turn before less what its answer took, where the trace says that; else the time since
    the turn before, and a note says so. `rows` picks and orders rows of `raw` (None: all as they are).
    """
    count = len(seconds)
    if raw.session is None or not (raw.session >= 0).any():
        return (
            np.broadcast_to(np.int64(-1), count),
            np.broadcast_to(np.int32(0), count),
            np.broadcast_to(np.float64(np.nan), count),
        )

    def pick(values: npt.NDArray[np.generic] | None) -> npt.NDArray[np.generic] | None:
        return values if values is None or rows is None else values[rows]

    session = np.asarray(pick(raw.session), np.int64)
    turn, before = turns(session)
    later = turn > 0
    think = np.full(count, np.nan)
    given, elapsed = pick(raw.think), pick(raw.elapsed)
    if given is not None:
        think[later] = np.asarray(given, np.float64)[later]
        wrong = later & ~(think >= 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            row = at if rows is None else int(rows[at])
            raise BadInput(
                f"{path}, {raw.unit} {raw.line_of(row)}: turn {turn[at]} of a session needs a "
                f"{raw.name('think_seconds')} of 0 or more"
            )
        return session, turn, think
    gap = seconds[later] - seconds[before[later]]
    if elapsed is not None:
        took = np.nan_to_num(np.asarray(elapsed, np.float64)[before[later]], nan=0.0)
        think[later] = np.maximum(gap - took, 0.0)
        return session, turn, think
    think[later] = gap
    if later.any():
        notes.append(
            "the trace does not say when answers ended: a turn's think time is taken as the whole time "
            "since the turn before was sent"
        )
    return session, turn, think


def turns(session: I64) -> tuple[I32, I64]:
    """For each row its place in its session, from 0, and the row of the turn before (-1: none); shape
    (N,).
    """
    count = len(session)
    order = np.argsort(session, kind="stable")
    ordered = session[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    place = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    place[ordered < 0] = 0
    turn = np.zeros(count, np.int32)
    turn[order] = place
    before = np.full(count, -1, np.int64)
    has = place > 0
    before[order[has]] = order[np.flatnonzero(has) - 1]
    return turn, before
