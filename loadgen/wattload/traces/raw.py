"""What a format's reader hands over before anything is checked that all formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wattload.traces.files import Head
from wattload.traces.trace import PrefixBlocks

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a user may say about a file.

    `column_map`: our column name -> theirs (or `=VALUE`, a constant). `sort`: put rows in order of time
    instead of refusing them. `duplicate_times`: "error" or "keep"; None: as the format's clock demands.
    `empty`: "error" or "drop" for rows of 0 prompt or output tokens; None: as the format's documentation
    demands.
    """

    column_map: Mapping[str, str] = field(default_factory=dict)
    sort: bool = False
    duplicate_times: str | None = None
    empty: str | None = None


@dataclass(slots=True)
class RawTrace:
    """Columns as read, shape (N,), any order, unchecked. None: the file has no such column.

    `seconds` counts from any origin. `session` holds equal numbers for equal sessions, -1 for none. `elapsed`
    is how long the trace's own answer took. `coarse_clock`: the format's clock ticks so slowly that equal
    times are no sign of a copied row. `tag`: a list of str or an Arrow string array. `line_of`: the line of a
    row, for messages. `names`: what the file calls our columns.
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
    texts: Sequence[str] | None = None
    coarse_clock: bool = False
    drop_empty: bool = False
    unit: str = "line"
    names: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    licence: str = ""
    citation: str = ""

    def name(self, column: str) -> str:
        return self.names.get(column, column)


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
        """Reads the whole file. Raises BadInput naming file and line."""
