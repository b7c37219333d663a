"""A server whose answers come at known times: the truth that load generators are measured against.

One epoll loop, no library: at 800 requests a second of 64 chunks it has to send 51,000 chunks a second on
one core, each at its time, and write down when it did. Every chunk is an HTTP chunk of its own holding one
event as vLLM sends it. `--truth FILE` gets one line of JSON a request at the end (SIGTERM): its id, when
its last byte had come, and when each chunk was handed to the kernel, in seconds of CLOCK_MONOTONIC;
`unix_offset` turns those into UNIX time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import heapq
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

clock = time.perf_counter


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def event(body: dict[str, object]) -> bytes:
    return chunk(b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n")


HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\ncache-control: no-cache\r\n\r\n"
)
MODELS = json.dumps(
    {
        "object": "list",
        "data": [{"id": "mock", "object": "model", "owned_by": "mock", "max_model_len": 131072}],
    }
).encode()


class Stream:
    """One answer: what is still to be sent, and when."""

    __slots__ = (
        "chat",
        "connection",
        "gap",
        "left",
        "next",
        "prompt",
        "received",
        "request_id",
        "times",
        "tokens",
    )

    def __init__(self, connection: Connection, body: dict[str, object], request_id: str, chat: bool) -> None:
        self.connection = connection
        self.request_id = request_id
        self.chat = chat
        tokens = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        self.tokens = self.left = int(str(tokens))
        prompt = body.get("prompt")
        self.prompt = (
            len(prompt) if isinstance(prompt, list) else len(str(body.get("messages") or prompt)) // 4
        )
        self.received = clock()
        self.times: list[float] = []
        self.next = 0.0
        self.gap = 0.0


class Connection:
    __slots__ = ("buffer", "fd", "sock", "stream")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.fd = sock, sock.fileno()
        self.buffer = b""
        self.stream: Stream | None = None


class Timer:
    """A timerfd: epoll itself waits in whole milliseconds, and chunks would go out in lumps."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None)
        self.fd = self.libc.timerfd_create(1, os.O_NONBLOCK)
        self.spec = (ctypes.c_long * 4)()

    def set(self, when: float) -> None:
        wait = max(when - clock(), 1e-9)
        self.spec[2], self.spec[3] = int(wait), max(1, int(wait % 1 * 1e9))
        self.libc.timerfd_settime(self.fd, 0, self.spec, None)


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.listener = socket.create_server((options.host, options.port), backlog=4096)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.due: list[tuple[float, int, Stream]] = []
        self.count = 0
        self.started = clock()
        self.unix_offset = time.time() - clock()
        self.served = 0
        self.log: list[Stream] = []
        self.running = True
        common = {"id": "cmpl-0123456789abcdef", "created": 1700000000, "model": "mock"}
        self.text = event(
            {
                **common,
                "object": "text_completion",
                "choices": [
                    {
                        "index": 0,
                        "text": " word",
                        "logprobs": None,
                        "finish_reason": None,
                        "stop_reason": None,
                    }
                ],
                "usage": None,
            }
        )
        self.delta = event(
            {
                **common,
                "object": "chat.completion.chunk",
                "choices": [
                    {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}
                ],
                "usage": None,
            }
        )
        self.role = event(
            {
                **common,
                "object": "chat.completion.chunk",
                "choices": [
                    {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                ],
                "usage": None,
            }
        )
        self.common = common

    def run(self) -> None:
        print(f"mock listening on http://{self.options.host}:{self.listener.getsockname()[1]}", flush=True)
        gc.collect()
        gc.freeze()
        gc.disable()
        timer = Timer()
        self.epoll.register(timer.fd, select.EPOLLIN)
        while self.running:
            if self.due:
                timer.set(self.due[0][0])
            for fd, _ in self.epoll.poll(0.05):
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == timer.fd:
                    os.read(fd, 8)
                else:
                    self.read(self.connections[fd])
            self.send_due()

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock)
            self.connections[connection.fd] = connection
            self.epoll.register(connection.fd, select.EPOLLIN)

    def close(self, connection: Connection) -> None:
        connection.stream = None  # what is still due of it is not sent
        # A client that went away while its answer was due: the number may be another connection's by now.
        if self.connections.get(connection.fd) is connection:
            del self.connections[connection.fd]
            self.epoll.unregister(connection.fd)
            connection.sock.close()

    def read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(262144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)
            return
        connection.buffer += data
        end = connection.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = connection.buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(connection.buffer) < end + 4 + length:
            return
        body = connection.buffer[end + 4 : end + 4 + length]
        connection.buffer = connection.buffer[end + 4 + length :]
        self.answer(connection, first, headers, body)

    def answer(self, connection: Connection, first: str, headers: dict[str, str], body: bytes) -> None:
        path = first.split(" ")[1]
        if not path.endswith("/completions"):
            text = MODELS if path.endswith("/models") else b"{}"
            self.plain(connection, 200 if path.endswith(("/models", "/health", "/ping")) else 404, text)
            return
        asked = json.loads(body)
        stream = Stream(
            connection, asked, headers.get("x-request-id", ""), path.endswith("/chat/completions")
        )
        self.served += 1
        if self.options.truth:
            self.log.append(stream)
        if not asked.get("stream"):
            self.plain(connection, 200, self.whole(stream))
            return
        connection.stream = stream
        stream.gap = self.options.gap
        stream.next = self.delayed(stream.received + self.options.ttft)
        try:
            connection.sock.send(HEAD + (self.role if stream.chat else b""))
        except OSError:
            self.close(connection)
            return
        self.push(stream)

    def whole(self, stream: Stream) -> bytes:
        words = " word" * stream.tokens
        choice: dict[str, object] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": words}} if stream.chat else {"text": words}
        return json.dumps({**self.common, "choices": [choice], "usage": self.usage(stream)}).encode()

    def usage(self, stream: Stream) -> dict[str, object]:
        total = stream.prompt + stream.tokens
        usage: dict[str, object] = {
            "prompt_tokens": stream.prompt,
            "completion_tokens": stream.tokens,
            "total_tokens": total,
        }
        if self.options.joules:
            usage["energy"] = {"joules": self.options.joules, "status": "provisional"}
        return usage

    def plain(self, connection: Connection, status: int, body: bytes) -> None:
        head = (
            f"HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            connection.sock.send(head.encode() + body)
        except OSError:
            self.close(connection)

    def delayed(self, when: float) -> float:
        """A stall: nothing is sent while it lasts, and all that fell into it comes at its end."""
        begin: float = self.started + self.options.stall_at
        end: float = begin + self.options.stall
        if begin <= when < end:
            return end
        return when

    def push(self, stream: Stream) -> None:
        self.count += 1
        heapq.heappush(self.due, (stream.next, self.count, stream))

    def send_due(self) -> None:
        due = self.due
        while due and due[0][0] <= clock():
            stream = heapq.heappop(due)[2]
            connection = stream.connection
            if connection.stream is not stream:
                continue
            data = self.delta if stream.chat else self.text
            stream.left -= 1
            if not stream.left:
                data += self.last(stream)
            stream.times.append(clock())
            try:
                connection.sock.send(data)
            except OSError:
                self.close(connection)
                continue
            if stream.left:
                stream.next = self.delayed(stream.next + stream.gap)
                self.push(stream)
            else:
                connection.stream = None

    def last(self, stream: Stream) -> bytes:
        kind = "chat.completion.chunk" if stream.chat else "text_completion"
        part: dict[str, object] = {"delta": {}} if stream.chat else {"text": ""}
        finish = event(
            {**self.common, "object": kind, "choices": [{"index": 0, **part, "finish_reason": "length"}]}
        )
        usage = event({**self.common, "object": kind, "choices": [], "usage": self.usage(stream)})
        return finish + usage + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def save(self, path: Path) -> None:
        with path.open("w") as file:
            for stream in self.log:
                row = {"id": stream.request_id, "received": stream.received, "chunks": stream.times}
                file.write(json.dumps({**row, "unix_offset": self.unix_offset}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.1, help="seconds from the request's last byte")
    parser.add_argument("--gap", type=float, default=0.015, help="seconds between chunks")
    parser.add_argument("--stall-at", type=float, default=0.0, help="seconds after the start")
    parser.add_argument("--stall", type=float, default=0.0, help="seconds for which nothing is sent")
    parser.add_argument("--joules", type=float, default=0.0, help="energy that every answer claims; 0: none")
    parser.add_argument("--truth", type=Path, help="file for the times, one JSON line a request")
    options = parser.parse_args()
    server = Server(options)

    def stop(*_: object) -> None:
        server.running = False

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.run()
    if options.truth:
        server.save(options.truth)
    usage = time.process_time()
    print(f"mock served {server.served} requests with {usage:.1f} s of CPU", file=sys.stderr)


if __name__ == "__main__":
    main()
