"""Engine ids and the HTTP request ids that they were made from.

vLLM makes an engine id out of the `X-Request-Id` X of the HTTP request: a prefix that names the route, for
`/v1/completions` the index of the prompt, and eight random hexadecimal digits. With n > 1 each sample is a
child whose id has its number and `_` in front. All of them belong to the one HTTP request X.
"""

from __future__ import annotations

import re

_CHILD = re.compile(r"^\d+_(?=(?:cmpl|chatcmpl|generate-tokens|embd|pool|classify|score|rerank)-)")
_COMPLETION = re.compile(r"^cmpl-(?P<id>.+)-\d+$", re.DOTALL)
_OTHER = re.compile(r"^(?:chatcmpl|generate-tokens|embd|pool|classify|score|rerank)-(?P<id>.+)$", re.DOTALL)
_RANDOM_SUFFIX = re.compile(r"-[0-9a-f]{8}$")


def request_id_of(engine_id: str, *, randomised: bool = True) -> str:
    """The HTTP request id an engine id was made from; an id of unknown form is returned as it is.

    `randomised` is False where VLLM_DISABLE_REQUEST_ID_RANDOMIZATION keeps vLLM from adding the suffix.
    """
    outer = _CHILD.sub("", engine_id, count=1)
    if randomised:
        outer = _RANDOM_SUFFIX.sub("", outer, count=1)
    match = _COMPLETION.match(outer) or _OTHER.match(outer)
    return match["id"] if match else engine_id


def prompt_of(engine_id: str) -> str:
    """The engine id of the prompt: the samples (n > 1) of one prompt have the same."""
    return _CHILD.sub("", engine_id, count=1)
