"""schedule.parquet: the schedule as planned, so that a run can be judged against it and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wattload.errors import BadInput
from wattload.schedule import ARRAYS, Schedule
from wattload.traces.trace import PrefixBlocks

_KEY = b"wattload.schedule/1"


def save(schedule: Schedule, path: Path) -> None:
    """Writes the columns of `schedule`; tags, notes and what else is one value a schedule go into the
    metadata.
    """
    columns: dict[str, Any] = {name: pa.array(getattr(schedule, name)) for name in ARRAYS}
    if schedule.shared_tokens is not None:
        columns["shared_tokens"] = pa.array(schedule.shared_tokens)
    if schedule.texts is not None:
        columns["text"] = pa.array(schedule.texts, pa.string())
    if schedule.prefix_hashes is not None:
        blocks = schedule.prefix_hashes
        columns["prefix_hashes"] = pa.LargeListArray.from_arrays(blocks.offsets, blocks.ids)
    meta = {
        "tags": schedule.tags,
        "prefix_block_tokens": schedule.prefix_block_tokens,
        "closed_concurrency": schedule.closed_concurrency,
        "notes": schedule.notes,
        "horizon_seconds": schedule.horizon_seconds,
        "content_base": schedule.content_base,
        "words": schedule.words,
        "extra_tokens": schedule.extra_tokens,
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(meta).encode()})
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)


def load(path: Path) -> Schedule:
    """Reads what `save` wrote. Raises BadInput where it is no schedule."""
    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[_KEY])
        arrays: dict[str, Any] = {name: _array(table, name) for name in ARRAYS}
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is no schedule: {error}") from error
    present = table.column_names
    prefix = None
    if "prefix_hashes" in present:
        lists = table["prefix_hashes"].combine_chunks()
        offsets = lists.offsets.to_numpy()
        ids = lists.values.to_numpy()[offsets[0] : offsets[-1]]
        prefix = PrefixBlocks(ids.astype(np.int64), offsets - offsets[0], int(meta["prefix_block_tokens"]))
    return Schedule(
        **arrays,
        tags=tuple(meta["tags"]),
        prefix_hashes=prefix,
        prefix_block_tokens=int(meta["prefix_block_tokens"]),
        shared_tokens=_array(table, "shared_tokens") if "shared_tokens" in present else None,
        texts=table["text"].to_pylist() if "text" in present else None,
        closed_concurrency=int(meta["closed_concurrency"]),
        notes=tuple(meta["notes"]),
        horizon_seconds=float(meta["horizon_seconds"]),
        content_base=int(meta["content_base"]),
        words=tuple(meta["words"]),
        extra_tokens=int(meta["extra_tokens"]),
    )


def _array(table: Any, name: str) -> Any:
    return table[name].combine_chunks().to_numpy(zero_copy_only=False)
