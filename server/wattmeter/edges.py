"""When a stepping counter was updated, found with few reads.

An NVML counter moves every 100 ms exactly (on the recorded H200: 100.0000 ms over 517 s, residuals below the
sampling) and a read costs 4 ms, so it may be read about as often as it moves. Read at random moments, each
value is 0 to 100 ms old: 70 J of doubt at 700 W. But the updates are periodic: a few reads placed in the
middle of the time in which the next update must fall halve that time each, and afterwards one read just after
each update is enough. Every bracket stays true to what was read: where an update contradicts the estimate,
the estimate is dropped and the read's own bracket is returned.
"""

from __future__ import annotations

DRIFT = 5e-5
JITTER_NS = 2_000_000
SLACK_NS = 2 * JITTER_NS
NARROW_NS = 6_000_000
WIDE_NS = 8_000_000
GUARD_NS = 1_500_000
CONTRADICTIONS = 4


class EdgeClock:
    """Estimate of the update times of a counter with a known period: an interval (lo, hi] that repeats.

    `moved` and `unmoved` take what two neighbouring reads showed; `next_read_ns` says when the next read
    teaches or confirms most: when to begin a call that takes `call_ns`. Times are monotonic ns.
    """

    def __init__(self, period_seconds: float) -> None:
        if not period_seconds > 0.0:
            raise ValueError(f"edge clock: period must be above 0 s, not {period_seconds!r}")
        self.period_ns = round(period_seconds * 1e9)
        self.call_ns = 0
        self._low = 0
        self._high: int | None = None
        self._confirmed = False
        self._seeking = True
        self._rested = False
        self._contradictions = 0

    @property
    def width_seconds(self) -> float | None:
        """How exactly update times are known; None before the first bracket."""
        return None if self._high is None else (self._high - self._low) * 1e-9

    @property
    def locked(self) -> bool:
        """Update times are known, and the counter was seen to stand still between two of them."""
        return self._high is not None and self._confirmed and self._high - self._low <= 2 * WIDE_NS

    @property
    def given_up(self) -> bool:
        """The counter does not keep this period: every bracket is that of the reads themselves."""
        return self._contradictions >= CONTRADICTIONS

    def restart(self) -> None:
        """Forget the phase (the counter began anew, or an update came at the wrong time)."""
        self._high = None
        self._confirmed = False
        self._seeking = True
        self._rested = False

    def moved(self, after_ns: int, by_ns: int) -> tuple[int, int]:
        """An update fell in (after, by]: the narrowest interval known to hold the last one of them."""
        if self.given_up:
            return after_ns, by_ns
        # The value was read during the call, and the update before that is at most a period older.
        after_ns = max(after_ns, by_ns - self.period_ns - max(SLACK_NS, self.call_ns))
        if self._high is None:
            if by_ns - after_ns < self.period_ns:
                self._low, self._high = after_ns, by_ns
            return after_ns, by_ns
        self._roll(by_ns)
        # The candidate that began last before `by`; with the one before it also possible, nothing is learnt.
        if self._high - self.period_ns > after_ns and self._high > by_ns:
            return max(after_ns, self._low - self.period_ns), by_ns
        if after_ns >= self._high and by_ns - after_ns > self.period_ns // 2:
            self._contradictions += 1
            self.restart()
            return after_ns, by_ns
        low, high = max(self._low, after_ns), min(self._high, by_ns)
        if low >= high:
            if low - high > JITTER_NS:
                self._contradictions += 1
                self.restart()
                return after_ns, by_ns
            middle = (low + high) // 2
            low, high = middle - JITTER_NS // 2, middle + JITTER_NS // 2
        self._set(low, high)
        return (self._low, self._high) if self._confirmed else (after_ns, by_ns)

    def unmoved(self, after_ns: int, by_ns: int) -> None:
        """No update fell in (after, by]."""
        if self.given_up or by_ns <= after_ns:
            return
        if self._high is None:
            if by_ns - after_ns < self.period_ns:
                self._low, self._high = by_ns - self.period_ns, after_ns
                if self._high <= self._low:
                    self._high = None
            return
        self._roll(by_ns)
        if self._low >= after_ns and self._high <= by_ns:
            if by_ns - self._high > JITTER_NS:
                self._contradictions += 1
                self.restart()
            else:
                self._set(by_ns, by_ns + JITTER_NS)
        elif self._low >= after_ns:
            self._set(by_ns, self._high)
        elif self._high <= by_ns:
            self._set(self._low, after_ns)
        if self._high is not None and not self._seeking and by_ns - after_ns > self.period_ns // 2:
            self._confirmed = True
            self._contradictions = 0

    def next_read_ns(self, last_read_ns: int, not_before_ns: int = 0) -> int:
        """When to read next after a read at `last_read_ns`; whole periods later where that is too early."""
        target = self._target_ns(last_read_ns)
        if self.given_up or self._high is None:
            return max(target, not_before_ns)
        if target < not_before_ns:
            target += -(-(not_before_ns - target) // self.period_ns) * self.period_ns
        return target

    def _target_ns(self, last_read_ns: int) -> int:
        if self.given_up:
            return last_read_ns + self.period_ns
        if self._high is None:
            return last_read_ns + self.period_ns * 3 // 5
        self._roll(last_read_ns)
        low, high = self._low + self.period_ns, self._high + self.period_ns
        width = high - low
        if width <= NARROW_NS or width > WIDE_NS:
            self._seeking = width > WIDE_NS
        if self._confirmed and not self._seeking:
            return (self._high if last_read_ns < self._high else high) + GUARD_NS
        self._rested = not self._rested if last_read_ns >= self._high else False
        if last_read_ns < self._high:
            return high + GUARD_NS
        if self._rested:
            # A period without a read, so that the limit of reads a second does not put the next one off.
            return high + self.period_ns + GUARD_NS
        # The last read was in the time without updates. Seeking: the next is in the middle of the interval
        # and halves it. Narrow, but not confirmed: the next is just before the interval and must find the
        # counter standing.
        target = (low + high - self.call_ns) // 2 if self._seeking else low - GUARD_NS - self.call_ns
        return max(target, last_read_ns + 1)

    def _set(self, low: int, high: int) -> None:
        if high - low < JITTER_NS:
            middle = (low + high) // 2
            low, high = middle - JITTER_NS // 2, middle + JITTER_NS // 2
        self._low, self._high = low, high

    def _roll(self, now_ns: int) -> None:
        """Move the estimate by whole periods to the last one that begins before now, widened for drift."""
        assert self._high is not None
        periods = (now_ns - self._low - 1) // self.period_ns
        if periods == 0:
            return
        widen = round(abs(periods) * self.period_ns * DRIFT / 2)
        self._low += periods * self.period_ns - widen
        self._high += periods * self.period_ns + widen
        if self._high - self._low >= self.period_ns:
            self._high = self._low + self.period_ns - 1
