"""A tokenizer for a model that is not there: deterministic, cheap, and about four characters to a token.

Ids from _FIRST_WORD on are words: a space and six letters. Text made of them tokenizes back to the same ids,
so what the simulator answered can be sent again as the start of the next prompt and means the same tokens.
Other text is cut into pieces of up to four characters, whose ids are checksums: right in number, not
reversible.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

_CONSONANTS = "bcdfghjklmnpqrstvwxyz"[:16]
_SYLLABLES = [c + v for c in _CONSONANTS for v in "aeiou"]  # 80, so 512,000 words of three
_NUMBER = {syllable: number for number, syllable in enumerate(_SYLLABLES)}
_BASE = len(_SYLLABLES)
_FIRST_WORD = 256
_WORD = re.compile(r" ([b-w][aeiou][b-w][aeiou][b-w][aeiou])(?![a-z])| ?[^\s]{1,4}|\s")


class Tokenizer:
    """Text to token ids and back, for a vocabulary of `vocab_size` ids."""

    def __init__(self, vocab_size: int) -> None:
        if not _FIRST_WORD < vocab_size <= _FIRST_WORD + _BASE**3:
            raise ValueError(f"vocab_size must be in {_FIRST_WORD + 1}..{_FIRST_WORD + _BASE**3}")
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        ids = []
        for match in _WORD.finditer(text):
            word = match.group(1)
            number = self._word_id(word) if word else None
            ids.append(number if number is not None else zlib.crc32(match.group().encode()) % _FIRST_WORD)
        return ids

    def _word_id(self, word: str) -> int | None:
        try:
            a, b, c = (_NUMBER[word[i : i + 2]] for i in (0, 2, 4))
        except KeyError:
            return None
        number = _FIRST_WORD + (a * _BASE + b) * _BASE + c
        return number if number < self.vocab_size else None

    def piece(self, token_id: int) -> str:
        """The text of one token."""
        if token_id < _FIRST_WORD:
            return " " + chr(ord("A") + token_id // 16) + chr(ord("A") + token_id % 16)
        number = token_id - _FIRST_WORD
        a, rest = divmod(number, _BASE * _BASE)
        b, c = divmod(rest, _BASE)
        return " " + _SYLLABLES[a] + _SYLLABLES[b] + _SYLLABLES[c]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(self.piece, token_ids))


class Answers:
    """The tokens that the virtual model samples: a fixed sequence of words, entered at a place by seed.

    The pieces are made once, so that handing out a token costs an index.
    """

    LENGTH = 8192

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        span = tokenizer.vocab_size - _FIRST_WORD
        self.ids = [
            _FIRST_WORD + zlib.crc32(f"{seed}/{position}".encode()) % span for position in range(self.LENGTH)
        ]
        self.pieces = [tokenizer.piece(token_id) for token_id in self.ids]
        self.piece_bytes = [piece.encode() for piece in self.pieces]

    def text(self, start: int, count: int) -> str:
        return "".join(self.pieces[(start + i) % self.LENGTH] for i in range(count))

    def token_ids(self, start: int, count: int) -> list[int]:
        return [self.ids[(start + i) % self.LENGTH] for i in range(count)]
