"""What one event of a stream says: tokens, an end, usage, an error. Those of completions and chat are read
here.

Token counts come from `usage` alone. Whether an event carries tokens decides only when the first and the
last came.

Servers and gateways put more into a stream than completions: signs of life, errors in several shapes, usage
in several places. What is known is read; what is not is named `unread`, so that it can be quoted, and passed
over. Only what may be a damaged completion is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

DONE = b"[DONE]"
# Where a delta, or the message of a response that was not streamed, has what the model generated.
_ANSWER = ("content", "tool_calls", "function_call", "refusal", "audio")
_REASONING = ("reasoning_content", "reasoning", "reasoning_details")
# Where an error has its sentence.
_SENTENCES = ("message", "detail", "error", "msg", "error_message", "error_msg")
_FAILED = frozenset(("error", "abort", "network_error"))
_QUOTED_CHARACTERS = 120
# An error is found in an error, in a gateway's answer, and no deeper.
_DEEPEST_ERROR = 8
# As much of what a server said is looked at.
MOST_SAID_CHARACTERS = 16_384


class EventError(ValueError):
    """The event is not what an OpenAI-compatible server sends."""


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """What was read of one event.

    Attributes:
        token: it carries generated text.
        blank: it has a place for generated text and none in it: a token without text (half a character, a
            special token), or a sign of life. Only the counts of the whole response can tell.
        reasoning: the generated text is reasoning, and none of the answer.
        finish: the finish reason.
        usage: the counts that it carries.
        error: what the server says went wrong.
        done: it ends the stream.
        tool_calls: how many calls of tools the response has by now, where the event is about one.
        begins_tool_call: a call of a tool begins, where calls are not numbered.
        text: the text of the answer in it, of the first choice; no reasoning.
        token_ids: the ids of its tokens where the server tells them, of the first choice, as they came.
        unread: nothing in it was understood, and it is no part of a completion.
    """

    token: bool = False
    blank: bool = False
    reasoning: bool = False
    finish: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None
    done: bool = False
    unread: bool = False
    tool_calls: int = 0
    begins_tool_call: bool = False
    text: str = field(default="", compare=False)
    token_ids: object = field(default=None, compare=False)


_NOTHING = StreamEvent()
_UNREAD = StreamEvent(unread=True)


def is_plain_token(payload: bytes) -> bool:
    """True only for an event that carries text and nothing else of interest, without reading it as JSON.

    These byte sequences cannot occur inside a JSON string, where quotes are escaped, so they are structure.
    False only means that `read_event` must look.
    """
    return (
        b'"finish_reason":null' in payload
        and (b'"text":"' in payload or b'"content":"' in payload)
        and b'"text":""' not in payload
        and b'"content":""' not in payload
        and b'"role":' not in payload
        and b'"usage":{' not in payload
        and b'"error"' not in payload
        and payload[-1:] == b"}"
        and (payload.isascii() or _is_utf8(payload))
    )


def is_text(payload: bytes) -> bool:
    """Whether an event ends as a JSON object does and is text."""
    return payload[-1:] == b"}" and (payload.isascii() or _is_utf8(payload))


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_completion(body: dict[str, Any], payload: bytes) -> StreamEvent:
    """What an event of completions or chat says. Raises EventError where it may be one that is damaged."""
    choices = body.get("choices")
    if choices and not isinstance(choices, list):
        raise EventError(f"an event has no list of choices: {payload[:80]!r}")
    usage = next(_usages(body, choices or []), None)
    if choices:
        return _completion(choices, usage, payload)
    if usage is not None:
        return StreamEvent(usage=usage)
    return _UNREAD if choices is None else _NOTHING


def read_event(
    payload: bytes, read: Callable[[dict[str, Any], bytes], StreamEvent] = read_completion
) -> StreamEvent:
    """What the data of one event says; `read` knows the objects of the endpoint that it came from.

    Raises EventError where it may be a part of a response that is damaged.
    """
    text = payload.strip()
    if not text:
        return _NOTHING
    if text.strip(b'"').upper() == DONE:
        return StreamEvent(done=True)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text[:1] in b"{[" or not _is_utf8(text):
            raise EventError(f"an event is not JSON: {payload[:80]!r}") from error
        return _word(text)
    if not isinstance(body, dict):
        return _UNREAD
    complaint = body.get("error") or (body if "error" in (body.get("object"), body.get("type")) else None)
    return StreamEvent(error=error_text(complaint)) if complaint else read(body, payload)


def read_line(line: bytes) -> StreamEvent:
    """What a line of no field of server-sent events says: an error, or nothing that is known."""
    name, _, value = line.partition(b":")
    if name.strip().lower() == b"error":
        return StreamEvent(error=body_error(value) or "error")
    try:
        event = read_event(line)
    except EventError:
        return _UNREAD
    return event if event.error is not None else _UNREAD


def quoted(data: bytes) -> str:
    """The beginning of what was not understood, on one line, for people to read."""
    text = " ".join(data[: 4 * _QUOTED_CHARACTERS].decode("utf-8", "replace").split())
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return shown if len(shown) <= _QUOTED_CHARACTERS else shown[: _QUOTED_CHARACTERS - 1] + "…"


def merged_usage(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, Any]:
    """Two reports of one response's usage as one: what the later lacks is kept, and counts never shrink."""
    whole = dict(before or {})
    for name, value in after.items():
        known = whole.get(name)
        if isinstance(value, dict):
            whole[name] = merged_usage(known if isinstance(known, dict) else None, value)
        elif name.endswith("_tokens"):
            counts = [found for found in (token_count(known), token_count(value)) if found is not None]
            whole[name] = max(counts, default=None)
        elif value is not None:
            whole[name] = value
    return whole


