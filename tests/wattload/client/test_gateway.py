"""Gateways that speak the API and list no models: the whole command against one, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

REQUESTS = 6
TOKENS = 3


class Gateway(BaseHTTPRequestHandler):
    """Streams completions of the model `served`; `models` is how it answers GET /v1/models."""

    protocol_version = "HTTP/1.1"
    models: ClassVar[tuple[int, str, dict[str, str]]] = (404, "", {})
    served: ClassVar[str] = "house/large"
    asked: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        status, body, headers = self.models if self.path == "/v1/models" else (404, "", {})
        self.plain(status, body, headers)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(asked)
        if asked["model"] != self.served:
            self.plain(404, json.dumps({"error": {"message": f"no model {asked['model']}"}}), {})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for place in range(asked["max_tokens"]):
            finish = "length" if place == asked["max_tokens"] - 1 else None
            self.event({"choices": [{"index": 0, "text": " a", "finish_reason": finish}]})
        counts = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": asked["max_tokens"]}
        self.event({"choices": [], "usage": counts})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, body: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(body).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def plain(self, status: int, body: str, headers: dict[str, str]) -> None:
        raw = body.encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def gateway(status: int, body: str, headers: dict[str, str] | None = None) -> Iterator[str]:
    Gateway.models, Gateway.asked = (status, body, headers or {}), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(
    url: str, tmp_path: Path, *flags: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{i / 10},7,{TOKENS}\n" for i in range(REQUESTS))
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + rows)
    command = [sys.executable, "-m", "wattload.cli", "run", url, "--trace", str(trace), "--energy", "none"]
    more = ["--out", str(tmp_path / "run"), "--progress", "none", "--no-report", "--warmup", "0"]
    return subprocess.run(
        [*command, *more, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **(variables or {})},
    )


LISTS_NOTHING = [
    pytest.param(404, '{"detail":"Not Found"}', "answered 404", id="404"),
    pytest.param(401, '{"error":"no key"}', "answered 401", id="401"),
    pytest.param(405, "", "answered 405", id="405"),
    pytest.param(200, '{"object":"list","data":[]}', "lists no model", id="empty list"),
    pytest.param(200, '{"object":"list"}', "lists no model", id="no list"),
    pytest.param(200, '{"data":[{"object":"model"}, 7]}', "lists no model", id="entries without a name"),
    pytest.param(200, '{"data": null}', "lists no model", id="null"),
    pytest.param(200, "[]", "lists no model", id="empty array"),
    pytest.param(200, '"house/large"', "lists no model", id="text"),
    pytest.param(501, "", "answered 501", id="not implemented"),
    pytest.param(200, '{"data":[{"id":"house/*"}]}', "lists patterns alone (house/*)", id="a pattern"),
]


@pytest.mark.parametrize(("status", "body", "said"), LISTS_NOTHING)
def test_a_model_that_is_named_is_measured_though_none_is_listed(
    status: int, body: str, said: str, tmp_path: Path
) -> None:
    with gateway(status, body) as url:
        done = run(url, tmp_path, "--model", "house/large")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "run.json").read_text())
    assert result["target"]["model"] == "house/large"
    assert (result["requests"]["completed"], result["requests"]["failed"]) == (REQUESTS, {})
    assert result["latency"]["ttft_seconds"]["n"] == REQUESTS
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert [row["output_tokens"] for row in rows] == [TOKENS] * REQUESTS
    assert [asked["model"] for asked in Gateway.asked] == ["house/large"] * REQUESTS


@pytest.mark.parametrize(("status", "body", "said"), LISTS_NOTHING)
def test_without_a_name_it_is_refused_and_the_flag_is_named(
    status: int, body: str, said: str, tmp_path: Path
) -> None:
    with gateway(status, body) as url:
        done = run(url, tmp_path)
    assert done.returncode == 2, done.stderr
    (sentence,) = done.stderr.strip().splitlines()
    assert said in sentence
    assert "--model" in sentence
    assert ("API key" in sentence) == (status == 401)
    assert Gateway.asked == []
    assert not (tmp_path / "run").exists()


def test_a_wrong_name_fails_request_by_request_with_the_gateways_own_words(tmp_path: Path) -> None:
    with gateway(404, "") as url:
        done = run(url, tmp_path, "--model", "typo")
    assert done.returncode == 1
    rows = pq.read_table(tmp_path / "run" / "requests.parquet").to_pylist()
    assert {row["outcome"] for row in rows} == {"http_4xx"}
    assert {row["error"] for row in rows} == {"404: no model typo"}


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (503, "loading", {}, "answered 503"),
        (301, "", {"location": "https://elsewhere.example/v1/models"}, "https://elsewhere.example"),
        (200, "<html><title>It works!</title></html>", {}, "not JSON"),
        (200, '{"data": [{"id": "another"}]}', {}, "serves another"),
    ],
    ids=["503", "redirect", "HTML", "another"],
)
def test_what_is_no_gateway_is_refused_even_with_a_name(
    status: int, body: str, headers: dict[str, str], said: str, tmp_path: Path
) -> None:
    with gateway(status, body, headers) as url:
        done = run(url, tmp_path, "--model", "house/large")
    assert done.returncode == 2, done.stderr
    (sentence,) = done.stderr.strip().splitlines()
    assert said in sentence
    assert Gateway.asked == []


def test_variables_that_kubernetes_makes_for_services_have_no_say(tmp_path: Path) -> None:
    services = {
        "LOCUST_WEB_PORT": "tcp://10.0.0.5:8089",
        "LOCUST_MASTER_PORT": "tcp://10.0.0.5:5557",
        "LOCUST_PROCESSES": "many",
        "WATTLOAD_PORT": "tcp://10.0.0.6:80",
        "WATTLOAD_METRICS_PORT": "tcp://10.0.0.6:9100",
    }
    with gateway(200, '["house/large"]') as url:
        done = run(url, tmp_path, "--processes", "2", variables=services)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (result["requests"]["completed"], result["requests"]["failed"]) == (REQUESTS, {})
    assert result["config"]["metrics_port"] is None
