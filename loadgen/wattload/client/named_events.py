"""What the events of OpenAI's /v1/responses and of Anthropic's /v1/messages say: each names its kind.

Usage is read into the names that completions have, so that a response counts the same wherever it came from.
"""

from __future__ import annotations

from typing import Any

from wattload.client.events import EventError, StreamEvent, error_text, is_text, token_count
from wattmeter.endpoints import output_count, prompt_count

_NOTHING = StreamEvent()
_UNREAD = StreamEvent(unread=True)
_TOOLS = (
    "function_call",
    "custom_tool_call",
    "mcp_call",
    "code_interpreter_call",
    "tool_use",
    "server_tool_use",
)
# The events of /v1/responses whose `delta` is a piece of what was generated: of the answer, or of reasoning.
_ANSWERS = (
    "output_text", "refusal", "function_call_arguments", "custom_tool_call_input", "mcp_call_arguments",
    "code_interpreter_call_code", "audio",
)  # fmt: skip
_REASONING = ("reasoning_text", "reasoning_summary_text", "reasoning", "reasoning_summary")
# The fields in which the blocks of a message have what was generated.
_BLOCKS = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}


def is_plain_response(payload: bytes) -> bool:
    """True only for an event of /v1/responses that carries text of the answer, without reading it as JSON."""
    return (
        b'"type":"response.output_text.delta"' in payload
        and b'"delta":"' in payload
        and b'"delta":""' not in payload
        and is_text(payload)
    )


def is_plain_message(payload: bytes) -> bool:
    """True only for an event of /v1/messages that carries text of the answer, without reading it as JSON."""
    return (
        b'"type":"text_delta","text":"' in payload
        and b'"type":"text_delta","text":""' not in payload
        and is_text(payload)
    )


def read_response(body: dict[str, Any], payload: bytes) -> StreamEvent:
    """What an event of /v1/responses says. Raises EventError where it may be a part that is damaged."""
    family, _, kind = str(body.get("type") or "").partition(".")
    if family != "response" or not kind:
        return _UNREAD
    whole = body.get("response")
    if kind in ("completed", "incomplete", "failed", "cancelled"):
        if not isinstance(whole, dict):
            raise EventError(f"an event has no response: {payload[:80]!r}")
        return _ended(kind, whole)
    if kind == "output_item.added":
        item = body.get("item")
        return StreamEvent(begins_tool_call=isinstance(item, dict) and item.get("type") in _TOOLS)
    part, _, last = kind.rpartition(".")
    if last != "delta" or part not in (*_ANSWERS, *_REASONING):
        return _NOTHING
    delta = body.get("delta")
    if not isinstance(delta, str):
        raise EventError(f"a delta is not text: {payload[:80]!r}")
    text = delta if part == "output_text" else ""
    return StreamEvent(token=bool(delta), blank=not delta, reasoning=part in _REASONING, text=text)


def _ended(kind: str, whole: dict[str, Any]) -> StreamEvent:
    if kind in ("failed", "cancelled"):
        return StreamEvent(error=error_text(whole.get("error") or f"the response was {kind}"))
    details = whole.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    finish = str(reason or whole.get("status") or kind)
    return StreamEvent(finish=finish, usage=_counts(whole.get("usage")), done=True)


def read_message(body: dict[str, Any], payload: bytes) -> StreamEvent:
    """What an event of /v1/messages says. Raises EventError where it may be a part that is damaged."""
    kind = body.get("type")
    if kind == "content_block_delta":
        return _delta(body.get("delta"), payload)
    if kind == "content_block_start":
        block = body.get("content_block")
        block = block if isinstance(block, dict) else {}
        # Some servers put the first piece into the block that they open.
        text = block.get("text") or ""
        return StreamEvent(
            token=bool(text or block.get("thinking")),
            reasoning=bool(block.get("thinking")),
            text=text if isinstance(text, str) else "",
            begins_tool_call=block.get("type") in _TOOLS,
        )
    if kind == "message_start":
        message = body.get("message")
        return StreamEvent(usage=_counts(message.get("usage") if isinstance(message, dict) else None))
    if kind == "message_delta":
        delta = body.get("delta")
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        return StreamEvent(finish=str(reason) if reason else None, usage=_counts(body.get("usage")))
    if kind == "message_stop":
        return StreamEvent(done=True)
    return _NOTHING if kind in ("content_block_stop", "ping") else _UNREAD


def _delta(delta: object, payload: bytes) -> StreamEvent:
    if not isinstance(delta, dict):
        raise EventError(f"an event has no delta: {payload[:80]!r}")
    field = _BLOCKS.get(str(delta.get("type")))
    if field is None:
        return _NOTHING
    piece = delta.get(field)
    if not isinstance(piece, str):
        raise EventError(f"a delta is not text: {payload[:80]!r}")
    text = piece if field == "text" else ""
    return StreamEvent(token=bool(piece), blank=not piece, reasoning=field == "thinking", text=text)


def _counts(usage: object) -> dict[str, Any] | None:
    """A usage by the names of completions; None where there is none."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("input_tokens_details")
    cached = (
        details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
    )
    found: dict[str, Any] = {
        "prompt_tokens": prompt_count(usage),
        # Of a message that has only begun there is no count yet, and some servers write 0.
        "completion_tokens": output_count(usage),
    }
    if token_count(cached) is not None:
        found["prompt_tokens_details"] = {"cached_tokens": cached}
    thought = usage.get("output_tokens_details")
    if isinstance(thought, dict):
        found["completion_tokens_details"] = thought
    if usage.get("energy") is not None:
        found["energy"] = usage["energy"]
    return found
