"""A name or a file in, a Trace out."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wattload.errors import InputError
from wattload.traces import embedded as workloads
from wattload.traces import huggingface, synthetic
from wattload.traces.catalog import CATALOG
from wattload.traces.formats.plain import Mapped
from wattload.traces.formats.registry import FORMATS
from wattload.traces.options import ReadOptions
from wattload.traces.reading.check import checked
from wattload.traces.reading.files import Head, head_of, sha256_of
from wattload.traces.reading.raw import Format, RawTrace, joined
from wattload.traces.trace import RowSource, Trace

# What the files of a folder are called that is read as one trace.
_IN_FOLDERS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


def load(name_or_path: str | Path, options: ReadOptions | None = None) -> Trace:
    """The trace called so: an embedded workload's name, `random:` and lengths, a file, whose format its
    header tells, a folder of files of sessions, or a data set in Hugging Face's cache.

    An embedded workload comes as many rows as the trace it describes had; `schedule.build` draws as many as a
    run needs. Raises InputError, one sentence naming the file and line, for what is not a valid trace.
    """
    name, options = str(name_or_path), options or ReadOptions()
    if name in workloads.NAMES:
        return _drawn(workloads.load(name), options)
    if name.startswith(synthetic.PREFIX):
        return _drawn(synthetic.parse_random(name), options)
    path = Path(name_or_path)
    if path.is_dir():
        return _read(_files_of(path), path, options)
    if path.exists():
        return replace(_read((path,), path, options), revision=huggingface.revision_of(path))
    if huggingface.is_name(name):
        data = huggingface.cached(name)
        trace = _read(data.files, Path(data.name), options)
        return replace(trace, name=data.name, revision=data.revision)
    fetched = [public.name for public in CATALOG]
    if name in fetched:
        raise InputError("trace", f"{name}: is to be fetched first: `wattload traces fetch {name}`")
    near = difflib.get_close_matches(name, [*workloads.NAMES, *fetched], 1)
    instead = f"; did you mean {near[0]}?" if near else ""
    raise InputError(
        "trace",
        f"{name}: no such file, and no embedded workload of that name ({', '.join(workloads.NAMES)});"
        f" random:prompt=512,output=128 draws lengths, ORG/NAME is a data set in Hugging Face's"
        f" cache{instead}",
    )


def _files_of(folder: Path) -> list[Path]:
    """The files of a data set that is a folder of them. Raises InputError where there are none."""
    files = sorted(file for file in folder.iterdir() if file.name.endswith(_IN_FOLDERS))
    if not files:
        raise InputError(f"{folder} is a directory without files of {', '.join(_IN_FOLDERS)}")
    return files


def _drawn(source: RowSource, options: ReadOptions) -> Trace:
    if options.output_tokens is not None:
        raise InputError("output_tokens", ": is for traces of files; this workload draws its own lengths")
    return replace(source.sample(source.rows), workload=source)


def _read(files: Sequence[Path], path: Path, options: ReadOptions) -> Trace:
    """The trace of one file, or of the files of a data set of text; `path` names it in messages."""
    # One file's beginning at a time: that of a session recorded as one object is the whole of it.
    head = head_of(files[0])
    reader = format_of(head, options)
    raws: list[RawTrace] = []
    left = options.text_rows
    for number, file in enumerate(files):
        if number:
            head = head_of(file)
        raws.append(reader.read(head, options.model_copy(update={"text_rows": left}) if raws else options))
        left -= len(raws[-1].prompt_tokens)
        if left <= 0:
            break
    sums = [sha256_of(file) for file in files]
    checksum = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return checked(joined(raws, path), path, reader.name, checksum, options)


def format_of(head: Head, options: ReadOptions) -> Format:
    """The format of a file that begins so. Raises InputError where it is none's, naming what the nearest
    lacks.
    """
    if options.column_map and head.kind != "document":
        return Mapped()
    for reader in FORMATS:
        if reader.recognises(head):
            return reader
    if head.kind == "document":
        raise InputError(
            f"{head.path}, line 1: a JSON object over several lines, and neither spans nor a session (it has"
            f" {head.shown}); one object a line is needed"
        )
    separator = _separator(head)
    if separator is not None:
        raise InputError(f"{head.path}, line 1: {separator} stand between the columns; commas are needed")
    near = max(FORMATS, key=lambda reader: len(set(reader.required) & set(head.columns)))
    missing = [name for name in near.required if name not in head.columns]
    if len(missing) < len(near.required):
        raise InputError(
            f"{head.path}, line 1: {' and '.join(missing)} missing for a trace of format {near.name} "
            f"({near.header}); `column_map` names columns that are called otherwise"
        )
    raise InputError(
        f"{head.path}, line 1: no known trace begins with {head.shown} (known: "
        f"{', '.join(reader.name for reader in FORMATS)}); `column_map` names the columns of any other"
    )


def _separator(head: Head) -> str | None:
    """What parts the columns of a table that has no commas; None for another file."""
    if head.kind != "csv" or len(head.columns) != 1:
        return None
    name = head.columns[0]
    known = {"\t": "tabs", ";": "semicolons", "|": "bars"}
    return next((said for mark, said in known.items() if name.count(mark) > 1), None)
