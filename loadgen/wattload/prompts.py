"""Prompt content: exactly so many token ids, the same on every worker, unique unless something is to be
shared.

A prompt is a slice of one or more endless streams of token ids (streams.py). Alone, it is the start of its
own stream; the turns of a session are ever longer starts of one stream; a prefix block of a trace is the
start of the stream of its id; `--prefix-share` is the start of the tag's stream. So what must be shared is,
to the token, and nothing else is. A salt changes what every prompt says and nothing about what is shared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wattload.schedule import Schedule
from wattload.streams import U64, mixed, scrambled, stream

# Small enough for nearly every model that is served: an id below it is in any larger vocabulary too.
DEFAULT_VOCAB_SIZE = 32_000

_SHARED, _BLOCK = 2, 3
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def safe_ids(vocab_size: int) -> tuple[int, int]:
    """The ids [low, high) prompts are made of. Raises ValueError for a vocabulary under 16.

    Special tokens lie at the ends: control tokens and bytes among the first (Llama 2, Gemma, Mistral's
    1,000), chat and tool markers among the last (Llama 3's 256 of 128,256, Qwen's of 151,936), so 1,000 (at
    most an eighth) of the first and a twentieth of the last ids are left out.
    """
    if vocab_size < 16:
        raise ValueError(f"vocab_size {vocab_size}: at least 16")
    return min(1000, vocab_size // 8), vocab_size - max(1, vocab_size // 20)


def prompt_token_ids(
    schedule: Schedule, index: int, vocab_size: int = DEFAULT_VOCAB_SIZE, salt: int = 0
) -> npt.NDArray[np.int64]:
    """The prompt of row `index` of `schedule`, shape (prompt_tokens[index],)."""
    low, high = safe_ids(vocab_size)
    return (_places(schedule, index, high - low, salt=salt) + low).astype(np.int64)


def prompt_text(schedule: Schedule, index: int, salt: int = 0) -> str:
    """The prompt of row `index` as text: the trace's own, or words to the planned number of tokens.

    Raises ValueError for a schedule of neither (of token ids).
    """
    if schedule.texts is not None:
        return schedule.texts[index]
    if not schedule.words:
        raise ValueError("the schedule's prompts are token ids")
    count = max(1, int(schedule.prompt_tokens[index]) - schedule.extra_tokens)
    chosen = _places(schedule, index, len(schedule.words), count, salt=salt)
    return _spaced(schedule.words)[chosen].tobytes()[1:].decode("ascii")


def prompt_maker(
    schedule: Schedule, *, api: str = "completions", vocab_size: int | None = None, salt: int = 0
) -> Callable[[Schedule, int], bytes]:
    """What makes the JSON of a prompt (`"prompt"` of completions, `"messages"` of chat) from (schedule, row).

    Raises ValueError for a chat of token ids.
    """
    if api == "chat":
        if schedule.texts is None and not schedule.words:
            raise ValueError("a chat needs text")
        return lambda part, row: _message(prompt_text(part, row, salt))
    if schedule.texts is not None or schedule.words:
        return lambda part, row: json.dumps(prompt_text(part, row, salt)).encode()
    size = vocab_size or DEFAULT_VOCAB_SIZE
    return lambda part, row: prompt_json_bytes(part, row, size, salt)


def salt_of(run_id: str) -> int:
    """A salt for a run, below 2^63. With one of its own, no run's prompts are what a prefix cache kept of
    another's.
    """
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8], "big") >> 1


def _message(text: str) -> bytes:
    return b'[{"role":"user","content":' + json.dumps(text).encode() + b"}]"


def prompt_json_bytes(
    schedule: Schedule, index: int, vocab_size: int = DEFAULT_VOCAB_SIZE, salt: int = 0
) -> bytes:
    """The same prompt as a JSON array, ready to be put into a request's body.

    Each id is looked up as text of one width, padded with blanks that JSON allows, so the array is one
    gather.
    """
    low, high = safe_ids(vocab_size)
    text = _rendered(low, high)[_places(schedule, index, high - low, salt=salt)].tobytes()
    return b"[" + text[:-1] + b"]"


@lru_cache(maxsize=4)
def _rendered(low: int, high: int) -> npt.NDArray[np.bytes_]:
    width = len(str(high - 1)) + 1
    return np.array([f"{i},".rjust(width) for i in range(low, high)], dtype=f"S{width}")


@lru_cache(maxsize=4)
def _spaced(words: tuple[str, ...]) -> npt.NDArray[np.bytes_]:
    return np.array([f" {word}" for word in words], dtype="S5")


def _places(
    schedule: Schedule, index: int, span: int, count: int | None = None, *, salt: int = 0
) -> npt.NDArray[np.int64]:
    """Positions in [0, span), shape (prompt_tokens[index],) or (count,)."""
    if count is None:
        count = int(schedule.prompt_tokens[index])
    own = schedule.content_seed[index] ^ np.uint64(salt)
    base = schedule.content_base ^ salt
    blocks = schedule.prefix_hashes[index] if schedule.prefix_hashes is not None else ()
    shared = 0 if schedule.shared_tokens is None else min(count, int(schedule.shared_tokens[index]))
    if blocks:
        keys = mixed(base, _BLOCK, np.array(blocks))
        numbers = _blocks(keys, schedule.prefix_block_tokens, count, own)
    elif shared:
        common = mixed(base, _SHARED, int(schedule.tag[index]))[0]
        numbers = np.concatenate([stream(common, 0, shared), stream(own, 0, count - shared)])
    else:
        numbers = stream(own, 0, count)
    # The top 32 bits times the span, over 2^32: even to one part in a hundred thousand, and no division.
    numbers >>= np.uint64(32)
    numbers *= np.uint64(span)
    numbers >>= np.uint64(32)
    return numbers.view(np.int64)


def _blocks(keys: U64, size: int, count: int, own: np.uint64) -> U64:
    covered = min(count, len(keys) * size)
    place = np.arange(covered, dtype=np.uint64)
    numbers = (place % np.uint64(size) + np.uint64(1)) * _GAMMA + np.repeat(keys, size)[:covered]
    return np.concatenate([scrambled(numbers), stream(own, 0, count - covered)])
