"""Server-sent events: bytes in, the data of whole events out.

The stream format of the HTML standard, section 9.2.6
(https://html.spec.whatwg.org/multipage/server-sent-events.html), of which only `data` matters here:
`event`, `id`, `retry` and comments are read past.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"
MAX_EVENT_BYTES = 16 * 1024 * 1024


class SseError(ValueError):
    """The stream cannot be one of server-sent events."""


class SseParser:
    """Any split of the bytes over calls of `feed` gives the same events."""

    __slots__ = ("_after_cr", "_data", "_held", "_pieces", "_size", "_started")

    def __init__(self) -> None:
        # The line that has begun and not ended, in pieces: joined once, so a long one costs no more a byte.
        self._pieces: list[bytes] = []
        self._held = 0
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._started = False

    @property
    def pending(self) -> bool:
        """Whether an event has begun and not ended: at the end of a stream it is lost, as the standard
        says.
        """
        return bool(self._pieces or self._data)

    @property
    def between_events(self) -> bool:
        """Whether the next byte begins an event."""
        return self._started and not (self._pieces or self._data or self._after_cr)

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that `data` completes, in order; lines of one event are joined by newlines.

        Raises SseError where one event exceeds `MAX_EVENT_BYTES`.
        """
        # Almost always `data` is one event of one line, whole: nothing is kept and nothing is split.
        if (
            data[:6] == b"data: "
            and data[-2:] == b"\n\n"
            and not self._pieces
            and not self._data
            and not self._after_cr
            and b"\r" not in data
        ):
            if data.find(b"\n") == len(data) - 2:
                self._started = True
                return [data[6:-2]]
            pieces = data[:-2].split(b"\n\n")
            if all(piece[:6] == b"data: " and b"\n" not in piece for piece in pieces):
                self._started = True
                return [piece[6:] for piece in pieces]
        return self._feed_lines(data)

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
        if self._size + self._held > MAX_EVENT_BYTES:
            raise SseError(f"an event is longer than {MAX_EVENT_BYTES} bytes")

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data = []
                self._size = 0
        elif line == b"data":
            self._data.append(b"")
        elif line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._data.append(value)
            self._size += len(value)
