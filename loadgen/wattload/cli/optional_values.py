"""Flags whose value may be left out, which Typer does not know: the value that then stands for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_WITHOUT_VALUE = {"--otel": "env"}


def with_values(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, with `--otel` as `--otel=env` where no value follows it."""
    return list(_rewritten(arguments))


def _rewritten(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        without = _WITHOUT_VALUE.get(argument)
        yield f"{argument}={without}" if without is not None and following.startswith("-") else argument
