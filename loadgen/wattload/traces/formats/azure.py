"""Azure's inference traces of 2023, 2024 and 2025 (Azure/AzurePublicDataset):
TIMESTAMP,[NumImages,]ContextTokens,GeneratedTokens.
"""

from __future__ import annotations

from functools import partial

from wattload.traces.options import ReadOptions
from wattload.traces.reading.csv import line_of_row, read_columns, seconds_of, time_kind
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace

_TIME, _PROMPT, _OUTPUT, _IMAGES = "TIMESTAMP", "ContextTokens", "GeneratedTokens", "NumImages"
_SPLITWISE = "Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase Splitting, ISCA 2024"
_DYNAMO = (
    "Stojkovic et al., DynamoLLM: Designing LLM Inference Clusters for Performance and Energy Efficiency, "
    "HPCA 2025"
)


_MODSERVE = (
    "Qiu et al., ModServe: Modality- and Stage-Aware Resource Disaggregation for Scalable Multimodal Model "
    "Serving, SoCC 2025"
)


class Azure:
    """All years have the same columns, 2025 the number of images too; the times of 2024 carry a zone."""

    name = "azure"
    required = (_TIME, _PROMPT, _OUTPUT)
    header = ",".join(required)

    def recognises(self, head: Head) -> bool:
        return head.kind == "csv" and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        kind = time_kind(head.first.get(_TIME, ""))
        images = {_IMAGES: "whole"} if head.has(_IMAGES) else {}
        columns = read_columns(head.path, {_TIME: kind, _PROMPT: "whole", _OUTPUT: "whole"} | images)
        return RawTrace(
            seconds=seconds_of(columns[_TIME]),
            prompt_tokens=columns[_PROMPT],
            output_tokens=columns[_OUTPUT],
            line_of=partial(line_of_row, head.path),
            images=columns.get(_IMAGES),
            names={"seconds": _TIME, "prompt_tokens": _PROMPT, "output_tokens": _OUTPUT, "images": _IMAGES},
            licence="CC-BY 4.0",
            citation=_citation(head),
        )


def _citation(head: Head) -> str:
    if head.has(_IMAGES):
        return _MODSERVE
    return _SPLITWISE if head.first.get(_TIME, "").startswith("2023") else _DYNAMO
