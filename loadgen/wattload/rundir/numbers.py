"""The list of numbers: every number of run.json with its title, unit, definition and why it may be null.

Made from the declarations in `rundir/result.py`. The report, the terminal's table, comparisons, sweeps, the
Locust tab and docs/reference/run-directory.md take titles, units and definitions from here.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wattload.client.record import Outcome
from wattload.rundir.result import NOT_GIVEN, RunJson

Pair = tuple[float, float]
_WINDOW_RATIO = "energy.per_request_joules.mean"
_FAILED = frozenset(outcome.value for outcome in Outcome if outcome is not Outcome.COMPLETED)
_WORDS = re.compile(r"[a-z0-9]+")
_ALIKE = 0.7


@dataclass(frozen=True, slots=True)
class Number:
    """One number of run.json.

    `path` is its dotted path, `interval_path` that of its 95 % interval (None: it has none). `defined_at` is
    the path of the field whose definition it has: its own, or that of the distribution it belongs to.
    """

    path: str
    title: str
    unit: str
    definition: str
    defined_at: str
    when_null: str
    group: str
    interval_path: str | None

    def of(self, run: RunJson) -> float | None:
        """Its value in a run; None where it was not measured."""
        value = value_at(run, self.path)
        return value if isinstance(value, (int, float)) else None

    def title_in(self, run: RunJson) -> str:
        """Its title beside a run's figure: a ratio of a window that was not steady says so."""
        each = run.energy.per_request_joules
        qualified = self.path == _WINDOW_RATIO and each is not None and each.headline != "mean"
        return f"{self.title} (window not steady)" if qualified else self.title

    def interval_of(self, run: RunJson) -> Pair | None:
        """Its 95 % interval in a run, None where there is none."""
        return value_at(run, self.interval_path) if self.interval_path is not None else None


def value_at(run: RunJson, path: str) -> Any:
    """What stands at a dotted path of run.json, None where there is nothing."""
    value: Any = run
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def why_null(path: str) -> str:
    """Why the field at a dotted path of run.json is null, where no better reason was found."""
    model: type[BaseModel] | None = RunJson
    reason = NOT_GIVEN
    for name in path.split("."):
        info = model.model_fields.get(name) if model is not None else None
        if info is None:
            return NOT_GIVEN
        reason, model = _facts(info).get("when_null") or NOT_GIVEN, _section(info)
    return reason


def is_number(path: str) -> bool:
    """Whether a run.json may have a number at this dotted path: one of the list, another field that holds
    one, or an entry of a section whose names depend on the run.
    """
    kind: Any = RunJson
    for name in path.split("."):
        kinds = [k for k in (kind, *typing.get_args(kind)) if k is not type(None)]
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if model is not None:
            fields = {info.alias or field: info for field, info in model.model_fields.items()}
            if name not in fields:
                return False
            kind = fields[name].annotation
        elif any(typing.get_origin(k) is dict for k in kinds):
            known = _FAILED if path.startswith("requests.failed.") else (name,)
            return name in known
        elif not (any(typing.get_origin(k) in (tuple, list) for k in kinds) and name.isdigit()):
            return False
        else:
            kind = float
    return any(k in (int, float, bool) for k in (kind, *typing.get_args(kind)))


def near_paths(path: str, most: int = 3) -> list[str]:
    """The numbers whose paths are most like this one, the nearest first; empty where none is like it."""
    words = _WORDS.findall(path.lower())
    found = []
    for place, number in enumerate(NUMBERS):
        theirs = _WORDS.findall(number.path)
        shared = sum(any(known.startswith(word) for known in theirs) for word in words) / max(1, len(words))
        alike = difflib.SequenceMatcher(None, path.lower(), number.path).ratio()
        found.append((-shared - round(alike, 1) / 2, place, number.path))
    return [name for score, _, name in sorted(found)[:most] if score < -_ALIKE]


def _facts(info: FieldInfo) -> dict[str, Any]:
    extra = info.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def _section(info: FieldInfo) -> type[BaseModel] | None:
    """The model that a field holds, optional or not."""
    for kind in (info.annotation, *typing.get_args(info.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _walk(model: type[BaseModel], above: Number) -> Iterator[Number]:
    """The numbers of a section; what a field does not state it has from the section `above` it."""
    for name, info in model.model_fields.items():
        facts = _facts(info)
        inner = _section(info)
        if inner is None and not facts.get("number"):
            continue
        path = f"{above.path}.{name}".lstrip(".")
        defined = info.description is not None
        interval = facts.get("interval")
        here = Number(
            path=path,
            title=_joined(above.title, facts.get("title") or ""),
            unit=facts.get("unit") or above.unit,
            definition=info.description if info.description is not None else above.definition,
            defined_at=path if defined else above.defined_at,
            when_null=facts.get("when_null") or NOT_GIVEN,
            group=facts.get("group") or above.group,
            interval_path=f"{above.path}.{interval}" if interval else None,
        )
        if inner is None:
            yield here
        else:
            yield from _walk(inner, here)


def _joined(above: str, own: str) -> str:
    """A title in lower case follows that of the distribution it is in: `TTFT p50`; others stand alone."""
    return own if own[:1].isupper() else f"{above} {own}".strip()


NUMBERS: tuple[Number, ...] = tuple(_walk(RunJson, Number("", "", "", "", "", NOT_GIVEN, "", None)))
_BY_PATH = {entry.path: entry for entry in NUMBERS}


def number_of(path: str) -> Number:
    """The number at a dotted path of run.json. Raises KeyError where the list has none."""
    return _BY_PATH[path]


def known_number(path: str) -> Number | None:
    """The number at a dotted path of run.json; None where the list has none."""
    return _BY_PATH.get(path)


def headline(run: RunJson) -> Number:
    """The number to quote as the energy of a request of this run."""
    each = run.energy.per_request_joules
    return number_of(f"energy.per_request_joules.{each.headline if each is not None else 'mean'}")


def groups() -> dict[str, list[Number]]:
    """The numbers under their headings, in the order of run.json."""
    found: dict[str, list[Number]] = {}
    for entry in NUMBERS:
        found.setdefault(entry.group, []).append(entry)
    return found
