"""When a stepping counter was updated, found with few reads.

An NVML counter moves every 100 ms exactly (on the recorded H200: 100.0000 ms over 517 s, residuals below the
sampling) and a read costs 3 to 4 ms, more beside an engine, so it may be read about as often as it moves.
Read at random moments, each value is 0 to 100 ms old: 70 J of doubt at 700 W. But the updates are periodic: a
few reads placed in the middle of the time in which the next update must fall halve that time each, down to
what a read itself takes, and afterwards one read just after each update is enough. Every bracket stays true
to what was read: where an update contradicts the estimate, the estimate is dropped and the read's own bracket
is returned.

Seeking costs no read more than following does: there is one read per period, and only its place in the
period changes. So no two reads are further apart than one and a half periods, whatever is found.
"""

from __future__ import annotations

# How far a period may be off: one that is known to be exact, one that was checked for a while, one that was
# not (a host's clock may be steered by 5e-4), and one of a counter that contradicted it.
EXACT_DRIFT = 2.5e-5
DRIFT = 5e-5
FIRST_DRIFT = 3e-4
MOST_DRIFT = 5e-3
JITTER_NS = 2_000_000
SLACK_NS = 2 * JITTER_NS
NARROW_NS = 6_000_000
# An estimate that is wider than a narrow one by this is sought again.
WIDER_NS = 2_000_000
GUARD_NS = 1_500_000
CONTRADICTIONS = 4
ANCHOR_PERIODS = 3000
# A counter that did not keep its period may have been disturbed: it is tried again, ever more seldom.
RETRY_NS = 60_000_000_000
LONGEST_GAP_NS = 140_000_000


