"""Which field limits the output: as the user says, or as the endpoint wants, asked once at most."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from clients import client_of
from wattload.client.endpoint import Endpoint, RequestOptions
from wattload.client.output_limit import output_limit_of
from wattload.client.record import RequestRecord
from wattload.errors import InputError

WANTS_THE_OTHER = (
    400,
    {"error": {"message": "max_tokens is not supported with this model; use max_completion_tokens"}},
)


class Server(BaseHTTPRequestHandler):
    """Answers every POST alike, and keeps what was asked."""

    answer: ClassVar[tuple[int, Any]] = (200, {})
    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def do_POST(self) -> None:
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        status, body = self.answer
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def serving(status: int, body: Any) -> Iterator[str]:
    Server.answer, Server.asked = (status, body), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_endpoint_that_wants_the_other_name_gets_it(api: Any) -> None:
    with serving(*WANTS_THE_OTHER) as url:
        options = RequestOptions(exact_output=False, body={"temperature": 1})
        found = output_limit_of(Endpoint(f"{url}/v1", "m", api), options)
    assert found == "max_completion_tokens"
    ((path, asked),) = Server.asked
    assert path == ("/v1/chat/completions" if api == "chat" else "/v1/completions")
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("m", 1, 1)
    assert ("messages" in asked) == (api == "chat")


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, {}), (400, {"error": "no such model"}), (500, {"error": "max_completion_tokens"}), (401, "key")],
)
def test_any_other_answer_leaves_the_usual_name(status: int, body: Any) -> None:
    with serving(status, body) as url:
        assert output_limit_of(Endpoint(url, "m"), RequestOptions(exact_output=False)) == "max_tokens"


def test_no_answer_leaves_the_usual_name() -> None:
    with serving(200, {}) as url:
        pass
    assert output_limit_of(Endpoint(url, "m"), RequestOptions(exact_output=False)) == "max_tokens"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "max_tokens"),
        ({"output_limit": "max_tokens", "exact_output": False}, "max_tokens"),
        ({"output_limit": "max_completion_tokens"}, "max_completion_tokens"),
    ],
)
def test_who_says_it_or_forces_lengths_asks_nothing(options: dict[str, Any], expected: str) -> None:
    with serving(*WANTS_THE_OTHER) as url:
        assert output_limit_of(Endpoint(url, "m"), RequestOptions(**options)) == expected
    assert Server.asked == []


@pytest.mark.parametrize("name", ["auto", "max_tokens", "max_completion_tokens"])
def test_the_field_is_what_is_sent(name: str) -> None:
    client = client_of("http://127.0.0.1:9", output_limit=name)
    sent = client.prepare(RequestRecord(0, "r", -1, "", 0.0, 3, 17), b"[1,2,3]")
    client.close()
    body = json.loads(sent.partition(b"\r\n\r\n")[2])
    used = "max_tokens" if name == "auto" else name
    assert body[used] == 17
    assert {"max_tokens", "max_completion_tokens"} & body.keys() == {used}


def test_the_length_is_the_schedules_and_the_refusal_says_how_to_name_it() -> None:
    with pytest.raises(InputError, match="output_limit"):
        RequestOptions.of({"body": '{"max_completion_tokens": 16}'})
