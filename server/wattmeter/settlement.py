"""Settles the books: cuts covered time into pieces and puts each joule of a piece into exactly one place.

A piece's joules are the ledgers' over it, summed over the devices. Idle power times its length is its idle
part; the rest is split over the requests of its steps, or is unattributed. requests + idle + unattributed =
the counters' change therefore holds for every piece by construction, and so for any sum of pieces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np

from wattmeter.attribution import attribute
from wattmeter.busytime import busy_starts
from wattmeter.faults import Fault
from wattmeter.groupbook import NO_FACTORS, Block, GroupBook
from wattmeter.idle import SETTLE_SECONDS, IdleTracker
from wattmeter.knots import FaultInterval
from wattmeter.ledger import DeviceLedger
from wattmeter.losttime import busy_stretches
from wattmeter.publication import Division
from wattmeter.recording import number_names
from wattmeter.requests import RequestBook
from wattmeter.stepmodel import StepEnergyModel
from wattmeter.stepqueue import StepQueue, take_steps
from wattmeter.steps import StepBatch

PIECE_SECONDS = 1.0
SHORT_PIECE_SECONDS = 0.25
HOLD_SECONDS = 10.0
MAX_NOTICES = 10_000


@dataclass(frozen=True, slots=True)
class Piece:
    """One settled stretch of time: total = idle + prefill + decode + unattributed, in joules of all devices.

    `joules` is None where no device covered it completely (`flags` say why): nothing was attributed then.
    `idle_joules` is None where idle power was not known yet. `groups` holds the attributed joules by group.
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

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) * 1e-9


@dataclass(slots=True)
class Totals:
    """Running sums since the start, joules. `counter_joules` is summed apart, from the ledgers themselves."""

    prefill: float = 0.0
    decode: float = 0.0
    idle: float = 0.0
    unattributed: float = 0.0
    counter_joules: float = 0.0
    uncovered_seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)

    def as_buckets(self) -> dict[str, float]:
        return {
            "prefill": self.prefill,
            "decode": self.decode,
            "idle": self.idle,
            "unattributed": self.unattributed,
        }

    @property
    def booked_joules(self) -> float:
        return self.prefill + self.decode + self.idle + self.unattributed


@dataclass(frozen=True, slots=True)
class Lesson:
    """One settled interval to learn a step model from; the steps overlap it."""

    steps: StepBatch
    start_ns: int
    end_ns: int
    joules_above_idle: float
    previous_end_ns: int | None


