"""Which models an endpoint says it serves, and which of them a run asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from wattload.errors import BadInput

_NAME_IT = "name the model with --model"


def served(
    target: str, ask: Callable[[], list[dict[str, Any]]], model: str | None
) -> tuple[list[str], dict[str, Any]]:
    """The names listed, and the entry of `model` (of the first where it is None).

    `ask` gives the entries of GET /v1/models of `target`, or raises httpx.HTTPError. Some gateways list no
    models (404, an empty list) or not to everybody (401); a `model` that was named is then taken at the
    user's word, and its requests will tell. Raises BadInput where no model is known, and where others are
    listed than the one named.
    """
    try:
        entries = ask()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if error.response.has_redirect_location:
            place = error.response.headers["location"]
            raise BadInput(f"{target}/v1/models is redirected to {place}; name that address") from error
        if not 400 <= status < 500:
            raise BadInput(f"{target}/v1/models answered {status}") from error
        if model is None:
            key = " (or is the API key missing?)" if status in (401, 403) else ""
            raise BadInput(f"{target}/v1/models answered {status}; {_NAME_IT}{key}") from error
        entries = []
    except (httpx.HTTPError, ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{target}/v1/models cannot be asked: {error}") from error
    known = {str(entry["id"]): entry for entry in entries if isinstance(entry, dict) and entry.get("id")}
    if not known:
        if model is None:
            raise BadInput(f"{target}/v1/models lists no model; {_NAME_IT}")
        known = {model: {"id": model}}
    chosen = next(iter(known)) if model is None else model
    if chosen not in known:
        raise BadInput(f"--model {chosen}: {target} serves {', '.join(known)}")
    return list(known), known[chosen]
