"""Prompt content: exactly so many token ids, the same on every worker, unique unless something is to be
shared.

A prompt is a slice of one or more endless streams of token ids (streams.py). Alone, it is the start of its
own stream; the turns of a conversation are ever longer starts of one stream, and a branch goes on in one of
its own; a prefix block of a trace is the start of the stream of its id; `--prefix-share` is the start of the
tag's stream. So what must be shared is, to the token, and nothing else is. A salt changes what every prompt
says and nothing about what is shared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wattload.prompts.random_stream import U64, mixed, scrambled, stream
from wattload.schedule.frame import (
    Images,
    cut,
    image_part,
    lengths,
    query_and_documents,
    scaled,
)
from wattload.schedule.table import Schedule

# Small enough for nearly every model that is served: an id below it is in any larger vocabulary too.
DEFAULT_VOCAB_SIZE = 32_000

_SHARED, _BLOCK, _SYSTEM, _IMAGE = 2, 3, 4, 5
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
    return own_words(schedule, index, 0, count, salt)


def own_words(schedule: Schedule, index: int, start: int, stop: int, salt: int = 0) -> str:
    """Words `start` to `stop` of what row `index` says; from 0 on what all prompts share is among them.

    Where `start` is above 0 the text begins with a blank, to go on from what is before it.
    """
    if start == 0:
        chosen = _places(schedule, index, len(schedule.words), stop, salt=salt)
        return _spaced(schedule.words)[chosen].tobytes()[1:].decode("ascii")
    chosen = _within(stream(_own(schedule, index, salt), start, stop), len(schedule.words))
    return _spaced(schedule.words)[chosen].tobytes().decode("ascii")


def own_ids(
    schedule: Schedule, index: int, start: int, stop: int, *, vocab_size: int | None = None, salt: int = 0
) -> bytes:
    """Token ids `start` to `stop` of what row `index` says, as a list of JSON without its brackets; from 0 on
    what all prompts share is among them.
    """
    low, high = safe_ids(vocab_size or DEFAULT_VOCAB_SIZE)
    if start == 0:
        places = _places(schedule, index, high - low, stop, salt=salt)
    else:
        places = _within(stream(_own(schedule, index, salt), start, stop), high - low)
    return _rendered(low, high)[places].tobytes()[:-1]


def prompt_maker(
    schedule: Schedule, *, api: str = "completions", vocab_size: int | None = None, salt: int = 0
) -> Callable[[Schedule, int], bytes]:
    """What makes the JSON of a prompt from (schedule, row): `"prompt"` of completions, the messages of a
    chat, or the inputs that it is shared out to.

    Raises ValueError for a chat of token ids.
    """
    has_text = schedule.has_text
    size = vocab_size or DEFAULT_VOCAB_SIZE
    if api in ("embeddings", "rerank", "score"):
        if not has_text and api != "embeddings":
            raise ValueError(f"{api} needs text")
        return lambda part, row: _inputs(part, row, api, size, salt)
    if api != "completions":
        if not has_text:
            raise ValueError("a chat needs text")
        image = schedule.frame.image
        if image is not None:
            images = Images(*image)
            return lambda part, row: _message_with_images(part, row, api, images, salt)
        return lambda part, row: _message(prompt_text(part, row, salt))
    if has_text:
        return lambda part, row: json.dumps(prompt_text(part, row, salt)).encode()
    return lambda part, row: prompt_json_bytes(part, row, size, salt)


def _message_with_images(schedule: Schedule, row: int, api: str, images: Images, salt: int) -> bytes:
    count = schedule.images_sent(row) or 0
    said = prompt_text(schedule, row, salt)
    if not count:
        return _message(said)
    text = {"type": "input_text" if api == "responses" else "text", "text": said}
    # Turns of a session have one content, and their images are others all the same.
    seed = int(schedule.content_seed[row]) ^ salt ^ int(schedule.index[row])
    seeds = [seed, *mixed(_IMAGE, seed, np.arange(1, count, dtype=np.uint64)).tolist()]
    parts = [image_part(api, images.data_url(one)) for one in seeds[:count]]
    return b'[{"role":"user","content":[' + b",".join([json.dumps(text).encode(), *parts]) + b"]}]"


def _inputs(schedule: Schedule, row: int, api: str, vocab_size: int, salt: int) -> bytes:
    """The inputs of an endpoint that generates nothing, from what stands before them in the JSON on."""
    total = int(schedule.prompt_tokens[row])
    count = schedule.frame.inputs_of(total) or 1
    if not schedule.has_text:
        ids = prompt_token_ids(schedule, row, vocab_size, salt)
        parts = np.split(ids, np.cumsum(lengths(total, count))[:-1])
        whole = [part.tolist() for part in parts]
        return json.dumps(whole if count > 1 else whole[0], separators=(",", ":")).encode()
    text = prompt_text(schedule, row, salt)
    if api == "embeddings" and count == 1:
        return json.dumps(text).encode()
    if api == "embeddings":
        # A tokenizer adds its marks to each of them.
        return json.dumps(
            shared_out(text, lengths(max(total - count * schedule.extra_tokens, count), count))
        ).encode()
    query, documents = query_and_documents(total, count)
    first, *others = shared_out(text, [query, *documents])
    key = b"documents" if api == "rerank" else b"text_2"
    return json.dumps(first).encode() + b',"' + key + b'":' + json.dumps(others).encode()


def shared_out(text: str, counts: Sequence[int]) -> list[str]:
    """Parts of a text in these proportions, none of them empty where it has as many words or characters.

    Words where there are enough of them: so a text of words of one token each is cut to the token.
    """
    words = text.split()
    if len(words) >= len(counts):
        return cut(words, scaled(counts, len(words)), " ")
    return cut(text, scaled(counts, len(text)), "") if len(text) >= len(counts) else [text] * len(counts)


def system_json(schedule: Schedule, *, vocab_size: int | None = None, salt: int = 0) -> bytes:
    """The system prompt as it stands before each prompt: its text as JSON, or its token ids without brackets.

    Empty where there is none.
    """
    frame = schedule.frame
    if not frame.system_tokens:
        return b""
    if frame.system_text:
        return json.dumps(frame.system_text).encode()
    key = mixed(schedule.content_base ^ salt, _SYSTEM)[0]
    if frame.system_words:
        chosen = _within(stream(key, 0, frame.system_words), len(schedule.words))
        return b'"' + _spaced(schedule.words)[chosen].tobytes()[1:] + b'"'
    low, high = safe_ids(vocab_size or DEFAULT_VOCAB_SIZE)
    places = _within(stream(key, 0, frame.system_tokens), high - low)
    return _rendered(low, high)[places].tobytes()[:-1]


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
    count = int(schedule.prompt_tokens[index])
    return b"[" + own_ids(schedule, index, 0, count, vocab_size=vocab_size, salt=salt) + b"]"


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
    own = _own(schedule, index, salt)
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
        _from_before(numbers, schedule, index, salt)
    return _within(numbers, span)


def _own(schedule: Schedule, index: int, salt: int) -> np.uint64:
    return np.uint64(schedule.content_seed[index] ^ np.uint64(salt))


def _from_before(numbers: U64, schedule: Schedule, index: int, salt: int) -> None:
    """Puts into the start of a branch's prompt what was said before it left the conversation."""
    before = schedule.forks.get(int(schedule.content_seed[index]))
    if before is None:
        return
    said = int(schedule.prompt_tokens[before]) + int(schedule.output_tokens[before])
    start = numbers[:said]
    start[:] = stream(_own(schedule, before, salt), 0, len(start))
    _from_before(start, schedule, before, salt)


def _within(numbers: U64, span: int) -> npt.NDArray[np.int64]:
    """Random numbers as positions in [0, span); overwrites them."""
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
