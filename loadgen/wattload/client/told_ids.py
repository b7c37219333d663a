"""Whether an endpoint tells the ids of the tokens that it generates: asked once, before any load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx

from wattload.client.api import RETURN_IDS
from wattload.client.control import control_client
from wattload.client.endpoint import Endpoint, RequestOptions
from wattload.client.events import json_ids
from wattload.client.unreachable import why_unreachable
from wattload.redaction import shown


def why_no_ids(
    endpoint: Endpoint, options: RequestOptions, *, prompt: Sequence[int], timeout_seconds: float = 30.0
) -> str:
    """A clause on why the streamed completions of `endpoint` do not tell their token ids; empty where they
    do.

    Each of its addresses is asked for one token. `options`: what the requests of the load carry, their
    output limit settled. `prompt`: token ids.
    """
    limit = "max_tokens" if options.output_limit == "auto" else options.output_limit
    body: dict[str, Any] = {"model": endpoint.model, "stream": True, RETURN_IDS: True, **(options.body or {})}
    asked = {**body, "prompt": list(prompt), limit: 1}
    for target in endpoint.targets:
        where = shown(target.address)
        try:
            with control_client(
                target.url, headers=target.headers, tls=target.tls, timeout_seconds=timeout_seconds
            ) as client:
                answer = client.post(target.address, json=asked)
        except httpx.HTTPError as error:
            return f"{where} gave no response to a request with {RETURN_IDS} ({why_unreachable(error)})"
        if answer.status_code != 200:
            return f"{where} answered {answer.status_code} to a request with {RETURN_IDS}"
        if not any(_tells_ids(line) for line in answer.text.splitlines()):
            return f"the responses of {where} have no token_ids"
    return ""


def _tells_ids(line: str) -> bool:
    """Whether a line of a stream is an event with the ids of tokens."""
    name, _, value = line.partition(":")
    if name != "data":
        return False
    try:
        choices = json.loads(value)["choices"]
        return any(json_ids(choice["token_ids"]) for choice in choices)
    except (ValueError, RecursionError, LookupError, TypeError):
        return False
