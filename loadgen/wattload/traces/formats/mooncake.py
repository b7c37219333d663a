"""Mooncake (kvcache-ai/Mooncake): JSON lines of timestamp (ms), input_length, output_length, hash_ids."""

from __future__ import annotations

from wattload.traces.options import ReadOptions
from wattload.traces.reading import tables
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace

BLOCK_TOKENS = 512


class Mooncake:
    """Equal ids in `hash_ids` are equal blocks of 512 tokens. Its times come in steps of about three
    seconds.
    """

    name = "mooncake"
    header = "JSON lines of timestamp (ms), input_length, output_length, hash_ids"
    required = ("timestamp", "input_length", "output_length")

    def recognises(self, head: Head) -> bool:
        return head.kind == "jsonl" and head.has(*self.required) and not head.has("chat_id")

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        wanted = {"timestamp": "number", "input_length": "whole", "output_length": "whole"}
        if head.has("hash_ids"):
            wanted["hash_ids"] = "ids"
        columns = tables.read(head, wanted)
        prompt = columns["input_length"]
        return RawTrace(
            seconds=columns["timestamp"] / 1000.0,
            prompt_tokens=prompt,
            output_tokens=columns["output_length"],
            prefix=tables.blocks_of(columns.get("hash_ids"), prompt, BLOCK_TOKENS),
            coarse_clock=True,
            line_of=tables.line_finder(head),
            names={"seconds": "timestamp", "prompt_tokens": "input_length", "output_tokens": "output_length"},
            licence="Apache-2.0",
            citation="Qin et al., Mooncake: Trading More Storage for Less Computation, FAST 2025",
        )
