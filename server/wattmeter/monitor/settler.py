"""Cuts covered time into seconds, and puts each joule of a second into exactly one place.

A second's joules are the timelines' over it, summed over the devices. Idle power times its length is its idle
part; the rest is split over the requests of its steps, or is unattributed. requests + idle + unattributed =
the counters' change therefore holds for every second by construction, and so for any sum of seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wattmeter.arrays import F64
from wattmeter.attribution.split import Attribution, attribute
from wattmeter.attribution.tenants import Arrival, TenantFactors
from wattmeter.energy_model.step_model import StepModel, StepWork
from wattmeter.faults import Fault, flag_set
from wattmeter.metering.idle_power import SETTLE_SECONDS, IdleTracker
from wattmeter.metering.timeline import TimelineView
from wattmeter.monitor.inbox import Estimate, estimate
from wattmeter.monitor.requests import RequestShare
from wattmeter.schema import IdleState
from wattmeter.steps.batch import StepBatch, number_names
from wattmeter.steps.busy import busy_starts, busy_stretches
from wattmeter.steps.queue import StepQueue

LONGEST_SECONDS = 1.0
SHORTEST_SECONDS = 0.25
HOLD_SECONDS = 10.0
RECORD_DELAY_SECONDS = 0.3
RECORD_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class SettledSecond:
    """One settled stretch of time: total = idle + prefill + decode + unattributed, in joules of all devices.

    It is a second long, or as long as a gap in which the counter was not read.
    `joules` is None where no device covered it completely (`flags` say why): nothing was attributed then.
    `idle_joules` is None where idle power was not known yet. `groups` holds the attributed joules by tenant.
    `resolved` is False where the counter was not read for a while: these joules are a part of a longer sum,
    from which nothing is learnt.
    """

    start_ns: int
    end_ns: int
    joules: float | None
    uncertainty_joules: float
    idle_joules: float | None
    prefill_joules: float
    decode_joules: float
    unattributed_joules: float
    groups: dict[str, float]
    flags: frozenset[Fault]
    resolved: bool = True

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) * 1e-9


@dataclass(frozen=True, slots=True)
class Totals:
    """Running sums since the start, joules; `counter_joules` is summed apart, from the timelines alone."""

    prefill: float = 0.0
    decode: float = 0.0
    idle: float = 0.0
    unattributed: float = 0.0
    counter_joules: float = 0.0

    def plus(self, second: SettledSecond) -> Totals:
        if second.joules is None:
            return self
        return Totals(
            self.prefill + second.prefill_joules,
            self.decode + second.decode_joules,
            self.idle + (second.idle_joules or 0.0),
            self.unattributed + second.unattributed_joules,
            self.counter_joules + second.joules,
        )

    def as_buckets(self) -> dict[str, float]:
        return {
            "prefill": self.prefill,
            "decode": self.decode,
            "idle": self.idle,
            "unattributed": self.unattributed,
        }

    def conservation_error_ratio(self) -> float:
        """|requests + idle + unattributed - counters| / counters of all that is settled; 0 before that."""
        parts = self.prefill + self.decode + self.idle + self.unattributed
        return abs(parts - self.counter_joules) / self.counter_joules if self.counter_joules > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Notice:
    """A fault of [start, end) that no device has: step records were lost there, say."""

    fault: Fault
    start_ns: int
    end_ns: int

    def overlaps(self, start_ns: int, end_ns: int) -> bool:
        return self.start_ns < end_ns and self.end_ns > start_ns


@dataclass(frozen=True, slots=True)
class FitSample:
    """One settled second that the step model is fitted to; the steps overlap it."""

    work: StepWork
    start_ns: int
    end_ns: int
    joules_above_idle: float


@dataclass(frozen=True, slots=True)
class SecondShares:
    """What one second gave the requests of its steps, (R,) each in the order of `request_ids`.

    `split` is None where the meter did not cover the second: the requests' energy is then not known.
    `variance` is in joules^2.
    """

    request_ids: tuple[str, ...]
    flags: frozenset[Fault]
    split: Attribution | None = None
    variance: F64 | None = None


@dataclass(frozen=True, slots=True)
class Collected:
    """What one settling starts from. Nothing in it changes any more.

    `active` is the number of requests that run; `arrivals` says what is new of requests since the last time.
    `in_use` is whether a device computed when its state was read last, None where the driver does not tell.
    Every step that ended by `complete_ns` is in `batches` or came before; None where the engine does not say.
    With `patient` off (a server that stops) seconds that wait for what follows them are settled as they are.
    """

    now_ns: int
    unix_seconds: float
    model: StepModel
    timelines: Mapping[str, TimelineView]
    batches: Sequence[StepBatch] = ()
    complete_ns: int | None = None
    arrivals: Mapping[str, Arrival | None] = field(default_factory=dict)
    active: int = 0
    in_use: bool | None = None
    power_limit_watts: float | None = None
    notices: Sequence[Notice] = ()
    patient: bool = True


@dataclass(frozen=True, slots=True)
class SettledState:
    """What is settled by now, for whoever asks.

    `scale` is what the counter gained of late for each joule of the model's; None before that is known.
    """

    totals: Totals
    frontier_ns: int | None
    idle: IdleState
    scale: float | None


@dataclass(slots=True)
class Progress:
    """What one settling found, to be committed; complete up to the second that raised, where one did.

    `late` are steps that began before what was settled when they came: their joules up to there are nobody's.
    """

    late: list[StepBatch] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    seconds: list[SettledSecond] = field(default_factory=list)
    shares: list[SecondShares] = field(default_factory=list)
    pending: Estimate | None = None
    samples: list[FitSample] = field(default_factory=list)
    error: Exception | None = None

    def by_request(self) -> list[RequestShare]:
        """The sums of `shares` by request, and what is estimated of it by now."""
        numbers: dict[str, int] = {}
        rows = [number_names(share.request_ids, numbers) for share in self.shares]
        pending_row = number_names(self.pending.request_ids, numbers) if self.pending is not None else None
        settled = np.zeros((3, len(numbers)))
        pending = np.zeros((2, len(numbers)))
        flags: list[frozenset[Fault]] = [frozenset()] * len(numbers)
        missing = np.zeros(len(numbers), dtype=bool)
        for share, row in zip(self.shares, rows, strict=True):
            if share.split is None or share.variance is None:
                missing[row] = True
            else:
                settled[0, row] += share.split.prefill_joules
                settled[1, row] += share.split.decode_joules
                settled[2, row] += share.variance
            for number in row.tolist() if share.flags else ():
                flags[number] |= share.flags
        if self.pending is not None and pending_row is not None:
            pending[:, pending_row] = self.pending.prefill_joules, self.pending.decode_joules
        figures = np.concatenate([settled, pending]).T.tolist()
        return [
            RequestShare(name, flagged, missed, *joules)
            for name, flagged, missed, joules in zip(numbers, flags, missing.tolist(), figures, strict=True)
        ]


class Settler:
    """Seconds in order of time, and the rule that divides one. The settling thread owns it.

    It keeps the steps that wait, idle power, the tenants and the running totals; `advance` takes them on.
    It begins at `begin_ns`, or at the first step where that was earlier, as far as the counters reach. With
    `wait_for_idle` the first seconds wait until idle power is measured, for HOLD_SECONDS at most.
    """

    def __init__(self, idle: IdleTracker, *, begin_ns: int = 0, wait_for_idle: bool = True) -> None:
        self._begin_ns = begin_ns
        self._wait_for_idle = wait_for_idle
        self._queue = StepQueue()
        self._idle = idle
        self._tenants = TenantFactors(self._queue)
        self._totals = Totals()
        self._frontier_ns: int | None = None
        self._begun = False
        self._scale: float | None = None
        self._last_busy_ns: int | None = None

    @property
    def state(self) -> SettledState:
        return SettledState(self._totals, self._frontier_ns, self._idle.state, self._scale)

    @property
    def waiting_entries(self) -> int:
        """(step, request) entries of the steps that are not settled."""
        return self._queue.entries

    def advance(self, new: Collected, progress: Progress) -> None:
        """Settle whole seconds as far as `new` and the steps before cover them, into `progress`.

        Seconds that several tenants share wait until what surrounds them is known (attribution/tenants.py).
        The tenants' factors may take a second to compute: hold no lock here. `progress` is to be committed
        even if this raises.
        """
        self._take(new, progress)
        begins = self._frontier_ns is None
        until_ns = self._until(new)
        if begins and self._frontier_ns is not None:
            # What ran before the counter was first seen to move cost something that nobody knows.
            early, _ = self._queue.until(self._frontier_ns)
            if len(early):
                progress.shares.append(SecondShares(early.request_ids, frozenset({Fault.PARTIAL_COVERAGE})))
                self._queue.drop(self._frontier_ns)
        if until_ns is None or self._holds(new, until_ns):
            return
        for start_ns, end_ns in self._covered_seconds(new, until_ns):
            if new.patient and self._tenants.held(start_ns, until_ns):
                break
            steps, previous_end_ns = self._queue.until(end_ns)
            factors = self._factors(new, progress, start_ns, until_ns, steps)
            if factors is None:
                break
            draft = _measured(new, progress, start_ns, end_ns)
            work = new.model.work(steps, previous_end_ns)
            self._settle(new, progress, draft, work, factors)
        if progress.seconds:
            rest, previous_end_ns = self._queue.rest()
            if len(rest):
                work = new.model.work(rest, previous_end_ns)
                progress.pending = estimate(work, new.model, self._scale, from_ns=self._frontier_ns)

    def _take(self, new: Collected, progress: Progress) -> None:
        """Take in new steps and requests; steps of time that is settled already are late."""
        self._tenants.update(new.arrivals)
        self._idle.power_limit_watts = new.power_limit_watts
        if new.in_use is not None:
            self._idle.note_use(new.in_use, new.unix_seconds)
        for batch in new.batches:
            before_ns = self._queue.last_end_ns
            self._queue.add(batch)
            if self._frontier_ns is None:
                continue
            count = int(np.searchsorted(busy_starts(batch, before_ns), self._frontier_ns))
            if count:
                late = batch.slice(0, count).renumber()
                progress.late.append(late)
                progress.notices += (
                    Notice(Fault.LOST_STEP_RECORDS, start_ns, end_ns)
                    for start_ns, end_ns in busy_stretches(late, before_ns, self._frontier_ns)
                )

    def _until(self, new: Collected) -> int | None:
        """Up to when readings and step records are complete by now; None before the first reading."""
        covered = [timeline.covered_to_ns for timeline in new.timelines.values()]
        if self._frontier_ns is None:
            busy_ns = self._queue.begin_ns
            begin = [timeline.begin_ns(self._begin_ns, busy_ns) for timeline in new.timelines.values()]
            if any(value is None for value in begin):
                return None
            self._frontier_ns = max(value for value in begin if value is not None)
        if any(value is None for value in covered):
            return None
        until_ns = min(value for value in covered if value is not None)
        until_ns = min(until_ns, new.now_ns - round(RECORD_DELAY_SECONDS * 1e9))
        # Records may be on their way, of the last steps of what has ended too: wait for them, but not for
        # ever. While requests run a step may be under way, which belongs to what came before its end.
        known_ns = new.complete_ns if new.patient else None
        if new.active:
            known_ns = self._queue.last_end_ns or 0
        if known_ns is not None:
            patience_ns = new.now_ns - round(RECORD_PATIENCE_SECONDS * 1e9)
            until_ns = min(until_ns, max(known_ns, patience_ns))
        return until_ns

    def _covered_seconds(self, new: Collected, until_ns: int) -> Iterator[tuple[int, int]]:
        """[start, end) of the seconds up to until_ns; while requests run only whole ones.

        None ends in a gap between two counter updates, of which only the sum of the joules is known: it lasts
        until the gap's end, so that its steps get the sum.
        """
        assert self._frontier_ns is not None
        while True:
            waiting_ns = until_ns - self._frontier_ns
            shortest = LONGEST_SECONDS if new.active > 0 else SHORTEST_SECONDS
            if waiting_ns < shortest * 1e9:
                return
            latest_ns = self._frontier_ns + min(waiting_ns, round(LONGEST_SECONDS * 1e9))
            end_ns = _after_gaps(new, _at_an_update(new, self._frontier_ns, latest_ns))
            if end_ns > until_ns:
                return
            yield self._frontier_ns, end_ns

    def _holds(self, new: Collected, until_ns: int) -> bool:
        """Whether to wait: idle power is measured before anything is settled."""
        assert self._frontier_ns is not None
        waiting = (until_ns - self._frontier_ns) * 1e-9
        if self._begun or not self._wait_for_idle or self._idle.watts is not None or new.active:
            return False
        if len(self._queue.rest()[0]) or waiting > HOLD_SECONDS:
            return False
        self._idle.interrupted()
        length_ns = round(LONGEST_SECONDS * 1e9)
        for index in range(int(waiting / LONGEST_SECONDS)):
            start_ns = self._frontier_ns + index * length_ns
            parts = [timeline.energy(start_ns, start_ns + length_ns) for timeline in new.timelines.values()]
            if not all(part.complete for part in parts):
                return False
            if any(part.flags or not part.resolved for part in parts):
                self._idle.interrupted()
                continue
            joules = sum(part.joules for part in parts if part.joules is not None)
            self._idle.quiet(LONGEST_SECONDS, joules, new.unix_seconds)
        return self._idle.watts is None

    def _factors(
        self, new: Collected, progress: Progress, start_ns: int, until_ns: int, steps: StepBatch
    ) -> Mapping[str, float] | None:
        """The tenants' factors of a second; where they cannot be computed its block is flagged instead."""
        try:
            return self._tenants.factors(start_ns, steps, until_ns, new.model, patient=new.patient)
        except Exception as error:
            progress.error = error
            block = self._tenants.block
            progress.notices.append(Notice(Fault.UNKNOWN_ERROR, block.start_ns, block.end_ns))
            return block.factors

    def _settle(
        self,
        new: Collected,
        progress: Progress,
        draft: SettledSecond,
        work: StepWork,
        factors: Mapping[str, float],
    ) -> None:
        """Divide a second over the requests of its steps, and move the frontier behind it."""
        shares = None
        if draft.joules is None:
            # What single devices still counted is in their own counters; the split of a part is not known.
            second, shares = draft, SecondShares(work.batch.request_ids, draft.flags)
        elif len(work.batch) == 0:
            second = self._quiet(new, draft, draft.joules)
        else:
            second, shares = self._busy(new, draft, draft.joules, work, factors)
            known = second.idle_joules is not None and second.resolved
            if known and second.flags <= {Fault.MODEL_NOT_TRUSTED}:
                above = draft.joules - (second.idle_joules or 0.0)
                progress.samples.append(FitSample(work, draft.start_ns, draft.end_ns, above))
        self._queue.drop(draft.end_ns)
        self._totals = self._totals.plus(second)
        self._frontier_ns = draft.end_ns
        self._begun = True
        progress.seconds.append(second)
        if shares is not None:
            progress.shares.append(shares)

    def _quiet(self, new: Collected, draft: SettledSecond, joules: float) -> SettledSecond:
        """No step ran: idle power is measured here; what is above it (a device calming down) is nobody's."""
        since_busy = None if self._last_busy_ns is None else (draft.start_ns - self._last_busy_ns) * 1e-9
        flags = draft.flags
        usable = not flags and draft.resolved
        if not usable:
            # In a gap between readings the joules of a stretch are a straight line's, not the device's.
            self._idle.interrupted()
        steady = (
            usable
            and (since_busy is None or since_busy >= SETTLE_SECONDS)
            and new.active == 0
            and self._idle.quiet(draft.seconds, joules, new.unix_seconds)
        )
        idle = joules if steady else self._idle_joules(draft.seconds)
        if idle is None:
            flags |= {Fault.IDLE_NOT_MEASURED}
        return replace(
            draft, idle_joules=idle, unattributed_joules=joules - (idle or 0.0), flags=flag_set(flags)
        )

    def _busy(
        self,
        new: Collected,
        draft: SettledSecond,
        joules: float,
        work: StepWork,
        factors: Mapping[str, float],
    ) -> tuple[SettledSecond, SecondShares]:
        """Steps ran: what is above idle is split over their requests."""
        steps = work.batch
        self._last_busy_ns = min(int(steps.end_ns[-1]), draft.end_ns)
        self._idle.interrupted()
        idle = self._idle_joules(draft.seconds)
        flags = draft.flags
        if idle is None:
            flags |= {Fault.IDLE_NOT_MEASURED}
        if not new.model.trusted:
            flags |= {Fault.MODEL_NOT_TRUSTED}
        names: dict[str, int] = {}
        groups = number_names(self._tenants.groups(steps.request_ids), names)
        above = joules - (idle or 0.0)
        split = attribute(
            work,
            np.array([draft.start_ns, draft.end_ns], dtype=np.int64),
            np.array([above]),
            new.model,
            groups=groups if len(names) > 1 else None,
            group_factors=np.array([factors.get(name, 1.0) for name in names]),
        )
        if np.isfinite(split.scale[0]):
            latest = float(split.scale[0])
            self._scale = latest if self._scale is None else 0.7 * self._scale + 0.3 * latest
        of_request = split.request_joules
        attributed = float(np.sum(of_request))
        variance = split.uncertainty_joules**2
        if attributed > 0.0:
            variance = variance + (draft.uncertainty_joules * of_request / attributed) ** 2
        by_group = np.bincount(groups, weights=of_request, minlength=len(names))
        second = replace(
            draft,
            idle_joules=idle,
            prefill_joules=float(np.sum(split.prefill_joules)),
            decode_joules=float(np.sum(split.decode_joules)),
            unattributed_joules=float(np.sum(split.unattributed_joules)),
            groups={name: float(by_group[number]) for name, number in names.items()},
            flags=flag_set(flags),
        )
        return second, SecondShares(steps.request_ids, flags, split, variance)

    def _idle_joules(self, seconds: float) -> float | None:
        return None if self._idle.watts is None else self._idle.watts * seconds


