"""How a trace file is read, as options."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from wattload.errors import InputError
from wattload.options import Options
from wattload.traces.trace import MAX_TOKENS

# Our columns and what they hold; "time" and "key" are looked at before it is decided how to read them.
COLUMNS = {
    "seconds": "time",
    "prompt_tokens": "whole",
    "output_tokens": "whole",
    "session": "key",
    "think_seconds": "maybe",
    "elapsed_seconds": "maybe",
    "tag": "text",
    "hash_ids": "ids",
    "images": "whole",
}
CONSTANTS = ("prompt_tokens", "output_tokens", "tag", "images")


def parse_column_map(text: str) -> dict[str, str]:
    """`ours=theirs,ours=theirs:ms,ours==value` as a dict. Raises InputError naming what is wrong."""
    mapped: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = part.partition("=")
        ours, theirs = ours.strip(), theirs.strip()
        if not equals or not theirs:
            raise InputError("column_map", f"{part!r} is not OURS=THEIRS")
        if ours not in COLUMNS:
            raise InputError("column_map", f": {ours!r} is none of our columns ({', '.join(COLUMNS)})")
        if theirs.startswith("=") and ours not in CONSTANTS:
            raise InputError("column_map", f": {ours} cannot be the same for every row")
        mapped[ours] = theirs
    return mapped


def _column_map(value: Any) -> Any:
    return parse_column_map(value) if isinstance(value, str) else value


class ReadOptions(Options):
    """How forgivingly a trace file is read, and what its columns are called."""

    title: ClassVar[str] = "Workload"

    column_map: Annotated[dict[str, str] | None, BeforeValidator(_column_map)] = Field(
        default=None,
        description="Names of a trace file's columns, as prompt_tokens=in,output_tokens=out,seconds=ts:ms.",
        json_schema_extra={"metavar": "COLUMNS"},
    )
    sort: bool = Field(
        default=False, description="Sort the rows of a trace file by time instead of refusing it."
    )
    duplicate_times: Literal["error", "keep"] | None = Field(
        default=None,
        description="Refuse or keep rows of equal time. Default: depends on the format of the trace.",
    )
    output_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TOKENS,
        description="Output length of every request of a file, in place of its own.",
    )
    text_rows: int = Field(
        default=100_000, ge=1, description="Read at most this many rows of a data set of text."
    )
    empty_requests: Literal["error", "drop"] | None = Field(
        default=None,
        description="Refuse or drop rows of 0 tokens. Default: depends on the format of the trace.",
    )
