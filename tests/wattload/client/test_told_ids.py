"""Whether an endpoint tells the ids of what it generates: one streamed token is asked of each address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from wattload.client.endpoint import Endpoint, RequestOptions
from wattload.client.told_ids import why_no_ids

OPTIONS = RequestOptions()


@contextmanager
def serving(status: int, body: bytes) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives every POST this response, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Server(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def stream(**choice: Any) -> bytes:
    first = {"choices": [{"index": 0, "text": "a", "finish_reason": None, **choice}]}
    return b": hello\n\ndata: " + json.dumps(first).encode() + b"\n\ndata: [DONE]\n\n"


def test_an_endpoint_that_tells_ids_is_asked_for_one_token() -> None:
    with serving(200, stream(prompt_token_ids=[7], token_ids=[8])) as (url, asked):
        assert why_no_ids(Endpoint(url, "m"), OPTIONS, prompt=[7]) == ""
    assert asked == [{"model": "m", "stream": True, "return_token_ids": True, "prompt": [7], "max_tokens": 1}]


NONE = "the responses of URL/v1/completions have no token_ids"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, stream(), NONE),
        (200, stream(token_ids=None), NONE),
        (200, stream(token_ids=[]), NONE),
        (200, b"data: [1]\n\ndata: {\n\n{}", NONE),
        (400, b"{}", "URL/v1/completions answered 400 to a request with return_token_ids"),
    ],
)
def test_one_that_does_not_is_told_of_in_a_clause(status: int, body: bytes, said: str) -> None:
    with serving(status, body) as (url, _):
        assert why_no_ids(Endpoint(url, "m"), OPTIONS, prompt=[7]).replace(url, "URL") == said


def test_one_that_does_not_respond_is_told_of_too() -> None:
    url = "http://127.0.0.1:9"
    found = why_no_ids(Endpoint(url, "m"), OPTIONS, prompt=[7])
    assert found.startswith(f"{url}/v1/completions gave no response to a request with return_token_ids (")


def test_the_question_is_as_the_requests_of_the_load_are() -> None:
    options = RequestOptions(
        output_limit="max_completion_tokens", body={"return_token_ids": False, "top_k": 1}
    )
    with serving(200, stream(token_ids=[8])) as (url, asked):
        why_no_ids(Endpoint(url, "m"), options, prompt=[7])
    assert asked[0]["max_completion_tokens"] == 1
    assert (asked[0]["return_token_ids"], asked[0]["top_k"]) == (False, 1)


def test_every_replica_is_asked() -> None:
    with serving(200, stream(token_ids=[8])) as (new, _), serving(200, stream()) as (old, _):
        found = why_no_ids(Endpoint(new, "m", replicas=(old,)), OPTIONS, prompt=[7])
    assert found.replace(old, "URL") == NONE
