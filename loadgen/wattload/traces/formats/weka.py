"""Sessions of coding agents as WEKA's kv-cache-tester records them and SemiAnalysis' AgentX replays them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.reading.entries import entries, place_name
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace
from wattload.traces.reading.turns import Turn, raw_of

_ASKED = ("n", "s")
# Ids of different sessions are counted on from each other, so they must leave room.
_LARGE = 1 << 40
_LARGEST_BLOCK = 1 << 20
_NAMES = {"prompt_tokens": "in", "output_tokens": "out", "seconds": "t"}


class Weka:
    """One object a session, as JSON, JSON lines or Parquet: `requests` in order of their time `t`.

    A request of type `subagent` holds those of another agent, which the session's next turn waits for. Times
    count from the beginning of a session; when sessions began is not recorded. `hash_ids` name the blocks of
    a prompt within its session.
    """

    name = "weka"
    header = 'JSON of {"id", "block_size", "requests": [{"t", "type", "in", "out", "hash_ids"}]}'
    required = ("requests", "block_size")

    def recognises(self, head: Head) -> bool:
        return head.kind in ("jsonl", "document", "parquet") and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        turns: list[Turn] = []
        sizes: set[int] = set()
        reader = _Reader(head)
        for place, entry in entries(head):
            size = reader.whole(entry, "block_size", place)
            if not 1 <= size <= _LARGEST_BLOCK:
                raise InputError(f"{head.path}, {place_name(head)} {place}: block_size {size} is no block's")
            sizes.add(size)
            turns += reader.turns(place, entry.get("requests"), (), f"{place}", 0.0)
        if not turns:
            raise InputError(f"{head.path} holds no request of type {' or '.join(_ASKED)}")
        if len(sizes) > 1:
            raise InputError(
                f"{head.path}: sessions have block_size {' and '.join(map(str, sorted(sizes)))}; a trace has"
                " one"
            )
        notes = []
        if reader.without_end:
            notes.append(
                "some requests do not say how long their response took (api_time): the wait after them is"
                " taken as the whole time up to the next turn"
            )
        return raw_of(
            turns,
            timed=False,
            unit=place_name(head),
            names=_NAMES,
            block_tokens=sizes.pop(),
            notes=notes,
            licence="Apache-2.0",
            citation=(
                "Fox, kv-cache-tester: agentic coding traces recorded at WEKA, 2026"
                " (callanjfox/kv-cache-tester; semianalysisai/cc-traces-weka on Hugging Face)"
            ),
        )


class _Reader:
    def __init__(self, head: Head) -> None:
        self._head, self._unit = head, place_name(head)
        self.without_end = 0

    def whole(self, entry: dict[str, Any], name: str, place: int) -> int:
        value = entry.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(place, f"{name} {value!r} is not a whole number")
        return value

    def _number(self, entry: dict[str, Any], name: str, place: int) -> float:
        value = entry.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
            raise self._wrong(place, f"{name} {value!r} is not a number of seconds")
        return float(value)

    def turns(
        self, place: int, requests: object, agent: tuple[str, ...], session: str, base: float
    ) -> Iterator[Turn]:
        """The turns of one agent's requests, and of those that it started; times are `base` later."""
        if not isinstance(requests, list):
            raise self._wrong(place, "requests is not a list")
        stop = None
        for number, request in enumerate(requests):
            if not isinstance(request, dict):
                raise self._wrong(place, f"request {number + 1} is not an object")
            start = base + self._number(request, "t", place)
            if request.get("type") == "subagent":
                inner = request.get("requests")
                inner = [] if inner is None else inner
                # Some recorders count a sub-agent's times from its own beginning, others from the session's.
                first = min(self._moments(inner, place), default=0.0)
                inside = start if base + first < start else base
                yield from self.turns(place, inner, (*agent, f"{number}"), session, inside)
                continue
            if request.get("type") not in _ASKED:
                raise self._wrong(place, f"request {number + 1} is of type {request.get('type')!r}")
            took = request.get("api_time")
            self.without_end += took is None
            asked = request.get("input_types")
            if not isinstance(asked, list | None):
                raise self._wrong(place, f"input_types of request {number + 1} is not a list")
            from_tool = "tool_result" in asked if asked else stop == "tool_use"
            stop = request.get("stop")
            blocks = request.get("hash_ids")
            if blocks is not None and not _are_ids(blocks):
                raise self._wrong(place, f"hash_ids of request {number + 1} is not a list of whole numbers")
            yield Turn(
                session=session,
                agent=agent,
                start=start,
                end=start + (self._number(request, "api_time", place) if took is not None else 0.0),
                prompt_tokens=self.whole(request, "in", place),
                output_tokens=self.whole(request, "out", place),
                by_user=not agent and not from_tool,
                place=place,
                blocks=blocks,
            )

    def _moments(self, requests: object, place: int) -> Iterator[float]:
        """When requests began, by a clock that is still to be found out; what is none of them has no time."""
        for request in requests if isinstance(requests, list) else ():
            if isinstance(request, dict):
                yield self._number(request, "t", place)

    def _wrong(self, place: int, what: str) -> InputError:
        return InputError(f"{self._head.path}, {self._unit} {place}: {what}")


def _are_ids(blocks: object) -> bool:
    """Whether `blocks` is a list of whole numbers that can be ids. A session has hundreds of thousands."""
    if not isinstance(blocks, list):
        return False
    return not blocks or (set(map(type, blocks)) == {int} and min(blocks) >= 0 and max(blocks) < _LARGE)