def token_count(value: object) -> int | None:
    """A count of tokens as servers write them: 16, 16.0 or "16"; None for what is none."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**31:
        return None
    return int(value) if value == int(value) else None


def _word(text: bytes) -> StreamEvent:
    """An event that is not JSON: an error in plain text, else a sign of life."""
    if b"error" in text[:200].lower():
        return StreamEvent(error=quoted(text))
    return _UNREAD


def _usages(body: dict[str, Any], choices: list[Any]) -> Iterator[dict[str, Any]]:
    """The places where an event may have its usage, the usual one first."""
    inner = body.get("x_groq")
    for place in (body, *choices, inner):
        if isinstance(place, dict) and isinstance(place.get("usage"), dict):
            yield place["usage"]


def _completion(choices: list[Any], usage: dict[str, Any] | None, payload: bytes) -> StreamEvent:
    token = blank = reasoning = False
    finish, text, calls, ids = None, "", 0, None
    for choice in choices:
        if not isinstance(choice, dict):
            raise EventError(f"a choice is not an object: {payload[:80]!r}")
        if choice.get("error"):
            return StreamEvent(error=error_text(choice["error"]))
        # Some gateways write "" where the reason is still to come.
        ended = str(choice.get("finish_reason") or "")
        if ended in _FAILED:
            return StreamEvent(error=f"finish reason {ended}")
        finish = ended or finish
        answers, reasons, empty = _carries(choice)
        token = token or answers or reasons
        reasoning = reasoning or (reasons and not answers)
        blank = blank or (empty and not ended)
        text = text or _text(choice)
        ids = ids or choice.get("token_ids")
        calls = max(calls, _tool_calls(choice))
    blank = blank and not token
    return StreamEvent(token, blank, reasoning, finish, usage, tool_calls=calls, text=text, token_ids=ids)


def _carries(choice: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Whether a choice has text of the answer, text of reasoning, and, failing both, a place for it.

    An event that opens the stream (role) has no such place.
    """
    if "text" in choice and choice["text"] is not None:
        return bool(choice["text"]), False, choice["text"] == ""
    # A gateway that asked its server for a whole response passes that on as one event with a message.
    delta = choice.get("delta") or choice.get("message")
    if not isinstance(delta, dict):
        return False, False, False
    answers = any(delta.get(key) for key in _ANSWER)
    reasons = any(delta.get(key) for key in _REASONING)
    empty = any(delta.get(key) == "" for key in (*_ANSWER, *_REASONING)) and not delta.get("role")
    return answers, reasons, empty


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta") or choice.get("message") or {}
    found = choice.get("text") or (delta.get("content") if isinstance(delta, dict) else None)
    return found if isinstance(found, str) else ""


