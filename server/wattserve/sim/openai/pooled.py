"""Requests that generate nothing: embeddings, rerank and score, computed in one pass over their input.

Each text (of rerank and score: each query with a document behind it) is a sequence of its own in the engine,
which ends with the step that computes the last of its tokens. The numbers in an answer say nothing about the
text: they are drawn from a checksum of it.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from wattserve.sim.openai.errors import ApiError
from wattserve.sim.openai.protocol import MAX_SEQUENCES, check_text, model_of, read_prompts, validated
from wattserve.sim.openai.vocabulary import Tokenizer

PooledKind = Literal["embeddings", "rerank", "score"]
DEFAULT_DIMENSIONS = 256
# By which names the two sides of a score are given.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    dimensions: Annotated[int, Field(ge=1, le=8192)] = DEFAULT_DIMENSIONS
    encoding_format: Literal["float", "base64"] = "float"
    top_n: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class PooledJob:
    """One request, checked. `prompts`: token ids, a list for each sequence; `documents`: of a rerank, as
    given.
    """

    kind: PooledKind
    model: str
    prompts: list[list[int]]
    parameters: _Parameters
    documents: list[str]

    def body(self, request_id: str, prompt_tokens: int) -> dict[str, Any]:
        """The body of the response."""
        usage: dict[str, Any] = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        if self.kind == "rerank":
            results = [
                {"index": place, "document": {"text": text}, "relevance_score": _score(ids)}
                for place, (text, ids) in enumerate(zip(self.documents, self.prompts, strict=True))
            ]
            results.sort(key=lambda entry: -entry["relevance_score"])  # type: ignore[operator]
            results = results[: self.parameters.top_n or None]
            return {"id": f"score-{request_id}", "model": self.model, "usage": usage, "results": results}
        usage |= {"completion_tokens": 0, "prompt_tokens_details": None}
        made = self._embedding if self.kind == "embeddings" else self._scored
        return {
            "id": f"{'embd' if self.kind == 'embeddings' else 'score'}-{request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": self.model,
            "data": [made(place, ids) for place, ids in enumerate(self.prompts)],
            "usage": usage,
        }

    def _embedding(self, place: int, ids: list[int]) -> dict[str, Any]:
        drawn = np.random.default_rng(_checksum(ids)).standard_normal(self.parameters.dimensions)
        vector = (drawn / np.linalg.norm(drawn)).astype("<f4")
        if self.parameters.encoding_format == "base64":
            text = base64.b64encode(vector.tobytes()).decode()
            return {"index": place, "object": "embedding", "embedding": text}
        return {"index": place, "object": "embedding", "embedding": [round(x, 8) for x in vector.tolist()]}

    def _scored(self, place: int, ids: list[int]) -> dict[str, Any]:
        return {"index": place, "object": "score", "score": _score(ids)}


def read_pooled(
    kind: PooledKind,
    data: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    models: Sequence[str],
    max_model_len: int,
) -> PooledJob:
    """A job from a request's JSON. Raises ApiError with the status and the sentence for the client."""
    parameters = validated(_Parameters, data)
    served = model_of(parameters.model, models)
    documents: list[str] = []
    if kind == "embeddings":
        prompts = read_prompts(data.get("input"), tokenizer, max_model_len, "input")
    else:
        queries, documents = _pairs(kind, data, max_model_len)
        prompts = [
            tokenizer.encode(query) + tokenizer.encode(document)
            for query, document in zip(queries, documents, strict=True)
        ]
        if not all(prompts):
            raise ApiError("a query and its document are both empty.", param="documents")
    longest = max(map(len, prompts))
    if longest > max_model_len:
        raise ApiError(
            f"This model's maximum context length is {max_model_len} tokens, and an input has {longest}.",
            param="input",
        )
    return PooledJob(kind, served, prompts, parameters, documents)


def _pairs(kind: PooledKind, data: dict[str, Any], max_model_len: int) -> tuple[list[str], list[str]]:
    """Queries and documents, one of each for a sequence."""
    names = ("query", "documents")
    if kind == "score":
        names = next((pair for pair in _SIDES if all(name in data for name in pair)), _SIDES[0])
    left, right = (_texts(data.get(name), name, max_model_len) for name in names)
    if kind == "rerank" and len(left) != 1:
        raise ApiError("query must be one text.", param="query")
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise ApiError(
            f"{len(left)} texts of {names[0]} do not go with {len(right)} of {names[1]}.", param=names[0]
        )
    return left, right


def _texts(value: Any, name: str, max_model_len: int) -> list[str]:
    given = value if isinstance(value, list) else [value]
    if len(given) > MAX_SEQUENCES:
        raise ApiError(f"{len(given)} texts are more than the {MAX_SEQUENCES} of one request.", param=name)
    found = [entry.get("text") if isinstance(entry, dict) else entry for entry in given]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        raise ApiError(f"{name} must be a text, or a list of texts.", param=name)
    return [check_text(text, max_model_len, name) for text in texts]


def _checksum(ids: list[int]) -> int:
    return zlib.crc32(np.array(ids, np.int64).tobytes())


def _score(ids: list[int]) -> float:
    return round(_checksum(ids) / 2**32, 6)


def encoded(body: dict[str, Any]) -> bytes:
    """A body as it is sent."""
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
