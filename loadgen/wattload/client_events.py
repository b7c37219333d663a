"""What one event of a completion stream says: tokens, an end, usage, an error.

Token counts come from `usage` alone. Whether an event carries tokens decides only when the first and the
last came.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

DONE = b"[DONE]"


class EventError(ValueError):
    """The event is not what an OpenAI-compatible server sends."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """`token`: it carries generated tokens. `error`: what the server says went wrong."""

    token: bool = False
    finish: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None


_TOKEN = StreamEvent(token=True)


def is_plain_token(payload: bytes) -> bool:
    """True only for an event that carries a token and nothing else of interest, without reading it as JSON.

    These byte sequences cannot occur inside a JSON string, where quotes are escaped, so they are structure.
    False only means that `read_event` must look.
    """
    return (
        b'"finish_reason":null' in payload
        and (b'"text":"' in payload or b'"content":"' in payload)
        and b'"role":' not in payload
        and b'"usage":{' not in payload
        and b'"error"' not in payload
        and payload[-1:] == b"}"
        and (payload.isascii() or _is_utf8(payload))
    )


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_event(payload: bytes) -> StreamEvent:
    """Raises EventError where it is no JSON object of a completion or chat stream."""
    try:
        body = json.loads(payload)
    except ValueError as error:
        raise EventError(f"an event is not JSON: {payload[:80]!r}") from error
    if not isinstance(body, dict):
        raise EventError(f"an event is no object: {payload[:80]!r}")
    if body.get("error") is not None:
        return StreamEvent(error=error_text(body["error"]))
    choices = body.get("choices")
    if choices is None and body.get("object") == "error":
        return StreamEvent(error=error_text(body))
    if not isinstance(choices, list):
        raise EventError(f"an event has no choices: {payload[:80]!r}")
    token, finish = False, None
    for choice in choices:
        if not isinstance(choice, dict):
            raise EventError(f"a choice is no object: {payload[:80]!r}")
        reason = choice.get("finish_reason")
        finish = str(reason) if reason is not None else finish
        token = token or _carries_token(choice, ended=reason is not None)
    usage = body.get("usage")
    return StreamEvent(token, finish, usage if isinstance(usage, dict) else None)


def _carries_token(choice: dict[str, Any], *, ended: bool) -> bool:
    """A token's text may be empty, in the middle of a character for example; an event that opens (role) or
    closes (finish reason) the stream with empty text carries none.
    """
    if "text" in choice:
        return bool(choice["text"]) or (choice["text"] == "" and not ended)
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False
    if any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")):
        return True
    return delta.get("content") == "" and "role" not in delta and not ended


def error_text(error: object) -> str:
    """The sentence in an error of OpenAI's shape, or in one of another shape."""
    if isinstance(error, dict):
        for key in ("message", "detail", "error"):
            if error.get(key):
                return error_text(error[key])
    return error if isinstance(error, str) else json.dumps(error)


def body_error(body: bytes) -> str:
    """What the body of an HTTP error says, at most 300 characters, whatever it is made of."""
    try:
        return error_text(json.loads(body))[:300]
    except ValueError:
        text = body.decode("utf-8", "replace").strip()
        return " ".join(text.split())[:300]
