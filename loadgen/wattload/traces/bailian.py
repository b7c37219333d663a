"""Qwen-Bailian (alibaba-edu/qwen-bailian-usagetraces-anon): JSON lines of chats with turns and prefix
blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wattload.traces import tables
from wattload.traces.files import Head
from wattload.traces.raw import RawTrace, ReadOptions

BLOCK_TOKENS = 16

I64 = npt.NDArray[np.int64]


class Bailian:
    """Times in seconds, blocks of 16 tokens; `parent_chat_id` (-1: none) links a turn to the one before."""

    name = "bailian"
    header = (
        "JSON lines of chat_id, parent_chat_id, timestamp (s), input_length, output_length, type, hash_ids"
    )
    required = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length")

    def recognises(self, head: Head) -> bool:
        return head.kind == "jsonl" and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        wanted = {"chat_id": "whole", "parent_chat_id": "whole", "timestamp": "number"}
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


def sessions(chat: I64, parent: I64) -> I64:
    """A number for each chain of chats, shape (N,); a chat alone belongs to none (-1)."""
    root: dict[int, int] = {}
    found = np.empty(len(chat), np.int64)
    for i, (own, before) in enumerate(zip(chat.tolist(), parent.tolist(), strict=True)):
        found[i] = root[own] = root.get(before, before) if before >= 0 else own
    _, numbers, counts = np.unique(found, return_inverse=True, return_counts=True)
    return np.where(counts[numbers] > 1, numbers, -1).astype(np.int64)
