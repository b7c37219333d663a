"""`wattload init`: a TOML file of every setting of a run, commented, for `wattload run --config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from wattload.config import SETTINGS
from wattload.errors import InputError
from wattload.options import Setting

# What a first run states in so many words; every other setting stands as a comment.
_STATED = {"trace": "conv", "rate": 5, "duration": "5m"}
_NAMES = {"assertions": "assert"}


def register(app: typer.Typer) -> None:
    app.command("init")(init)


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("wattload.toml"),
    url: Annotated[
        str, typer.Option("--url", "-u", help="Address of the endpoint.", metavar="URL")
    ] = "http://localhost:8000",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented TOML file of every setting, for --config.

    Example: wattload init conv.toml, then wattload run --config conv.toml
    """
    if file.exists() and not force:
        raise InputError(f"{file}: exists already; name another file, or overwrite it with --force")
    try:
        file.write_text(template(url), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})") from error
    typer.echo(f"{file}: edit it, then run\n  wattload run --config {file}")


def template(url: str) -> str:
    """The file's text: the settings under the headings of the help, each with what it does."""
    lines = [
        "# Settings of `wattload run`, `wattload sweep` and Locust: wattload run --config FILE.",
        "# A flag on the command line takes precedence over the file.",
    ]
    headings = list(dict.fromkeys(setting.title for setting in SETTINGS.values()))
    for heading in headings:
        lines += ["", f"# {heading}", ""]
        for setting in SETTINGS.values():
            if setting.title == heading:
                lines += _lines(setting, url)
    return "\n".join(lines) + "\n"


def _lines(setting: Setting, url: str) -> list[str]:
    value = {"url": url, **_STATED}.get(setting.name)
    stated = value is not None
    if not stated:
        value = {"list": [], "switch": setting.default == "on"}.get(setting.kind, setting.default or "")
    name = _NAMES.get(setting.name, setting.name)
    text = json.dumps(value, ensure_ascii=False)
    kind = f" ({setting.metavar})" if setting.kind == "text" else ""
    return [f"# {setting.help}{kind}", f"{'' if stated else '# '}{name} = {text}"]
