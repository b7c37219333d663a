"""The endpoints that load is sent to: how a request is written for each, and how its response is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from wattload.client import events, named_events
from wattmeter import endpoints

ApiName = Literal["completions", "chat", "responses", "messages", "embeddings", "rerank", "score"]


@dataclass(frozen=True, slots=True)
class Api:
    """One endpoint.

    Attributes: route: its name and path. content: what stands before the prompt in the JSON of a request.
    chat: prompts are messages, so that a chat template takes tokens of each. system: the field of a system
    prompt, where it is none of the messages. limit: the field of the output limit; empty: `output_limit`
    names it. forces: whether a server can be told to make each response as long as planned: by `ignore_eos`,
    and also by `min_tokens` where it reads that. least: whether it reads `min_tokens`. fixed: what else
    stands in every request. is_plain: tells an event that carries text and nothing else, without reading its
    JSON. read: what another event says, once it is JSON and no error. event: the name of the events that
    carry text, where they have one. repeats: whether those events are alike but for their text. item: the key
    that each result of a response has, where nothing is generated.
    """

    route: endpoints.Route
    content: bytes
    chat: bool = False
    system: bytes = b""
    limit: str = ""
    forces: bool = True
    least: bool = True
    fixed: tuple[tuple[str, Any], ...] = ()
    is_plain: Callable[[bytes], bool] = events.is_plain_token
    read: Callable[[dict[str, Any], bytes], events.StreamEvent] = events.read_completion
    event: bytes = b""
    repeats: bool = True
    item: bytes = b""

    @property
    def streams(self) -> bool:
        """Whether responses have output tokens, and are streamed."""
        return self.route.generates

    @property
    def lengths_note(self) -> str | None:
        """What to know about the lengths of its responses, where they cannot be forced."""
        if self.forces or not self.streams:
            return None
        return (
            f"{self.route.path} has no way to force the planned output lengths: responses end by themselves,"
            " after the planned number of tokens at most"
        )


_STREAM = (("stream", True),)
_OPENAI = (*_STREAM, ("stream_options", {"include_usage": True}), ("temperature", 0.0))
APIS: dict[str, Api] = {
    api.route.name: api
    for api in (
        Api(endpoints.COMPLETIONS, b'{"prompt":', fixed=_OPENAI),
        Api(endpoints.CHAT, b'{"messages":', chat=True, fixed=_OPENAI),
        Api(
            endpoints.RESPONSES,
            b'{"input":',
            chat=True,
            system=b"instructions",
            limit="max_output_tokens",
            least=False,
            # A load test leaves nothing behind on a server that keeps responses.
            fixed=(*_STREAM, ("temperature", 0.0), ("store", False)),
            is_plain=named_events.is_plain_response,
            repeats=False,
            read=named_events.read_response,
        ),
        Api(
            endpoints.MESSAGES,
            b'{"messages":',
            chat=True,
            system=b"system",
            limit="max_tokens",
            forces=False,
            fixed=(*_STREAM, ("temperature", 0.0)),
            is_plain=named_events.is_plain_message,
            read=named_events.read_message,
            event=b"content_block_delta",
        ),
        Api(endpoints.EMBEDDINGS, b'{"input":', forces=False, item=b"embedding"),
        Api(endpoints.RERANK, b'{"query":', forces=False, item=b"relevance_score"),
        Api(endpoints.SCORE, b'{"text_1":', forces=False, item=b"score"),
    )
}
# The field of a request that has a server tell the ids of the tokens that it generates (vLLM from 0.10.2 on).
RETURN_IDS = "return_token_ids"
# What the schedule decides in each request's JSON, whichever endpoint it is for.
OWN_KEYS = frozenset(
    (
        *("prompt", "messages", "input", "query", "documents", "text_1", "text_2"),
        *("stream", "stream_options", "min_tokens"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens"),
    )
)


def api_of_url(url: str) -> Api | None:
    """The endpoint whose path an address ends with; None where it ends with none of them."""
    bare = url.rstrip("/")
    ending = (api for api in APIS.values() if bare.endswith(api.route.path.removeprefix("/v1")))
    return max(ending, key=lambda api: len(api.route.path), default=None)
