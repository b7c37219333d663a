"""Runs of a series that can be continued: which are made, and what was cut short put aside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wattload.errors import InputError
from wattload.rundir.directory import RunDir, load_run_json, read_json
from wattload.rundir.result import RunJson
from wattmeter.whole_file import write_atomically

_CUT_SHORT = "interrupted"


def was_cut_short(result: RunJson) -> bool:
    """Whether somebody ended the run before its time."""
    return _CUT_SHORT in result.reasons


def made(path: Path) -> RunJson | None:
    """The result of a run that was made to its end; None for one that was not, or was cut short."""
    directory = RunDir(path)
    if not directory.run_json_path.exists():
        return None
    done = load_run_json(directory)
    return None if was_cut_short(done) else done


def set_aside(path: Path, kind: str = "cut") -> None:
    """A run that was cut short, or is not wanted for another reason (`kind`), stays under another name."""
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.{kind}-{number}")).exists():
        number += 1
    path.rename(aside)


def check_same(path: Path, settings: dict[str, Any], what: str) -> None:
    """A series goes on only with the settings it began with, which it keeps in the file `path`.

    Raises InputError naming what differs; `what` is what its directory holds.
    """
    now = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(now, indent=1))
        return
    before = read_json(path)
    refuse_changed(
        path.parent, what, sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    )


def refuse_changed(folder: Path, what: str, changed: Sequence[str]) -> None:
    """Raises InputError where anything has changed since the series in `folder` began."""
    if changed:
        raise InputError(
            f"--out {folder}: holds {what} with another {', '.join(changed)}; name another directory"
        )
