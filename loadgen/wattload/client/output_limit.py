"""By which name an endpoint takes the output limit of a request: asked once, before any load."""

from __future__ import annotations

from typing import Any, Literal

import httpx

from wattload.client.control import control_client
from wattload.client.endpoint import Endpoint, RequestOptions

OutputLimit = Literal["max_tokens", "max_completion_tokens"]


def output_limit_of(
    endpoint: Endpoint, options: RequestOptions, *, timeout_seconds: float = 30.0
) -> OutputLimit:
    """The field that `options` names; where they leave it open, the one that the endpoint wants.

    An endpoint that takes `ignore_eos` takes `max_tokens` too, so only a run without exact_output asks: with
    one request of one token. A refusal that names `max_completion_tokens` decides for that; any other answer,
    or none, leaves `max_tokens`, and the run's own requests will tell what is wrong.
    """
    if options.output_limit != "auto":
        return options.output_limit
    if options.forced or endpoint.api not in ("completions", "chat"):
        return "max_tokens"
    asked: dict[str, Any] = {"model": endpoint.model, "max_tokens": 1, **(options.body or {})}
    asked |= {"messages": [{"role": "user", "content": "1"}]} if endpoint.api == "chat" else {"prompt": "1"}
    try:
        with control_client(
            endpoint.url, headers=endpoint.headers, tls=endpoint.tls, timeout_seconds=timeout_seconds
        ) as client:
            answer = client.post(endpoint.address, json=asked)
    except httpx.HTTPError:
        return "max_tokens"
    refused = 400 <= answer.status_code < 500 and "max_completion_tokens" in answer.text
    return "max_completion_tokens" if refused else "max_tokens"
