"""What one --trace says: which trace, and for one of several tenants its rate and tag."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wattload.arrivals.demand import parse_rate
from wattload.errors import InputError

_SPEC = re.compile(r"(?P<source>.+?)(?:@(?P<rate>[^@#/]+))?(?:#(?P<tag>[^@#/]*))?")


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """`source`: an embedded workload's name or a file. `rate`: as --rate takes it, None: what --rate says.
    `tag`: None where none was given."""

    source: str
    rate: str | None = None
    tag: str | None = None


def parse_spec(text: str) -> TraceSpec:
    """`NAME_OR_FILE[@RATE][#TAG]`. A file that is called just so, @ and # included, is that file.

    Raises InputError naming --trace for an empty name or tag, and a rate that is none.
    """
    if Path(text).is_file():
        return TraceSpec(text)
    match = _SPEC.fullmatch(text.strip())
    if not match or not match["source"].strip():
        raise InputError("trace", f"{text!r} names no trace")
    if match["tag"] is not None and not match["tag"].strip():
        raise InputError("trace", f"{text!r}: the tag after # is empty")
    if match["rate"] is not None:
        try:
            parse_rate(match["rate"])
        except InputError as error:
            raise InputError("trace", f"{text!r}: the rate after @ {error.message}") from error
    return TraceSpec(match["source"], match["rate"], match["tag"])
