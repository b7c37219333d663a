"""schedule.parquet: the schedule as planned, so that a run can be judged against it and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wattload.errors import InputError
from wattload.schedule.frame import Frame
from wattload.schedule.table import ARRAYS, Schedule
from wattload.traces.parents import Parents
from wattload.traces.trace import PrefixBlocks

_KEY = b"wattload.schedule/1"
_LATER = ("agent", "task")


def save(schedule: Schedule, path: Path) -> None:
    """Writes the columns of `schedule`; tags, notes and what else is one value a schedule go into the
    metadata.
    """
    columns: dict[str, Any] = {name: pa.array(getattr(schedule, name)) for name in ARRAYS}
    if schedule.shared_tokens is not None:
        columns["shared_tokens"] = pa.array(schedule.shared_tokens)
    if schedule.text_starts is not None:
        columns["text_starts"] = pa.array(schedule.text_starts)
    if schedule.texts is not None:
        columns["text"] = pa.array(schedule.texts, pa.string())
    if schedule.prefix_hashes is not None:
        blocks = schedule.prefix_hashes
        columns["prefix_hashes"] = pa.LargeListArray.from_arrays(blocks.offsets, blocks.ids)
    if schedule.parents is not None:
        columns["parents"] = pa.LargeListArray.from_arrays(schedule.parents.offsets, schedule.parents.rows)
    if schedule.model is not None:
        columns["model"] = pa.array(schedule.model)
    if schedule.images is not None:
        columns["images"] = pa.array(schedule.images)
    meta = {
        "tags": schedule.tags,
        "prefix_block_tokens": schedule.prefix_block_tokens,
        "closed_concurrency": schedule.closed_concurrency,
        "own_answers": schedule.own_answers,
        "notes": schedule.notes,
        "horizon_seconds": schedule.horizon_seconds,
        "content_base": schedule.content_base,
        "words": schedule.words,
        "extra_tokens": schedule.extra_tokens,
        "frame": schedule.frame.as_dict(),
        "models": schedule.models,
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(meta).encode()})
    partial = path.with_name(path.name + ".partial")
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)


def load(path: Path) -> Schedule:
    """Reads what `save` wrote. Raises InputError where it is no schedule."""
    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[_KEY])
        # Schedules of earlier versions lack some columns, which are made from the others.
        arrays: dict[str, Any] = {
            name: _array(table, name) for name in ARRAYS if name not in _LATER or name in table.column_names
        }
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no schedule: {error}") from error
    present = table.column_names
    prefix = None
    if "prefix_hashes" in present:
        ids, offsets = _ragged(table, "prefix_hashes")
        prefix = PrefixBlocks(ids, offsets, int(meta["prefix_block_tokens"]))
    return Schedule(
        **arrays,
        parents=Parents(*_ragged(table, "parents")) if "parents" in present else None,
        tags=tuple(meta["tags"]),
        prefix_hashes=prefix,
        prefix_block_tokens=int(meta["prefix_block_tokens"]),
        shared_tokens=_array(table, "shared_tokens") if "shared_tokens" in present else None,
        texts=table["text"].to_pylist() if "text" in present else None,
        text_starts=_array(table, "text_starts") if "text_starts" in present else None,
        own_answers=bool(meta.get("own_answers", False)),
        closed_concurrency=int(meta["closed_concurrency"]),
        notes=tuple(meta["notes"]),
        horizon_seconds=float(meta["horizon_seconds"]),
        content_base=int(meta["content_base"]),
        words=tuple(meta["words"]),
        extra_tokens=int(meta["extra_tokens"]),
        frame=Frame.of(meta.get("frame")),
        model=_array(table, "model") if "model" in present else None,
        models=tuple(meta.get("models", ())),
        images=_array(table, "images") if "images" in present else None,
    )


def _ragged(table: Any, name: str) -> tuple[Any, Any]:
    """A column of lists as one array of their values, shape (M,), and where each begins, shape (N + 1,)."""
    lists = table[name].combine_chunks()
    offsets = lists.offsets.to_numpy()
    return lists.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.int64), offsets - offsets[0]


def _array(table: Any, name: str) -> Any:
    return table[name].combine_chunks().to_numpy(zero_copy_only=False)
