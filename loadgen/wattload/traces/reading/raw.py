"""What a format's reader hands over before anything is checked that all formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.parents import Parents
from wattload.traces.parents import joined as joined_graphs
from wattload.traces.reading.files import Head
from wattload.traces.trace import PrefixBlocks

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

# A length that no column can hold becomes this one, which is refused where all traces' lengths are.
LARGEST = 2**62


@dataclass(slots=True)
class RawTrace:
    """Columns as read, shape (N,), any order, unchecked. None: the file has no such column.

    `seconds` counts from any origin. `session` holds equal numbers for equal sessions, -1 for none.
    `elapsed` is how long the trace's own answer took. `coarse_clock`: the format's clock ticks so slowly
    that equal times are no sign of a copied row. `parents`: which rows a row waited for; without them a
    session is a chain in order of time. `agent` numbers the agents of a session from 0, `tool` says which
    rows came after tools or other agents, and not after their user. `images`: how many a request has.
    `tag`: a list of str or an Arrow string array. `line_of`: the line of a row, for messages. `names`: what
    the file calls our columns.
    """

    prompt_tokens: I64
    output_tokens: I64
    line_of: Callable[[int], int]
    seconds: F64 | None = None
    session: I64 | None = None
    turn: I64 | None = None
    think: F64 | None = None
    elapsed: F64 | None = None
    tag: Any = None
    prefix: PrefixBlocks | None = None
    parents: Parents | None = None
    agent: I64 | None = None
    tool: npt.NDArray[np.bool_] | None = None
    texts: Sequence[str] | None = None
    text_starts: Sequence[int] | None = None
    images: I64 | None = None
    coarse_clock: bool = False
    drop_empty: bool = False
    unit: str = "line"
    names: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    licence: str = ""
    citation: str = ""

    def name(self, column: str) -> str:
        return self.names.get(column, column)


def joined(parts: Sequence[RawTrace], path: Path) -> RawTrace:
    """The files of one data set as one. Raises InputError for files of requests that have times."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if any(part.seconds is not None or (part.session is None and part.texts is None) for part in parts):
        raise InputError(
            f"{path}: only text, and sessions without times of their own, may lie in several files; name one"
        )
    lengths = [len(part.prompt_tokens) for part in parts]
    sessions, base = [], 0
    for part, count in zip(parts, lengths, strict=True):
        own = part.session if part.session is not None else np.full(count, -1, np.int64)
        sessions.append(np.where(own >= 0, own + base, own))
        base += int(own.max(initial=-1)) + 1
    graph = joined_graphs([part.parents for part in parts], lengths)
    think = None if first.think is None else np.zeros(sum(lengths))
    if graph is not None:
        think = np.concatenate([part.think for part in parts if part.think is not None])
    return RawTrace(
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        line_of=lambda row: row + 1,
        session=np.concatenate(sessions),
        think=think,
        parents=graph,
        agent=_together([part.agent for part in parts]),
        tool=_together([part.tool for part in parts]),
        prefix=_blocks_together([part.prefix for part in parts], path),
        texts=None if first.texts is None else [text for part in parts for text in part.texts or ()],
        text_starts=None
        if first.texts is None
        else [n for part in parts for n in part.text_starts or [0] * len(part.prompt_tokens)],
        images=_images_together([part.images for part in parts], lengths),
        unit="request",
        drop_empty=first.drop_empty,
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        licence=first.licence,
        citation=first.citation,
    )


def _together(columns: Sequence[Any]) -> Any:
    return None if columns[0] is None else np.concatenate(columns)


def _images_together(columns: Sequence[I64 | None], lengths: Sequence[int]) -> I64 | None:
    """Images of the rows of all files, 0 in a file that tells of none."""
    if all(column is None for column in columns):
        return None
    known = zip(columns, lengths, strict=True)
    return np.concatenate([np.zeros(n, np.int64) if column is None else column for column, n in known])


def _blocks_together(parts: Sequence[PrefixBlocks | None], path: Path) -> PrefixBlocks | None:
    """The blocks of all files; equal ids of different files are different blocks."""
    known = [part for part in parts if part is not None]
    sizes = {part.block_tokens for part in known}
    if len(known) < len(parts) or len(sizes) != 1:
        if known:
            raise InputError(f"{path}: its files do not agree about prefix blocks and their size")
        return None
    ids, lengths, base = [], [], 0
    for part in known:
        ids.append(part.ids + base)
        lengths.append(np.diff(part.offsets))
        base += int(part.ids.max(initial=-1)) + 1
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    return PrefixBlocks(np.concatenate(ids), offsets, sizes.pop())


class Format(Protocol):
    """One trace format. `name` is shown to users; `header` says in a few words how a file of it begins,
    `required` which columns it cannot be without."""

    @property
    def name(self) -> str: ...

    @property
    def header(self) -> str: ...

    @property
    def required(self) -> tuple[str, ...]: ...

    def recognises(self, head: Head) -> bool:
        """Whether a file that begins so is of this format. Reads nothing more."""

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        """Reads the whole file. Raises InputError naming file and line."""
