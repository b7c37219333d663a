"""The progress of a run: a line every few seconds, a panel that stays, JSON lines, or nothing."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import IO, Any

from wattload.redaction import shown
from wattmeter.standard_streams import give_up


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run at one moment. None: not known (yet). Rates are of the last few seconds."""

    phase: str
    elapsed_seconds: float
    planned_seconds: float
    due: int
    total: int
    sent: int
    completed: int
    failed: int
    in_flight: int
    scheduled_rps: float | None = None
    achieved_rps: float | None = None
    ttft_p50_seconds: float | None = None
    lag_p99_seconds: float | None = None
    watts: float | None = None
    joules_per_request: float | None = None
    energy_source: str | None = None
    workers: int = 1
    e2e_p50_seconds: float | None = None

    def line(self) -> str:
        """One line for people."""
        share = min(1.0, self.elapsed_seconds / self.planned_seconds) if self.planned_seconds > 0 else 0.0
        parts = [
            f"{self.phase:<8}",
            f"{share:4.0%}",
            f"{_number(self.scheduled_rps)}/s scheduled, {_number(self.achieved_rps)}/s sent",
            f"{self.in_flight} in flight",
            f"{self.completed} completed" + (f", {self.failed} failed" if self.failed else ""),
            self.latency(),
        ]
        if self.energy_source is not None:
            parts.append(self.energy())
        return "  ".join(parts)

    def latency(self) -> str:
        """The time to the first token; to the end of the response where nothing is generated."""
        if self.ttft_p50_seconds is None and self.e2e_p50_seconds is not None:
            return f"E2E p50 {_time(self.e2e_p50_seconds)}"
        return f"TTFT p50 {_time(self.ttft_p50_seconds)}"

    def energy(self) -> str:
        """Power and energy per request as the run's source of energy tells them."""
        if self.energy_source is None:
            return "not measured"
        watts = "-" if self.watts is None else f"{self.watts:.0f}"
        each = "" if self.joules_per_request is None else f", {self.joules_per_request:.3g} J/request"
        source = "simulated" if self.energy_source == "modelled" else self.energy_source
        return f"{watts} W{each} ({source})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _time(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"


class Progress:
    """Shows nothing; the base of the others."""

    seconds = 1.0

    def show(self, snapshot: Snapshot) -> None:
        """Called every `seconds`."""

    def say(self, text: str) -> None:
        """A sentence for the user."""

    def close(self) -> None:
        """The end of the run."""


class WrittenProgress(Progress):
    """Progress as text. A stream that takes nothing (its disk is full, its reader is gone) does not end the
    load: nothing more is written to it."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._taken = True

    def _write(self, text: str) -> None:
        if not self._taken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._taken = False
            if self._stream is sys.stderr:
                give_up(sys.stderr)


class PlainProgress(WrittenProgress):
    seconds = 5.0

    def show(self, snapshot: Snapshot) -> None:
        self._write(f"{snapshot.elapsed_seconds:6.1f} s  {snapshot.line()}\n")

    def say(self, text: str) -> None:
        self._write(f"{shown(text)}\n")


class JsonProgress(WrittenProgress):
    """One JSON object a line, for programs."""

    def _object(self, value: dict[str, Any]) -> None:
        self._write(json.dumps({"unix_seconds": time.time(), **value}) + "\n")

    def show(self, snapshot: Snapshot) -> None:
        # `asked_rps`: the name that scheduled_rps had before.
        self._object({"progress": {**asdict(snapshot), "asked_rps": snapshot.scheduled_rps}})

    def say(self, text: str) -> None:
        self._object({"message": shown(text)})


class RichProgress(WrittenProgress):
    """A panel that is drawn over itself.

    Drawn by hand and not by rich's Live, whose layout takes milliseconds in which no request can be sent;
    colours are plain terminal codes.
    """

    _BAR = 28

    def __init__(self, stream: IO[str] | None = None, *, colour: bool = True) -> None:
        super().__init__(stream)
        self._colour = colour
        self._lines = 0

    def _painted(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def show(self, snapshot: Snapshot) -> None:
        share = (
            min(1.0, snapshot.elapsed_seconds / snapshot.planned_seconds) if snapshot.planned_seconds else 0.0
        )
        full = round(share * self._BAR)
        bar = self._painted("32", "━" * full) + self._painted("2", "━" * (self._BAR - full))
        s = snapshot
        failed = self._painted("31", f"{s.failed} failed") if s.failed else "0 failed"
        rows = [
            f"{self._painted('1', s.phase):<8} {bar} {s.elapsed_seconds:.0f} s of {s.planned_seconds:.0f} s",
            f"  rate      {_number(s.scheduled_rps)}/s scheduled   {_number(s.achieved_rps)}/s sent",
            f"  requests  {s.due} of {s.total} scheduled   {s.in_flight} in flight   {s.completed}"
            f" completed   {failed}",
            f"  latency   {s.latency()}   dispatch delay p99 {_time(s.lag_p99_seconds)}",
            f"  energy    {s.energy()}",
        ]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._write(up + "".join(f"\x1b[2K{row}\n" for row in rows))
        self._lines = len(rows)

    def say(self, text: str) -> None:
        self._write(f"{shown(text)}\n")
        self._lines = 0


def make_progress(kind: str, stream: IO[str] | None = None) -> Progress:
    """`kind` as in --progress; auto is rich on a terminal and plain elsewhere."""
    target = stream or sys.stderr
    if kind == "auto":
        kind = "rich" if target.isatty() else "plain"
    if kind == "rich":
        return RichProgress(target, colour=target.isatty())
    if kind == "plain":
        return PlainProgress(target)
    return JsonProgress(target) if kind == "json" else Progress()
