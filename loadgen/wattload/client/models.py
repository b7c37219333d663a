"""Which models an endpoint says that it serves, in whatever form, and which of them a run asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from wattload.client.proxy import through
from wattload.client.unreachable import why_unreachable
from wattload.errors import InputError

# Where an entry of the list has the model's name.
_NAMES = ("id", "name", "model")
_NAME_IT = "name the model with `model`"


def served(target: str, ask: Callable[[], Any], model: str | None) -> tuple[list[str], dict[str, Any]]:
    """The names listed, and the entry of `model` (of the first where it is None).

    `ask` gives the body of GET /v1/models of `target`, or raises httpx.HTTPError, or ValueError where it is
    not JSON: then it is no such endpoint, whatever the user says.
    Some gateways list no models (404, an empty list), list them in a form of their own, or not to everybody
    (401); a `model` that was named is then taken at the user's word, and its requests will tell.
    Raises InputError where no model is known, and where others are listed than the one named.
    """
    known: dict[str, dict[str, Any]] = {}
    said = "lists no model"
    try:
        known = listed(ask())
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if error.response.has_redirect_location:
            place = error.response.headers["location"]
            raise InputError(f"{target}/v1/models is redirected to {place}; name that address") from error
        if not (400 <= status < 500 or status == 501):
            raise InputError(f"{target}/v1/models answered {status}{through(target)}") from error
        key = " (or is the API key missing?)" if status in (401, 403) else ""
        said = f"answered {status}{key}"
    except (httpx.HTTPError, ValueError) as error:
        raise InputError(
            f"cannot list the models of {target}{through(target)}: {why_unreachable(error)}"
        ) from error
    if model is not None:
        if not known:
            known = {model: {"id": model}}
        elif (entry := _entry_of(model, known)) is None:
            raise InputError("model", f"{model}: {target} serves {', '.join(known)}")
        else:
            return list(known), {**entry, "id": model}
    chosen = next((name for name in known if not _is_pattern(name)), None)
    if chosen is None:
        if known:
            said = f"lists patterns alone ({', '.join(known)})"
        raise InputError(f"{target}/v1/models {said}{through(target)}; {_NAME_IT}")
    return list(known), known[chosen]


def listed(body: Any) -> dict[str, dict[str, Any]]:
    """The entries of a list of models by name: OpenAI's `{"data": [{"id": ...}]}`, and what others answer.

    A bare array, an array under `models`, an object by name, and entries that are names alone or call theirs
    `name` or `model` are read too; what has no name is left out.
    """
    if isinstance(body, dict):
        inner = next((body[key] for key in ("data", "models") if body.get(key)), None)
        body = [] if inner is None else inner
    if isinstance(body, dict):
        entry = body if any(body.get(key) for key in _NAMES) else None
        body = (
            [entry]
            if entry is not None
            else [{"id": name, **(value if isinstance(value, dict) else {})} for name, value in body.items()]
        )
    found: dict[str, dict[str, Any]] = {}
    for entry in body if isinstance(body, list) else []:
        named = {"id": entry} if isinstance(entry, str) else entry
        name = (
            next((named[key] for key in _NAMES if named.get(key)), None) if isinstance(named, dict) else None
        )
        if isinstance(name, str):
            found.setdefault(name, {**named, "id": name})
    return found


def _is_pattern(name: str) -> bool:
    """Gateways list `openai/*` for every model behind them."""
    return "*" in name


def _entry_of(model: str, known: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The entry that stands for `model`: its own, that of its tag `latest`, or of a pattern."""
    for name in (model, f"{model}:latest"):
        if name in known:
            return known[name]
    for name in known:
        parts = (re.escape(part) for part in name.split("*"))
        if _is_pattern(name) and re.fullmatch(".*".join(parts), model):
            return {}
    return None
