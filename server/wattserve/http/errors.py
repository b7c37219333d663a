"""An error in OpenAI's shape, and how it is sent where no framework stands between."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from wattserve.http.middleware import Send


def error_object(status: int, kind: str, message: str, *, param: str | None = None) -> dict[str, Any]:
    """The JSON body of an error; `kind` is its type, `param` what of the request it is about."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


async def send_error(
    send: Send, status: int, kind: str, message: str, *, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Sends the whole response of an error."""
    body = json.dumps(error_object(status, kind, message)).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
