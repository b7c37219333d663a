"""How far the simulation runs behind its own plan. A simulator that runs late is a wrong simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DEFAULT_TOLERANCE_SECONDS = 0.010
# Up to this part of a window's steps may be later than the tolerance before the window is flagged ...
ALLOWED_FRACTION = 0.02
# ... but one step as late as this is a stall that every latency in the window has seen.
STALL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class StepDelays:
    """Steps of a window: how many, how many late, and quantiles of (tokens handed out - planned end)."""

    steps: int
    late_steps: int
    p50_seconds: float | None
    p99_seconds: float | None
    max_seconds: float | None
    tolerance_seconds: float

    @property
    def too_late(self) -> bool:
        worst = self.max_seconds is not None and self.max_seconds > STALL_SECONDS
        return worst or self.late_steps > ALLOWED_FRACTION * self.steps

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "late_steps": self.late_steps,
            "tolerance_seconds": self.tolerance_seconds,
            "late_seconds": {"p50": self.p50_seconds, "p99": self.p99_seconds, "max": self.max_seconds},
            "late": self.too_late,
        }


class StepDelayLog:
    """The delays of the last `history` steps, by the monotonic time at which they should have ended.

    A ring of plain integers: asking about a window must not hold up the steps of that moment.
    """

    def __init__(
        self, *, tolerance_seconds: float = DEFAULT_TOLERANCE_SECONDS, history: int = 400_000
    ) -> None:
        self.tolerance_seconds = tolerance_seconds
        # `np.full` writes to the memory now, so the server does not grow while the ring fills.
        self._planned_ns = np.full(history, 0, dtype=np.int64)
        self._late_ns = np.full(history, 0, dtype=np.int64)
        self._noted = 0

    def note(self, planned_ns: int, done_ns: int) -> None:
        """A step that should have ended at `planned_ns` was handed out by `done_ns`; steps come in order."""
        place = self._noted % len(self._planned_ns)
        self._planned_ns[place] = planned_ns
        self._late_ns[place] = done_ns - planned_ns
        self._noted += 1

    def window(self, start_ns: int, end_ns: int) -> StepDelays:
        """The steps that should have ended in [start_ns, end_ns)."""
        noted, size = self._noted, len(self._planned_ns)
        # Oldest first: what lies behind the place of the next note, then what lies before it.
        pieces = [slice(0, noted)] if noted <= size else [slice(noted % size, size), slice(0, noted % size)]
        late = []
        for piece in pieces:
            low, high = np.searchsorted(self._planned_ns[piece], (start_ns, end_ns))
            late.append(self._late_ns[piece][low:high])
        return self._summary(np.concatenate(late) * 1e-9)

    def _summary(self, late: npt.NDArray[np.floating]) -> StepDelays:
        if len(late) == 0:
            return StepDelays(0, 0, None, None, None, self.tolerance_seconds)
        p50, p99 = np.quantile(late, (0.5, 0.99))
        count = int(np.count_nonzero(late > self.tolerance_seconds))
        return StepDelays(
            len(late), count, float(p50), float(p99), float(np.max(late)), self.tolerance_seconds
        )
