"""What a trace is once read: columns of equal length, wherever they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wattload.traces.parents import Parents, chains

# Longer than any model's context.
MAX_TOKENS = 100_000_000
# More images than any model takes in one request.
MAX_IMAGES = 10_000


@dataclass(frozen=True, slots=True)
class PrefixBlocks:
    """Ragged ids of prompt blocks: row i has `ids[offsets[i]:offsets[i + 1]]`.

    `ids`: int64, shape (M,). `offsets`: int64, shape (N + 1,). Equal ids mean equal tokens. A block holds
    `block_tokens` tokens, the last of a row what is left of its prompt.
    """

    ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    block_tokens: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[int, ...]:
        """The ids of row `index`."""
        return tuple(self.ids[self.offsets[index] : self.offsets[index + 1]].tolist())

    def head(self, count: int) -> PrefixBlocks:
        """The blocks of the first `count` rows, without copying them."""
        offsets = self.offsets[: count + 1]
        return PrefixBlocks(self.ids[: offsets[-1]], offsets, self.block_tokens)

    def take(self, rows: npt.NDArray[np.int64]) -> PrefixBlocks:
        """The blocks of `rows`, shape (K,), in that order."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return PrefixBlocks(
            self.ids[np.repeat(self.offsets[rows], lengths) + within], offsets, self.block_tokens
        )


@dataclass(frozen=True, slots=True)
class Trace:
    """N requests in order of time; every array has shape (N,).

    `seconds`: float64, since the first request (row 0 is 0.0), never decreasing. `prompt_tokens` and
    `output_tokens`: int32, at least 1. `session`: int64, -1 where a request belongs to none. `turn`:
    int32, 0 for the first of a session. `think_seconds`: float64, between the last response that it waits
    for and this turn; NaN where it waits for none. `parents`: which turns a turn waits for; where none
    are given, each the one before it in its session; None where nothing waits. `agent`: int32, which
    agent of its session a turn is of, 0 for the first: each has a conversation of its own. `tool`: bool,
    whether what a turn waits for are tools or other agents, and not its user. `tag`: int16 index into
    `tags`. `prefix`: ids of shared prompt blocks, None where the trace has none. `texts`: the prompts
    themselves where the trace holds text, None elsewhere (`prompt_tokens` are then an estimate until a
    tokenizer has counted them). `text_starts`: int32, where in its text a turn says what is new. `images`:
    int16, how many images each request has, None where the trace does not tell. `sha256` is that of the
    file (of the description, for an embedded workload), `revision` the commit of the data set that it is of,
    where that is known. `notes` are sentences a user should read: what was left out by request, what had to
    be assumed. `timed` is False where the trace holds no times (`seconds` is then
    all 0). `lines(row)` is "line 17" for messages about a row of a file. `workload`: what to draw more
    rows from, where the trace is an embedded workload.
    """

    name: str
    format: str
    seconds: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    session: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int32]
    think_seconds: npt.NDArray[np.float64]
    tag: npt.NDArray[np.int16]
    tags: tuple[str, ...] = ("",)
    prefix: PrefixBlocks | None = None
    texts: Sequence[str] | None = None
    text_starts: npt.NDArray[np.int32] | None = None
    sha256: str = ""
    revision: str | None = None
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()
    timed: bool = True
    lines: Callable[[int], str] | None = field(default=None, compare=False, repr=False)
    workload: RowSource | None = field(default=None, compare=False, repr=False)
    parents: Parents | None = None
    agent: npt.NDArray[np.int32] = None  # type: ignore[assignment]
    tool: npt.NDArray[np.bool_] = None  # type: ignore[assignment]
    images: npt.NDArray[np.int16] | None = None

    def __post_init__(self) -> None:
        count = len(self.seconds)
        if self.parents is None:
            object.__setattr__(self, "parents", chains(self.session))
        if self.agent is None:
            object.__setattr__(self, "agent", np.broadcast_to(np.int32(0), count))
        if self.tool is None:
            object.__setattr__(self, "tool", np.broadcast_to(np.bool_(False), count))

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def span_seconds(self) -> float:
        """Time the N requests take: last minus first, plus one mean gap for the last (0 for a single
        request).
        """
        n = len(self)
        return float(self.seconds[-1] - self.seconds[0]) * n / (n - 1) if n > 1 else 0.0

    @property
    def rate_rps(self) -> float:
        """Mean rate over the span, in requests a second; 0 where every request has the same time."""
        span = self.span_seconds
        return len(self) / span if span > 0 else 0.0

    def head(self, count: int) -> Trace:
        """The first `count` rows (all where there are fewer), without copying them."""
        if count >= len(self):
            return self
        return replace(
            self,
            **{name: getattr(self, name)[:count] for name in _COLUMNS},
            parents=None if self.parents is None else self.parents.head(count),
            prefix=None if self.prefix is None else self.prefix.head(count),
            texts=None if self.texts is None else self.texts[:count],
            text_starts=None if self.text_starts is None else self.text_starts[:count],
            images=None if self.images is None else self.images[:count],
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Trace:
        """The rows asked for, in that order; times are left as they are."""
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            parents=None if self.parents is None else self.parents.take(rows),
            prefix=None if self.prefix is None else self.prefix.take(rows),
            texts=None if self.texts is None else [self.texts[i] for i in rows],
            text_starts=None if self.text_starts is None else self.text_starts[rows],
            images=None if self.images is None else self.images[rows],
            lines=_Picked(self.lines, rows) if self.lines is not None else None,
        )


_COLUMNS = (
    "seconds",
    "prompt_tokens",
    "output_tokens",
    "session",
    "turn",
    "think_seconds",
    "tag",
    "agent",
    "tool",
)


class RowSource(Protocol):
    """What draws as many rows as a run needs: an embedded workload, or one of random lengths."""

    @property
    def rows(self) -> int:
        """How many rows the trace that it describes had."""

    def sample(self, count: int, seed: int = 0) -> Trace:
        """`count` requests; the same seed gives the same requests."""


class _Picked:
    def __init__(self, lines: Callable[[int], str], rows: npt.NDArray[np.int64]) -> None:
        self._lines, self._rows = lines, rows

    def __call__(self, row: int) -> str:
        return self._lines(int(self._rows[row]))
