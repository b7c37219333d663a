"""Options of which a second value looks like one more: the last one would win without a word.

Of other options the last value wins, as usual, so that a wrapper's default can be overridden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from wattload.errors import InputError

# What to write instead, by the option's name.
_INSTEAD = {"model": "several models are one value, as --model a,b or a=3,b=1"}


def check_given_once(command: Any, arguments: Sequence[str]) -> None:
    """Raises InputError where such an option of a Click command has several values."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    by_spelling = {
        spelling: option
        for option in options
        for spelling in (*option.opts, *option.secondary_opts)
        if not (option.is_flag or option.count)
    }
    given: Counter[str] = Counter()
    spelled: dict[str, str] = {}
    following = iter(arguments)
    for argument in following:
        if argument == "--":
            break
        name, attached, _ = argument.partition("=")
        if name not in by_spelling and argument[:1] == "-" and argument[1:2] not in ("", "-"):
            name, attached = argument[:2], argument[2:]  # -m5
        option = by_spelling.get(name)
        if option is None:
            continue
        if not attached:
            next(following, None)
        if option.name in _INSTEAD:
            given[option.name] += 1
            spelled[option.name] = name
    for name, count in given.items():
        if count > 1:
            raise InputError(f"{spelled[name]} was given {count} times and takes one value; {_INSTEAD[name]}")
