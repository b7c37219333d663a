"""sessions.parquet and tasks.parquet: a row per session, and per task of an agent; the columns are public."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from wattload.client.record import Column
from wattload.rundir.tables import parquet_writer

UNIT_COLUMNS: dict[str, Column] = {
    "session": Column("int64", "as in requests.parquet"),
    "task": Column("int64", "as in requests.parquet; null in sessions.parquet"),
    "tag": Column("string", "tenant"),
    "agents": Column("int32", "how many agents had turns: 1 without sub-agents"),
    "tasks": Column("int32", "tasks of the session: 1 in tasks.parquet"),
    "turns": Column("int32", "planned requests"),
    "completed_turns": Column("int32", "those of them that completed"),
    "begin_unix": Column("float64", "scheduled time of the first turn"),
    "end_unix": Column("float64", "last token of the last turn"),
    "in_window": Column("bool", "whether it began in the measurement window"),
    "in_flight_seconds": Column("float64", "time with at least one of its requests in flight"),
    "waiting_seconds": Column("float64", "time within its tasks with none in flight: its tools' time"),
    "prompt_tokens": Column("float64", "sum over its turns; null where a turn has no count"),
    "output_tokens": Column("float64", "sum over its turns; null where a turn has no count"),
    "cached_tokens": Column("float64", "sum over its turns; null where a turn has no count"),
    "energy_joules": Column(
        "float64", "`attributed_joules`, `idle_joules` and `waiting_idle_joules` together"
    ),
    "attributed_joules": Column(
        "float64", "sum over its turns, idle excluded; null where a turn that was sent has no final energy"
    ),
    "prefill_joules": Column("float64", "of them for prompts"),
    "decode_joules": Column("float64", "of them for output"),
    "idle_joules": Column(
        "float64", "its share of idle energy while it had requests in flight, shared evenly by what was open"
    ),
    "waiting_idle_joules": Column("float64", "its share of idle energy while it waited for its tools"),
    "cache_saved_joules": Column(
        "float64", "estimate: its cached tokens at the run's prefill energy per computed prompt token"
    ),
}

UNIT_SCHEMA = pa.schema([(name, pa.type_for_alias(column.arrow)) for name, column in UNIT_COLUMNS.items()])


def write_units(table: pa.Table, path: Path) -> None:
    """Writes a table whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with parquet_writer(temporary, UNIT_SCHEMA) as writer:
            writer.write_table(table)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
