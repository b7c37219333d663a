"""The directory of a study: its cells, what is open and must be undone, and what happened.

    study.toml, study.json      the file, and what a continuation must have in common with it
    cells/ARM/CELL/             run directories, each with cell.json: what the study knows of it
    servers/                    logs
    journal.jsonl               a line per event
    open.json                   servers that run and conditions that are set; gone when all is undone
    results.parquet, results.csv, effects.csv, results.json, study.html

A cell is made when its cell.json is there. A directory without one was cut short, by whatever: it is set
aside as CELL.cut-1 and made again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wattload.clock import unix_now
from wattload.errors import InputError
from wattload.rundir.directory import read_document, read_json
from wattload.rundir.resumed import refuse_changed, set_aside
from wattload.study.design import Cell
from wattload.study.spec import Study
from wattmeter.whole_file import write_atomically

STUDY_SCHEMA = "wattload.study/1"
CELL_SCHEMA = "wattload.cell/1"
CELL_FILE = "cell.json"
# What of a study has names, and may be added to and taken from its file between two calls.
_NAMED = ("arms", "workloads")


@dataclass(frozen=True, slots=True)
class CellFacts:
    """What a study knows of a cell beside its run. `reasons`: why its figures must not be used.

    `seconds` is its whole length, the wait before it included; `load_seconds` the planned one of its load.
    """

    arm: str
    workload: str
    level: str
    rate_rps: float | None
    repeat: int
    seed: int
    block: int
    place: int
    attempt: int
    started_unix: float
    seconds: float
    load_seconds: float
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    idle_watts: float | None = None
    start_watts: float | None = None
    has_run: bool = True

    @property
    def valid(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, slots=True)
class StudyDir:
    """The paths of a study and what is kept in them."""

    path: Path

    def cell_path(self, cell: Cell) -> Path:
        return self.path / "cells" / cell.arm / cell.name

    @property
    def servers(self) -> Path:
        return self.path / "servers"

    @property
    def journal_path(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def open_path(self) -> Path:
        return self.path / "open.json"

    @property
    def kept_path(self) -> Path:
        return self.path / "study.json"

    @property
    def file_path(self) -> Path:
        return self.path / "study.toml"

    def begin(self, study: Study) -> None:
        """Makes the directory, or sees that it is of this study. Raises InputError naming what differs."""
        values = {"schema": STUDY_SCHEMA, **study.as_dict()}
        try:
            self.servers.mkdir(parents=True, exist_ok=True)
            before = self.check_same(study)
            for kind in _NAMED:
                # What is in the file no more has cells here still, and may come back only as it was.
                values[kind] = {**before.get(kind, {}), **values[kind]}
            write_atomically(self.kept_path, json.dumps(values, indent=1, sort_keys=True))
            write_atomically(self.file_path, study.text)
        except OSError as error:
            raise InputError("out", f"{self.path}: cannot hold a study: {error.strerror}") from error

    def check_same(self, study: Study) -> dict[str, Any]:
        """What the directory keeps of its study, empty where it has none yet.

        Raises InputError naming what of `study` differs.
        """
        if not self.kept_path.exists():
            return {}
        before: dict[str, Any] = read_json(self.kept_path)
        now = study.as_dict()
        changed = [
            name
            for name in ("name", "simulated", "seed", "run", "environment")
            if before.get(name) != now[name]
        ]
        for kind in _NAMED:
            both = before.get(kind, {}).keys() & now[kind].keys()
            # Titles are for readers: no cell depends on them.
            changed += sorted(
                f"{kind[:-1]} {name!r}"
                for name in both
                if {**before[kind][name], "title": None} != {**now[kind][name], "title": None}
            )
        refuse_changed(self.path, "a study", changed)
        return before

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one process at a time. Raises InputError where another has it."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"--out {self.path}: another process is at this study") from error
            yield

    def log(self, event: str, **facts: Any) -> None:
        """A line of the journal."""
        line = json.dumps({"unix": unix_now(), "event": event, **facts})
        with self.journal_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def journal(self) -> list[dict[str, Any]]:
        """Every whole line; one that was cut short is passed over."""
        found = []
        if self.journal_path.exists():
            for line in self.journal_path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict):
                    found.append(entry)
        return found

    def facts(self, cell: Cell) -> CellFacts | None:
        """What is known of a cell that was made, None where it was not."""
        return read_facts(self.cell_path(cell))

    def keep(self, cell: Cell, facts: CellFacts) -> None:
        """Says that a cell is made."""
        path = self.cell_path(cell)
        path.mkdir(parents=True, exist_ok=True)
        values = {"schema": CELL_SCHEMA, "valid": facts.valid, **asdict(facts)}
        write_atomically(path / CELL_FILE, json.dumps(values, indent=1))

    def set_aside(self, cell: Cell, kind: str) -> None:
        """Keeps what there is of a cell under another name, so that it can be made again."""
        set_aside(self.cell_path(cell), kind)

    def invalid_attempts(self, cell: Cell) -> int:
        """How many invalid runs of a cell were set aside."""
        path = self.cell_path(cell)
        return len(list(path.parent.glob(f"{path.name}.invalid-*"))) if path.parent.exists() else 0

    def open_things(self) -> dict[str, Any]:
        return read_json(self.open_path) if self.open_path.exists() else {}

    def save_open(self, things: dict[str, Any]) -> None:
        """What must be undone if this process ends here; nothing: the file goes."""
        if things:
            write_atomically(self.open_path, json.dumps(things, indent=1))
            _flush(self.open_path)
        else:
            self.open_path.unlink(missing_ok=True)


def read_facts(path: Path) -> CellFacts | None:
    """cell.json of a cell's directory, None where there is none. Raises InputError where it is another's."""
    file = path / CELL_FILE
    if not file.exists():
        return None
    raw = read_document(file, CELL_SCHEMA)
    names = CellFacts.__dataclass_fields__
    try:
        return CellFacts(**{name: value for name, value in raw.items() if name in names})
    except TypeError as error:
        raise InputError(f"{file}: {error}") from error


def _flush(path: Path) -> None:
    """To the disk: what is open must be known even after the host went down."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
