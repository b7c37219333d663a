"""An HTTP/1.1 response: bytes in, body bytes out (RFC 9112).

What a load generator needs and no more: status, headers, bodies by length, by chunks or up to the end of the
connection, interim responses, trailers. Strict where leniency would let a broken answer pass as a whole one.
"""

from __future__ import annotations

from enum import Enum

MAX_HEAD_BYTES = 64 * 1024
_MAX_LINE_BYTES = 8 * 1024
_HEX = frozenset(b"0123456789abcdefABCDEF")


class HttpError(ValueError):
    """The bytes are no HTTP/1.1 response, or were cut short."""


class _State(Enum):
    HEAD = 0
    LENGTH = 1
    CHUNK_SIZE = 2
    CHUNK_DATA = 3
    CHUNK_END = 4
    TRAILERS = 5
    UNTIL_CLOSE = 6
    DONE = 7


_HEAD, _LENGTH, _SIZE, _DATA, _END, _TRAILERS, _CLOSE, _DONE = _State


class ResponseParser:
    """One response. `status` is 0 and `headers` empty until the head is whole; header names are lower case.

    `reusable`: the connection may carry another request once `complete`.
    """

    __slots__ = ("_buffer", "_left", "_state", "headers", "reusable", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.reusable = True
        self._buffer = b""
        self._left = 0
        self._state = _HEAD

    @property
    def complete(self) -> bool:
        return self._state is _DONE

    @property
    def between_chunks(self) -> bool:
        """Whether the next byte begins a chunk's size."""
        return self._state is _SIZE and not self._buffer

    def feed(self, data: bytes) -> bytes:
        """Body bytes that `data` completes, in order, b"" where none.

        Any split of the bytes over calls gives the same body. Raises HttpError.
        """
        if self._state is _SIZE and not self._buffer:
            # Almost always `data` is one chunk, whole.
            end = data.find(b"\r\n", 0, 12)
            if end > 0:
                digits = data[:end]
                if digits.isalnum():
                    try:
                        size = int(digits, 16)
                    except ValueError:
                        size = 0
                    if size and len(data) == end + size + 4 and data[-2:] == b"\r\n":
                        return data[end + 2 : -2]
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        out: list[bytes] = []
        while data and self._state is not _DONE:
            step = self._step(data, out)
            if step is None:
                self._buffer = data
                break
            data = step
        if self._state is _DONE and data:
            self.reusable = False
        return out[0] if len(out) == 1 else b"".join(out)

    def end(self) -> None:
        """The server closed the connection. Raises HttpError where the response is not whole by then."""
        if self._state is _CLOSE:
            self._state = _DONE
        elif self._state is _HEAD:
            said = "before it had responded" if not self._buffer else "in the middle of the headers"
            raise HttpError(f"the server closed the connection {said}")
        elif self._state is not _DONE:
            raise HttpError("the server closed the connection in the middle of the body")

    def _step(self, data: bytes, out: list[bytes]) -> bytes | None:
        """Takes one element from the front of `data`: the rest, or None where more bytes are needed."""
        state = self._state
        if state is _DATA or state is _LENGTH:
            part = data[: self._left]
            out.append(part)
            self._left -= len(part)
            if not self._left:
                self._state = _END if state is _DATA else _DONE
            return data[len(part) :]
        if state is _CLOSE:
            out.append(data)
            return b""
        if state is _HEAD:
            return self._head(data)
        if state is _END:
            return self._chunk_end(data)
        return self._line(data)

    def _chunk_end(self, data: bytes) -> bytes | None:
        if len(data) < 2:
            return None
        if data[:2] != b"\r\n":
            raise HttpError("a chunk does not end where its size says")
        self._state = _SIZE
        return data[2:]

    def _line(self, data: bytes) -> bytes | None:
        """A chunk's size, or a trailer."""
        end = data.find(b"\r\n")
        if end < 0:
            if len(data) > _MAX_LINE_BYTES:
                raise HttpError(f"a line between chunks is longer than {_MAX_LINE_BYTES} bytes")
            return None
        line, rest = data[:end], data[end + 2 :]
        if self._state is _TRAILERS:
            self._left += len(line)
            if self._left > MAX_HEAD_BYTES:
                raise HttpError(f"the trailers are longer than {MAX_HEAD_BYTES} bytes")
            if not line:
                self._state = _DONE
            return rest
        digits = line.partition(b";")[0].strip(b" \t")
        if not digits or len(digits) > 15 or not _HEX.issuperset(digits):
            raise HttpError(f"{line[:40]!r} is no size of a chunk")
        self._left = int(digits, 16)
        self._state = _DATA if self._left else _TRAILERS
        return rest

    def _head(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n\r\n")
        if end > MAX_HEAD_BYTES or (end < 0 and len(data) > MAX_HEAD_BYTES):
            raise HttpError(f"the headers are longer than {MAX_HEAD_BYTES} bytes")
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise HttpError(f"the response is not HTTP/1: it begins with {data[:40]!r}")
        if end < 0:
            return None
        first, *lines = data[:end].split(b"\r\n")
        version, _, tail = first.partition(b" ")
        code = tail[:3]
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not code.isdigit() or tail[3:4] not in (b"", b" "):
            raise HttpError(f"{first[:60]!r} is no status line of HTTP/1.1")
        headers = _headers(lines)
        status = int(code)
        if status < 200:
            if status == 101:
                raise HttpError("the server wants another protocol (101)")
            return data[end + 4 :]
        self.status, self.headers = status, headers
        connection = headers.get("connection", "").lower()
        self.reusable = "close" not in connection and (version == b"HTTP/1.1" or "keep-alive" in connection)
        self._decide_body()
        return data[end + 4 :]

    def _decide_body(self) -> None:
        coding = self.headers.get("transfer-encoding")
        if self.status in (204, 304):
            self._state = _DONE
        elif coding is not None:
            if coding.strip().lower() != "chunked":
                raise HttpError(f"transfer encoding {coding[:40]!r} was not asked for")
            self._state = _SIZE
        elif "content-length" in self.headers:
            length = self.headers["content-length"]
            if not (length.isascii() and length.isdigit()) or len(length) > 15:
                raise HttpError(f"content length {length[:40]!r} is not a number")
            self._left = int(length)
            self._state = _LENGTH if self._left else _DONE
        else:
            self._state = _CLOSE
            self.reusable = False


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name[:1] in b" \t" or name[-1:] in b" \t":
            raise HttpError(f"{line[:60]!r} is no header")
        key, text = name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key == "content-length":
                if headers[key] != text:
                    raise HttpError("two content lengths contradict each other")
                continue
            text = f"{headers[key]}, {text}"
        headers[key] = text
    return headers
