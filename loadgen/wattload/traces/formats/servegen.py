"""ServeGen (alibaba/ServeGen): generated requests as CSV, and the offline batches it publishes as JSON
lines.
"""

from __future__ import annotations

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.reading import tables
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace

BLOCK_TOKENS = 16

_CITATION = (
    "Xiang et al., ServeGen: Workload Characterization and Generation of Large Language Model Serving in "
    "Production, NSDI 2026"
)
_OFFLINE = "Yang et al., Batched in Back: Characterizing and Optimizing Offline LLM Inference, SOSP 2026"


class ServeGenRequests:
    """One row a generated request: timestamp in seconds, input_tokens, output_tokens, and whatever else."""

    name = "servegen"
    header = "timestamp (s), input_tokens, output_tokens as CSV or JSON lines"
    required = ("timestamp", "input_tokens", "output_tokens")

    def recognises(self, head: Head) -> bool:
        return head.kind in ("csv", "jsonl") and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        columns = tables.read(
            head, {"timestamp": "number", "input_tokens": "whole", "output_tokens": "whole"}
        )
        return RawTrace(
            seconds=columns["timestamp"],
            prompt_tokens=columns["input_tokens"],
            output_tokens=columns["output_tokens"],
            line_of=tables.line_finder(head),
            names={"seconds": "timestamp", "prompt_tokens": "input_tokens", "output_tokens": "output_tokens"},
            licence="Apache-2.0",
            citation=_CITATION,
        )


class ServeGenOffline:
    """One object a request of a batch job; a batch comes at once, so there are no times."""

    name = "servegen-offline"
    header = "JSON lines of request_id, type, input_length, output_length (no times)"
    required = ("request_id", "input_length")

    def recognises(self, head: Head) -> bool:
        return head.kind == "jsonl" and head.has(*self.required) and not head.has("timestamp")

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        if not head.has("output_length"):
            raise InputError(
                f"{head.path}, line 1: output_length is missing (ServeGen's traces a to c do not have it); "
                "`column_map` prompt_tokens=input_length,output_tokens==128 gives every request one"
            )
        wanted = {"input_length": "whole", "output_length": "whole"}
        wanted |= {name: kind for name, kind in (("type", "text"), ("hash_ids", "ids")) if head.has(name)}
        columns = tables.read(head, wanted)
        prompt = columns["input_length"]
        return RawTrace(
            prompt_tokens=prompt,
            output_tokens=columns["output_length"],
            tag=columns.get("type"),
            prefix=tables.blocks_of(columns.get("hash_ids"), prompt, BLOCK_TOKENS),
            line_of=tables.line_finder(head),
            names={"prompt_tokens": "input_length", "output_tokens": "output_length"},
            citation=_OFFLINE,
        )
