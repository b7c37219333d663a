"""What an answer looks like on the wire: the JSON bodies and the streamed events of each endpoint that
generates.

The shapes follow vLLM's, which are OpenAI's and Anthropic's: `/v1/responses` and `/v1/messages` stream events
that have names, and end with the usage of the whole response.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wattserve.sim.openai.protocol import Job


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: of its prompts, of all its answers, from the prefix cache, and of images."""

    prompt: int
    output: int
    cached: int
    image: int = 0

    def openai(self) -> dict[str, Any]:
        """As completions and chat have it."""
        details: dict[str, Any] = {"cached_tokens": self.cached}
        if self.image:
            details["multimodal_tokens"] = {"image": self.image}
        return {
            "prompt_tokens": self.prompt,
            "total_tokens": self.prompt + self.output,
            "completion_tokens": self.output,
            "prompt_tokens_details": details,
        }

    def responses(self) -> dict[str, Any]:
        """As /v1/responses has it."""
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached},
            "output_tokens": self.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + self.output,
        }

    def messages(self) -> dict[str, Any]:
        """As /v1/messages has it: what came from the cache is counted apart."""
        return {
            "input_tokens": self.prompt - self.cached,
            "output_tokens": self.output,
            "cache_read_input_tokens": self.cached,
            "cache_creation_input_tokens": 0,
        }


@dataclass(frozen=True, slots=True)
class Finished:
    """One choice when it is complete. `token_ids` is empty where they were not asked for."""

    index: int
    text: str
    reason: str
    token_ids: list[int]
    prompt_ids: list[int]


class Shape:
    """Of /v1/completions; the base of the others. `repeats`: all events of tokens are the same but for the
    text.
    """

    repeats = True
    name = "cmpl"
    kinds = ("text_completion", "text_completion")
    foot = b'","logprobs":null,"finish_reason":null}]}\n\n'

    def __init__(self, job: Job, request_id: str) -> None:
        self.job = job
        self.fields = {
            "id": f"{self.name}-{request_id}",
            "object": self.kinds[job.parameters.stream],
            "created": int(time.time()),
            "model": job.model,
        }

    def head(self, index: int) -> bytes:
        """What stands before the text of a choice's token; `foot` stands behind it."""
        fields = json.dumps(self.fields, separators=(",", ":"))[:-1]
        return f'data: {fields},"choices":[{{"index":{index},{self._text_key}'.encode()

    _text_key = '"text":"'

    def opening(self, _choices: list[int], _usage: Callable[[], Usage]) -> bytes:
        """What a stream begins with, before its first token."""
        return b""

    def token(
        self,
        index: int,
        text: str,
        reason: str | None,
        ids: tuple[int, ...],
        *,
        prompt_ids: list[int] | None = None,
        usage: Usage | None = None,
    ) -> bytes:
        """The event of one token. `prompt_ids`: with the first one of a choice. `usage`: the running one."""
        entry = {"index": index, **self._delta(text), "logprobs": None, "finish_reason": reason}
        content = {**self.fields, "choices": [entry]}
        if self.job.parameters.return_token_ids:
            self._with_prompt(content, entry, prompt_ids)
            entry["token_ids"] = list(ids)
        if usage is not None:
            content["usage"] = usage.openai()
        return _event(content)

    def closing(self, _finished: Callable[[], list[Finished]], usage: Callable[[], Usage]) -> bytes:
        """What a stream ends with, behind its last token."""
        done = b"data: [DONE]\n\n"
        if not self.job.include_usage:
            return done
        return _event({**self.fields, "choices": [], "usage": usage().openai()}) + done

    def whole(self, finished: list[Finished], usage: Usage) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        content: dict[str, Any] = {**self.fields, "choices": [], "usage": usage.openai()}
        for choice in finished:
            entry = {
                "index": choice.index,
                **self._message(choice.text),
                "logprobs": None,
                "finish_reason": choice.reason,
            }
            if self.job.parameters.return_token_ids:
                self._with_prompt(content, entry, choice.prompt_ids)
                entry["token_ids"] = choice.token_ids
            content["choices"].append(entry)
        return content

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _message(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _with_prompt(
        self, _content: dict[str, Any], entry: dict[str, Any], prompt_ids: list[int] | None
    ) -> None:
        """Puts in the ids of the prompt, which come with the first token alone. As in vLLM, they stand before
        those of the token, and are null in the events behind.
        """
        entry["prompt_token_ids"] = prompt_ids


class ChatShape(Shape):
    """Of /v1/chat/completions."""

    name = "chatcmpl"
    kinds = ("chat.completion", "chat.completion.chunk")
    foot = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
    _text_key = '"delta":{"content":"'

    def opening(self, choices: list[int], usage: Callable[[], Usage]) -> bytes:
        events = []
        for index in choices:
            delta = {"role": "assistant", "content": ""}
            entry = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            running = {"usage": usage().openai()} if self.job.continuous_usage else {}
            events.append(_event({**self.fields, "choices": [entry], **running}))
        return b"".join(events)

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def _message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _with_prompt(
        self, content: dict[str, Any], _entry: dict[str, Any], prompt_ids: list[int] | None
    ) -> None:
        if prompt_ids is not None:
            content["prompt_token_ids"] = prompt_ids


class ResponsesShape(Shape):
    """Of /v1/responses: each event has its number, so that none is like another."""

    repeats = False
    name = "resp"
    kinds = ("response", "response")

    def __init__(self, job: Job, request_id: str) -> None:
        super().__init__(job, request_id)
        self._number = 0
        self._item = f"msg_{request_id}"
        self._item_json = json.dumps(self._item)[1:-1].encode()
        self._said: dict[str, Any] = {
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": self.fields["created"],
            "model": job.model,
        }

    def opening(self, _choices: list[int], _usage: Callable[[], Usage]) -> bytes:
        begun = {"response": {**self._said, "status": "in_progress", "output": [], "usage": None}}
        item = {**self._message_item("", "in_progress"), "content": []}
        return b"".join(
            (
                self._named("response.created", begun),
                self._named("response.in_progress", begun),
                self._named("response.output_item.added", {"output_index": 0, "item": item}),
                self._named("response.content_part.added", {**self._place, "part": _part("")}),
            )
        )

    def token(
        self,
        _index: int,
        text: str,
        _reason: str | None,
        _ids: tuple[int, ...],
        *,
        prompt_ids: list[int] | None = None,
        usage: Usage | None = None,
    ) -> bytes:
        del prompt_ids, usage
        self._number += 1
        # Written by hand: this is made for every token.
        return (
            b'event: response.output_text.delta\ndata: {"content_index":0,"delta":"%b","item_id":"%b",'
            b'"logprobs":[],"output_index":0,"sequence_number":%d,"type":"response.output_text.delta"}\n\n'
        ) % (text.encode(), self._item_json, self._number - 1)

    def closing(self, finished: Callable[[], list[Finished]], usage: Callable[[], Usage]) -> bytes:
        (choice,) = finished()
        item = self._message_item(choice.text, "completed")
        return b"".join(
            (
                self._named(
                    "response.output_text.done", {**self._place, "text": choice.text, "logprobs": []}
                ),
                self._named("response.content_part.done", {**self._place, "part": _part(choice.text)}),
                self._named("response.output_item.done", {"output_index": 0, "item": item}),
                # As vLLM: also where the status in it is "incomplete".
                self._named("response.completed", {"response": self.whole([choice], usage())}),
            )
        )

    def whole(self, finished: list[Finished], usage: Usage) -> dict[str, Any]:
        (choice,) = finished
        cut = choice.reason == "length"
        return {
            **self._said,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message_item(choice.text, "completed")],
            "usage": usage.responses(),
        }

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}

    def _message_item(self, text: str, status: str) -> dict[str, Any]:
        content = [_part(text)]
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _named(self, kind: str, content: dict[str, Any]) -> bytes:
        self._number += 1
        return _named_event(kind, {**content, "sequence_number": self._number - 1, "type": kind})


