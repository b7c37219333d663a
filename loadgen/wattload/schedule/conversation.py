"""Sessions whose history is what the server said: each turn's prompt holds its earlier answers.

A history is messages (chat), one text, or token ids: those that were sent and those that the server told, so
that its prefix cache has each of them.

What is planned of a turn is how much is said anew; what came before are the prompts that were sent and the
answers that came. What other agents said is among what is said anew, in invented words. Everything is kept as
the bytes of JSON that it is sent as: an answer's text, or its ids, go from the events of its stream into the
next prompt without being read, so a turn costs copying its bytes.
"""

from __future__ import annotations

import json

import numpy as np

from wattload.schedule.content import own_ids, own_words
from wattload.schedule.table import Schedule

_NOTHING: tuple[bytes, int | None] = (b"", None)
_USER, _ASSISTANT, _END = b'{"role":"user","content":"', b'{"role":"assistant","content":"', b'"}'


class Conversations:
    """The sessions of one process's share of a schedule, as far as they have come.

    `chat`: prompts are lists of messages, and one text otherwise; where the schedule has no text, lists of
    token ids below `vocab_size`. Raises ValueError for a chat of token ids.
    """

    def __init__(self, schedule: Schedule, *, chat: bool, salt: int, vocab_size: int | None = None) -> None:
        self.by_ids = not schedule.has_text
        if chat and self.by_ids:
            raise ValueError("a chat needs text")
        self._schedule, self._chat, self._salt = schedule, chat, salt
        self._vocab_size = vocab_size
        self._before = schedule.before
        # How many turns are still to go on from each turn, and what was sent and said up to it, with its
        # tokens, as long as some are.
        self._uses = np.bincount(self._before[self._before >= 0], minlength=len(schedule))
        self._told: dict[int, tuple[bytes, int | None]] = {}
        # What a turn that is under way asks, to be kept once it is answered.
        self._asking: dict[int, bytes] = {}

    def prompt(self, row: int) -> bytes:
        """JSON of the prompt of `row`, whose turns before have ended."""
        told, _ = self._history(row)
        asked = self._asked(row, first=not told)
        self._asking[row] = asked
        listed = self._chat or self.by_ids
        return b"".join((b"[", told, asked, b"]") if listed else (b'"', told, asked, b'"'))

    def history_tokens(self, row: int) -> int | None:
        """How many tokens of the prompt are earlier turns', as the server counted them; None: not known."""
        return self._history(row)[1]

    def wanted(self, row: int) -> bool:
        """Whether a turn goes on from `row`, so that its answer is to be kept."""
        return bool(self._uses[row])

    def answered(self, row: int, answer: bytes, *, tokens: int | None) -> None:
        """Keeps what `row` asked and was answered for the turns that go on from it.

        `answer`: its text as JSON has it between quotes, or its token ids, each behind a comma; where it is
        empty, the turn is as if it had not been: the next one goes on from the turn before it. `tokens`: of
        its prompt and output.
        """
        asked, history = self._asking.pop(row, b""), self._history(row)
        if self._uses[row] and answer:
            self._told[row] = b"".join((history[0], asked, self._joined(answer))), tokens
        elif self._uses[row]:
            self._told[row] = history
        before = int(self._before[row])
        if before >= 0:
            self._uses[before] -= 1
            if not self._uses[before]:
                self._told.pop(before, None)

    def _history(self, row: int) -> tuple[bytes, int | None]:
        """What was said before `row`, and its tokens."""
        before = int(self._before[row])
        return self._told.get(before, _NOTHING) if before >= 0 else _NOTHING

    def _joined(self, answer: bytes) -> bytes:
        """An answer within a prompt: between blank lines where the turns are texts of a trace."""
        if self._chat:
            return b"".join((b",", _ASSISTANT, answer, _END, b","))
        return answer if self._schedule.texts is None else b"\\n\\n" + answer + b"\\n\\n"

    def _asked(self, row: int, *, first: bool) -> bytes:
        schedule = self._schedule
        if schedule.texts is not None:
            starts = schedule.text_starts
            text = schedule.texts[row][0 if first or starts is None else int(starts[row]) :]
        else:
            start, stop = self._new(row, first=first)
            if self.by_ids:
                new = own_ids(schedule, row, start, stop, vocab_size=self._vocab_size, salt=self._salt)
                return new if first else b"," + new
            text = own_words(schedule, row, start, stop, self._salt)
            text = text.lstrip() if self._chat else text
        asked = json.dumps(text)[1:-1].encode()
        return b"".join((_USER, asked, _END)) if self._chat else asked

    def _new(self, row: int, *, first: bool) -> tuple[int, int]:
        """Where what a turn says anew begins and ends in its conversation as planned: words or token ids."""
        schedule, before = self._schedule, int(self._before[row])
        if before < 0 or first:
            return 0, planned_words(schedule, row)
        start = planned_words(schedule, before) + int(schedule.output_tokens[before])
        # A chat template takes its tokens for each turn again.
        template = schedule.extra_tokens if self._chat else 0
        return start, start + max(1, planned_words(schedule, row) - start - template)


def planned_words(schedule: Schedule, row: int) -> int:
    """Words of a prompt of the planned length, or its token ids."""
    return max(1, int(schedule.prompt_tokens[row]) - schedule.extra_tokens)
