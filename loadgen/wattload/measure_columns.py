"""The requests of a run as NumPy columns, and their latencies.

Times count from the moment a request was due.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wattload.rundir import RunDir

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_NEEDED = (
    "index",
    "tag",
    "due_unix",
    "sent_unix",
    "first_token_unix",
    "last_token_unix",
    "outcome",
    "prompt_tokens_planned",
    "output_tokens_planned",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "energy_joules",
    "prefill_joules",
    "decode_joules",
    "energy_status",
)


@dataclass(frozen=True, slots=True)
class Requests:
    """N planned requests in order of due time; arrays of shape (N,), NaN where something did not happen."""

    index: npt.NDArray[np.int64]
    due: F64
    sent: F64
    first: F64
    last: F64
    outcomes: dict[str, int]
    completed: Bool
    prompt_planned: F64
    output_planned: F64
    prompt: F64
    output: F64
    cached: F64
    joules: F64
    prefill_joules: F64
    decode_joules: F64
    settled: Bool
    tag: npt.NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.due)

    @property
    def ttft(self) -> F64:
        return self.first - self.due

    @property
    def e2e(self) -> F64:
        return self.last - self.due

    @property
    def tpot(self) -> F64:
        """Seconds a token after the first; NaN for answers of one token, which have no such time."""
        gaps = np.where(self.output > 1, self.output - 1, np.nan)
        return (self.last - self.first) / gaps

    def within(self, start_unix: float, end_unix: float) -> Bool:
        """Which requests were due in [start, end)."""
        return (self.due >= start_unix) & (self.due < end_unix)


def read_requests(run: RunDir) -> Requests:
    """Reads requests.parquet. Raises BadInput where it is missing, cut short, or lacks columns."""
    return requests_from(run.read_requests(_NEEDED))


def requests_from(table: pa.Table) -> Requests:
    """The columns of a table that has those of requests.parquet."""
    order = np.argsort(_floats(table, "due_unix"), kind="stable")
    outcome = table.column("outcome").combine_chunks().dictionary_encode()
    names, codes = outcome.dictionary.to_pylist(), outcome.indices.to_numpy(zero_copy_only=False)[order]
    counts = np.bincount(codes, minlength=len(names))
    status = table.column("energy_status").combine_chunks()
    return Requests(
        index=table.column("index").to_numpy()[order],
        due=_floats(table, "due_unix")[order],
        sent=_floats(table, "sent_unix")[order],
        first=_floats(table, "first_token_unix")[order],
        last=_floats(table, "last_token_unix")[order],
        outcomes={name: int(count) for name, count in zip(names, counts, strict=True) if count},
        completed=codes == (names.index("completed") if "completed" in names else -1),
        prompt_planned=_floats(table, "prompt_tokens_planned")[order],
        output_planned=_floats(table, "output_tokens_planned")[order],
        prompt=_floats(table, "prompt_tokens")[order],
        output=_floats(table, "output_tokens")[order],
        cached=_floats(table, "cached_tokens")[order],
        joules=_floats(table, "energy_joules")[order],
        prefill_joules=_floats(table, "prefill_joules")[order],
        decode_joules=_floats(table, "decode_joules")[order],
        settled=_equals(status, "settled")[order],
        tag=_tags(table)[order],
    )


def _floats(table: pa.Table, name: str) -> F64:
    column = table.column(name).cast(pa.float64()).combine_chunks()
    result: F64 = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    return result


def _equals(column: pa.Array, value: str) -> Bool:
    encoded = column.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if value not in names:
        return np.zeros(len(column), np.bool_)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    result: Bool = codes == names.index(value)
    return result


def _tags(table: pa.Table) -> npt.NDArray[np.object_]:
    encoded = table.column("tag").combine_chunks().dictionary_encode()
    names = np.array([*encoded.dictionary.to_pylist(), ""], object)
    codes = encoded.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False)
    result: npt.NDArray[np.object_] = names[codes]
    return result


class GapHistogram:
    """Inter-token gaps of a run of any size: quantiles to 0.1 %, mean and maximum exact, in a megabyte.

    The bins are the leading bits of a float32: its exponent and ten bits of its mantissa, so a bin is 2^-10
    of its value wide. A negative gap (a clock that stepped) counts as `negative` and nowhere else.
    """

    _SHIFT = 13

    def __init__(self) -> None:
        self.counts = np.zeros(1 << (31 - self._SHIFT), np.int64)
        self.total = 0.0
        self.maximum = 0.0
        self.negative = 0

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def add(self, gaps: npt.NDArray[np.float32]) -> None:
        good = gaps[gaps >= 0]
        self.negative += len(gaps) - len(good)
        if not len(good):
            return
        bits = (good.view(np.uint32) >> self._SHIFT).astype(np.int64)
        counts = np.bincount(bits)
        self.counts[: len(counts)] += counts
        self.total += float(good.sum(dtype=np.float64))
        self.maximum = max(self.maximum, float(good.max()))

    def edges(self) -> F64:
        """Lower edge of every bin, seconds, shape (len(counts),)."""
        # Bit patterns beyond the largest finite float are no numbers; no gap can fall there.
        bits = np.minimum(np.arange(len(self.counts), dtype=np.uint32) << self._SHIFT, 0x7F7FFFFF)
        edges: F64 = bits.view(np.float32).astype(np.float64)
        return edges

    def quantile(self, q: float) -> float:
        cumulative = np.cumsum(self.counts)
        place = int(np.searchsorted(cumulative, q * cumulative[-1], side="left"))
        edges = self.edges()
        return float((edges[place] + edges[place + 1]) / 2)


def gap_histogram(run: RunDir, chosen: Iterable[int] | npt.NDArray[np.int64]) -> GapHistogram:
    """The gaps of the requests whose `index` is in `chosen`, read a row group at a time."""
    wanted = np.sort(np.asarray(chosen, np.int64))
    histogram = GapHistogram()
    for table in run.itl_batches(["index"]):
        index = table.column("index").to_numpy()
        place = np.searchsorted(wanted, index)
        inside = place < len(wanted)
        inside[inside] = wanted[place[inside]] == index[inside]
        gaps = table.column("itl_seconds").combine_chunks()
        if hasattr(gaps, "chunks"):
            gaps = gaps.chunk(0) if gaps.num_chunks else pa.array([], gaps.type)
        lengths = np.diff(gaps.offsets.to_numpy())
        values = gaps.flatten().to_numpy(zero_copy_only=False)
        histogram.add(values if inside.all() else values[np.repeat(inside, lengths)])
    return histogram
