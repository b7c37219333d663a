"""The two ways a command of wattload fails on purpose, and what a setting is called on the command line."""

from __future__ import annotations

import re
from typing import overload

from wattload.redaction import without_credentials

_OPTION = re.compile(r"`([a-z][a-z0-9_]*)`")
# Settings whose flag is not their name.
_FLAGS = {"url": "URL", "assertions": "--assert"}


def flag_of(field: str) -> str:
    """The flag of a setting: `prefix_share` is `--prefix-share`."""
    return _FLAGS.get(field) or "--" + field.replace("_", "-")


class InputError(ValueError):
    """What was asked cannot be done: exit status 2, before any load is sent.

    `field` is the setting that is at fault, by the name that it has in Python and in a TOML file, or None
    where the message names a file and line instead. `message` is the rest of one sentence, beginning with the
    value where there is one; a setting mentioned in it stands in backticks.
    """

    @overload
    def __init__(self, message: str, /) -> None: ...
    @overload
    def __init__(self, field: str | None, message: str, /) -> None: ...
    def __init__(self, field: str | None, message: str | None = None, /) -> None:
        super().__init__(*((field,) if message is None else (field, message)))
        self.field = field if message is not None else None
        self.message = message if message is not None else str(field)

    def __str__(self) -> str:
        return _sentence(self.field, self.message)

    def for_command_line(self) -> str:
        """The same sentence with flags in the place of names."""
        flag = None if self.field is None else flag_of(self.field)
        return _sentence(flag, _OPTION.sub(lambda found: flag_of(found[1]), self.message))


# The name it had before; nothing but the name differs.
BadInput = InputError


class RunInvalid(RuntimeError):  # noqa: N818
    """The run was made but its figures must not be trusted, or an assertion failed: exit status 1.

    The message is the reason, one sentence; it is the last line a command prints.
    """

    status = 1


class NoVerdict(RunInvalid):
    """What was measured does not decide what was asked: exit status 3."""

    status = 3


def _sentence(name: str | None, message: str) -> str:
    # A value is told as it was given, and an address may have been given with a password.
    message = without_credentials(message)
    if not name:
        return message
    return f"{name}{message}" if message.startswith((":", ",")) else f"{name} {message}"