def _tool_calls(choice: dict[str, Any]) -> int:
    """The number of the last tool call that a choice is about, from 1; 0 for none."""
    delta = choice.get("delta") or choice.get("message")
    calls = delta.get("tool_calls") if isinstance(delta, dict) else None
    if isinstance(delta, dict) and delta.get("function_call"):
        return 1
    count = 0
    for place, call in enumerate(calls if isinstance(calls, list) else []):
        index = call.get("index") if isinstance(call, dict) else None
        count = max(count, (index if isinstance(index, int) and 0 <= index < 1000 else place) + 1)
    return count


def json_text(text: str) -> bytes:
    """`text` as JSON has it between quotes."""
    return json.dumps(text)[1:-1].encode()


def plain_text(payload: bytes) -> bytes:
    """The text of an event that `is_plain_token` found to be one, as JSON has it between quotes."""
    found = _QUOTED.search(payload)
    return found[1] if found is not None else b""


def json_ids(ids: object) -> bytes:
    """Token ids as they go on in a list of JSON, a comma before each; empty for what is no list of ids."""
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        return b""
    return b"".join(b",%d" % one for one in ids)


def plain_ids(payload: bytes) -> bytes:
    """The token ids of an event that `is_plain_token` found to be one, as `json_ids` has them."""
    place = payload.rfind(_IDS_KEY)
    found = _IDS.match(payload, place + len(_IDS_KEY)) if place >= 0 else None
    return b"," + found[1] if found is not None else b""


def without_prompt_ids(payload: bytes) -> bytes:
    """An event without the ids of its prompt, which the first one of a response repeats: they may be long,
    and nothing looks at them.
    """
    begin = payload.find(_PROMPT_IDS_KEY)
    end = payload.find(b"]", begin) if begin >= 0 else -1
    if end < 0:
        return payload
    return b"".join((payload[:begin], _NO_PROMPT_IDS, payload[end + 1 :]))


def error_text(error: object) -> str:
    """The sentence in an error of OpenAI's shape, or in one of another shape."""
    for _ in range(_DEEPEST_ERROR):
        if not isinstance(error, dict):
            break
        inner = next((error[key] for key in _SENTENCES if error.get(key)), None)
        if inner is None:
            break
        error = inner
    return error if isinstance(error, str) else json.dumps(error)


def body_error(body: bytes) -> str:
    """What the body of an HTTP error says, at most 16,384 characters, whatever it is made of."""
    try:
        return error_text(json.loads(body))[:MOST_SAID_CHARACTERS]
    except (ValueError, RecursionError):
        text = body[:MOST_SAID_CHARACTERS].decode("utf-8", "replace").strip()
        return " ".join(text.split())


_KEYS = (b'"text":"', b'"content":"', b'"delta":"')
# What a JSON string may hold as it is: no quotes, no escapes, nothing but ASCII.
_TEXT = re.compile(rb"[ !#-\[\]-~]+")
_QUOTED = re.compile(rb'"(?:text|content|delta)":"((?:[^"\\]|\\.)*)"', re.S)
# These keys cannot occur within a JSON string, where quotes are escaped.
_PROMPT_IDS_KEY, _NO_PROMPT_IDS = b'"prompt_token_ids":[', b'"prompt_token_ids":null'
_IDS_KEY = b'"token_ids":['
_ID = rb" *(?:0|[1-9][0-9]{0,9})"
_ID_LIST = _ID + rb"(?:," + _ID + rb")* *"
_IDS, _IDS_ALONE = re.compile(rb"(" + _ID_LIST + rb")\]"), re.compile(_ID_LIST)
_LONGEST_SIZE_LINE = 12


