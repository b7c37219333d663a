"""The id of a request to /v1/responses stands in its body, in front of what the client wrote."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from wattserve.http.middleware import Receive, Scope, Send
from wattserve.vllm.named_responses import NamedResponses


def passed(
    parts: list[bytes], *, path: str = "/v1/responses", root: str = "", name: bytes = b"mine"
) -> bytes:
    """The body that an application behind `NamedResponses` reads."""
    got: list[bytes] = []

    async def app(scope: Scope, receive: Receive, _send: Send) -> None:
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        lengths = [int(value) for key, value in scope["headers"] if key == b"content-length"]
        assert all(length == len(b"".join(got)) for length in lengths)

    waiting = list(parts)

    async def receive() -> Any:
        body = waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    async def send(_message: Any) -> None: ...

    length = str(len(b"".join(parts))).encode()
    headers = [(b"x-request-id", name), (b"content-length", length)]
    scope = {"type": "http", "method": "POST", "path": path, "root_path": root, "headers": headers}
    asyncio.run(NamedResponses(app)(scope, receive, send))
    return b"".join(got)


BODY = json.dumps({"model": "m", "input": "Hello {"}).encode()


@pytest.mark.parametrize("cut", [0, 1, 2, len(BODY) - 1, len(BODY)])
@pytest.mark.parametrize("root", ["", "/served"])
def test_the_id_is_put_in_wherever_the_body_is_cut(cut: int, root: str) -> None:
    body = passed([b"  ", BODY[:cut], BODY[cut:]], path=root + "/v1/responses", root=root)
    assert json.loads(body) == {"request_id": "resp_mine", "model": "m", "input": "Hello {"}


def test_a_clients_own_id_is_the_one_that_counts() -> None:
    assert json.loads(passed([b'{"request_id": "theirs"}']))["request_id"] == "theirs"


@pytest.mark.parametrize("name", [b'with " and \\', "\xfcn\xef".encode("latin-1")])
def test_any_id_is_text(name: bytes) -> None:
    assert json.loads(passed([b"{}"], name=name)) == {"request_id": f"resp_{name.decode('latin-1')}"}


@pytest.mark.parametrize("body", [b"", b"[1]", b"nonsense"])
def test_what_is_no_object_is_for_the_server_to_refuse(body: bytes) -> None:
    assert passed([body]) == body


def test_other_routes_are_left_alone() -> None:
    assert passed([BODY], path="/v1/chat/completions") == BODY
    assert passed([BODY], path="/v1/responses/resp_1/cancel") == BODY
