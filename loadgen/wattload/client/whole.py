"""A response that is not streamed, because nothing is generated: embeddings, ranks, scores.

What matters of it are its usage and how many results it has. Those of embeddings are megabytes of numbers:
reading them all as JSON would take milliseconds in which no request can be sent, so only short ones are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from wattload.client.events import EventError, error_text, quoted

MAX_BYTES = 64 * 1024 * 1024
_SHORT_BYTES = 32 * 1024
_EDGE_BYTES = 8 * 1024
_USAGE = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}"]|"[^"\\]*"|\{(?:[^{}"]|"[^"\\]*")*\})*\})')


@dataclass(frozen=True, slots=True)
class WholeResponse:
    """What was read of it. `error`: what the server says went wrong, in spite of its status."""

    usage: dict[str, Any] | None = None
    results: int = 0
    error: str | None = None


def read_whole(body: bytes, item: bytes) -> WholeResponse:
    """Reads a response whose results have the key `item`. Raises EventError where it is none that is
    whole.
    """
    text = body.strip()
    if text[:1] != b"{" or text[-1:] != b"}":
        raise EventError(f"the response is not a JSON object: {quoted(text[:400])}")
    # Quotes within a text are escaped, so these bytes can only be a key.
    results = len(re.findall(rb'"' + item + rb'"\s*:', text))
    if len(text) > _SHORT_BYTES:
        return WholeResponse(_usage_at_the_edges(text), results)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EventError(f"the response is not JSON: {quoted(text)}") from error
    if content.get("error"):
        return WholeResponse(error=error_text(content["error"]))
    usage = content.get("usage")
    return WholeResponse(usage if isinstance(usage, dict) else None, results)


def _usage_at_the_edges(text: bytes) -> dict[str, Any] | None:
    """The usage of a long response: behind its results, or before them."""
    for part in (text[-_EDGE_BYTES:], text[:_EDGE_BYTES]):
        found = _USAGE.findall(part)
        if found:
            try:
                usage: dict[str, Any] = json.loads(found[-1])
            except ValueError:
                continue
            return usage
    return None
