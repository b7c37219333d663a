"""Requests to /v1/responses go by their own id in the engine too: vLLM takes that id from the body alone."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

from wattmeter.endpoints import RESPONSES
from wattserve.http.middleware import ASGIApp, Message, Receive, Scope, Send

_PATH = RESPONSES.path


class NamedResponses:
    """Puts the id that a request goes by into the body of one to /v1/responses, in front of all that is in
    it.

    A `request_id` that the client has in its body comes later and is the one that vLLM takes; the joules of
    that request are then nobody's that is known here. Nothing is held back: only the body's first bytes are
    changed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Not a coroutine: all other requests are the app's own."""
        if scope["type"] != "http" or not scope["path"].endswith(_PATH) or scope["method"] != "POST":
            return self._app(scope, receive, send)
        if scope["path"].removeprefix(scope.get("root_path", "")) != _PATH:
            return self._app(scope, receive, send)
        name = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
        first = b'{"request_id":' + json.dumps(f"resp_{name.decode('latin-1')}").encode()
        begun = False

        async def named() -> Message:
            nonlocal begun
            message = await receive()
            body = message.get("body", b"").lstrip() if message["type"] == "http.request" else b""
            if begun or not body:
                return message
            begun = True
            if body[:1] != b"{":
                return message
            rest = body[1:].lstrip()
            comma = b"" if rest[:1] == b"}" else b","
            return {**message, "body": first + comma + rest}

        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        return self._app({**scope, "headers": headers}, named, send)