class PhaseLock:
    """Estimate of the update times of a counter with a known period: an interval (lo, hi] that repeats.

    `moved` and `unmoved` take what two neighbouring reads showed; `next_read_ns` says when the next read
    teaches or confirms most. Times are monotonic ns. With `exact` the period is known better than a new
    counter's is (that of a recording).
    """

    def __init__(self, period_seconds: float, *, exact: bool = False) -> None:
        if not period_seconds > 0.0:
            raise ValueError(f"phase lock: period must be above 0 s, not {period_seconds!r}")
        self.period_ns = round(period_seconds * 1e9)
        self._low = 0
        self._high: int | None = None
        # Whether the counter was ever seen to stand between updates, and whether since it was last sought.
        self._confirmed = False
        self._checked = False
        self._seeking = True
        # The last read began then, and may have come before the update that it was placed by.
        self._read_ns = 0
        self._behind = False
        self._contradictions = 0
        self._nominal_ns = self.period_ns
        self._least_drift = EXACT_DRIFT if exact else DRIFT
        self._drift = EXACT_DRIFT if exact else FIRST_DRIFT
        self._jitter_ns = JITTER_NS
        self._call_ns = 0
        # (middle, width) of the estimate when it was checked, from which the period is learnt.
        self._anchor: tuple[int, int] | None = None
        self._retry_ns = RETRY_NS
        self._retry_at_ns: int | None = None

    @property
    def width_seconds(self) -> float | None:
        """How exactly update times are known; None before the first bracket."""
        return None if self._high is None else (self._high - self._low) * 1e-9

    @property
    def locked(self) -> bool:
        """Update times are known, and the counter was seen to stand still between two of them."""
        wide = 2 * (self._narrow_ns + WIDER_NS)
        return self._high is not None and self._confirmed and self._high - self._low <= wide

    @property
    def given_up(self) -> bool:
        """The counter does not keep this period: every bracket is that of the reads themselves."""
        return self._contradictions >= CONTRADICTIONS

    def restart(self) -> None:
        """Forget the phase: the counter began anew."""
        self._anchor = None
        self._lose()

    def moved(self, after_ns: int, by_ns: int, *, call_ns: int = 0) -> tuple[int, int]:
        """An update fell in (after, by]: the narrowest interval known to hold the last one of them.

        The read that saw it took `call_ns`.
        """
        if self.given_up:
            return after_ns, by_ns
        last_ns = after_ns if not self._behind and after_ns == self._read_ns else None
        self._read_ns = by_ns - call_ns
        # The value was read during the call, and the update before that is at most a period older.
        after_ns = max(after_ns, by_ns - self.period_ns - max(SLACK_NS, call_ns))
        if self._high is None:
            if by_ns - after_ns < self.period_ns:
                self._low, self._high = after_ns, by_ns
            return after_ns, by_ns
        self._roll(by_ns)
        # The candidate that began last before `by`; with the one before it also possible, nothing is learnt.
        # It is not where the last read is known to have shown that one.
        shown = last_ns is not None and last_ns >= self._low - self.period_ns
        if self._high - self.period_ns > after_ns and self._high > by_ns and not shown:
            return max(after_ns, self._low - self.period_ns), by_ns
        if after_ns >= self._high and by_ns - after_ns > self.period_ns // 2:
            self._contradicted()
            return after_ns, by_ns
        self._behind = False
        low, high = max(self._low, after_ns), min(self._high, by_ns)
        if low >= high:
            if low - high > self._jitter_ns:
                self._contradicted()
                return after_ns, by_ns
            low = high = (low + high) // 2
        self._set(low, high)
        return (self._low, self._high) if self._confirmed else (after_ns, by_ns)

    def unmoved(self, after_ns: int, by_ns: int) -> None:
        """No update fell in (after, by]."""
        if self.given_up or by_ns <= after_ns:
            return
        self._read_ns = by_ns
        if self._high is None:
            if by_ns - after_ns < self.period_ns:
                self._low, self._high = by_ns - self.period_ns, after_ns
                if self._high <= self._low:
                    self._high = None
            return
        self._roll(by_ns)
        self._behind = True
        if self._low >= after_ns and self._high <= by_ns:
            if by_ns - self._high > self.period_ns // 10 or by_ns - self._low > self.period_ns // 2:
                self._contradicted()
            else:
                # Late by a little: by chance, or for good.
                self._disturbed()
                self._set(self._low, by_ns + JITTER_NS)
            return
        if self._low >= after_ns:
            self._set(by_ns, self._high)
        elif self._high <= by_ns:
            self._set(self._low, after_ns)
        if not self._seeking and by_ns - after_ns > self.period_ns // 2:
            self._confirmed = self._checked = True
            self._contradictions = max(0, self._contradictions - 1)
            self._drift = max(self._least_drift, 0.75 * self._drift)
            self._jitter_ns = max(JITTER_NS, self._jitter_ns * 9 // 10)
            self._learn_period()

    def next_read_ns(self, last_read_ns: int, not_before_ns: int = 0, *, call_ns: int = 0) -> int:
        """When to begin the next read, which takes `call_ns`, after one at `last_read_ns`.

        Where that is before `not_before_ns`, it is whole periods later, if no gap comes of that.
        """
        self._call_ns += (call_ns - self._call_ns) // 8 if self._call_ns else call_ns
        if self.given_up:
            self._retry(last_read_ns)
        period_ns = self.period_ns
        if self.given_up:
            return max(last_read_ns + min(period_ns, 5 * LONGEST_GAP_NS // 7), not_before_ns)
        if self._high is None:
            return max(last_read_ns + 3 * period_ns // 5, not_before_ns)
        self._roll(last_read_ns)
        low, high = self._low + period_ns, self._high + period_ns
        if high - low <= self._narrow_ns:
            self._seeking = False
        elif high - low > self._narrow_ns + WIDER_NS and not self._seeking:
            self._seeking, self._checked = True, False
        following = self._checked and not self._seeking
        if not following and not self._behind:
            # The last read is known to have come after its update. Seeking: this one comes in the middle of
            # the next interval and halves it. Narrow, but not checked: it comes just before the interval, and
            # must find the counter standing.
            first_ns = (low + high - self._call_ns) // 2 if self._seeking else low - GUARD_NS - self._call_ns
            if first_ns >= max(last_read_ns + period_ns // 4, not_before_ns):
                return first_ns
        # Just after an update, and about a period after the last read; where periods are short and the read
        # behind it is to follow soon, as late as may be, so that the limit allows both.
        longest_ns = max(LONGEST_GAP_NS, 7 * period_ns // 5)
        soonest_ns = 2 * period_ns // 5 if following else longest_ns - period_ns
        least_ns = max(last_read_ns + soonest_ns, not_before_ns)
        target = self._high + GUARD_NS
        target += max(0, -(-(least_ns - target) // period_ns)) * period_ns
        return target if target < last_read_ns + longest_ns else least_ns

    @property
    def _narrow_ns(self) -> int:
        """Reads that take `call_ns` bring an interval down to about that width, and no further."""
        return max(NARROW_NS, 5 * self._call_ns // 4 + 1_000_000, 3 * self._jitter_ns // 2)

    def _contradicted(self) -> None:
        self._contradictions += 1
        self._disturbed()
        self._lose()

    def _lose(self) -> None:
        self._high = None
        self._confirmed = self._checked = self._behind = False
        self._seeking = True

    def _disturbed(self) -> None:
        """Updates keep their times less well than was believed."""
        self._drift = min(4.0 * self._drift, MOST_DRIFT)
        self._jitter_ns = 3 * self._jitter_ns // 2
        if self._jitter_ns > self.period_ns // 10:
            # Every estimate would be about as wide as what the reads themselves show.
            self._contradictions = CONTRADICTIONS

    def _learn_period(self) -> None:
        """Correct the period where the estimates now and then contradict it."""
        assert self._high is not None
        middle, width = (self._low + self._high) // 2, self._high - self._low
        if self._anchor is None:
            self._anchor = middle, width
            return
        passed = middle - self._anchor[0]
        periods = max(1, round(passed / self.period_ns))
        found = passed / periods
        sure_ns = 0.5 * (width + self._anchor[1]) / periods
        off = abs(found - self._nominal_ns) / self._nominal_ns
        if abs(found - self.period_ns) > sure_ns and off < 2.0 * MOST_DRIFT:
            self.period_ns = round(found)
            self._drift = max(self._drift, min(sure_ns / found, MOST_DRIFT))
        if periods > ANCHOR_PERIODS:
            self._anchor = middle, width

    def _retry(self, now_ns: int) -> None:
        if self._retry_at_ns is None:
            self._retry_at_ns = now_ns + self._retry_ns
        elif now_ns >= self._retry_at_ns:
            self._retry_ns, self._retry_at_ns = 2 * self._retry_ns, None
            self._contradictions, self._jitter_ns = 0, JITTER_NS
            self._lose()

    def _set(self, low: int, high: int) -> None:
        if high - low < self._jitter_ns:
            middle = (low + high) // 2
            low, high = middle - self._jitter_ns // 2, middle + self._jitter_ns // 2
        self._low, self._high = low, high

    def _roll(self, now_ns: int) -> None:
        """Move the estimate by whole periods to the last one that begins before now, widened for drift."""
        assert self._high is not None
        periods = (now_ns - self._low - 1) // self.period_ns
        if periods == 0:
            return
        widen = round(abs(periods) * self.period_ns * self._drift)
        self._low += periods * self.period_ns - widen
        self._high += periods * self.period_ns + widen
        if self._high - self._low >= self.period_ns:
            self._high = self._low + self.period_ns - 1
