"""`--repeat` with a number is `--repeats`: without one it plays a trace again, as it always did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def with_repeats(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with `--repeat N` and `--repeat=N` as `--repeats N`."""
    return list(_rewritten(arguments))


def _rewritten(arguments: Sequence[str]) -> Iterator[str]:
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        if name == "--repeat" and (value.isdecimal() if equals else following.isdecimal()):
            yield f"--repeats{equals}{value}"
        else:
            yield argument
