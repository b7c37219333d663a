"""BurstGPT (HPMLL/BurstGPT): Timestamp,[Session ID,Elapsed time,]Model,Request tokens,Response tokens,...

The first releases have no session, those from BurstGPT_3 on do, and copies of it leave out what they did not
need; columns are taken by name, so all are read.
"""

from __future__ import annotations

from wattload.traces.options import ReadOptions
from wattload.traces.reading import tables
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace

_TIME, _PROMPT, _OUTPUT = "Timestamp", "Request tokens", "Response tokens"
_SESSION, _ELAPSED, _TAG = "Session ID", "Elapsed time", "Log Type"


class BurstGpt:
    """Its clock ticks once a second. Rows of 0 response tokens are failed requests, says its
    documentation.
    """

    name = "burstgpt"
    header = "Timestamp,[Session ID,Elapsed time,]Model,Request tokens,Response tokens,..."
    required = (_TIME, _PROMPT, _OUTPUT)

    def recognises(self, head: Head) -> bool:
        return head.kind in ("csv", "parquet") and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        wanted = {_TIME: "number", _PROMPT: "whole", _OUTPUT: "whole"}
        optional = {_SESSION: "text", _ELAPSED: "maybe", _TAG: "text"}
        wanted |= {name: kind for name, kind in optional.items() if name in head.columns}
        columns = tables.read(head, wanted)
        return RawTrace(
            seconds=columns[_TIME],
            prompt_tokens=columns[_PROMPT],
            output_tokens=columns[_OUTPUT],
            session=tables.numbered(columns[_SESSION]) if _SESSION in columns else None,
            elapsed=columns.get(_ELAPSED),
            tag=columns.get(_TAG),
            coarse_clock=True,
            drop_empty=True,
            line_of=tables.line_finder(head),
            unit=tables.unit(head),
            names={"seconds": _TIME, "prompt_tokens": _PROMPT, "output_tokens": _OUTPUT},
            licence="CC-BY 4.0",
            citation=(
                "Wang et al., BurstGPT: A Real-World Workload Dataset to Optimize LLM Serving Systems, "
                "KDD 2025"
            ),
        )
