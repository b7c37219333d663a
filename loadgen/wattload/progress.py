"""What a run shows while it goes on: a line a few seconds, a line that stays, JSON lines, or nothing."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import IO, Any


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
    asked_rps: float | None = None
    achieved_rps: float | None = None
    ttft_p50_seconds: float | None = None
    lag_p99_seconds: float | None = None
    watts: float | None = None
    joules_per_request: float | None = None
    energy_source: str | None = None
    workers: int = 1

    def line(self) -> str:
        """One line for people."""
        share = min(1.0, self.elapsed_seconds / self.planned_seconds) if self.planned_seconds > 0 else 0.0
        parts = [
            f"{self.phase:<8}",
            f"{share:4.0%}",
            f"{_number(self.asked_rps)} asked {_number(self.achieved_rps)} sent /s",
            f"{self.in_flight} in flight",
            f"{self.completed} done" + (f", {self.failed} failed" if self.failed else ""),
            f"TTFT {_time(self.ttft_p50_seconds)}",
        ]
        if self.watts is not None:
            modelled = " (modelled)" if self.energy_source == "modelled" else ""
            parts.append(f"{self.watts:.0f} W{modelled}")
        if self.joules_per_request is not None:
            parts.append(f"{self.joules_per_request:.3g} J/request")
        return "  ".join(parts)


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


class PlainProgress(Progress):
    seconds = 5.0

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr

    def show(self, snapshot: Snapshot) -> None:
        print(f"{snapshot.elapsed_seconds:6.1f} s  {snapshot.line()}", file=self._stream, flush=True)

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class JsonProgress(Progress):
    """One JSON object a line, for programs."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr

    def _write(self, value: dict[str, Any]) -> None:
        print(json.dumps({"unix_seconds": time.time(), **value}), file=self._stream, flush=True)

    def show(self, snapshot: Snapshot) -> None:
        self._write({"progress": asdict(snapshot)})

    def say(self, text: str) -> None:
        self._write({"message": text})


class RichProgress(Progress):
    """A panel that is drawn over itself.

    Drawn by hand and not by rich's Live, whose layout takes milliseconds in which no request can be sent;
    colours are plain terminal codes.
    """

    _BAR = 28

    def __init__(self, stream: IO[str] | None = None, *, colour: bool = True) -> None:
        self._stream = stream or sys.stderr
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
        energy = (
            "no energy asked"
            if s.watts is None and s.energy_source is None
            else (
                f"{'-' if s.watts is None else format(s.watts, '.0f')} W"
                + (f"   {s.joules_per_request:.3g} J/request" if s.joules_per_request is not None else "")
                + (f"   ({s.energy_source})" if s.energy_source else "")
            )
        )
        rows = [
            f"{self._painted('1', s.phase):<8} {bar} {s.elapsed_seconds:.0f} of {s.planned_seconds:.0f} s",
            f"  rate      {_number(s.asked_rps)} asked   {_number(s.achieved_rps)} sent a second",
            f"  requests  {s.due} due of {s.total}   {s.in_flight} in flight   {s.completed} done   {failed}",
            f"  latency   TTFT p50 {_time(s.ttft_p50_seconds)}   send lag p99 {_time(s.lag_p99_seconds)}",
            f"  energy    {energy}",
        ]
        up = f"\x1b[{self._lines}A" if self._lines else ""
        self._stream.write(up + "".join(f"\x1b[2K{row}\n" for row in rows))
        self._stream.flush()
        self._lines = len(rows)

    def say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()
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
