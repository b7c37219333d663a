"""Qwen-Bailian (alibaba-edu/qwen-bailian-usagetraces-anon): JSON lines of chats with turns and prefix
blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wattload.traces.options import ReadOptions
from wattload.traces.parents import Parents
from wattload.traces.reading import tables
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace

BLOCK_TOKENS = 16

I64 = npt.NDArray[np.int64]


class Bailian:
    """Times in seconds, blocks of 16 tokens; `parent_chat_id` (-1: none) links a turn to the one before it.

    Several may be linked to one: a question that was asked again is a branch.
    """

    name = "bailian"
    header = (
        "JSON lines of chat_id, parent_chat_id, timestamp (s), input_length, output_length, type, hash_ids"
    )
    required = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length")

    def recognises(self, head: Head) -> bool:
        return head.kind == "jsonl" and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        wanted = {"chat_id": "key", "parent_chat_id": "key", "timestamp": "number"}
        wanted |= {"input_length": "whole", "output_length": "whole"}
        wanted |= {name: kind for name, kind in (("type", "text"), ("hash_ids", "ids")) if head.has(name)}
        columns = tables.read(head, wanted)
        prompt = columns["input_length"]
        names = {"seconds": "timestamp", "prompt_tokens": "input_length", "output_tokens": "output_length"}
        return RawTrace(
            seconds=columns["timestamp"],
            prompt_tokens=prompt,
            output_tokens=columns["output_length"],
            session=sessions(columns["chat_id"], columns["parent_chat_id"]),
            parents=linked(columns["chat_id"], columns["parent_chat_id"]),
            tag=columns.get("type"),
            prefix=tables.blocks_of(columns.get("hash_ids"), prompt, BLOCK_TOKENS),
            coarse_clock=True,
            line_of=tables.line_finder(head),
            names=names,
            licence="Apache-2.0",
            citation=(
                "Wang et al., KVCache Cache in the Wild: Characterizing and Optimizing KVCache Cache at a "
                "Large Cloud Provider, USENIX ATC 2025"
            ),
        )


def linked(chat: I64, parent: I64) -> Parents:
    """Which row each row waits for: that of its parent, where it is before it."""
    place: dict[int, int] = {}
    found = np.full(len(chat), -1, np.int64)
    for row, (own, before) in enumerate(zip(chat.tolist(), parent.tolist(), strict=True)):
        found[row] = place.get(before, -1) if before >= 0 else -1
        place[own] = row
    has = found >= 0
    return Parents(found[has], np.concatenate([np.zeros(1, np.int64), np.cumsum(has)]))


def sessions(chat: I64, parent: I64) -> I64:
    """A number for each chain of chats, shape (N,); a chat alone belongs to none (-1)."""
    root: dict[int, int] = {}
    found = np.empty(len(chat), np.int64)
    for i, (own, before) in enumerate(zip(chat.tolist(), parent.tolist(), strict=True)):
        found[i] = root[own] = root.get(before, before) if before >= 0 else own
    _, numbers, counts = np.unique(found, return_inverse=True, return_counts=True)
    return np.where(counts[numbers] > 1, numbers, -1).astype(np.int64)
