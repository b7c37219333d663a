"""Server-sent events: bytes in, the data of whole events out.

The stream format of the HTML standard, section 9.2.6
(https://html.spec.whatwg.org/multipage/server-sent-events.html). Of it `data` matters here, and whether an
event is named `error`; `id`, `retry`, comments and other names of events are read past. Two things that the
standard would drop are kept, because servers tell of their failures in them: lines of a field that it does
not have, and an event that the end of the stream cuts off from its blank line.

A server that sends no blank lines is refused when its second event begins: the standard makes one event of
all of them, and when each one ended, which latencies are made of, is not known in time.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"
_FIELDS = frozenset((b"data", b"event", b"id", b"retry"))
_MOST_STRAYS = 16
MAX_EVENT_BYTES = 16 * 1024 * 1024


class SseError(ValueError):
    """The stream cannot be one of server-sent events."""


class SseParser:
    """Any split of the bytes over calls of `feed` gives the same events.

    `failures`: the data of events that are named `error`. `strays`: lines of no field of the standard, the
    first few. Both are for the caller to take and to clear.
    """

    __slots__ = ("_after_cr", "_data", "_held", "_name", "_pieces", "_size", "_started", "failures", "strays")

    def __init__(self) -> None:
        # The line that has begun and not ended, in pieces: joined once, so a long one costs no more a byte.
        self._pieces: list[bytes] = []
        self._held = 0
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._started = False
        self._name = b""
        self.failures: list[bytes] = []
        self.strays: list[bytes] = []

    @property
    def pending(self) -> bool:
        """Whether an event has begun and not ended."""
        return bool(self._pieces or self._data)

    @property
    def between_events(self) -> bool:
        """Whether the next byte begins an event."""
        return self._started and not (self._pieces or self._data or self._after_cr or self._name)

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that `data` completes, in order; lines of one event are joined by newlines.

        Raises SseError where one event exceeds `MAX_EVENT_BYTES`, or no blank line is between two of JSON.
        """
        # Almost always `data` is one event of one line, whole: nothing is kept and nothing is split.
        if (
            data[:6] in (b"data: ", b"event:")
            and data[-2:] == b"\n\n"
            and not self._pieces
            and not self._data
            and not self._after_cr
            and not self._name
            and b"\r" not in data
        ):
            if data[:6] == b"event:":
                # Or one of two lines, the first of which names it.
                name, _, rest = data.partition(b"\n")
                if rest[:6] == b"data: " and rest.find(b"\n") == len(rest) - 2 and b"error" not in name:
                    self._started = True
                    return [rest[6:-2]]
                return self._feed_lines(data)
            if data.find(b"\n") == len(data) - 2:
                self._started = True
                return [data[6:-2]]
            pieces = data[:-2].split(b"\n\n")
            if all(piece[:6] == b"data: " and b"\n" not in piece for piece in pieces):
                self._started = True
                return [piece[6:] for piece in pieces]
        return self._feed_lines(data)

    def end(self) -> list[bytes]:
        """The data of the event that the end of the stream cut off, if there is one: whole, or a part of it.

        Raises SseError where not even its line is whole.
        """
        events: list[bytes] = []
        line = b"".join(self._pieces)
        self._pieces, self._held = [], 0
        if line and b":" not in line:
            raise SseError(f"in the middle of a line: {line[:80]!r}")
        if line:
            self._take(line, events)
        self._take(b"", events)
        return events

    def _feed_lines(self, data: bytes) -> list[bytes]:
        if not data:
            return []
        if self._after_cr:
            # The carriage return that ended the last call's line may have been the first half of an end of
            # line.
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]
            if not data:
                return []
        if self._started and b"\n" not in data and b"\r" not in data:
            self._hold(data)
            return []
        buffer = b"".join((*self._pieces, data))
        self._pieces, self._held = [], 0
        if not self._started:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._hold(buffer)
                return []
            self._started = True
            buffer = buffer.removeprefix(_BOM)
        self._after_cr = buffer[-1:] == b"\r"
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, begun = buffer.split(b"\n")
        events: list[bytes] = []
        for line in lines:
            self._take(line, events)
        self._hold(begun)
        return events

    def _hold(self, begun: bytes) -> None:
        if begun:
            self._pieces.append(begun)
            self._held += len(begun)
        # A line counts a byte more than it holds: empty ones without end are an event without end too.
        if self._size + self._held > MAX_EVENT_BYTES:
            raise SseError(f"an event is longer than {MAX_EVENT_BYTES} bytes")

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                data = b"\n".join(self._data)
                (self.failures if self._name == b"error" else events).append(data)
                self._data = []
                self._size = 0
            self._name = b""
        elif line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            if self._data and _begins_anew(self._data, value):
                raise SseError(
                    f"no blank line between two events: {b''.join(self._data)[:80]!r} {value[:80]!r}"
                )
            self._data.append(value)
            self._size += len(value) + 1
        elif line == b"data":
            self._data.append(b"")
            self._size += 1
        elif not line.startswith(b":"):
            self._take_other(line)

    def _take_other(self, line: bytes) -> None:
        """A line of a field that is not `data`."""
        name, _, value = line.partition(b":")
        if name == b"event":
            self._name = value.strip()
        elif name not in _FIELDS and line.strip() and len(self.strays) < _MOST_STRAYS:
            self.strays.append(line)


def _begins_anew(lines: list[bytes], line: bytes) -> bool:
    """Whether `line` is data of another event than `lines`, and not a further line of the same JSON document.

    Nowhere in one may an array or an object begin right behind the end of another: there is a comma between
    them, and no string holds a line's end.
    """
    return (
        line.lstrip()[:1] in (b"{", b"[")
        and lines[-1].rstrip()[-1:] in (b"}", b"]")
        and lines[0].lstrip()[:1] in (b"{", b"[")
    )
