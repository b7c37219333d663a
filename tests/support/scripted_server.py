"""An HTTP server of a few lines whose answers are scripts: what to send, how long to wait, when to close."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.server import StreamServer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
# Bytes are sent, numbers are seconds to wait, None closes the connection.
Script = list[bytes | float | None]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(body: dict[str, Any] | bytes) -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return b"data: " + text + b"\n\n"


def token(text: str = "a", finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}], "usage": None})


def usage(prompt: int, output: int, **more: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output, **more}})


DONE = event(b"[DONE]")
END = b"0\r\n\r\n"


def good(request: dict[str, Any], gap: float = 0.0) -> Script:
    """A whole answer of as many tokens as were asked for."""
    count = int(request["max_tokens"])
    script: Script = [HEAD]
    for i in range(count):
        script += [gap, chunk(token("a", "length" if i == count - 1 else None))]
    return [*script, chunk(usage(len(request["prompt"]), count)), chunk(DONE) + END]


class Seen:
    """What the server was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        # Lower-case names as they came, those that came twice among them.
        self.header_names: list[list[str]] = []
        self.paths: list[str] = []
        self.connections = 0


@contextmanager
def scripted(
    answer: Callable[[dict[str, Any]], Script], ssl_context: Any = None
) -> Iterator[tuple[str, Seen]]:
    """Serves `answer` on a free port; gives the address and what was asked."""
    seen = Seen()

    def handle(sock: Any, _address: Any) -> None:
        seen.connections += 1
        with sock, sock.makefile("rb") as reader:
            while first := reader.readline():
                seen.paths.append(first.split(b" ")[1].decode())
                headers: dict[str, str] = {}
                names: list[str] = []
                while (line := reader.readline().strip()) != b"":
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                    names.append(name.lower())
                request = json.loads(reader.read(int(headers["content-length"])))
                seen.requests.append(request)
                seen.headers.append(headers)
                seen.header_names.append(names)
                if not play(sock, answer(request)):
                    return

    server = StreamServer(("127.0.0.1", 0), handle, **({"ssl_context": ssl_context} if ssl_context else {}))
    server.start()
    try:
        scheme = "https" if ssl_context else "http"
        yield f"{scheme}://127.0.0.1:{server.server_port}", seen
    finally:
        server.stop(timeout=0)


def play(sock: Any, script: Script) -> bool:
    """False where the script closed the connection."""
    for step in script:
        if step is None:
            return False
        if isinstance(step, bytes):
            try:
                sock.sendall(step)
            except OSError:
                return False
        else:
            gevent.sleep(step)
    return True
