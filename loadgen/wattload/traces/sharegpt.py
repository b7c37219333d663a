"""ShareGPT-style text: conversations of human and assistant turns. Prompts are the texts themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from wattload.errors import BadInput
from wattload.traces.files import Head, opened
from wattload.traces.jsonfile import objects
from wattload.traces.raw import RawTrace, ReadOptions

_ASKING = ("human", "user")
_ANSWERING = ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
# English text has about four characters a token in the usual vocabularies; a tokenizer replaces the estimate.
CHARACTERS_PER_TOKEN = 4.0


class ShareGpt:
    """A JSON array, or JSON lines, of {"conversations": [{"from": "human", "value": ...}, ...]};
    `messages` of {"role", "content"} are read too. Each answered question is a request, the turns of a
    conversation a session; the prompt of a turn is the conversation so far. There are no times.
    """

    name = "sharegpt"
    header = 'JSON of {"conversations": [{"from", "value"}]} or {"messages": [{"role", "content"}]}'
    required = ("conversations",)

    def recognises(self, head: Head) -> bool:
        return head.kind == "json" or (
            head.kind == "jsonl" and (head.has("conversations") or head.has("messages"))
        )

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        texts: list[str] = []
        session: list[int] = []
        where: list[int] = []
        outputs: list[int] = []
        for number, (place, entry) in enumerate(_entries(head)):
            for prompt, answer in _turns(head, place, entry):
                texts.append(prompt)
                session.append(number)
                where.append(place)
                outputs.append(tokens_estimated(answer))
        if not texts:
            raise BadInput(f"{head.path} holds no question with an answer")
        return RawTrace(
            prompt_tokens=np.array([tokens_estimated(t) for t in texts], np.int64),
            output_tokens=np.array(outputs, np.int64),
            session=np.array(session, np.int64),
            think=np.zeros(len(texts)),
            texts=texts,
            line_of=where.__getitem__,
            unit="entry" if head.kind == "json" else "line",
            notes=["lengths are estimated at 4 characters a token until a tokenizer has counted them"],
        )


def tokens_estimated(text: str) -> int:
    """At least 1."""
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def _entries(head: Head) -> Iterator[tuple[int, dict[str, Any]]]:
    if head.kind == "jsonl":
        yield from objects(head.path)
        return
    with opened(head.path) as raw:
        try:
            data = json.load(raw)
        except UnicodeDecodeError as error:
            raise BadInput(f"{head.path}: not UTF-8 text ({error.reason})") from error
        except json.JSONDecodeError as error:
            raise BadInput(f"{head.path}, line {error.lineno}: not JSON ({error.msg})") from error
    for number, entry in enumerate(data, 1):
        if not isinstance(entry, dict):
            raise BadInput(f"{head.path}, entry {number}: not a JSON object")
        yield number, entry


def _turns(head: Head, place: int, entry: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(conversation so far, answer) of each question with an answer."""
    said = entry.get("conversations", entry.get("messages"))
    unit = "entry" if head.kind == "json" else "line"
    if not isinstance(said, list):
        raise BadInput(f"{head.path}, {unit} {place}: neither conversations nor messages")
    history = ""
    asked = False
    for message in said:
        who = message.get("from", message.get("role")) if isinstance(message, dict) else None
        text = message.get("value", message.get("content")) if isinstance(message, dict) else None
        if not isinstance(who, str) or not isinstance(text, str):
            raise BadInput(f"{head.path}, {unit} {place}: a message without a speaker or text")
        if who in _ANSWERING and asked and text.strip():
            yield history, text
        asked = who in _ASKING or (asked and who not in _ANSWERING)
        history = f"{history}\n\n{text}" if history else text
