"""ShareGPT-style text: conversations of human and assistant turns. Prompts are the texts themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.reading.entries import ESTIMATED, entries, place_name, tokens_estimated
from wattload.traces.reading.files import Head
from wattload.traces.reading.json_lines import whole_characters
from wattload.traces.reading.raw import RawTrace

_ASKING = ("human", "user")
_ANSWERING = ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
# Where an entry has its messages: ShareGPT, OpenAI, and LMSYS-Chat-1M and WildChat.
_TALKS = ("conversations", "messages", "conversation")


class ShareGpt:
    """A JSON array, or JSON lines, of {"conversations": [{"from": "human", "value": ...}, ...]}.

    `messages` of {"role", "content"}, and `conversation` of them, are read too, from Parquet as well. Each
    answered question is a request, the turns of a conversation a session; the prompt of a turn is the
    conversation so far. There are no times.
    """

    name = "sharegpt"
    header = (
        'JSON or Parquet of {"conversations": [{"from", "value"}]} or {"messages": [{"role", "content"}]}'
    )
    required = ("conversations",)

    def recognises(self, head: Head) -> bool:
        return head.kind == "json" or (
            head.kind in ("jsonl", "parquet") and any(head.has(name) for name in _TALKS)
        )

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        texts: list[str] = []
        starts: list[int] = []
        session: list[int] = []
        where: list[int] = []
        outputs: list[int] = []
        odd = Oddities(head)
        for number, (place, entry) in enumerate(entries(head, options.text_rows)):
            for prompt, new, answer in _turns(odd, place, entry):
                texts.append(prompt)
                starts.append(new)
                session.append(number)
                where.append(place)
                outputs.append(tokens_estimated(answer))
        if not texts:
            raise InputError(f"{head.path} holds no question with an answer{odd.first}")
        return RawTrace(
            prompt_tokens=np.array([tokens_estimated(t) for t in texts], np.int64),
            output_tokens=np.array(outputs, np.int64),
            session=np.array(session, np.int64),
            think=np.zeros(len(texts)),
            texts=texts,
            text_starts=starts,
            line_of=where.__getitem__,
            unit=odd.unit,
            notes=[ESTIMATED, *odd.notes],
        )


class Oddities:
    """What in a file of conversations cannot be sent as text: counted, with the place of the first."""

    def __init__(self, head: Head) -> None:
        self.unit = place_name(head)
        self._seen: dict[str, tuple[int, int]] = {}

    def add(self, what: str, place: int) -> None:
        count, first = self._seen.get(what, (0, place))
        self._seen[what] = (count + 1, first)

    @property
    def notes(self) -> list[str]:
        return [f"{what}: {n}, the first in {self.unit} {at}" for what, (n, at) in self._seen.items()]

    @property
    def first(self) -> str:
        return f": {self.notes[0]}" if self._seen else ""


def _turns(odd: Oddities, place: int, entry: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """(conversation so far, where what is new in it begins, answer) of each question with an answer."""
    said = next((entry[name] for name in _TALKS if entry.get(name) is not None), None)
    if not isinstance(said, list):
        odd.add("entries with neither conversations nor messages, passed over", place)
        return
    history, new, asked = "", 0, False
    for message in said:
        who = message.get("from", message.get("role")) if isinstance(message, dict) else None
        if not isinstance(who, str):
            odd.add("messages without a speaker, passed over with the rest of their conversation", place)
            return
        text = whole_characters(_text_of(message.get("value", message.get("content")), odd, place))
        if not text.strip():
            # A call of a tool, or a picture: the question is answered later, or not at all.
            odd.add("messages without text (as a tool call), passed over", place)
            continue
        if "\ufffd" in text:
            odd.add("messages with half a character, sent as U+FFFD", place)
        if who in _ANSWERING and asked:
            yield history, new, text
        asked = who in _ASKING or (asked and who not in _ANSWERING)
        history = f"{history}\n\n{text}" if history else text
        if who in _ANSWERING:
            new = len(history) + 2


def _text_of(content: object, odd: Oddities, place: int) -> str:
    """The text of a message: as it is, in parts, or within an object that has it."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        key = next((key for key in ("text", "parts", "value", "content") if key in content), None)
        if key is not None:
            return _text_of(content[key], odd, place)
    if isinstance(content, list):
        return "\n\n".join(text for part in content if (text := _text_of(part, odd, place)))
    if content is not None:
        odd.add("parts of messages that are no text (as a picture), left out", place)
    return ""
