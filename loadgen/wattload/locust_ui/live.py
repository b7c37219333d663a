"""What the Energy tab shows: a point a second of the run that goes on."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import gevent
import httpx

from wattload.execution import Session
from wattload.tally import Tally

_POINTS = 1_800
_SPLIT_SECONDS = 3.0
# Energy of the last moments is not settled yet.
_BEHIND_SECONDS = 3.0


class LiveEnergy:
    """Points of power and of energy a request and a token, and the split since the start.

    A number that is not known is None and not drawn.
    """

    def __init__(self, session: Session, tally: Tally, source: str | None) -> None:
        self._session, self._tally = session, tally
        self._started = time.time()
        self.source = source
        self.points: deque[dict[str, Any]] = deque(maxlen=_POINTS)
        self.split: dict[str, Any] = {}

    def follow(self) -> None:
        """Adds points until it is killed."""
        asked = 0.0
        while True:
            gevent.sleep(1.0)
            now = time.time()
            if self._session.energy is not None and now - asked >= _SPLIT_SECONDS:
                asked = now
                self._ask_split(now)
            self.points.append(self._point(now))

    def _point(self, now: float) -> dict[str, Any]:
        tally = self._tally
        return {
            "unix_seconds": now,
            "watts": self._session.watts(),
            "joules_per_request": tally.recent_joules,
            "joules_per_output_token": tally.recent_joules_per_output_token,
            "completed": tally.completed,
            "failed": tally.failed,
        }

    def _ask_split(self, now: float) -> None:
        energy = self._session.energy
        end = now - _BEHIND_SECONDS
        if energy is None or end <= self._started:
            return
        try:
            answer = energy.window(self._started, end)
        except (httpx.HTTPError, ValueError, KeyError):
            return
        shared = answer.get("attributed_joules") or {}
        self.split = {
            "prefill_joules": shared.get("prefill"),
            "decode_joules": shared.get("decode"),
            "idle_joules": answer.get("idle_joules"),
            "unattributed_joules": answer.get("unattributed_joules"),
            "total_joules": answer.get("total_joules"),
        }

    def as_dict(self) -> dict[str, Any]:
        return {"source": self.source, "points": list(self.points), "split": self.split}
