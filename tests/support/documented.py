"""The tables of docs/reference/run-directory.md that are made from declarations in the code.

python tests/support/documented.py writes them; a test compares.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from wattload.client.record import Column, request_columns
from wattload.rundir.numbers import NUMBERS
from wattload.rundir.result import Distribution, RunJson
from wattload.rundir.sessions import UNIT_COLUMNS
from wattload.server_metrics.common import COMMON, ORIGINS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "run-directory.md"


def columns_table(columns: Mapping[str, Column] | None = None) -> str:
    given = request_columns() if columns is None else columns
    rows = (f"| `{name}` | {column.meaning} |" for name, column in given.items())
    return "\n".join(("| column | what |", "|---|---|", *rows))


def numbers_table() -> str:
    """A line per definition: the quantiles of a distribution share theirs."""
    rows = {
        each.defined_at: f"| `{each.defined_at}` | {each.unit or '-'} | {each.definition} |"
        for each in NUMBERS
    }
    return "\n".join(("| field | unit | what |", "|---|---|---|", *rows.values()))


def server_table() -> str:
    """A line per common metric, with each engine's metrics that it is read from."""
    rows = []
    for common in COMMON.values():
        engines: dict[str, list[str]] = {}
        for origin in (origin for origin in ORIGINS if origin.common == common.name):
            labels = ",".join(f'{name}="{value}"' for name, value in origin.labels.items())
            shown = f"`{origin.metric}{f'{{{labels}}}' if labels else ''}`"
            engines.setdefault(origin.engine, []).append(shown)
        read = "; ".join(f"{engine}: {' or '.join(names)}" for engine, names in engines.items())
        rows.append(f"| `{common.name}` | {common.unit} | {common.kind} | {common.meaning} | {read} |")
    return "\n".join(("| common name | unit | kind | what | read from |", "|---|---|---|---|---|", *rows))


def fields_of(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str | None]]:
    """Dotted path and meaning of every field of run.json, sections included; distributions share theirs."""
    for name, info in model.model_fields.items():
        path = f"{above}.{info.alias or name}".lstrip(".")
        yield path, info.description
        for kind in (info.annotation, *typing.get_args(info.annotation)):
            if not isinstance(kind, type) or not issubclass(kind, BaseModel) or kind is model:
                continue
            if kind is not Distribution:
                yield from fields_of(kind, path)
            elif name == "ttft_seconds":
                yield from fields_of(kind, f"{above}.*")


def fields_table() -> str:
    """The fields that are no numbers of the list, sections whose fields are in it left out."""
    known = {each.path for each in NUMBERS} | {each.defined_at for each in NUMBERS}
    rows = [
        (path, meaning) for path, meaning in fields_of(RunJson) if meaning is not None and path not in known
    ]
    return "\n".join(("| field | what |", "|---|---|", *(f"| `{path}` | {what} |" for path, what in rows)))


TABLES = {
    "columns": columns_table,
    "units": lambda: columns_table(UNIT_COLUMNS),
    "numbers": numbers_table,
    "fields": fields_table,
    "server metrics": server_table,
}


def with_tables(text: str) -> str:
    """The page with every table between `<!-- NAME -->` and `<!-- end -->` made anew."""
    for name, table in TABLES.items():
        between = re.compile(rf"(<!-- {name}\b[^>]*-->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)
        place = between.search(text)
        if place is None:
            raise ValueError(f"{PAGE.name}: has no place for the table {name!r}")
        text = text[: place.end(1)] + table() + text[place.start(2) :]
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