class Settlement:
    """Pieces in order of time, running totals, and the rule that divides a piece. Its owner locks.

    What a piece gives its requests is left in `divisions`, for the owner to take and publish. `pause` lets go
    of the owner's lock around what takes long and touches nothing that other threads do.
    """

    def __init__(
        self,
        ledgers: dict[str, DeviceLedger],
        book: RequestBook,
        queue: StepQueue,
        idle: IdleTracker,
        *,
        history_seconds: float,
        learn: Callable[[Lesson], None] | None = None,
        pause: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._pause = pause
        self.divisions: list[Division] = []
        self._closing_ns: int | None = None
        self._ledgers = ledgers
        self._book = book
        self._queue = queue
        self._idle = idle
        self._learn = learn
        self.pieces: deque[Piece] = deque(maxlen=max(16, round(history_seconds / SHORT_PIECE_SECONDS)))
        self.totals = Totals()
        self.frontier_ns: int | None = None
        self.scale: float | None = None
        self._last_busy_ns: int | None = None
        self._groups = GroupBook(queue, book)
        self._notices: deque[FaultInterval] = deque(maxlen=MAX_NOTICES)

    @property
    def closed_ns(self) -> int | None:
        """What steps did before is, or is being, settled without those that are not known yet."""
        return self._closing_ns if self._closing_ns is not None else self.frontier_ns

    def late(self, steps: StepBatch, previous_end_ns: int | None) -> StepBatch:
        """Those of new steps that began before `closed_ns`: their joules up to there are nobody's."""
        closed_ns = self.closed_ns
        count = (
            0 if closed_ns is None else int(np.searchsorted(busy_starts(steps, previous_end_ns), closed_ns))
        )
        return take_steps(steps, 0, count)

    def lose(self, steps: StepBatch, previous_end_ns: int | None) -> None:
        """Flag the time whose joules late steps do not get."""
        if self.closed_ns is not None:
            for start_ns, end_ns in busy_stretches(steps, previous_end_ns, self.closed_ns):
                self.notice(Fault.LOST_STEP_RECORDS, start_ns, end_ns)

    def notice(self, fault: Fault, start_ns: int, end_ns: int) -> None:
        """Flag what is said of [start_ns, end_ns) from now on (step records were lost there, say)."""
        last = self._notices[-1] if self._notices else None
        if last is not None and last.end_ns == start_ns and last.fault is fault:
            last.end_ns = end_ns  # many in a row are one
        else:
            self._notices.append(FaultInterval("", fault, start_ns, end_ns))

    def noticed(self, start_ns: int, end_ns: int) -> frozenset[Fault]:
        """The faults noticed in [start_ns, end_ns), those of pieces settled before they were known too."""
        return frozenset(notice.fault for notice in self._notices if notice.overlaps(start_ns, end_ns))

    def settle(
        self, until_ns: int, model: StepEnergyModel, unix_seconds: float, *, patient: bool = True
    ) -> list[Piece]:
        """Settle whole pieces up to until_ns, which all ledgers must cover; returns the new pieces.

        Pieces that several groups share are held until what surrounds them is known (groupbook.py): where
        `due` is a block then, find its factors without the lock, give them to `divide`, and settle again.
        With `patient` off (a server that stops) what is known by now has to do.
        """
        if self.frontier_ns is None:
            begin = [ledger.exact_from_ns for ledger in self._ledgers.values()]
            if any(value is None for value in begin):
                return []
            self.frontier_ns = max(value for value in begin if value is not None)
        if self._hold(until_ns, unix_seconds):
            return []
        new: list[Piece] = []
        while until_ns - self.frontier_ns >= SHORT_PIECE_SECONDS * 1e9:
            waiting = until_ns - self.frontier_ns
            if waiting < PIECE_SECONDS * 1e9 and self._book.active > 0:
                break
            if self._groups.waits(self.frontier_ns, until_ns, patient=patient):
                break
            end_ns = self.frontier_ns + min(waiting, round(PIECE_SECONDS * 1e9))
            self._closing_ns = end_ns
            try:
                steps, previous_end_ns = self._queue.until(end_ns)
                factors = self._groups.factors(self.frontier_ns, steps, until_ns, model, patient=patient)
                if factors is None:
                    break
                piece = self._piece(
                    self.frontier_ns,
                    end_ns,
                    steps=steps,
                    previous_end_ns=previous_end_ns,
                    factors=factors,
                    model=model,
                    unix_seconds=unix_seconds,
                )
                new.append(piece)
                self.pieces.append(piece)
                self.frontier_ns = end_ns
            finally:
                self._closing_ns = None
        return new

    def take_divisions(self) -> list[Division]:
        """What the pieces since the last call gave their requests."""
        taken, self.divisions = self.divisions, []
        return taken

    @property
    def due(self) -> Block | None:
        """The block of held pieces whose factors are wanted before `settle` goes on, as of its last call."""
        return self._groups.due

    def divide(self, block: Block, factors: Mapping[str, float] | None) -> None:
        """Give the factors of a due block. None: they could not be found; its pieces are flagged."""
        if factors is None:
            self.notice(Fault.UNKNOWN_ERROR, block.start_ns, block.end_ns)
        self._groups.answer(block, NO_FACTORS if factors is None else factors)

    def _hold(self, until_ns: int, unix_seconds: float) -> bool:
        """Whether to wait: idle power is measured before anything is booked."""
        assert self.frontier_ns is not None
        waiting = (until_ns - self.frontier_ns) * 1e-9
        if self.pieces or self._idle.watts is not None or self._book.active:
            return False
        if len(self._queue.rest()[0]) or waiting > HOLD_SECONDS:
            return False
        self._idle.interrupted()
        number = int(waiting / PIECE_SECONDS)
        piece_ns = round(PIECE_SECONDS * 1e9)
        for index in range(number):
            start_ns = self.frontier_ns + index * piece_ns
            parts = [ledger.energy(start_ns, start_ns + piece_ns) for ledger in self._ledgers.values()]
            if not all(part.complete for part in parts):
                return False
            if any(part.flags for part in parts):
                self._idle.interrupted()
                continue
            joules = sum(part.joules for part in parts if part.joules is not None)
            self._idle.quiet(PIECE_SECONDS, joules, unix_seconds)
        return self._idle.watts is None

    def overlapping(self, start_ns: int, end_ns: int) -> list[Piece]:
        """The pieces that overlap [start_ns, end_ns), oldest first."""
        found = []
        for piece in reversed(self.pieces):
            if piece.end_ns <= start_ns:
                break
            if piece.start_ns < end_ns:
                found.append(piece)
        return found[::-1]

    def conservation_error_ratio(self) -> float:
        """|requests + idle + unattributed - counters| / counters of all that is settled; 0 before that."""
        counter = self.totals.counter_joules
        return abs(self.totals.booked_joules - counter) / counter if counter > 0.0 else 0.0

    def _piece(
        self,
        start_ns: int,
        end_ns: int,
        *,
        steps: StepBatch,
        previous_end_ns: int | None,
        factors: Mapping[str, float],
        model: StepEnergyModel,
        unix_seconds: float,
    ) -> Piece:
        parts = [ledger.energy(start_ns, end_ns) for ledger in self._ledgers.values()]
        flags = self.noticed(start_ns, end_ns).union(*(part.flags for part in parts))
        seconds = (end_ns - start_ns) * 1e-9
        covered = all(part.complete for part in parts)
        if not covered:
            self.divisions.append(Division(steps.request_ids, flags, None))
            self._queue.drop(end_ns)
            self.totals.uncovered_seconds += seconds
            # What single devices still counted is in their own counters; the split of a part is not known.
            return Piece(start_ns, end_ns, None, 0.0, None, 0.0, 0.0, 0.0, {}, flags)
        joules = sum(part.joules for part in parts if part.joules is not None)
        deviation = sum((part.uncertainty_joules or 0.0) ** 2 for part in parts) ** 0.5
        piece = (
            self._quiet(
                start_ns=start_ns,
                end_ns=end_ns,
                joules=joules,
                deviation=deviation,
                flags=flags,
                unix_seconds=unix_seconds,
            )
            if len(steps) == 0
            else self._busy(
                start_ns=start_ns,
                end_ns=end_ns,
                joules=joules,
                deviation=deviation,
                flags=flags,
                steps=steps,
                previous_end_ns=previous_end_ns,
                factors=factors,
                model=model,
            )
        )
        self._queue.drop(end_ns)
        self.totals.counter_joules += joules
        self.totals.prefill += piece.prefill_joules
        self.totals.decode += piece.decode_joules
        self.totals.idle += piece.idle_joules or 0.0
        self.totals.unattributed += piece.unattributed_joules
        return piece

    def _quiet(
        self,
        *,
        start_ns: int,
        end_ns: int,
        joules: float,
        deviation: float,
        flags: frozenset[Fault],
        unix_seconds: float,
    ) -> Piece:
        """No step ran: idle power is measured here; what is above it (a device calming down) is nobody's."""
        seconds = (end_ns - start_ns) * 1e-9
        settled_for = None if self._last_busy_ns is None else (start_ns - self._last_busy_ns) * 1e-9
        if flags:
            # In a gap between readings, say, the joules of a stretch are a straight line's, not the device's.
            self._idle.interrupted()
        steady = (
            not flags
            and (settled_for is None or settled_for >= SETTLE_SECONDS)
            and self._book.active == 0
            and self._idle.quiet(seconds, joules, unix_seconds)
        )
        if steady:
            idle: float | None = joules
        elif self._idle.watts is not None:
            idle = self._idle.watts * seconds
        else:
            idle, flags = None, flags | {Fault.IDLE_NOT_MEASURED}
        rest = joules - (idle or 0.0)
        return Piece(start_ns, end_ns, joules, deviation, idle, 0.0, 0.0, rest, {}, flags)

    def _busy(
        self,
        *,
        start_ns: int,
        end_ns: int,
        joules: float,
        deviation: float,
        flags: frozenset[Fault],
        steps: StepBatch,
        previous_end_ns: int | None,
        factors: Mapping[str, float],
        model: StepEnergyModel,
    ) -> Piece:
        seconds = (end_ns - start_ns) * 1e-9
        self._last_busy_ns = min(int(steps.end_ns[-1]), end_ns)
        self._idle.interrupted()
        idle = None if self._idle.watts is None else self._idle.watts * seconds
        if idle is None:
            flags = flags | {Fault.IDLE_NOT_MEASURED}
        if not model.trusted:
            flags = flags | {Fault.MODEL_NOT_TRUSTED}
        names: dict[str, int] = {}
        groups = number_names(self._book.groups(steps.request_ids), names)
        above = joules - (idle or 0.0)
        with self._pause():
            split = attribute(
                steps,
                np.array([start_ns, end_ns], dtype=np.int64),
                np.array([above]),
                model,
                groups=groups if len(names) > 1 else None,
                group_factors=np.array([factors.get(name, 1.0) for name in names]),
                previous_end_ns=previous_end_ns,
            )
        if np.isfinite(split.scale[0]):
            latest = float(split.scale[0])
            self.scale = latest if self.scale is None else 0.7 * self.scale + 0.3 * latest
        if self._learn is not None and idle is not None and flags <= {Fault.MODEL_NOT_TRUSTED}:
            self._learn(Lesson(steps, start_ns, end_ns, above, previous_end_ns))
        own = split.request_joules
        given = float(np.sum(own))
        variance = split.uncertainty_joules**2
        if given > 0.0:
            variance = variance + (deviation * own / given) ** 2
        self.divisions.append(
            Division(steps.request_ids, flags, (split.prefill_joules, split.decode_joules, variance))
        )
        sums = np.bincount(groups, weights=own, minlength=len(names))
        return Piece(
            start_ns,
            end_ns,
            joules,
            deviation,
            idle,
            float(np.sum(split.prefill_joules)),
            float(np.sum(split.decode_joules)),
            float(np.sum(split.unattributed_joules)),
            {name: float(sums[number]) for name, number in names.items()},
            flags,
        )