class MessagesShape(Shape):
    """Of /v1/messages."""

    name = "msg"
    foot = b'"}}\n\n'

    def head(self, _index: int) -> bytes:
        return (
            b'event: content_block_delta\ndata: {"index":0,"type":"content_block_delta","delta":'
            b'{"type":"text_delta","text":"'
        )

    def opening(self, _choices: list[int], usage: Callable[[], Usage]) -> bytes:
        # As vLLM: what came from the cache is not known yet.
        counts = {"input_tokens": usage().prompt, "output_tokens": 0}
        begun = {**self._said, "content": [], "stop_reason": None, "stop_sequence": None, "usage": counts}
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        return _named_event("message_start", {"type": "message_start", "message": begun}) + _named_event(
            "content_block_start", {"type": "content_block_start", **block}
        )

    def token(
        self,
        index: int,
        text: str,
        _reason: str | None,
        _ids: tuple[int, ...],
        *,
        prompt_ids: list[int] | None = None,
        usage: Usage | None = None,
    ) -> bytes:
        del prompt_ids, usage
        return self.head(index) + text.encode() + self.foot if text else b""

    def closing(self, finished: Callable[[], list[Finished]], usage: Callable[[], Usage]) -> bytes:
        (choice,) = finished()
        end = {"delta": self._stop(choice), "usage": usage().messages()}
        return b"".join(
            (
                _named_event("content_block_stop", {"index": 0, "type": "content_block_stop"}),
                _named_event("message_delta", {"type": "message_delta", **end}),
                _named_event("message_stop", {"type": "message_stop"}),
            )
        )

    def whole(self, finished: list[Finished], usage: Usage) -> dict[str, Any]:
        (choice,) = finished
        content = [{"type": "text", "text": choice.text}]
        return {**self._said, "content": content, **self._stop(choice), "usage": usage.messages()}

    @property
    def _said(self) -> dict[str, Any]:
        return {"id": self.fields["id"], "type": "message", "role": "assistant", "model": self.job.model}

    def _stop(self, choice: Finished) -> dict[str, Any]:
        if choice.reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        stopped = next((stop for stop in self.job.stops), None)
        return {"stop_reason": "stop_sequence" if stopped else "end_turn", "stop_sequence": stopped}


_SHAPES = {"completion": Shape, "chat": ChatShape, "responses": ResponsesShape, "messages": MessagesShape}


def shape_of(job: Job, request_id: str) -> Shape:
    """The shape of the answer to a job."""
    return _SHAPES[job.kind](job, request_id)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def _named_event(kind: str, content: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _event(content)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
