"""Engine ids and the HTTP request ids that they were made from.

vLLM makes an engine id out of the `X-Request-Id` X of the HTTP request: a prefix that names the route, the
index of the prompt where a request may have several, and eight random hexadecimal digits. With n > 1 each
sample is a child whose id has its number and `_` in front. All of them belong to the one HTTP request X.

`/v1/messages` goes by the ids of chat. `/v1/responses` does not look at the header: its ids are made from the
`request_id` of the body, with the number of the turn behind, so `NamedResponses` puts one into each body.
"""

from __future__ import annotations

import re

# Routes whose requests have several prompts: each prompt has its number, and a long one that is embedded in
# parts the number of the part.
_NUMBERED = r"cmpl|embd|pool|pooling|classify|score|rerank"
_PLAIN = r"chatcmpl|generate-tokens"
_CHILD = re.compile(rf"^\d+_(?=(?:{_PLAIN}|{_NUMBERED})-)")
_ENGINE_IDS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rf"^(?:{_NUMBERED})-(?P<id>.+)-prompt-\d+(?:-chunk-\d+)?$",
        rf"^(?:{_NUMBERED})-(?P<id>.+)-\d+$",
        rf"^(?:{_PLAIN})-(?P<id>.+)$",
        r"^resp_(?P<id>.+)_\d+$",
    )
)
_RANDOM_SUFFIX = re.compile(r"-[0-9a-f]{8}$")


def request_id_of(engine_id: str, *, randomised: bool = True) -> str:
    """The HTTP request id an engine id was made from; an id of unknown form is returned as it is.

    `randomised` is False where VLLM_DISABLE_REQUEST_ID_RANDOMIZATION keeps vLLM from adding the suffix.
    """
    outer = _CHILD.sub("", engine_id, count=1)
    if randomised:
        outer = _RANDOM_SUFFIX.sub("", outer, count=1)
    match = next((found for known in _ENGINE_IDS if (found := known.match(outer)) is not None), None)
    return match["id"] if match else engine_id


def prompt_of(engine_id: str) -> str:
    """The engine id of the prompt: the samples (n > 1) of one prompt have the same."""
    return _CHILD.sub("", engine_id, count=1)
