"""Text of an exact number of tokens, by the server's own tokenizer or a local one.

A pool of common words of four letters is reduced to those of which any sequence is as many tokens as words
(plus a constant: the beginning of the text, a chat template). A prompt of n tokens then is n words less that
constant, made as prompts of token ids are, so it costs nothing more and shares exactly what those share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np

from wattload.client.unreachable import why_unreachable
from wattload.errors import InputError

CANDIDATES = tuple((resources.files(__package__) / "words.txt").read_text().split())

# Fewer words would make equal blocks of 16 tokens likely in a long run (128^16 is 10^33).
_LEAST_WORDS = 128
_PROBES = (1, 16, 256)


class Tokenizer(Protocol):
    """Counts tokens as the server will: `chat` says whether the text is the content of one user message,
    behind a `system` message where that is given.
    """

    def counts(self, texts: Sequence[str], *, chat: bool, system: str = "") -> list[int]: ...


class ServerTokenizer:
    """vLLM's POST /tokenize, which other servers have too. Raises InputError where it cannot be reached."""

    def __init__(
        self,
        url: str,
        model: str,
        client: httpx.Client | None = None,
    ) -> None:
        """`client` knows the headers, certificates and proxy of the server; None: none of them are needed."""
        self._url = url.rstrip("/").removesuffix("/v1") + "/tokenize"
        self._model = model
        self._client = client or httpx.Client(timeout=30.0, trust_env=False)

    def counts(self, texts: Sequence[str], *, chat: bool, system: str = "") -> list[int]:
        return [self._count(text, chat, system) for text in texts]

    def close(self) -> None:
        self._client.close()

    def _count(self, text: str, chat: bool, system: str) -> int:
        asked: dict[str, Any] = {"model": self._model}
        before = [{"role": "system", "content": system}] if system else []
        messages = [*before, {"role": "user", "content": text}]
        asked |= {"messages": messages} if chat else {"prompt": text}
        try:
            answer = self._client.post(self._url, json=asked)
            answer.raise_for_status()
            return int(answer.json()["count"])
        except httpx.HTTPStatusError as error:
            raise InputError(
                f"{self._url} answered {error.response.status_code}: text needs it, or `tokenizer` FILE"
            ) from error
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"cannot reach {self._url} ({why_unreachable(error)}): prompts of text need it"
            ) from error


class LocalTokenizer:
    """A tokenizer.json of the model, read by the tokenizers library (the extra `text`).

    It knows no chat template, so for a chat the template's tokens are not counted: `usage` will show more.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise InputError(
                "tokenizer", "needs wattload's extra 'text', in a checkout: pip install '.[text]'"
            ) from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself, for files too
            raise InputError("tokenizer", f"{path} is no tokenizer.json: {error}") from error

    def counts(self, texts: Sequence[str], *, chat: bool, system: str = "") -> list[int]:
        encoded = self._tokenizer.encode_batch([system, *texts], add_special_tokens=not chat)
        before, *found = [len(one.ids) for one in encoded]
        return [count + (before if system else 0) for count in found]


@dataclass(frozen=True, slots=True)
class WordPool:
    """`words`: any n of them joined by blanks are n + `extra_tokens` tokens."""

    words: tuple[str, ...]
    extra_tokens: int


def open_tokenizer(
    choice: str,
    *,
    url: str = "",
    model: str = "",
    client: httpx.Client | None = None,
) -> Tokenizer:
    """`server`, or the path of a tokenizer.json. Raises InputError where there is none."""
    if choice == "server":
        return ServerTokenizer(url, model, client)
    if not Path(choice).is_file():
        raise InputError("tokenizer", f"{choice}: neither 'server' nor a file")
    return LocalTokenizer(Path(choice))


def word_pool(tokenizer: Tokenizer, *, chat: bool) -> WordPool:
    """The pool for a tokenizer. Raises InputError where too few words are one token each."""
    alone = tokenizer.counts(CANDIDATES, chat=chat)
    usual = Counter(alone).most_common(1)[0][0]
    first = [word for word, count in zip(CANDIDATES, alone, strict=True) if count == usual]
    words = _single(tokenizer, first, chat, first[0], usual)
    # Where no chat is asked for, prompts are text for a reason that this does not know.
    instead = "; send token ids (`api` completions)" if chat else ""
    if len(words) < _LEAST_WORDS:
        raise InputError(
            "tokenizer",
            f": only {len(words)} of {len(CANDIDATES)} common words are one token each, so text "
            f"of an exact length cannot be made{instead}",
        )
    rng = np.random.default_rng(0)
    extra = set()
    for length in _PROBES:
        text = " ".join(rng.choice(words, length))
        extra.add(tokenizer.counts([text], chat=chat)[0] - length)
    if len(extra) > 1:
        raise InputError("tokenizer", f": text of n words is not n tokens and a constant{instead}")
    return WordPool(tuple(words), extra.pop())


def _single(tokenizer: Tokenizer, words: list[str], chat: bool, start: str, alone: int) -> list[str]:
    """Those of `words` that add one token each to a text that begins with `start`, which is `alone` tokens
    itself.

    By halving: of a list that adds as many as it is long, all are good.
    """
    if not words:
        return []
    if tokenizer.counts([" ".join([start, *words])], chat=chat)[0] - alone == len(words):
        return words
    if len(words) == 1:
        return []
    middle = len(words) // 2
    halves = (words[:middle], words[middle:])
    return [word for half in halves for word in _single(tokenizer, half, chat, start, alone)]
