"""Texts to answer, one a row: vLLM's own custom benchmarks, articles to summarise, instructions."""

from __future__ import annotations

from typing import Any

import numpy as np

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.reading.entries import ESTIMATED, entries, place_name, tokens_estimated
from wattload.traces.reading.files import Head
from wattload.traces.reading.json_lines import whole_characters
from wattload.traces.reading.raw import LARGEST, RawTrace

# The column of the question, then those in which its answer may stand; the first pair that is there is read.
_PAIRS = (
    ("prompt", ("completion", "response", "output", "answer", "expected_output")),
    ("article", ("abstract", "highlights", "summary")),
    ("document", ("summary",)),
    ("instruction", ("output", "response")),
    ("question", ("answer", "response")),
)
_COUNTS = ("output_tokens", "expected_output_len", "output_len")


class TextPairs:
    """JSON lines or Parquet of `prompt` (or article, document, instruction, question) and, where there is
    one, its answer, whose estimated length is the output's; `output_tokens` counts it instead. No times.
    """

    name = "text"
    header = (
        "JSON lines, Parquet of prompt[,output_tokens or completion]; article,abstract; instruction,output"
    )
    required = ("prompt",)

    def recognises(self, head: Head) -> bool:
        return head.kind in ("jsonl", "parquet") and _pair(head) is not None

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        pair = _pair(head)
        assert pair is not None  # it was recognised
        question, answer = pair
        count = next((name for name in _COUNTS if head.has(name)), None)
        if answer is None and count is None and options.output_tokens is None:
            raise InputError(
                f"{head.path}: has no answers and no {_COUNTS[0]}, so `output_tokens` must say how long"
                " every output is to be"
            )
        texts, where, outputs, without = [], [], [], 0
        for place, entry in entries(head, options.text_rows):
            text = _text(entry, question)
            length = _length(entry, count, answer, options.output_tokens)
            if not text.strip() or length is None:
                without += 1
                continue
            texts.append(text)
            where.append(place)
            outputs.append(length)
        if not texts:
            raise InputError(f"{head.path} holds no {question} with an output")
        notes = [ESTIMATED]
        if without:
            notes.append(f"rows without a {question} or an output, passed over: {without}")
        return RawTrace(
            prompt_tokens=np.array([tokens_estimated(text) for text in texts], np.int64),
            output_tokens=np.array(outputs, np.int64),
            texts=texts,
            line_of=where.__getitem__,
            unit=place_name(head),
            notes=notes,
        )


def _pair(head: Head) -> tuple[str, str | None] | None:
    """The columns of question and answer; None for a file that has no such column, or times as well."""
    if head.has("seconds") or head.has("timestamp"):
        return None
    for question, answers in _PAIRS:
        if head.has(question):
            return question, next((name for name in answers if head.has(name)), None)
    return None


def _text(entry: dict[str, Any], question: str) -> str:
    parts = [entry.get(question)]
    if question == "instruction":
        parts.append(entry.get("input"))
    return whole_characters("\n\n".join(part for part in parts if isinstance(part, str) and part))


def _length(entry: dict[str, Any], count: str | None, answer: str | None, default: int | None) -> int | None:
    counted = entry.get(count) if count is not None else None
    if isinstance(counted, int) and not isinstance(counted, bool) and counted > 0:
        return min(counted, LARGEST)
    said = entry.get(answer) if answer is not None else None
    if isinstance(said, str) and said.strip():
        return tokens_estimated(said)
    return default
