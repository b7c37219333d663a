"""A long schedule on disk instead of in memory: what is planned does not make the process that sends it grow.

The arrays lie in an unnamed file of the run directory and are mapped, so nothing else changes for who reads
them. `release` takes the pages that were read out of the process again; those still wanted come back from
the system's cache in a microsecond each.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wattload.schedule.table import ARRAYS, Schedule
from wattload.traces.parents import Parents
from wattload.traces.trace import PrefixBlocks

# Below this a schedule is a few megabytes, and not worth a file.
LEAST_ROWS = 50_000


class MappedPages:
    """The file that holds a schedule's arrays."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping

    def release(self) -> None:
        """Gives back the memory of the pages that were read; they are read again where they are wanted."""
        if hasattr(self._mapping, "madvise"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def mapped(schedule: Schedule, folder: Path, *, least_rows: int = LEAST_ROWS) -> Schedule:
    """`schedule` with its arrays in a file in `folder` that has no name, so that nothing is left behind.

    The same schedule where it is short, or where the folder has no room or cannot be mapped.
    """
    if len(schedule) < least_rows:
        return schedule
    arrays = dict(_arrays(schedule))
    places: dict[str, int] = {}
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".schedule-") as file:
            for name, values in arrays.items():
                file.seek(-file.tell() % mmap.PAGESIZE, 1)
                places[name] = file.tell()
                file.write(np.ascontiguousarray(values).data)
            file.flush()
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return schedule
    found = {
        name: np.frombuffer(mapping, values.dtype, len(values), places[name])
        for name, values in arrays.items()
    }
    prefix = schedule.prefix_hashes
    if prefix is not None:
        ids, offsets = found.pop("prefix_ids"), found.pop("prefix_offsets")
        prefix = PrefixBlocks(ids, offsets, prefix.block_tokens)
    parents = schedule.parents
    if parents is not None:
        parents = Parents(found.pop("parent_rows"), found.pop("parent_offsets"))
    changed: dict[str, Any] = dict(found)
    return replace(schedule, **changed, prefix_hashes=prefix, parents=parents, pages=MappedPages(mapping))


def _arrays(schedule: Schedule) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for name in ARRAYS:
        yield name, getattr(schedule, name)
    if schedule.shared_tokens is not None:
        yield "shared_tokens", schedule.shared_tokens
    if schedule.text_starts is not None:
        yield "text_starts", schedule.text_starts
    if schedule.model is not None:
        yield "model", schedule.model
    if schedule.images is not None:
        yield "images", schedule.images
    if schedule.prefix_hashes is not None:
        yield "prefix_ids", schedule.prefix_hashes.ids
        yield "prefix_offsets", schedule.prefix_hashes.offsets
    if schedule.parents is not None:
        yield "parent_rows", schedule.parents.rows
        yield "parent_offsets", schedule.parents.offsets
