"""A name or a file in, a Trace out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wattload import workloads
from wattload.errors import BadInput
from wattload.traces.check import checked
from wattload.traces.files import Head, head_of, sha256_of
from wattload.traces.plain import Mapped
from wattload.traces.raw import Format, ReadOptions
from wattload.traces.registry import FORMATS
from wattload.traces.trace import Trace


def load(name_or_path: str | Path, options: ReadOptions | None = None) -> Trace:
    """The trace called so: an embedded workload's name, else a file, whose format its header tells.

    An embedded workload comes as many rows as the trace it describes had; `schedule.build` draws as many as a
    run needs. Raises BadInput, one sentence naming the file and line, for anything that is not a valid trace.
    """
    if str(name_or_path) in workloads.NAMES:
        workload = workloads.load(str(name_or_path))
        return replace(workload.sample(workload.rows), workload=workload)
    path = Path(name_or_path)
    if not path.exists():
        raise BadInput(
            f"--trace {name_or_path}: no such file, and no embedded workload of that name "
            f"({', '.join(workloads.NAMES)})"
        )
    head = head_of(path)
    options = options or ReadOptions()
    reader = format_of(head, options)
    return checked(reader.read(head, options), path, reader.name, sha256_of(path), options)


def format_of(head: Head, options: ReadOptions) -> Format:
    """The format of a file that begins so. Raises BadInput where it is none's, naming what the nearest
    lacks.
    """
    if options.column_map:
        return Mapped()
    for reader in FORMATS:
        if reader.recognises(head):
            return reader
    near = max(FORMATS, key=lambda reader: len(set(reader.required) & set(head.columns)))
    missing = [name for name in near.required if name not in head.columns]
    if len(missing) < len(near.required):
        raise BadInput(
            f"{head.path}, line 1: {' and '.join(missing)} missing for a trace of format {near.name} "
            f"({near.header}); --column-map names columns that are called otherwise"
        )
    raise BadInput(
        f"{head.path}, line 1: no known trace begins with {head.shown} (known: "
        f"{', '.join(reader.name for reader in FORMATS)}); --column-map names the columns of any other"
    )
