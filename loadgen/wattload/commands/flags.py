"""Command-line options out of RunConfig's fields, so that a setting is written down once."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from wattload.config import RunConfig, flag_of, variable_of

ConfigFile = typing.Annotated[
    Path | None, typer.Option("--config", help="TOML file of these settings; flags win over it.")
]


def _is(annotation: Any, kind: type) -> bool:
    if annotation is kind:
        return True
    return any(_is(part, kind) for part in typing.get_args(annotation))


def options(skip: Iterable[str] = ()) -> list[inspect.Parameter]:
    """One keyword parameter a field, None where the user gives nothing. Values stay text: RunConfig reads
    them.
    """
    left = set(skip)
    found = []
    for name, info in RunConfig.model_fields.items():
        if name in left:
            continue
        text = info.description or ""
        if typing.get_origin(info.annotation) is list:
            kind: Any = list[str] | None
            option = typer.Option(flag_of(name), help=text)
        elif _is(info.annotation, bool):
            kind = bool | None
            flag = flag_of(name)
            option = typer.Option(
                f"{flag}/--no-{flag[2:]}", help=text, envvar=variable_of(name), show_envvar=False
            )
        else:
            kind = str | None
            # In a container the address of the metrics is the image's business, not the command's.
            variable = f"WATTLOAD_{name.upper()}" if name.startswith("metrics_") else None
            option = typer.Option(flag_of(name), help=_with_default(text, info.default), envvar=variable)
        found.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=typing.Annotated[kind, option]
            )
        )
    return found


def _with_default(text: str, default: object) -> str:
    shown = default is not None and isinstance(default, (str, int, float)) and default != ""
    return (
        f"{text} \\[{default:g}]"
        if shown and isinstance(default, float)
        else (f"{text} \\[{default}]" if shown else text)
    )


def with_settings(command: Callable[..., None], *, skip: Iterable[str] = ()) -> Callable[..., None]:
    """`command` with an option for each setting added; it gets them in its `**settings`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own[1:]]
    parameters = [*own[:1], *options({*skip, *(p.name for p in own)}), *keyword]

    def wrapper(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return typing.cast(types.FunctionType, wrapper)
