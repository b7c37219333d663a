"""Command-line options out of the stages' options, so that a setting is written down once."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

from wattload.config import STAGES, RunConfig, load, variable_of
from wattload.errors import InputError
from wattload.export.options import FROM_ENVIRONMENT
from wattload.options import Options, Setting

ConfigFile = typing.Annotated[
    Path | None, typer.Option("--config", help="TOML file of these settings; flags win over it.")
]


UrlArgument = typing.Annotated[
    str | None, typer.Argument(help="Address of the endpoint, as http://host:port; http:// may be left out.")
]
UrlOption = typing.Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        "-u",
        "--base-url",
        "--target",
        help="Address of the endpoint, instead of the argument. Repeated: further ones are replicas.",
        rich_help_panel="Target",
        metavar="URL",
    ),
]


def settings_of(
    command: str,
    url: str | None,
    options: Sequence[str] | None,
    given: typing.Mapping[str, Any],
    file: Path | None,
) -> RunConfig:
    """The configuration of a command whose endpoint is an argument or an option, which may be given for each
    of several. Raises InputError.
    """
    urls = list(dict.fromkeys([*([url] if url is not None else []), *(options or [])]))
    more = {"replica": [*(given.get("replica") or []), *urls[1:]]} if urls[1:] else {}
    try:
        return load({**given, "url": urls[0] if urls else None, **more}, file)
    except InputError as error:
        if error.field == "url" and error.message == "is missing":
            taken = given.get("otel")
            if taken not in (None, FROM_ENVIRONMENT):
                raise InputError("url", f"is missing: {taken} was taken for the value of `otel`") from error
            example = f"wattload {command} http://localhost:8000"
            raise InputError("url", f"is missing; for example: {example}") from error
        raise


def parameter_of(setting: Setting) -> inspect.Parameter:
    """The keyword parameter of a setting, None where the user gives nothing. Values stay text until the
    stage's options read them.
    """
    kind: Any = str | None
    panel = setting.title or None
    if setting.kind == "list":
        kind = list[str] | None
        option = typer.Option(
            setting.flag, *setting.flags, help=setting.help, rich_help_panel=panel, metavar=setting.metavar
        )
    elif setting.kind == "switch":
        kind = bool | None
        default = "" if setting.default is None else f" \\[{setting.default}]"
        option = typer.Option(
            f"{setting.flag}/--no-{setting.flag[2:]}",
            help=setting.help + default,
            envvar=variable_of(setting.name),
            show_envvar=False,
            rich_help_panel=panel,
        )
    else:
        # In a container the address of the metrics is the image's business, not the command's.
        variable = variable_of(setting.name) if setting.name.startswith("metrics_") else None
        text = setting.help if setting.default is None else f"{setting.help} \\[{setting.default}]"
        values = list(setting.values)
        option = typer.Option(
            setting.flag,
            *setting.flags,
            help=text,
            envvar=variable,
            rich_help_panel=panel,
            metavar=setting.metavar,
            autocompletion=(lambda: values) if values else None,
        )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=typing.Annotated[kind, option],
    )


def with_settings(
    command: Callable[..., None],
    *,
    stages: Sequence[type[Options]] = tuple(STAGES.values()),
    skip: Iterable[str] = (),
) -> Callable[..., None]:
    """`command` with an option added for each setting of `stages`; it gets them in its `**settings`."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    left_out = {*skip, *(p.name for p in own)}
    added = [
        parameter_of(setting)
        for stage in stages
        for setting in stage.settings()
        if setting.name not in left_out
    ]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own[1:]]
    parameters = [*own[:1], *added, *keyword]

    def wrapper(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return typing.cast(types.FunctionType, wrapper)
