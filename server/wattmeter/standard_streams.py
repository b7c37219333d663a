"""The three streams that a command is started with, where whoever started it has closed some of them."""

from __future__ import annotations

import os
import sys
from typing import IO

_STREAMS = ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"))


def open_standard_streams() -> None:
    """Opens those of stdin, stdout and stderr that are closed, on nothing.

    A service manager, or `>&-` in a shell, may start a command without them. Python then has None in their
    place, which nothing can be printed to, and the next file that is opened gets the number of the one that
    is missing: what a library or a child process writes to its standard error would go into that file.
    """
    for number, name, mode in _STREAMS:
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def say(text: str, *, error: bool = False) -> None:
    """Prints a line to stdout, or stderr, of which the work does not depend: where that takes nothing (its
    disk is full, its reader is gone), the line is lost and nothing else."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except OSError:
        give_up(stream)


def give_up(stream: IO[str]) -> None:
    """Nothing more is written to a stream that takes nothing. What waits in its buffer would be tried again
    when Python ends, and change the status of the command."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)
