"""The requests of a run as NumPy columns, and their latencies, which count from the scheduled time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, get_type_hints

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wattload.client.record import LEAST_SECONDS_PER_TOKEN, Outcome
from wattload.rundir.directory import RunDir
from wattmeter.schema import LEAST_REQUEST_JOULES, MOST_REQUEST_JOULES

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Requests:
    """N planned requests in order of due time; arrays of shape (N,), NaN where something did not happen.

    An annotation names the column of requests.parquet that an array is read from.
    """

    index: npt.NDArray[np.int64]
    due: Annotated[F64, "due_unix"]
    sent: Annotated[F64, "sent_unix"]
    first: Annotated[F64, "first_token_unix"]
    last: Annotated[F64, "last_token_unix"]
    outcomes: dict[str, int]
    completed: Bool
    aborted: Bool
    prompt_planned: Annotated[F64, "prompt_tokens_planned"]
    output_planned: Annotated[F64, "output_tokens_planned"]
    prompt: Annotated[F64, "prompt_tokens"]
    output: Annotated[F64, "output_tokens"]
    cached: Annotated[F64, "cached_tokens"]
    chunks: Annotated[F64, "chunks"]
    reasoning: Annotated[F64, "reasoning_tokens"]
    reasoning_chunks: Annotated[F64, "reasoning_chunks"]
    answer: Annotated[F64, "first_answer_unix"]
    tool_calls: Annotated[F64, "tool_calls"]
    replica: Annotated[F64, "replica"]
    session: Annotated[F64, "session"]
    agent: Annotated[F64, "agent"]
    task: Annotated[F64, "task"]
    image: Annotated[F64, "image_tokens"]
    images_planned: Annotated[F64, "images_planned"]
    images: Annotated[F64, "images"]
    joules: Annotated[F64, "energy_joules"]
    prefill_joules: Annotated[F64, "prefill_joules"]
    decode_joules: Annotated[F64, "decode_joules"]
    settled: Bool
    tag: npt.NDArray[np.object_]
    model: npt.NDArray[np.object_]
    # What was passed over in responses because it was not understood, and in how many of them.
    unread: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.due)

    @property
    def ttft(self) -> F64:
        return self.first - self.due

    @property
    def ttfa(self) -> F64:
        """Seconds to the first token of the answer; NaN for responses that did not reason before it."""
        return self.answer - self.due

    @property
    def reasoning_estimated(self) -> F64:
        """Output tokens of reasoning: counted, or else shared out by chunks; NaN: not known."""
        by_chunks = self.output * np.nan_to_num(self.reasoning_chunks) / np.maximum(self.chunks, 1)
        return np.where(np.isnan(self.reasoning), by_chunks, self.reasoning)

    @property
    def e2e(self) -> F64:
        return self.last - self.due

    @property
    def tpot(self) -> F64:
        """Seconds per token after the first; NaN for one token, and where tokens came together."""
        return np.where(self.together, np.nan, self._seconds_per_token)

    @property
    def together(self) -> Bool:
        """Which responses came faster than any server generates: something held their tokens back."""
        return self._seconds_per_token < LEAST_SECONDS_PER_TOKEN

    @property
    def _seconds_per_token(self) -> F64:
        return (self.last - self.first) / np.where(self.output > 1, self.output - 1, np.nan)

    def within(self, start_unix: float, end_unix: float) -> Bool:
        """Which requests were due in [start, end)."""
        return (self.due >= start_unix) & (self.due < end_unix)


_FLOATS: dict[str, str] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Requests, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
_NEEDED = ("index", "outcome", "energy_status", "tag", "model", "unread", *_FLOATS.values())


def read_requests(run: RunDir) -> Requests:
    """Reads requests.parquet. Raises InputError where it is missing, cut short, or lacks columns."""
    return requests_from(run.read_requests(_NEEDED))


def requests_from(table: pa.Table) -> Requests:
    """The requests of a table that has the columns of requests.parquet."""
    order = np.argsort(_floats(table, "due_unix"), kind="stable")
    outcomes = table.column("outcome").combine_chunks().fill_null("unknown")
    status = table.column("energy_status").combine_chunks()
    return Requests(
        index=table.column("index").to_numpy()[order],
        outcomes=_counted(outcomes),
        unread=_counted(table.column("unread").combine_chunks().drop_null()),
        completed=_equals(outcomes, Outcome.COMPLETED)[order],
        aborted=_equals(outcomes, Outcome.ABORTED)[order],
        settled=_equals(status, "settled")[order],
        tag=_words(table, "tag")[order],
        model=_words(table, "model")[order],
        **{name: _floats(table, column)[order] for name, column in _FLOATS.items()},
    )


def _counted(column: pa.Array) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


def _floats(table: pa.Table, name: str) -> F64:
    column = table.column(name).cast(pa.float64()).combine_chunks()
    result: F64 = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    if name.endswith("_joules"):
        possible = (result >= LEAST_REQUEST_JOULES) & (result <= MOST_REQUEST_JOULES)
        result = np.where(possible, result, np.nan)
    return result


def _equals(column: pa.Array, value: str) -> Bool:
    encoded = column.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if value not in names:
        return np.zeros(len(column), np.bool_)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    result: Bool = codes == names.index(value)
    return result


def _words(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    """A column of few different words, empty where there is none."""
    encoded = table.column(name).combine_chunks().dictionary_encode()
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

    def share_below(self, seconds: float) -> float:
        """Share of the gaps in the bins that end at `seconds` or before."""
        below = int(np.searchsorted(self.edges(), seconds, side="right")) - 1
        return float(self.counts[:below].sum() / max(1, self.n))

    def quantile(self, q: float) -> float:
        cumulative = np.cumsum(self.counts)
        place = int(np.searchsorted(cumulative, q * cumulative[-1], side="left"))
        edges = self.edges()
        return float((edges[place] + edges[place + 1]) / 2)


def gaps_of(run: RunDir, chosen: npt.NDArray[np.int64]) -> dict[int, F64]:
    """The gaps between the chunks of the requests whose `index` is in `chosen`, by index."""
    found: dict[int, F64] = {}
    if not len(chosen):
        return found
    for table in run.itl_batches(["index"], holding=chosen):
        rows = np.flatnonzero(np.isin(table.column("index").to_numpy(), chosen))
        taken = table.take(pa.array(rows))
        for index, gaps in zip(taken.column("index").to_pylist(), taken.column("itl_seconds"), strict=True):
            found[index] = np.asarray(gaps.values.to_numpy(zero_copy_only=False), np.float64)
    return found


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