def _at_an_update(new: Collected, start_ns: int, latest_ns: int) -> int:
    """The last update of the first device's counter up to latest_ns; latest_ns where it has none since.

    The joules up to an update were read. Between two, those of a step that began or ended there would be
    spread over both sides, and one of them may be a time in which nothing ran.
    """
    times = next(iter(new.timelines.values())).times_ns
    at = int(np.searchsorted(times, latest_ns, side="right")) - 1
    return int(times[at]) if at >= 0 and times[at] - start_ns >= 0.5 * SHORTEST_SECONDS * 1e9 else latest_ns


def _after_gaps(new: Collected, at_ns: int) -> int:
    """The first moment from at_ns on that lies in no device's gap."""
    while (end_ns := max(view.gap_end_ns(at_ns) for view in new.timelines.values())) > at_ns:
        at_ns = end_ns
    return at_ns


def _measured(new: Collected, progress: Progress, start_ns: int, end_ns: int) -> SettledSecond:
    """The second [start, end) as the devices counted it, nothing of it divided yet."""
    parts = [timeline.energy(start_ns, end_ns) for timeline in new.timelines.values()]
    notices = (*new.notices, *progress.notices)
    flags = frozenset(notice.fault for notice in notices if notice.overlaps(start_ns, end_ns))
    flags = flag_set(flags.union(*(part.flags for part in parts)))
    joules = None
    deviation = 0.0
    if all(part.complete for part in parts):
        joules = sum(part.joules for part in parts if part.joules is not None)
        deviation = sum((part.uncertainty_joules or 0.0) ** 2 for part in parts) ** 0.5
    resolved = all(part.resolved for part in parts)
    return SettledSecond(start_ns, end_ns, joules, deviation, None, 0.0, 0.0, 0.0, {}, flags, resolved)
