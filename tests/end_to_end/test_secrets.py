"""Secrets of a run are nowhere: not in its directory, not in its output, not on the wire to a stranger."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.e2e

SECRETS = {
    "header": "K3y-of-a-header-7291",
    "body": "K3y-of-the-body-5530",
    "gateway": "K3y-of-the-gateway-8124",
    "variable": "K3y-of-the-variable-3317",
}


class Echo(BaseHTTPRequestHandler):
    """Answers every second completion with an error that tells what it was sent."""

    protocol_version = "HTTP/1.1"
    asked = 0
    headers_seen: list[str] = []  # noqa: RUF012 - one server a test

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self.answer(200 if known else 404, json.dumps({"data": [{"id": "m"}]} if known else {}).encode())

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["content-length"]))
        cls = type(self)
        cls.asked += 1
        cls.headers_seen.append(str(self.headers) + sent.decode())
        if cls.asked % 2:
            said = f"the key {self.headers['X-Custom-Token']} is wrong, and so is {sent.decode()[:2000]}"
            self.answer(403, json.dumps({"error": {"message": said + str(self.headers)}}).encode())
            return
        usage = {"prompt_tokens": 4, "completion_tokens": 2}
        events: list[dict[str, Any]] = [{"choices": [{"text": "a "}]}] * 2
        events += [{"choices": [{"text": "", "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
        stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.answer(200, stream.encode(), "text/event-stream")


@pytest.fixture
def echo() -> Iterator[str]:
    Echo.asked, Echo.headers_seen = 0, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def everything(folder: Path) -> str:
    """All that a run directory says, its tables too."""
    texts = []
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            texts.append(str(pq.read_table(path).to_pylist()))
        elif path.is_file():
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return "\n".join(texts)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_no_secret_is_written_or_printed(echo: str, tmp_path: Path, processes: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + "".join(f"{i / 20},4,2\n" for i in range(40)))
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "wattload.cli", "run", echo, "--trace", str(trace), "--energy", "none",
        "--header", f"X-Custom-Token: {SECRETS['header']}", "--warmup", "0", "--progress", "plain",
        "--body", json.dumps({"metadata": {"api_key": SECRETS["body"]}}), "--processes", processes,
        "--push-gateway", f"http://user:{SECRETS['gateway']}@127.0.0.1:9", "--api-key-env", "MY_KEY",
        "--max-failures", "100%", "--out", str(out),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WATTLOAD_", "OPENAI_"))}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**environment, "MY_KEY": SECRETS["variable"]},
    )
    assert (out / "report.html").exists(), done.stderr
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    assert len(rows) == 40
    assert any("(hidden)" in (row["error"] or "") for row in rows), "the server told what it was sent"
    # The server got all of it: nothing was lost on the way to the workers.
    for name in ("header", "body", "variable"):
        assert all(SECRETS[name] in seen for seen in Echo.headers_seen), name
    told = everything(out) + done.stdout + done.stderr
    assert [name for name, secret in SECRETS.items() if secret in told] == []


STRANGER = """
import sys, gevent, locust
from locust.rpc import Message, zmqrpc
from wattload.load.distributed import messages
line = zmqrpc.Client("127.0.0.1", int(sys.argv[1]), "stranger")
line.send(Message("client_ready", locust.__version__, "stranger"))
got = []
with gevent.Timeout(8, False):
    line.send(Message(messages.HELLO, {"nonce": b"x" * 32}, "stranger"))
    line.send(Message(messages.READY, {"requests": 1}, "stranger"))
    while True:
        message = line.recv()
        got.append(message.type)
        if message.type == messages.CHALLENGE:
            line.send(Message(messages.PROOF, {"mac": b"y" * 32}, "stranger"))
print(*sorted(set(got)))
"""


def test_a_stranger_at_the_masters_port_gets_nothing(echo: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "wattload.cli", "run", echo, "--trace", "conv", "--rate", "2", "--duration",
        "3s", "--energy", "none", "--progress", "plain", "--master", "--expect-workers", "1", "--out",
        str(tmp_path / "run"), "--master-bind-host", "127.0.0.1", "--master-port", str(port), "--header",
        f"Authorization: Bearer {SECRETS['header']}",
    ]  # fmt: skip
    environment = {**os.environ, "WATTLOAD_SECRET": "master and workers know this"}
    log = tmp_path / "log"
    with log.open("wb") as file:
        master = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        stranger = subprocess.run(
            [sys.executable, "-c", STRANGER, str(port)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert "wattload_challenge" in stranger.stdout, stranger.stderr + log.read_text()
        assert "wattload_plan" not in stranger.stdout
        assert master.poll() is None, "it waits for its own worker"
        assert "turned away" in log.read_text()
        worker = [sys.executable, "-m", "wattload.cli", "worker", "--master-port", str(port)]
        wrong = subprocess.run(
            worker, env={**os.environ, "WATTLOAD_SECRET": "another text of that length"},
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert wrong.returncode == 2
        assert "does not know this worker's secret" in wrong.stderr
        header = f"Authorization: Bearer {SECRETS['header']}"
        right = subprocess.Popen([*worker, "--header", header], env=environment)
        try:
            master.wait(90)
        finally:
            right.kill()
            right.wait()
    finally:
        if master.poll() is None:
            master.kill()
        master.wait()
    assert SECRETS["header"] not in log.read_text()
    assert pq.read_table(tmp_path / "run" / "requests.parquet").num_rows > 0
    assert Echo.headers_seen
    assert all(f"Bearer {SECRETS['header']}" in seen for seen in Echo.headers_seen)
