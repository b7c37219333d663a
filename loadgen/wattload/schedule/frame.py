"""What stands around a prompt of the schedule in each request: a system prompt, an image, inputs to share it
out to.

The schedule's prompt tokens are those of the prompt itself; what a frame adds is the same in every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattload.errors import InputError

# Into how many texts a prompt is shared out where nothing is said.
DEFAULT_INPUTS = {"embeddings": 1, "rerank": 8, "score": 8}
# Of the tokens of a query with a document, the query has this share, and at most so many.
_QUERY_SHARE, _MOST_QUERY_TOKENS = 0.25, 32
# Squares of one colour: what a PNG of photographs' detail would weigh is not the server's GPU's to bear.
_SQUARE_PIXELS = 16
_LONGEST_SIDE = 8192
_MOST_SYSTEM_TOKENS = 1_000_000
# What says that a trace's images are not to be sent.
NO_IMAGES = "none"
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
# What stands between a system prompt and a prompt that are one text: a blank between words of ours.
WORDS_GLUE, TEXT_GLUE = " ", "\n\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """`system_tokens`: tokens of the system prompt, with what a chat template adds for it; 0: there is none.
    `system_text`: its text; empty where it is `system_words` words or token ids, made as those of prompts.
    `inputs`: into how many texts of an embeddings request, or documents of a rerank or score request, a
    prompt is shared out; 0 for endpoints that generate. `image`: width and height of the images that
    requests have, in pixels; None: no request is sent with one.
    """

    system_tokens: int = 0
    system_text: str = ""
    system_words: int = 0
    inputs: int = 0
    image: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, object]:
        """For the metadata of schedule.parquet."""
        return {
            "system_tokens": self.system_tokens,
            "system_text": self.system_text,
            "system_words": self.system_words,
            "inputs": self.inputs,
            "image": self.image,
        }

    @classmethod
    def of(cls, saved: dict[str, object] | None) -> Frame:
        """What `as_dict` gave; no frame for schedules of earlier versions."""
        values = dict(saved or {})
        image = values.get("image")
        if isinstance(image, (list, tuple)):
            values["image"] = tuple(image)
        return cls(**values)  # type: ignore[arg-type]

    @property
    def system_sha256(self) -> str | None:
        """The checksum of a system prompt of text."""
        return hashlib.sha256(self.system_text.encode()).hexdigest() if self.system_text else None

    def inputs_of(self, tokens: int) -> int | None:
        """How many inputs a prompt of so many tokens is shared out to: each has one token at least, and a
        query.

        None where the endpoint generates.
        """
        return max(1, min(self.inputs, tokens // 2)) if self.inputs else None


NO_FRAME = Frame()


def lengths(total: int, parts: int) -> list[int]:
    """`total` shared out to `parts`, as evenly as whole numbers are; each at least 1 where there are as
    many.
    """
    return [total // parts + (place < total % parts) for place in range(parts)]


def query_and_documents(total: int, documents: int) -> tuple[int, list[int]]:
    """Tokens of a query and of each document, so that the query with each of them are `total` tokens."""
    pairs = lengths(max(total, 2 * documents), documents)
    query = max(1, min(int(pairs[-1] * _QUERY_SHARE), _MOST_QUERY_TOKENS))
    return query, [pair - query for pair in pairs]


def scaled(counts: Sequence[int], total: int) -> list[int]:
    """Counts in the same proportions that sum up to `total`, each at least 1; the same ones where they
    fit.
    """
    asked = sum(counts)
    if asked <= total:
        return list(counts)
    room = total - len(counts)
    edges = [round(sum(counts[:place]) * room / asked) for place in range(len(counts) + 1)]
    return [1 + edges[place + 1] - edges[place] for place in range(len(counts))]


def cut(pieces: Sequence[str], counts: Sequence[int], glue: str) -> list[str]:
    """Texts of so many pieces each, one behind the other."""
    texts, place = [], 0
    for count in counts:
        texts.append(glue.join(pieces[place : place + count]))
        place += count
    return texts


def parse_image(text: str) -> tuple[int, int] | None:
    """`WIDTHxHEIGHT` in pixels; None for `none`. Raises ValueError."""
    if text.strip() == NO_IMAGES:
        return None
    found = _SIZE.fullmatch(text.strip())
    sides = tuple(int(side) for side in found.groups()) if found is not None else ()
    if len(sides) != 2 or not all(1 <= side <= _LONGEST_SIDE for side in sides):
        raise ValueError(
            f"is no size of an image in pixels; write WIDTHxHEIGHT, up to {_LONGEST_SIDE}, or none"
        )
    return sides


def check_system(text: str) -> str:
    """A system prompt as it is given: text, `@FILE`, or a whole number of tokens. Raises ValueError."""
    if not text.strip() or text.strip() == "@":
        raise ValueError("is empty; write a text, @FILE, or a number of tokens")
    if text.strip().isdecimal() and not 1 <= int(text) <= _MOST_SYSTEM_TOKENS:
        raise ValueError(f"a number of tokens is from 1 to {_MOST_SYSTEM_TOKENS:,}")
    return text


def system_of(text: str) -> tuple[int, str]:
    """(tokens, "") or (0, text) of a system prompt as it is given. Raises InputError where its file cannot be
    read.
    """
    if text.strip().isdecimal():
        return int(text), ""
    if not text.startswith("@"):
        return 0, text
    try:
        found = Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError("system_prompt", f"{text}: cannot be read ({why})") from error
    if not found.strip():
        raise InputError("system_prompt", f"{text}: the file is empty")
    return 0, found


class Images:
    """PNG images of one size, each unlike the others, as data URLs.

    All but the last row of pixels is the same in all of them and made once; the last row is made from a seed,
    which takes microseconds. A server that knows images again by their pixels takes no two for the same.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        rng = np.random.default_rng(width * 65_536 + height)
        across, down = -(-width // _SQUARE_PIXELS), -(-height // _SQUARE_PIXELS)
        squares = rng.integers(0, 256, (down, across, 3), np.uint8)
        pixels = squares.repeat(_SQUARE_PIXELS, 0).repeat(_SQUARE_PIXELS, 1)[: height - 1, :width]
        rows = np.zeros((height - 1, 1 + 3 * width), np.uint8)
        rows[:, 1:] = pixels.reshape(height - 1, 3 * width)
        packer = zlib.compressobj(6)
        # A full flush ends on a whole byte, so that the last row can be put behind.
        self._packed = packer.compress(rows.tobytes()) + packer.flush(zlib.Z_FULL_FLUSH)
        self._adler = zlib.adler32(rows.tobytes())
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        self._head = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", self._packed)
        # Base64 goes by three bytes: what fills them up is the same in all images and encoded once.
        self._whole = len(self._head) // 3 * 3
        self._encoded = "data:image/png;base64," + base64.b64encode(self._head[: self._whole]).decode()

    def data_url(self, seed: int) -> str:
        """The image of a seed."""
        row = b"\0" + np.random.default_rng(seed).integers(0, 256, 3 * self.width, np.uint8).tobytes()
        packer = zlib.compressobj(1, wbits=-15)
        last = packer.compress(row) + packer.flush()
        check = struct.pack(">I", zlib.adler32(row, self._adler))
        tail = self._head[self._whole :] + _chunk(b"IDAT", last + check) + _chunk(b"IEND", b"")
        return self._encoded + base64.b64encode(tail).decode()


def image_part(api: str, url: str) -> bytes:
    """The part of a message that holds an image, as JSON."""
    part: dict[str, object] = {"type": "image_url", "image_url": {"url": url}}
    if api == "responses":
        part = {"type": "input_image", "image_url": url}
    elif api == "messages":
        source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
        part = {"type": "image", "source": source}
    return json.dumps(part).encode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
