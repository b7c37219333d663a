"""What the options of every stage have in common: a field is a setting, written down once.

A setting's name is its name in Python, in a TOML file and, with dashes, on the command line. A field whose
name carries a unit has the setting's name as its alias: `drain_seconds` is the setting `drain` and the flag
`--drain`. A field's description is the help text of the flag; `flags` in its `json_schema_extra` are further
names of the flag, `panel` is the heading of the help under which it stands, and `repeat` says that the flag
may be given several times.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic.fields import FieldInfo

from wattload.errors import InputError, flag_of
from wattload.units import parse_duration


def _seconds(value: object) -> object:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return parse_duration(repr(value))
    return float(value)


def _text(value: object) -> object:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def share(value: Any) -> Any:
    """`5%` as 0.05; what is no text with a percent sign as it is. Raises ValueError."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError("not a share (examples: 5%, 0.05)") from None
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
PositiveSeconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Text = Annotated[str, BeforeValidator(_text)]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as the command line and the documents need it. `kind` "list" may be repeated.

    `flags` are further names of its flag, `values` what it may be where that is a list of words, and
    `metavar` names the kind of its value.
    """

    name: str
    help: str
    kind: Literal["list", "switch", "text"]
    default: str | None
    title: str
    flags: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    metavar: str = "TEXT"

    @property
    def flag(self) -> str:
        return flag_of(self.name)


class Options(BaseModel):
    """The options of one stage. Raises InputError naming the setting where a value cannot be used.

    A value is parsed once, into what is used; `saved` has it as it was written.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        arbitrary_types_allowed=True,
        validate_default=True,
    )

    title: ClassVar[str] = ""
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _input_error(type(self), error) from error
        self._given = values

    @classmethod
    def settings(cls) -> list[Setting]:
        """The settings in the order of the fields."""
        return [
            Setting(
                name=info.alias or field,
                help=info.description or "",
                kind="list" if _extra(info).get("repeat") else _kind(info.annotation),
                default=_shown(
                    info.get_default(call_default_factory=True), "s" if field.endswith("_seconds") else ""
                ),
                title=_extra(info).get("panel", cls.title),
                flags=tuple(_extra(info).get("flags", ())),
                values=_values(info.annotation),
                metavar=_extra(info).get("metavar") or _metavar(field, info.annotation),
            )
            for field, info in cls.model_fields.items()
        ]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> typing.Self:
        """The options among `values`, by the names of settings; others are passed over."""
        names = {setting.name for setting in cls.settings()}
        return cls(**{name: value for name, value in values.items() if name in names and value is not None})

    def saved(self) -> dict[str, Any]:
        """Every setting in effect by its name, as JSON can hold it: what was parsed, as it was written."""
        found = {}
        for field, info in type(self).model_fields.items():
            name = info.alias or field
            written = self._given.get(name, self._given.get(field))
            found[name] = _plain(getattr(self, field), written)
        return found


def _kind(annotation: Any) -> Literal["list", "switch", "text"]:
    if annotation is bool:
        return "switch"
    return "list" if typing.get_origin(annotation) in (list, tuple) else "text"


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _values(annotation: Any) -> tuple[str, ...]:
    """The words of a Literal, optional or not."""
    for kind in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(kind) is Literal:
            return tuple(str(value) for value in typing.get_args(kind))
    return ()


def _metavar(field: str, annotation: Any) -> str:
    values = _values(annotation)
    if values:
        return "|".join(values)
    if field.endswith("_seconds"):
        return "DURATION"
    kinds = {annotation, *typing.get_args(annotation)}
    return next(
        (name for kind, name in ((Path, "PATH"), (int, "N"), (float, "NUMBER")) if kind in kinds), "TEXT"
    )


def _shown(default: object, unit: str) -> str | None:
    """A default as the help shows it; None where there is nothing to show."""
    default = getattr(default, "text", default)
    if default is True:
        return "on"
    if isinstance(default, bool) or default in (None, "") or not isinstance(default, (str, int, float)):
        return None
    return f"{default:g}{unit}" if isinstance(default, float) else str(default)


def _plain(value: Any, written: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        texts = written if isinstance(written, (list, tuple)) else value
        return [
            _plain(item, item) if isinstance(item, str) else str(getattr(item, "text", item))
            for item in texts
        ]
    return written if isinstance(written, str) else str(getattr(value, "text", value))


def _input_error(options: type[Options], error: ValidationError) -> InputError:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    name = str(first["loc"][0]) if first["loc"] else None
    if name in options.model_fields:
        name = options.model_fields[name].alias or name
    if first["type"] == "missing":
        return InputError(name, "is missing")
    if first["type"] == "extra_forbidden":
        return InputError(name, "is not a setting")
    if first["type"] == "value_error":
        reason = str(cause)
    else:
        reason = first["msg"].replace("Input should", "must").replace("a valid integer", "an integer")
        reason = reason.replace("valid ", "")
    if name == "header":  # which may hold a key: its own sentence says which line, without the value
        return InputError(name, reason)
    given = first["input"]
    if isinstance(given, (list, tuple)):
        given = ", ".join(str(part) if str(part).isprintable() else repr(part) for part in given)
    return InputError(name, f"{given}: {reason}")
