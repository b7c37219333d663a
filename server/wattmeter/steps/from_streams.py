"""Steps of an engine that keeps none, reconstructed from what a proxy sees of its streams.

A batching engine gives every running request its next token at the same moment. So the tokens that arrive
together, at most one event a stream, are one step; the step lasted since the one before it, or since the
first of the requests came where the engine had nothing to do; and a stream's first token ends the step that
computed its prompt. What cannot be seen is guessed, always in the same way: a response that is not streamed
is taken to compute its prompt at once and then a token in each step until it ends or has all that it asked
for.

What comes out looks like step records and is divided like them. It is an estimate: prompts that were split
over steps or found in a prefix cache, speculation, and the engine's own order are not seen.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from wattmeter.steps.batch import StepBatch

# Tokens of one step are written within this much of each other, where no step time is known yet.
FIRST_GAP_NS = 4_000_000
SHORTEST_GAP_NS = 500_000
# A step's length, before any was seen: that of a 7B model's decoding on a large GPU.
FIRST_STEP_NS = 10_000_000
# The median is over so many steps.
KNOWN_STEPS = 64
# Steps that nobody streams from are made up at this many a call at most; longer ones make up for more.
MOST_MADE_UP = 256


@dataclass(slots=True)
class _Stream:
    """One request that has not ended."""

    started_ns: int
    prompt_tokens: int
    streamed: bool
    most_tokens: int | None
    # Tokens in its steps so far; None before the step that computed its prompt.
    generated: int | None = None
    ended: bool = False


@dataclass(slots=True)
class _Step:
    """A step whose tokens are still arriving."""

    first_ns: int
    last_ns: int
    tokens: dict[str, int] = field(default_factory=dict)


class StepsFromStreams:
    """Follows streams and gives out the steps behind them, in order. Times are time.monotonic_ns.

    Not thread-safe: one thread (the proxy's event loop) owns it.
    """

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._open: _Step | None = None
        self._busy_since_ns = 0
        self._last_end_ns = 0
        self._lengths: deque[int] = deque(maxlen=KNOWN_STEPS)
        self._step_ns = FIRST_STEP_NS
        self._gap_ns = FIRST_GAP_NS
        self._next = 0
        self._steps: list[tuple[int, int, int]] = []
        self._entries: list[tuple[int, str, int, int, int]] = []

    @property
    def steps(self) -> int:
        """How many have been given out or wait to be."""
        return self._next

    def started(
        self, request_id: str, now_ns: int, *, prompt_tokens: int = 1, streamed: bool = True,
        most_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """A request was sent. `most_tokens` is the limit it asked for."""
        self._close_if_late(now_ns)
        if not self._streams:
            self._busy_since_ns = now_ns
        self._streams[request_id] = _Stream(now_ns, prompt_tokens, streamed, most_tokens)

    def described(
        self, request_id: str, *, prompt_tokens: int, streamed: bool, most_tokens: int | None
    ) -> None:
        """What the body of a request says, where it was not known at its start."""
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.prompt_tokens = max(1, prompt_tokens)
            stream.streamed, stream.most_tokens = streamed, most_tokens

    def tokens(self, request_id: str, now_ns: int, count: int = 1) -> None:
        """`count` tokens of a stream arrived together."""
        stream = self._streams.get(request_id)
        if stream is None or count < 1:
            return
        stream.streamed = True
        step = self._open
        if step is not None and (request_id in step.tokens or now_ns - step.last_ns > self._gap_ns):
            self._close()
            step = None
        if step is None:
            step = self._open = _Step(now_ns, now_ns)
        step.tokens[request_id] = count
        step.last_ns = max(step.last_ns, now_ns)

    def finished(self, request_id: str, now_ns: int) -> None:
        """A request has ended, however it did."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        if self._open is not None and request_id in self._open.tokens:
            stream.ended = True  # others' tokens of the same step may still come
            return
        if not stream.streamed:
            self._close_if_late(now_ns)
            if self._nobody_streams():
                self._make_up(now_ns)
            if stream.generated is None:
                # It began and ended between two steps: that it computed its prompt is certain.
                self._add(now_ns, {request_id: 1}, seen=False)
        del self._streams[request_id]

    def take(self, now_ns: int) -> StepBatch:
        """The steps that have ended by `now_ns`, less the time within which the next token of the last one
        may come."""
        self._close_if_late(now_ns)
        if self._open is None and self._nobody_streams():
            self._make_up(now_ns)
        steps, self._steps = self._steps, []
        entries, self._entries = self._entries, []
        numbers: dict[str, int] = {}
        rows = np.array(
            [
                (row, numbers.setdefault(name, len(numbers)), prefill, decode, context)
                for row, name, prefill, decode, context in entries
            ],
            dtype=np.int64,
        ).reshape(-1, 5)
        whole = np.array(steps, dtype=np.int64).reshape(-1, 3)
        return StepBatch.of(
            tuple(numbers),
            {
                "index": whole[:, 0],
                "launch_ns": whole[:, 1],
                "end_ns": whole[:, 2],
                "step": rows[:, 0],
                "request": rows[:, 1],
                "prefill_tokens": rows[:, 2],
                "decode_tokens": rows[:, 3],
                "context_tokens": rows[:, 4],
            },
        )

    def complete_ns(self, now_ns: int) -> int:
        """Every step that ended by then has been given out by `take(now_ns)`."""
        first = now_ns if self._open is None else self._open.first_ns
        return min(first, now_ns - self._gap_ns) - 1

    # --- steps ----------------------------------------------------------------------------------------------

    def _nobody_streams(self) -> bool:
        return bool(self._streams) and not any(stream.streamed for stream in self._streams.values())

    def _close_if_late(self, now_ns: int) -> None:
        if self._open is not None and now_ns - self._open.last_ns > self._gap_ns:
            self._close()

    def _close(self) -> None:
        step = self._open
        assert step is not None
        self._open = None
        tokens = dict(step.tokens)
        # The others that run are in this step too, as far as can be told.
        for name, stream in self._streams.items():
            if not stream.streamed and name not in tokens and stream.started_ns < step.first_ns:
                tokens[name] = 1
        self._add(step.first_ns, tokens)
        for name in step.tokens:
            if self._streams[name].ended:
                del self._streams[name]

    def _make_up(self, now_ns: int) -> None:
        """Steps up to now in which only responses took part that are not streamed."""
        begin = max(self._last_end_ns, self._busy_since_ns)
        missing = int((now_ns - begin) // self._step_ns)
        if missing <= 0:
            return
        length = max(self._step_ns, (now_ns - begin) // min(missing, MOST_MADE_UP))
        for number in range(1, min(missing, MOST_MADE_UP) + 1):
            end = begin + number * length
            running = {n: 1 for n, s in self._streams.items() if not s.streamed and s.started_ns < end}
            if running:
                self._add(end, running, seen=False)

    def _add(self, end_ns: int, tokens: dict[str, int], *, seen: bool = True) -> None:
        end = max(end_ns, self._last_end_ns + 1)
        launch = max(self._last_end_ns, self._busy_since_ns)
        row = len(self._steps)
        any_entry = False
        for name, count in tokens.items():
            stream = self._streams[name]
            if stream.generated is None:
                self._entries.append((row, name, stream.prompt_tokens, 0, 0))
                stream.generated = count
            elif stream.most_tokens is None or stream.generated < stream.most_tokens or stream.streamed:
                context = stream.prompt_tokens + stream.generated - 1
                self._entries.append((row, name, 0, count, context))
                stream.generated += count
            else:
                continue
            any_entry = True
        if not any_entry:
            return
        self._steps.append((self._next, min(launch, end), end))
        self._next += 1
        if seen and launch == self._last_end_ns:
            self._lengths.append(end - launch)
            if len(self._lengths) >= 8:
                ordered = sorted(self._lengths)
                self._step_ns = max(1, ordered[len(ordered) // 2])
                self._gap_ns = max(SHORTEST_GAP_NS, self._step_ns // 2)
        self._last_end_ns = end
