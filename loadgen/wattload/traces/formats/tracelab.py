"""TraceLab (uw-syfi/TraceLab): each call of a model by a coding agent, with the events before and after."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.reading.entries import entries, place_name
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace
from wattload.traces.reading.turns import Turn, raw_of

_ASKING = ("user_message", "tool_result")
_ANSWERING = ("reasoning", "text", "tool_call")
_NAMES = {"prompt_tokens": "input_tokens_total", "output_tokens": "output_tokens", "seconds": "timing_events"}


class TraceLab:
    """JSON lines, one a call: it begins with the last message of the user or result of a tool before what the
    model says, and ends with the last that it says.
    """

    name = "tracelab"
    header = "JSON lines of session_id, round_index, input_tokens_total, output_tokens, timing_events"
    required = ("session_id", "input_tokens_total", "output_tokens", "timing_events")

    def recognises(self, head: Head) -> bool:
        return head.kind == "jsonl" and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        turns, untimed = [], 0
        for place, entry in entries(head):
            turn = _turn(head, place, entry)
            turns += [turn] if turn is not None else []
            untimed += turn is None
        if not turns:
            raise InputError(f"{head.path}: no line has timing_events of a question and an answer")
        notes = (
            [f"calls without times of both question and answer, passed over: {untimed}"] if untimed else []
        )
        return raw_of(
            turns,
            timed=True,
            unit=place_name(head),
            names=_NAMES,
            notes=notes,
            licence="CC-BY 4.0",
            citation=(
                "Zhu et al., TraceLab: Characterizing Coding Agent Workloads for LLM Serving, "
                "arXiv 2606.30560, 2026"
            ),
        )


def _turn(head: Head, place: int, entry: dict[str, Any]) -> Turn | None:
    """The call of one line; None where its times are not recorded."""
    prompt, output = (_count(head, place, entry, name) for name in _NAMES.values() if name in _COUNTS)
    events = entry.get("timing_events")
    if not isinstance(events, list):
        raise InputError(f"{head.path}, line {place}: timing_events is not a list")
    asked: list[tuple[float, str]] = []
    said: list[float] = []
    for event in events:
        kind = event.get("event_type") if isinstance(event, dict) else None
        if kind in _ASKING and not said:
            asked.append((_time(head, place, event), kind))
        elif kind in _ANSWERING:
            said.append(_time(head, place, event))
    if not said:
        return None
    start = max((when for when, _ in asked), default=min(said))
    return Turn(
        session=str(entry.get("session_id")),
        agent=(),
        start=start,
        end=max(start, *said),
        prompt_tokens=prompt,
        output_tokens=output,
        by_user=not any(kind == "tool_result" for _, kind in asked),
        place=place,
    )


_COUNTS = ("input_tokens_total", "output_tokens")


def _count(head: Head, place: int, entry: dict[str, Any], name: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{head.path}, line {place}: {name} {value!r} is not a whole number")
    return value


def _time(head: Head, place: int, event: dict[str, Any]) -> float:
    value = event.get("timestamp")
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError as error:
        raise InputError(f"{head.path}, line {place}: timestamp {value!r} is not a time") from error
