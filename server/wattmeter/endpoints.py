"""The endpoints of inference servers whose requests are measured: the one place of their names and paths.

The middleware meters requests to these paths, the simulator answers them, and the load generator's `--api`
takes its names from here. The paths are OpenAI's, Anthropic's (`/v1/messages`) and, for ranking, Jina's and
Cohere's, as vLLM serves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. `also`: other paths for requests of its kind. `generates`: responses have output tokens;
    those of the others are computed in one pass over the input, and are not streamed.
    """

    name: str
    path: str
    also: tuple[str, ...] = ()
    generates: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        """All its paths, the usual one first."""
        return (self.path, *self.also)


COMPLETIONS = Route("completions", "/v1/completions")
CHAT = Route("chat", "/v1/chat/completions")
RESPONSES = Route("responses", "/v1/responses")
MESSAGES = Route("messages", "/v1/messages")
EMBEDDINGS = Route("embeddings", "/v1/embeddings", ("/v2/embed",), generates=False)
RERANK = Route("rerank", "/v1/rerank", ("/rerank", "/v2/rerank"), generates=False)
SCORE = Route("score", "/v1/score", ("/score",), generates=False)
POOLING = Route("pooling", "/pooling", generates=False)
CLASSIFY = Route("classify", "/classify", generates=False)

ROUTES = (COMPLETIONS, CHAT, RESPONSES, MESSAGES, EMBEDDINGS, RERANK, SCORE, POOLING, CLASSIFY)
METERED_PATHS = tuple(path for route in ROUTES for path in route.paths)
POOLED_PATHS = frozenset(path for route in ROUTES if not route.generates for path in route.paths)


def prompt_count(usage: Mapping[str, Any]) -> Any:
    """What a `usage` counts as the tokens of the prompt, cached ones among them; None where it does not.

    Anthropic's `input_tokens` leaves out what was read from a cache and written to one; OpenAI's does not.
    """
    if "prompt_tokens" in usage:
        return usage["prompt_tokens"]
    parts = [usage.get(name) for name in _ANTHROPIC_PARTS]
    known = [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
    return sum(known) if len(known) > 1 else usage.get("input_tokens")


def output_count(usage: Mapping[str, Any]) -> Any:
    """What a `usage` counts as output tokens; None where it does not."""
    return usage.get("completion_tokens", usage.get("output_tokens"))


_ANTHROPIC_PARTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
