"""The two ways a command of wattload fails on purpose."""

from __future__ import annotations


class BadInput(ValueError):  # noqa: N818 - named for what the user reads
    """What was asked cannot be done: exit status 2, before any load is sent.

    The message is one sentence naming the flag, or the file and line, that is at fault.
    """


class RunInvalid(RuntimeError):  # noqa: N818
    """The run was made but its figures must not be trusted, or an assertion failed: exit status 1.

    The message is the reason, one sentence; it is the last line a command prints.
    """
