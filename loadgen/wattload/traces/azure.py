"""Azure's LLM inference traces of 2023 and 2024 (Azure/AzurePublicDataset):
TIMESTAMP,ContextTokens,GeneratedTokens.
"""

from __future__ import annotations

from functools import partial

from wattload.traces.csvfile import line_of_row, read_columns, seconds_of, time_kind
from wattload.traces.files import Head
from wattload.traces.raw import RawTrace, ReadOptions

_TIME, _PROMPT, _OUTPUT = "TIMESTAMP", "ContextTokens", "GeneratedTokens"
_SPLITWISE = "Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase Splitting, ISCA 2024"
_DYNAMO = (
    "Stojkovic et al., DynamoLLM: Designing LLM Inference Clusters for Performance and Energy Efficiency, "
    "HPCA 2025"
)


class Azure:
    """Both years have the same columns; the times of 2024 carry a zone."""

    name = "azure"
    required = (_TIME, _PROMPT, _OUTPUT)
    header = ",".join(required)

    def recognises(self, head: Head) -> bool:
        return head.kind == "csv" and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        kind = time_kind(head.first.get(_TIME, ""))
        columns = read_columns(head.path, {_TIME: kind, _PROMPT: "whole", _OUTPUT: "whole"})
        return RawTrace(
            seconds=seconds_of(columns[_TIME]),
            prompt_tokens=columns[_PROMPT],
            output_tokens=columns[_OUTPUT],
            line_of=partial(line_of_row, head.path),
            names={"seconds": _TIME, "prompt_tokens": _PROMPT, "output_tokens": _OUTPUT},
            licence="CC-BY 4.0",
            citation=_SPLITWISE if head.first.get(_TIME, "").startswith("2023") else _DYNAMO,
        )
