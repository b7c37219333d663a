"""The page of the command line: every command, flag, default and help, read from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from wattload.cli.app import COMMANDS, load_command
from wattserve.cli import app as wattserve

_HEAD = """# Command line

**Which commands and flags are there, and what are their defaults?** `wattload` sends load and reads runs;
`wattserve` serves and meters. `COMMAND --help` prints the same in a terminal. A flag of `wattload run` is
also a key of a `--config` file and a setting in [Python](../how-to/python.md), where `--prefix-share` is
`prefix_share`.
"""
_STATED = re.compile(r" (?:\[(?P<fixed>[^][]+)\]|Default: (?P<told>.+)\.)$")
_KINDS = {"str": "text", "int": "integer", "float": "number", "bool": "", "Path": "path"}


def page() -> str:
    commands = [("wattload", name, load_command(name)) for name in COMMANDS]
    group: Any = typer.main.get_command(wattserve)
    commands += [("wattserve", name, command) for name, command in group.commands.items()]
    parts = [_HEAD]
    for program, name, command in commands:
        if not getattr(command, "hidden", False):
            parts += _command(f"{program} {name}", command, depth=2)
    return "\n".join(parts)


def _command(path: str, command: Any, *, depth: int) -> Iterator[str]:
    yield f"{'#' * depth} {path}\n"
    yield f"{_plain(command.help or '')}\n"
    arguments = [each for each in command.params if each.param_type_name == "argument" and not each.hidden]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    if arguments:
        yield "| argument | meaning |\n|---|---|"
        yield from (
            f"| `{(each.metavar or each.name).upper()}`{'' if each.required else ' (optional)'} "
            f"| {_plain(each.help or '')} |"
            for each in arguments
        )
        yield ""
    panels: dict[str, list[Any]] = {}
    for each in options:
        panels.setdefault(each.rich_help_panel or "", []).append(each)
    for panel, members in panels.items():
        if panel or len(panels) > 1:
            yield f"**{panel or 'Other options'}**\n"
        yield "| flag | default | meaning |\n|---|---|---|"
        yield from (_row(each) for each in members)
        yield ""
    if path == "wattserve vllm":
        yield "Its flags for metering: [vLLM with a meter](../how-to/vllm.md#flags). All others are vLLM's.\n"
    for name, sub in getattr(command, "commands", {}).items():
        if not sub.hidden:
            yield from _command(f"{path} {name}", sub, depth=depth + 1)


def _row(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    kind = _kind(option.type_descriptor.annotation)
    default = option.default
    if isinstance(default, bool):
        shown = option.opts[0] if default else ""
    else:
        shown = "" if default in (None, (), []) or callable(default) else str(default)
    text = _plain(option.help or "")
    # Settings of a run state their default in the help, since the flag's own is "not given".
    stated = _STATED.search(text)
    if stated and not shown:
        text, shown = text[: stated.start()], stated["fixed"] or ""
        default_cell = f"`{shown}`" if shown else stated["told"]
    else:
        default_cell = f"`{shown}`" if shown else ""
    cells = (f"{flags} {kind}".rstrip(), default_cell, text)
    return f"| {' | '.join(cells)} |"


def _kind(annotation: Any) -> str:
    of_list = re.fullmatch(r"list\[(?:[\w.]*\.)?(\w+)\]", str(annotation))
    name = of_list[1] if of_list else getattr(annotation, "__name__", str(annotation))
    kind = _KINDS.get(name, name)
    return f"*{kind}*" if kind else ""


def _plain(text: str) -> str:
    """One line of Markdown of a help text: without the escapes that Rich needs, safe in a table."""
    line = " ".join(text.replace("\\[", "[").split())
    return line.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


PAGE = Path(__file__).resolve().parents[1] / "reference" / "cli.md"
