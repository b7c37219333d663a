"""What the Energy tab shows: a point a second of the run that goes on."""

from __future__ import annotations

from collections import deque
from typing import Any

import gevent
import httpx

from wattload.clock import unix_now
from wattload.load.totals import Totals
from wattload.session import Session

_POINTS = 1_800
_SPLIT_SECONDS = 3.0
# Energy of the last moments is not settled yet.
_BEHIND_SECONDS = 3.0


class LiveEnergy:
    """Points of power and of energy a request and a token, and the split since the start.

    A number that is not known is None and not drawn.
    """

    def __init__(self, session: Session, totals: Totals, source: str | None) -> None:
        self._session, self._totals = session, totals
        self._started = unix_now()
        self.source = source
        self.points: deque[dict[str, Any]] = deque(maxlen=_POINTS)
        self.split: dict[str, Any] = {}

    def follow(self) -> None:
        """Adds points until it is killed."""
        asked = 0.0
        while True:
            gevent.sleep(1.0)
            now = unix_now()
            if self._session.energy is not None and now - asked >= _SPLIT_SECONDS:
                asked = now
                self._ask_split(now)
            self.points.append(self._point(now))

    def _point(self, now: float) -> dict[str, Any]:
        totals = self._totals
        return {
            "unix_seconds": now,
            "watts": self._session.watts(),
            "joules_per_request": totals.recent_joules,
            "joules_per_output_token": totals.recent_joules_per_output_token,
            "completed": totals.completed,
            "failed": totals.failed,
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
        self.split = {
            "prefill_joules": answer.prefill_joules,
            "decode_joules": answer.decode_joules,
            "idle_joules": answer.idle_joules,
            "unattributed_joules": answer.unattributed_joules,
            "total_joules": answer.total_joules,
        }

    def as_dict(self) -> dict[str, Any]:
        return {"source": self.source, "points": list(self.points), "split": self.split}
