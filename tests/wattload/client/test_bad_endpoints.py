"""The whole command against endpoints that do everything wrong: it ends, says how, and loses no row."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from scripted_server import DONE, END, chunk, event, token, usage
from scripted_server import HEAD as KEPT_ALIVE

# This endpoint ends each connection after its response. A client that is not told so sends its next request
# on the old connection, where it is lost if it comes before the endpoint, on a busy machine, has closed that.
HEAD = KEPT_ALIVE.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n"
TOKENS = 3
MODELS = b'{"data":[{"id":"m","object":"model"}]}'
# Bytes are sent, numbers are seconds to wait; at the end of a script the connection is closed.
Script = Iterator[bytes | float]


def plain(status: str, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


def tail() -> bytes:
    return chunk(token("a", "length")) + chunk(usage(4, TOKENS)) + chunk(DONE) + END


def good() -> Script:
    yield HEAD + chunk(token()) + chunk(token()) + tail()


def closes_at_once() -> Script:
    yield from ()


def never_answers() -> Script:
    yield 30.0


def garbage() -> Script:
    yield bytes(range(256)) * 50


def html() -> Script:
    yield plain("200 OK", b"<html><body>It works!</body></html>", "Content-Type: text/html\r\n")


def endless_headers() -> Script:
    yield b"HTTP/1.1 200 OK\r\n"
    for _ in range(100):
        yield (b"X-Filler: " + b"y" * 1000 + b"\r\n") * 1000


def half_a_character() -> Script:
    cut = token("@").replace(b"@", "字".encode()[:2])
    yield HEAD + chunk(token()) + chunk(cut) + tail()


def a_character_in_two_pieces() -> Script:
    whole = token("@").replace(b"@", "字".encode())
    place = whole.index("字".encode()) + 1
    yield HEAD + chunk(token()) + chunk(whole[:place])
    yield 0.05
    yield chunk(whole[place:]) + tail()


def redirect() -> Script:
    yield plain("307 Temporary Redirect", b"", "Location: https://elsewhere.example/v1/completions\r\n")


def too_many() -> Script:
    body = json.dumps({"error": {"message": "slow down"}}).encode()
    yield plain("429 Too Many Requests", body, "Retry-After: 7\r\nContent-Type: application/json\r\n")


def cut_in_mid_stream() -> Script:
    yield HEAD + chunk(token())


def endless_error() -> Script:
    yield b"HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\n\r\n"
    for _ in range(100):
        yield b"<p>oops</p>" * 100_000


def comments_only() -> Script:
    yield HEAD
    while True:
        yield chunk(b": ping\n\n")
        yield 0.1


def one_endless_event() -> Script:
    yield HEAD + b"%x\r\n" % 40_000_000 + b"data: "
    for _ in range(40):
        yield b"x" * 1_000_000


def stalls() -> Script:
    yield HEAD + chunk(token())
    yield 30.0


def stops_early() -> Script:
    yield HEAD + chunk(token("a", "stop")) + chunk(usage(4, 1)) + chunk(DONE) + END


def no_blank_lines() -> Script:
    yield HEAD + chunk(token().rstrip() + b"\n")
    yield 0.02
    yield chunk(token().rstrip() + b"\n")
    yield 30.0


def only_carriage_returns() -> Script:
    for part in (b"\xef\xbb\xbf" + token(), token(), token("a", "length"), usage(4, TOKENS), DONE):
        yield (HEAD if part.startswith(b"\xef") else b"") + chunk(
            part.replace(b"\n", b"\r").replace(b": ", b":", 1)
        )
    yield END


def fails_in_mid_stream() -> Script:
    yield HEAD + chunk(token()) + chunk(event({"error": {"message": "CUDA out of memory"}})) + END


# In the order of the requests: what is answered, how that must be called, and a part of what must be said.
CASES: list[tuple[Callable[[], Script], str, str]] = [
    (good, "completed", ""),
    (closes_at_once, "disconnected", "before it had responded"),
    (never_answers, "first_token_timeout", "no token within 1 s"),
    (garbage, "malformed_response", "not HTTP/1"),
    (html, "malformed_response", "instead of an event stream: <html>"),
    (endless_headers, "malformed_response", "headers are longer than 65536 bytes"),
    (half_a_character, "malformed_response", "not JSON"),
    (a_character_in_two_pieces, "completed", ""),
    (redirect, "malformed_response", "307: redirected to https://elsewhere.example"),
    (too_many, "http_429", "slow down (Retry-After: 7)"),
    (cut_in_mid_stream, "disconnected", "in the middle of the body"),
    (endless_error, "http_5xx", "500: <p>oops"),
    (comments_only, "first_token_timeout", "no token within 1 s"),
    (one_endless_event, "malformed_response", "an event is longer than"),
    (stalls, "stall_timeout", "no token for 1 s"),
    (stops_early, "short_output", "1 of 3 tokens"),
    (no_blank_lines, "malformed_response", "no blank line between two events"),
    (only_carriage_returns, "completed", ""),
    (fails_in_mid_stream, "server_error", "CUDA out of memory"),
    (good, "completed", ""),
]


class Endpoint:
    """Answers request number i by `scripts(i)`. `seen` counts how often each request came."""

    def __init__(self, scripts: Callable[[int], Script]) -> None:
        self._scripts = scripts
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.seen: Counter[int] = Counter()
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.over.is_set():
            with suppress(OSError):
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as reader, suppress(OSError):
            path = reader.readline().split(b" ")[1]
            headers = {}
            while line := reader.readline().strip():
                name, _, value = line.decode().partition(": ")
                headers[name.lower()] = value
            if path == b"/v1/models":
                sock.sendall(plain("200 OK", MODELS, "Content-Type: application/json\r\n"))
                return
            if "content-length" not in headers:  # no request: a look at what else is served
                sock.sendall(plain("404 Not Found", b""))
                return
            reader.read(int(headers["content-length"]))
            number = int(headers["x-request-id"].rpartition("-")[2])
            self.seen[number] += 1
            for step in self._scripts(number):
                if self.over.is_set():
                    return
                if isinstance(step, bytes):
                    sock.sendall(step)
                else:
                    self.over.wait(step)

    def close(self) -> None:
        self.over.set()
        self._listener.close()


@contextmanager
def endpoint(scripts: Callable[[int], Script]) -> Iterator[Endpoint]:
    served = Endpoint(scripts)
    yield served
    served.close()


def run(
    url: str, tmp_path: Path, count: int, gap: float, *flags: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], list[dict[str, Any]]]:
    """The command, its run.json, and its rows in order of index."""
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{i * gap:.4f},4,{TOKENS}\n" for i in range(count))
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + rows)
    command = [sys.executable, "-m", "wattload.cli", "run", url, "--trace", str(trace), "--energy", "none"]
    command += ["--out", str(tmp_path / "run"), "--progress", "none", "--no-report", "--warmup", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert "Traceback" not in done.stderr
    found = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    result = json.loads((tmp_path / "run" / "run.json").read_text())
    return done, result, sorted(found, key=lambda row: row["index"])


def test_every_way_of_failing_has_its_name_and_every_request_its_row(tmp_path: Path) -> None:
    with endpoint(lambda number: CASES[number][0]()) as served:
        limits = ("--first-token-timeout", "1s", "--between-tokens-timeout", "1s", "--total-timeout", "20s")
        done, result, rows = run(served.url, tmp_path, len(CASES), 0.05, *limits)
    assert done.returncode in (0, 1), done.stderr
    for row, (script, outcome, said) in zip(rows, CASES, strict=True):
        assert row["outcome"] == outcome, (script.__name__, row["error"])
        assert said in (row["error"] or ""), script.__name__
    assert served.seen == dict.fromkeys(range(len(CASES)), 1), "nothing is sent twice, nothing is left out"
    expected = Counter(outcome for _, outcome, _ in CASES)
    completed = expected.pop("completed")
    assert (result["requests"]["completed"], result["requests"]["failed"]) == (completed, dict(expected))
    host = json.loads((tmp_path / "run" / "capture.json").read_text())["host"]
    assert set(host["outcome_examples"]) == set(expected)
    assert host["workers"][0]["peak_memory_megabytes"] < 400, "100 MB of headers were not kept"


def test_a_storm_of_429_is_counted_and_not_retried(tmp_path: Path) -> None:
    count = 300
    with endpoint(lambda number: good() if number % 10 == 0 else too_many()) as served:
        _, result, rows = run(served.url, tmp_path, count, 0.005)
    assert served.seen == dict.fromkeys(range(count), 1)
    assert len(rows) == count
    assert result["requests"]["completed"] == count // 10
    assert result["requests"]["failed"] == {"http_429": count - count // 10}
    refused = [row for row in rows if row["outcome"] == "http_429"]
    assert {(row["status_code"], row["error"]) for row in refused} == {(429, "slow down (Retry-After: 7)")}
    assert all(row["sent_unix"] is not None for row in refused)
