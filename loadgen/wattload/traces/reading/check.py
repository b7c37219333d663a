"""What every trace must satisfy, whatever its format: raw columns in, a Trace out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.reading.raw import RawTrace
from wattload.traces.reading.tables import coded
from wattload.traces.sessions import session_columns
from wattload.traces.trace import MAX_IMAGES, MAX_TOKENS, Trace
from wattmeter.schema import MAX_UNIX_SECONDS

I64 = npt.NDArray[np.int64]

_RARE = 0.01


def checked(raw: RawTrace, path: Path, format_name: str, sha256: str, options: ReadOptions) -> Trace:
    """The trace of `raw`. Raises InputError, one sentence naming file and line, for lengths below 1 or not
    of this world, times that are no numbers, negative, out of order or suspiciously equal.
    """
    _check_lengths(raw, path)
    if options.output_tokens is not None:
        raw.output_tokens = np.full(len(raw.output_tokens), options.output_tokens, np.int64)
    timed = raw.seconds is not None
    seconds = raw.seconds if raw.seconds is not None else np.zeros(len(raw.prompt_tokens))
    _check_times(raw, seconds, path)
    rows: I64 | None = None
    notes = list(raw.notes)
    empty = (raw.prompt_tokens == 0) | (raw.output_tokens == 0)
    if empty.any():
        rows = _without_empty(raw, empty, path, options, notes)
    if options.sort:
        order = np.argsort(seconds if rows is None else seconds[rows], kind="stable")
        rows = order if rows is None else rows[order]
    elif (np.diff(seconds) < 0).any():
        at = int(np.argmax(np.diff(seconds) < 0)) + 1
        raise InputError(
            f"{_where(raw, path, at)}: {raw.name('seconds')} is earlier than on the row before; "
            "sort the file, or pass `sort`"
        )
    if timed:
        _check_duplicates(raw, seconds if rows is None else seconds[rows], rows, path, options)
    return _trace(raw, seconds, rows, path, format_name=format_name, sha256=sha256, notes=notes, timed=timed)


def _where(raw: RawTrace, path: Path, row: int) -> str:
    return f"{path}, {raw.unit} {raw.line_of(row)}"


def _check_lengths(raw: RawTrace, path: Path) -> None:
    tokens = (MAX_TOKENS, "is longer than any model's context")
    for column, values, (most, too_many) in (
        ("prompt_tokens", raw.prompt_tokens, tokens),
        ("output_tokens", raw.output_tokens, tokens),
        ("images", raw.images, (MAX_IMAGES, f"is more than {MAX_IMAGES:,}, which no model takes")),
    ):
        if values is None:
            continue
        for wrong, said in ((values < 0, "is negative"), (values > most, too_many)):
            if wrong.any():
                at = int(np.argmax(wrong))
                raise InputError(f"{_where(raw, path, at)}: {raw.name(column)} {values[at]} {said}")


def _check_times(raw: RawTrace, seconds: npt.NDArray[np.float64], path: Path) -> None:
    wrong = ~np.isfinite(seconds)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InputError(f"{_where(raw, path, at)}: {raw.name('seconds')} {seconds[at]} is not a time")
    if (seconds < 0).any():
        at = int(np.argmax(seconds < 0))
        raise InputError(f"{_where(raw, path, at)}: {raw.name('seconds')} {seconds[at]:g} is negative")
    if (seconds > MAX_UNIX_SECONDS).any():
        at = int(np.argmax(seconds > MAX_UNIX_SECONDS))
        raise InputError(
            f"{_where(raw, path, at)}: {raw.name('seconds')} {seconds[at]:.17g} is after the year 5000: are"
            " these milliseconds?"
        )


def _without_empty(
    raw: RawTrace, empty: npt.NDArray[np.bool_], path: Path, options: ReadOptions, notes: list[str]
) -> I64:
    drop = options.empty_requests == "drop" or (options.empty_requests is None and raw.drop_empty)
    at = int(np.argmax(empty))
    if not drop:
        column = "prompt_tokens" if raw.prompt_tokens[at] == 0 else "output_tokens"
        raise InputError(
            f"{_where(raw, path, at)}: {raw.name(column)} is 0, which no request can have; "
            f"`empty_requests` drop leaves such rows out ({int(empty.sum())} here)"
        )
    if empty.all():
        raise InputError(f"{path}: every row has 0 prompt or output tokens")
    notes.append(f"{int(empty.sum())} of {len(empty)} rows have 0 prompt or output tokens and were left out")
    return np.flatnonzero(~empty).astype(np.int64)


def _check_duplicates(
    raw: RawTrace, seconds: npt.NDArray[np.float64], rows: I64 | None, path: Path, options: ReadOptions
) -> None:
    """Refuses equal times that the clock does not explain.

    A clock of tick d sees n requests at a rate r share a tick with the one before about n r d times (Poisson,
    r d small). Real traces of microsecond clocks and millions of rows have such; a file in which over 1 % of
    the rows, or over ten times what chance explains, repeat the time before was pasted together or lost its
    digits.
    """
    if options.duplicate_times == "keep" or (options.duplicate_times is None and raw.coarse_clock):
        return
    same = np.diff(seconds) == 0
    found = int(same.sum())
    if not found:
        return
    span = float(seconds[-1] - seconds[0])
    expected = len(seconds) ** 2 / span * _tick_seconds(seconds) if span > 0 else 0.0
    if options.duplicate_times is None and found <= _RARE * len(seconds) and found <= 10 * expected:
        return
    at = int(np.argmax(same)) + 1
    row = at if rows is None else int(rows[at])
    raise InputError(
        f"{_where(raw, path, row)}: the same {raw.name('seconds')} as the row before ({found} of "
        f"{len(seconds)} rows repeat a time); remove the copies, or pass `duplicate_times` keep"
    )


def _tick_seconds(seconds: npt.NDArray[np.float64]) -> float:
    """The smallest power of ten of a second, down to 100 ns, of which the first 1,000 times are multiples."""
    sample = seconds[:1000]
    for digits in range(8):
        if np.allclose(np.round(sample, digits), sample, rtol=0, atol=1e-9):
            return float(10.0**-digits)
    return 1e-7


def _trace(
    raw: RawTrace,
    seconds: npt.NDArray[np.float64],
    rows: I64 | None,
    path: Path,
    *,
    format_name: str,
    sha256: str,
    notes: list[str],
    timed: bool,
) -> Trace:
    def pick(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return values if rows is None else values[rows]

    ordered = pick(seconds).astype(np.float64, copy=False)
    count = len(ordered)
    session, turn, think, parents = session_columns(raw, rows, ordered, path, notes)
    agent: npt.NDArray[np.int32] = np.broadcast_to(np.int32(0), count)
    tool: npt.NDArray[np.bool_] = np.broadcast_to(np.bool_(False), count)
    if raw.agent is not None and raw.tool is not None:
        agent, tool = pick(raw.agent).astype(np.int32), pick(raw.tool).astype(np.bool_)
    tags: tuple[str, ...] = ("",)
    tag: npt.NDArray[np.int16] = np.broadcast_to(np.int16(0), count)
    if raw.tag is not None:
        codes, names = coded(raw.tag)
        tags = tuple(names)
        if len(tags) > 1000:
            raise InputError(
                f"{path}: {len(tags)} different tags; a tag names a tenant, so at most 1000 are allowed"
            )
        tag = pick(codes).astype(np.int16)
    return Trace(
        name=path.name,
        format=format_name,
        seconds=ordered - ordered[0] if ordered[0] else ordered,
        prompt_tokens=pick(raw.prompt_tokens).astype(np.int32, copy=False),
        output_tokens=pick(raw.output_tokens).astype(np.int32, copy=False),
        session=session,
        turn=turn,
        think_seconds=think,
        parents=parents,
        agent=agent,
        tool=tool,
        tag=tag,
        tags=tags,
        prefix=raw.prefix if raw.prefix is None or rows is None else raw.prefix.take(rows),
        texts=raw.texts if raw.texts is None or rows is None else [raw.texts[i] for i in rows],
        text_starts=None if raw.text_starts is None else pick(np.array(raw.text_starts)).astype(np.int32),
        images=None if raw.images is None else pick(raw.images).astype(np.int16),
        sha256=sha256,
        licence=raw.licence,
        citation=raw.citation,
        notes=tuple(notes),
        timed=timed,
        lines=_Lines(raw, rows),
    )


class _Lines:
    """Row of the trace -> line of the file, looked up only for messages."""

    def __init__(self, raw: RawTrace, rows: I64 | None) -> None:
        self._line_of, self._rows, self.unit = raw.line_of, rows, raw.unit

    def __call__(self, row: int) -> str:
        return f"{self.unit} {self._line_of(row if self._rows is None else int(self._rows[row]))}"
