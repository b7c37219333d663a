"""What the command line turns into an exit status: bad input (2) and a run that is not valid (1)."""

from __future__ import annotations


class BadInput(ValueError):
    """Something the user gave cannot be used. The message is one sentence naming the file and line, or the flag."""


class RunInvalid(Exception):
    """A run ended without a result that can be trusted, or an assertion failed. The message is the reason."""