class RepeatedEvent:
    """The bytes before and after the text of an event that `is_plain_token` found to be one."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before, self._after = before, after

    @classmethod
    def of(cls, payload: bytes, name: bytes = b"") -> RepeatedEvent | None:
        """None where the text is not one that can be told from what is around it. `name`: of the event."""
        found = _text_span(payload)
        if found is None:
            return None
        begin, end = found
        return cls(_line(name) + payload[:begin], payload[end:] + b"\n\n\r\n")

    def said_in(self, data: bytes) -> bytes:
        """The text of an event that `is_all_of` found to be one, as JSON has it between quotes."""
        line = data.find(b"\r\n", 0, _LONGEST_SIZE_LINE)
        return data[line + 2 + len(self._before) : len(data) - len(self._after)]

    def is_all_of(self, data: bytes) -> bool:
        """Whether `data` is one whole HTTP chunk of one whole event, the same but for its text.

        Such an event is a plain token, as the one that was learnt from: its text is not empty and holds no
        quote, so no key can begin or end in it. False says nothing.
        """
        line = data.find(b"\r\n", 0, _LONGEST_SIZE_LINE)
        size = len(data) - line - 4
        return (
            data.endswith(self._after)
            and data.startswith(self._before, line + 2)
            and data[:line] == b"%x" % size
            and _TEXT.fullmatch(data, line + 2 + len(self._before), len(data) - len(self._after)) is not None
        )


class RepeatedIds(RepeatedEvent):
    """The bytes around the text and around the token ids of such an event, where it tells ids."""

    __slots__ = ("_between",)

    def __init__(self, before: bytes, between: bytes, after: bytes) -> None:
        super().__init__(before, after)
        self._between = between

    @classmethod
    def of(cls, payload: bytes, name: bytes = b"") -> RepeatedIds | None:
        """None where text and ids, in this order, cannot be told from what is around them."""
        span, place = _text_span(payload), payload.rfind(_IDS_KEY) + len(_IDS_KEY)
        ids = _IDS.match(payload, place) if span is not None and place > span[1] else None
        if span is None or ids is None:
            return None
        between, after = payload[span[1] : place], payload[ids.end(1) :] + b"\n\n\r\n"
        return cls(_line(name) + payload[: span[0]], between, after)

    def said_in(self, data: bytes) -> bytes:
        """The token ids of an event that `is_all_of` found to be one, as `json_ids` has them."""
        end = len(data) - len(self._after)
        return b"," + data[data.rfind(b"[", 0, end) + 1 : end]

    def is_all_of(self, data: bytes) -> bool:
        """Whether `data` is one whole HTTP chunk of one whole event, the same but for its text and ids."""
        line = data.find(b"\r\n", 0, _LONGEST_SIZE_LINE)
        if (
            not data.endswith(self._after)
            or not data.startswith(self._before, line + 2)
            or data[:line] != b"%x" % (len(data) - line - 4)
        ):
            return False
        # A text of no quotes ends where what is between the two first begins.
        begin = line + 2 + len(self._before)
        middle = data.find(self._between, begin)
        return (
            middle > begin
            and _TEXT.fullmatch(data, begin, middle) is not None
            and _IDS_ALONE.fullmatch(data, middle + len(self._between), len(data) - len(self._after))
            is not None
        )


def _line(name: bytes) -> bytes:
    """What stands before the JSON of an event. `name`: of the event, where it has one."""
    return b"event: " + name + b"\ndata: " if name else b"data: "


def _text_span(payload: bytes) -> tuple[int, int] | None:
    """Where the text of an event begins and ends, if it is one of plain characters."""
    for key in _KEYS:
        begin = payload.find(key) + len(key)
        if begin >= len(key):
            text = _TEXT.match(payload, begin)
            if text is not None and payload[text.end() : text.end() + 1] == b'"':
                return begin, text.end()
    return None
