"""The machine that sends the load, and the versions of what shaped the numbers."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wattload import redaction
from wattmeter import __version__


def versions(engine: str | None = None) -> dict[str, str | None]:
    """Versions by name; None where it is not known. `engine`: what the endpoint says of its own."""
    return {
        "wattload": __version__,
        "python": platform.python_version(),
        "locust": _version_of("locust"),
        "gevent": _version_of("gevent"),
        "engine": engine,
    }


def host() -> dict[str, Any]:
    """This machine, and the command that was given, without secrets."""
    return {
        "name": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "command": [Path(sys.argv[0]).name, *command_line(sys.argv[1:])],
    }


def command_line(arguments: Sequence[str]) -> list[str]:
    """Arguments as they may be written down: headers, bodies and addresses without their secrets."""
    safe: list[str] = []
    flag = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in _WITH_SECRETS and equals:
            safe.append(f"{name}={_WITH_SECRETS[name](value)}")
        else:
            safe.append(_WITH_SECRETS.get(flag, redaction.without_credentials)(argument))
        flag = argument
    return safe


def _body(text: str) -> str:
    try:
        return json.dumps(redaction.plain(json.loads(text)))
    except (ValueError, RecursionError):
        return redaction.HIDDEN


_WITH_SECRETS: dict[str, Callable[[str], str]] = {"--header": redaction.header_line, "--body": _body}


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
