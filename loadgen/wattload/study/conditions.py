"""The conditions of an arm: commands that set them, commands that undo them, and the check that they did."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from wattload.study.program import own_command

_TIMEOUT_SECONDS = 600.0


class ConditionsFailed(Exception):  # noqa: N818 - as RunInvalid
    """A command failed, or what it set was not undone: one sentence."""


def perform(arm: str, what: str, command: tuple[str, ...], folder: Path) -> str:
    """Runs a command to its end and gives its output. Raises ConditionsFailed where it fails."""
    shown = " ".join(command)
    try:
        done = subprocess.run(
            own_command(command),
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_SECONDS,
            cwd=folder,
            check=False,
        )
    except OSError as error:
        raise ConditionsFailed(f"{arm}: {what} `{shown}`: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise ConditionsFailed(f"{arm}: {what} `{shown}`: not over after {_TIMEOUT_SECONDS:g} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = lines[-1].strip() if lines else "it printed nothing"
        raise ConditionsFailed(f"{arm}: {what} `{shown}` ended with {done.returncode}: {said[:240]}")
    return done.stdout.strip()


def holds(command: tuple[str, ...], folder: Path) -> bool:
    """Whether a command ends with status 0."""
    try:
        perform("", "", command, folder)
    except ConditionsFailed:
        return False
    return True


def undo(
    arm: str, teardown: Sequence[tuple[str, ...]], check: tuple[str, ...], before: str, folder: Path
) -> None:
    """Runs every teardown command, and sees that the check says what it said before the setup.

    Raises ConditionsFailed with the first trouble, after all commands were run.
    """
    troubles = []
    for command in teardown:
        try:
            perform(arm, "teardown", command, folder)
        except ConditionsFailed as error:
            troubles.append(str(error))
    now = perform(arm, "check", check, folder)
    if now != before:
        troubles.insert(
            0, f"{arm}: its conditions were not undone: `{' '.join(check)}` says {now!r}, before {before!r}"
        )
    if troubles:
        raise ConditionsFailed("; ".join(troubles))
