"""The verdict on a run: whether its figures may be used, in one word and the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wattload.rundir.result import RunJson

TOO_FEW = "too few requests"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kind` decides the colour. `title` is the verdict in a few words; `lines` are the reasons, or the notes
    that qualify figures which stand.
    """

    kind: Literal["valid", "notes", "invalid"]
    title: str
    lines: tuple[str, ...]


def verdict(run: RunJson) -> Verdict:
    """The verdict on `run`."""
    if not run.valid:
        return Verdict("invalid", "Not valid: do not use these results", tuple(run.reasons))
    if any(note.startswith(TOO_FEW) for note in run.notes):
        return Verdict("notes", "Too few requests: no figure has an interval", tuple(run.notes))
    if run.notes:
        return Verdict("notes", "Valid, with notes", tuple(run.notes))
    return Verdict("valid", "Valid: all checks passed", ())
