"""How hard a workload is driven: at a rate, at a share of a capacity, all at once, in a closed loop."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

_NUMBERED = re.compile(r"(batch|offline|closed):([1-9]\d{0,5})")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
EXAMPLES = '5, "50%", "offline:500", "batch:16" or "closed:8"'


@dataclass(frozen=True, slots=True)
class Level:
    """One entry of a workload's `rates`. `rate_rps` is None where requests come at no rate of their own."""

    text: str
    rate_rps: float | None
    settings: tuple[tuple[str, Any], ...]
    at_once: bool = False

    @property
    def slug(self) -> str:
        """As part of a directory's name."""
        return self.text.replace(":", "-").replace("%", "pc").replace("/s", "")

    def over(self, run: dict[str, Any]) -> dict[str, Any]:
        """The settings of a run at this level; None takes away what `run` has."""
        return {**run, **dict(self.settings)}


def parse_level(value: float | str, capacity_rps: float | None) -> Level:
    """A level from what the file says. Raises ValueError with the rest of a sentence."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not a rate; write {EXAMPLES}")
    if not isinstance(value, str):
        return _at_rate(f"{value:g}/s", float(value))
    text = value.strip()
    share, numbered = _SHARE.fullmatch(text), _NUMBERED.fullmatch(text)
    if share is not None:
        if capacity_rps is None:
            raise ValueError(f"{text!r} is a share of `capacity`, which the workload does not give")
        return _at_rate(f"{float(share[1]):g}%", float(share[1]) / 100 * capacity_rps)
    if text == "offline":
        return _at_once(text, {})
    if numbered is not None and numbered[1] != "closed":
        return _at_once(text, {"requests": int(numbered[2])})
    if numbered is not None:
        return Level(text, None, (("arrivals", f"closed:concurrency={numbered[2]}"), ("rate", None)))
    raise ValueError(f"{text!r} is not a rate; write {EXAMPLES}")


def _at_rate(text: str, rate: float) -> Level:
    if not 0 < rate < math.inf:
        raise ValueError(f"{text}: a rate must be above 0")
    return Level(text, rate, (("rate", f"{rate:.6g}"),))


def _at_once(text: str, more: dict[str, Any]) -> Level:
    """All of the run is after the last sending, so that a `drain` that suits a rate would cut it short."""
    settings = {"arrivals": "offline", "rate": None, "duration": None, "warmup": None, "drain": None, **more}
    return Level(text, None, tuple(settings.items()), at_once=True)
