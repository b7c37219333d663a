"""What a server said, made fit to be kept and shown: text without control characters, joules that can be.

An answer is the server's to choose. What it puts into one field may cost that field, and nothing else.
"""

from __future__ import annotations

import re
from typing import Any

from wattmeter.schema import PROVISIONAL, SETTLED, UNKNOWN, possible_request_joules

_DEEPEST = 64
# Control characters reach a terminal; half a surrogate pair is no text that can be written.
_UNFIT = re.compile("[ ]*[\x00-\x1f\x7f-\x9f\ud800-\udfff][ \x00-\x1f\x7f-\x9f\ud800-\udfff]*")


def readable(text: str) -> str:
    """`text` with each run of control characters and unpaired surrogates as one space."""
    return _UNFIT.sub(" ", text).strip()


def readable_json(value: Any, _depth: int = 0) -> Any:
    """A parsed answer whose texts are readable; what lies deeper than 64 levels is null."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        if _depth >= _DEEPEST:
            return None
        return {readable(str(name)): readable_json(item, _depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [readable_json(item, _depth + 1) for item in value] if _depth < _DEEPEST else None
    return value


def request_energy(energy: object) -> tuple[float, str] | None:
    """(joules, status) of the `energy` of a `usage`; None where it has no joules that a request can have.

    A status that is not known here is not taken for a final one.
    """
    if not isinstance(energy, dict):
        return None
    joules = possible_request_joules(energy.get("joules"))
    if joules is None:
        return None
    status = energy.get("status")
    known = isinstance(status, str) and status in (SETTLED, PROVISIONAL, UNKNOWN)
    return joules, status if known and isinstance(status, str) else PROVISIONAL
