"""Step records: what the engine did in each iteration, as columns.

The fields of `StepBatch` are the only declaration of these columns. The messages from the engine core, the
recordings and the simulator's log take names, order and types from STEP_COLUMNS and ENTRY_COLUMNS.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wattmeter.arrays import I32, I64


@dataclass(frozen=True, slots=True)
class StepBatch:
    """S consecutive steps of one engine and the E (step, request) entries in them, entries sorted by step.

    Per step, shape (S,), int64: `index` counts the engine's steps from 0 without gaps (a gap is lost
    records); `launch_ns` and `end_ns` are `time.monotonic_ns` of the launch and of the moment its result was
    seen. The device was busy with the step over [max(launch, previous end), end].

    Per entry, shape (E,), int32: `step` is the row of the step in this batch; `request` indexes
    `request_ids`; `prefill_tokens` and `decode_tokens` were computed for the request in this step (a request
    has one kind or the other, except where an engine mixes them); `context_tokens` is what stood in its KV
    cache before it; `cached_tokens` is the part of the context that came from the prefix cache (non-zero only
    in the request's first step); `draft_tokens` were proposed by speculation, `accepted_tokens` of them kept.
    """

    index: I64
    launch_ns: I64
    end_ns: I64
    step: I32
    request: I32
    prefill_tokens: I32
    decode_tokens: I32
    context_tokens: I32
    cached_tokens: I32
    draft_tokens: I32
    accepted_tokens: I32
    request_ids: tuple[str, ...]
    lost_steps: int = 0

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def of(
        cls, request_ids: Sequence[str], columns: Mapping[str, npt.ArrayLike], *, lost_steps: int = 0
    ) -> StepBatch:
        """A batch of columns given by name; a column of entries that is not given is all zeros.

        Raises ValueError for a name that is no column, and where a column of steps, or all of the entries',
        are missing.
        """
        unknown = columns.keys() - {*STEP_COLUMNS, *ENTRY_COLUMNS}
        if unknown or not columns.keys() >= {*STEP_COLUMNS, "step", "request"}:
            raise ValueError(f"step batch: columns must be those of StepBatch, not {sorted(columns)}")
        arrays: dict[str, npt.NDArray[Any]] = {
            name: np.ascontiguousarray(columns[name], dtype=np.int64) for name in STEP_COLUMNS
        }
        zeros: I32 = np.zeros(np.shape(columns["step"]), dtype=np.int32)
        for name in ENTRY_COLUMNS:
            arrays[name] = np.ascontiguousarray(columns[name], dtype=np.int32) if name in columns else zeros
        return cls(**arrays, request_ids=tuple(request_ids), lost_steps=lost_steps)

    @classmethod
    def concat(cls, batches: Iterable[StepBatch]) -> StepBatch:
        """One batch of all the steps, in the order given; a request id that occurs in several becomes one."""
        numbers: dict[str, int] = {}
        parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*STEP_COLUMNS, *ENTRY_COLUMNS)}
        before = lost_steps = 0
        for batch in batches:
            mapping = number_names(batch.request_ids, numbers)
            for name, columns in parts.items():
                column = getattr(batch, name)
                if name == "step":
                    column = column + before
                elif name == "request" and len(column):
                    column = mapping[column]
                columns.append(column)
            before += len(batch)
            lost_steps += batch.lost_steps
        joined = {name: np.concatenate(columns) if columns else () for name, columns in parts.items()}
        return cls.of(tuple(numbers), joined, lost_steps=lost_steps)

    def slice(self, start: int, stop: int) -> StepBatch:
        """The steps `start` to `stop` (exclusive); the requests keep their numbers, `lost_steps` is 0."""
        first, last = np.searchsorted(self.step, [start, stop])
        return StepBatch(
            **{name: getattr(self, name)[start:stop] for name in STEP_COLUMNS},
            **{
                name: getattr(self, name)[first:last] - (start if name == "step" else 0)
                for name in ENTRY_COLUMNS
            },
            request_ids=self.request_ids,
        )

    def between(self, start_ns: int, end_ns: int) -> StepBatch:
        """The steps that end after `start_ns` and were launched before `end_ns`."""
        first = int(np.searchsorted(self.end_ns, start_ns, side="right"))
        stop = int(np.searchsorted(self.launch_ns, end_ns, side="left"))
        return self.slice(first, max(first, stop))

    def renumber(self) -> StepBatch:
        """The same steps with only the requests that are in them, in their order."""
        used = np.bincount(self.request, minlength=len(self.request_ids)) > 0
        number = np.cumsum(used, dtype=np.int32) - np.int32(1)
        names = tuple(itertools.compress(self.request_ids, used.tolist()))
        return replace(self, request=number[self.request], request_ids=names)


# A field that is an int64 array has a value a step, one that is an int32 array a value an entry.
STEP_COLUMNS = tuple(field.name for field in fields(StepBatch) if field.type == "I64")
ENTRY_COLUMNS = tuple(field.name for field in fields(StepBatch) if field.type == "I32")


def number_names(names: Sequence[str], numbers: dict[str, int]) -> I32:
    """The number of each name, (N,); those that are not in `numbers` yet get the next ones there."""
    new = dict.fromkeys(name for name in names if name not in numbers)
    numbers.update(zip(new, itertools.count(len(numbers)), strict=False))
    return np.fromiter(map(numbers.__getitem__, names), np.int32, len(names))
