"""From a trace and an arrival process to a schedule; several tenants' traces are laid over each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wattload import arrivals as processes
from wattload import traces
from wattload.arrivals import Arrivals, Demand
from wattload.arrivals.demand import demand_of, parse_rate
from wattload.errors import InputError
from wattload.prompts.random_stream import mixed
from wattload.schedule.options import ScheduleOptions, WorkloadOptions
from wattload.schedule.rows import TraceRows
from wattload.schedule.table import Schedule
from wattload.schedule.tenants import Tenant, superposed
from wattload.traces import ReadOptions, Trace
from wattload.traces.parents import histories, places, tasks
from wattload.traces.spec import parse_spec

# How long a workload that has no end is played where nothing is said.
_ENDLESS_SECONDS = 60.0
# Sets the content of a session's branches apart from other content.
_BRANCH = 4


@dataclass(frozen=True, slots=True)
class Streams:
    """The tenants of a run with their traces, read before anything is asked of the endpoint."""

    tenants: tuple[Tenant, ...]
    traces: tuple[Trace, ...]

    @property
    def first(self) -> Trace:
        """The trace of --trace."""
        return self.traces[0]


def load_streams(workload: WorkloadOptions, reading: ReadOptions | None = None) -> Streams:
    """The tenants of a run, with the traces that they name.

    `reading` is for the first trace; the file of a further tenant is read as it is. Raises InputError.
    """
    spec = parse_spec(workload.trace)
    if workload.tag is not None and spec.tag is not None and workload.tag != spec.tag:
        raise InputError("tag", f"{workload.tag} and `trace` {workload.trace} disagree about the tag")
    own = Tenant(spec.tag or workload.tag or "", spec.source, spec.rate)
    asked = (own, *workload.tenant)
    loaded = [traces.load(own.trace, reading)]
    for tenant in asked[1:]:
        with _naming(tenant):
            loaded.append(traces.load(tenant.trace))
    return Streams(asked, tuple(loaded))


def process_of(streams: Streams, options: ScheduleOptions) -> str:
    """The arrival process of the first stream, as it was written or as its default is called."""
    own = options.model_copy(update={"rate": streams.tenants[0].rate or options.rate})
    return options.saved()["arrivals"] or own.process().text


def target_rate(streams: Streams, options: ScheduleOptions) -> float | None:
    """The rate that was asked for, of all tenants together; None where one has no rate of its own to keep."""
    rates = [
        parse_rate(tenant.rate if tenant.rate is not None else options.rate)[0] for tenant in streams.tenants
    ]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if len(known) == len(rates) else None


def plan(
    streams: Streams,
    options: ScheduleOptions,
    *,
    max_model_len: int | None = None,
    outputs: bool = True,
) -> Schedule:
    """The schedule of all streams. Each tenant has a seed of its own. `outputs`: whether anything is
    generated.

    Raises InputError naming the setting, or the trace's file and line.
    """
    if options.rate is not None and streams.tenants[0].rate is not None:
        raise InputError("rate", "and the rate after @ of `trace` are both given")
    parts = []
    for number, (tenant, trace) in enumerate(zip(streams.tenants, streams.traces, strict=True)):
        with _naming(tenant) if number else nullcontext():
            own = options.model_copy(
                update={
                    "arrivals": processes.parse(tenant.arrivals) if tenant.arrivals else options.arrivals,
                    "rate": tenant.rate if tenant.rate is not None else options.rate,
                    "seed": options.seed + number * 1_000_003,
                }
            )
            part = build(trace, own, max_model_len=max_model_len, tag=tenant.tag or None, outputs=outputs)
        parts.append(part)
    base = parts[0].content_base
    schedule = superposed([replace(part, content_base=base) for part in parts])
    for tag in schedule.tags:
        if not (tag.isascii() and tag.isprintable()):
            raise InputError(
                f"tag {tag!r}: is sent as the header x-energy-group, so it must be printable ASCII"
            )
    return schedule


@contextmanager
def _naming(tenant: Tenant) -> Iterator[None]:
    """Sentences about a tenant's stream begin with its --tenant."""
    try:
        yield
    except InputError as error:
        raise InputError("tenant", f"{tenant.tag}: {error}") from error


def build(
    trace: Trace,
    options: ScheduleOptions | None = None,
    *,
    max_model_len: int | None = None,
    tag: str | None = None,
    outputs: bool = True,
) -> Schedule:
    """What is sent and when: the trace's requests in its order at the times of the arrival process.

    `options` None: the trace's own times. `max_model_len`: the longest prompt plus output that the endpoint
    takes. `tag` names all requests. `outputs` False: the endpoint generates nothing, whatever the trace has
    for output lengths. Raises InputError naming the setting, or the trace's file and line.
    """
    options = options or ScheduleOptions()
    process, seed = options.process(), options.seed
    rows = TraceRows(trace, seed=seed, repeat=options.repeat)
    duration_seconds = options.duration_seconds
    if duration_seconds is None and options.requests is None and rows.limit is None:
        duration_seconds = _ENDLESS_SECONDS
    demand = demand_of(options.rate, duration_seconds, options.requests)
    nominal = process.due_seconds(demand, rows, np.random.default_rng([seed, 0]))
    if not len(nominal):
        raise InputError("duration", f"{duration_seconds or 0:g}: no request is scheduled within it")
    taken = rows.take(len(nominal))
    if not outputs:
        taken = replace(taken, output_tokens=np.zeros_like(taken.output_tokens))
    nominal = nominal[: len(taken)]
    horizon = _horizon(nominal, demand, rows.limit)
    notes = [*trace.notes, *_ended(trace, rows.limit, len(nominal), horizon, demand)]
    kept = _within(taken, max_model_len, options.max_length, notes)
    if kept is not None:
        taken, nominal = taken.take(kept), nominal[kept]
    return _planned(
        taken,
        nominal,
        options,
        tag=tag,
        notes=notes,
        horizon=horizon,
    )


def build_schedule(
    trace: Trace,
    arrivals: Arrivals | str = "trace",
    *,
    max_model_len: int | None = None,
    tag: str | None = None,
    **settings: Any,
) -> Schedule:
    """`build` with the settings of ScheduleOptions by name: `rate=5`, `duration="60s"`, `seed=1`.

    Raises InputError naming the setting, or the trace's file and line.
    """
    options = ScheduleOptions(**{"arrivals": arrivals, **settings})
    return build(trace, options, max_model_len=max_model_len, tag=tag)


def content_base(seed: int) -> int:
    """What all content of a run is made from, below 2^63."""
    return int(mixed(seed & 0x7FFFFFFFFFFFFFFF)[0] >> np.uint64(1))


def _horizon(nominal: npt.NDArray[np.float64], demand: Demand, limit: int | None) -> float:
    """The time the schedule covers: the duration, or the last due time and a mean gap where that comes
    earlier.
    """
    n = len(nominal)
    end = float(nominal[-1]) * n / (n - 1) if n > 1 else float(nominal[-1])
    if not np.isfinite(end):
        return demand.duration_seconds or 0.0
    if demand.duration_seconds is None:
        return end
    whole = n >= min(limit or n + 1, demand.requests or n + 1)
    return min(end, demand.duration_seconds) if whole else demand.duration_seconds


def _ended(trace: Trace, limit: int | None, used: int, horizon: float, demand: Demand) -> list[str]:
    """What to say where the trace ended before the run did."""
    short = demand.duration_seconds is not None and horizon < 0.99 * demand.duration_seconds
    few = demand.requests is not None and used < demand.requests
    if limit is None or used < limit or not (short or few):
        return []
    asked = f"{demand.duration_seconds:g} s" if short else f"{demand.requests} requests"
    return [
        f"{trace.name} ends after {used} requests and {horizon:.1f} s of {asked}; --repeat plays it again"
    ]


def _within(trace: Trace, limit: int | None, policy: str, notes: list[str]) -> npt.NDArray[np.int64] | None:
    """The rows whose prompt and output fit the model's context; None: all of them."""
    if limit is None:
        return None
    total = trace.prompt_tokens.astype(np.int64) + trace.output_tokens
    long = total > limit
    if not long.any():
        return None
    at = int(np.argmax(long))
    where = f", {trace.lines(at)}" if trace.lines else f", request {at + 1}"
    if policy == "error":
        raise InputError(
            f"{trace.name}{where}: {trace.prompt_tokens[at]} prompt and {trace.output_tokens[at]} output "
            f"tokens are more than the model's limit of {limit}; `max_length` drop leaves such requests out "
            f"({int(long.sum())} of {len(trace)} here)"
        )
    if long.all():
        raise InputError(f"{trace.name}: every request is longer than the model's limit of {limit} tokens")
    left_out = f"{int(long.sum())} of {len(trace)} requests"
    notes.append(f"{left_out} are over the model's limit of {limit} tokens and were left out")
    return np.flatnonzero(~long).astype(np.int64)


def _planned(
    trace: Trace,
    nominal: npt.NDArray[np.float64],
    options: ScheduleOptions,
    *,
    tag: str | None,
    notes: list[str],
    horizon: float,
) -> Schedule:
    count, base = len(trace), content_base(options.seed)
    concurrency, prefix_share = options.process().concurrency, options.prefix_share
    turn = places(np.asarray(trace.session))
    if prefix_share and (trace.prefix is not None or trace.texts is not None):
        raise InputError("prefix_share", f": {trace.name} says itself what its prompts share")
    parents = trace.parents
    later = np.zeros(count, bool) if parents is None else parents.waits
    waits = later if options.sessions == "after-answer" else np.zeros(count, bool)
    own_answers = options.history == "server"
    if own_answers:
        _check_history(trace, options)
    # Nobody thinks in a closed loop, but tools take the time that they take.
    waited = waits & trace.tool if concurrency else waits
    if concurrency and later.any():
        notes.append("a closed loop keeps this many sessions going; their users take no time, their tools do")
    return Schedule(
        due_seconds=np.where(waits & (concurrency == 0), np.nan, nominal),
        prompt_tokens=np.array(trace.prompt_tokens, np.int32),
        output_tokens=np.array(trace.output_tokens, np.int32),
        session=np.array(trace.session, np.int64),
        turn=turn,
        think_seconds=np.where(waited, trace.think_seconds, np.nan),
        parents=parents,
        agent=np.array(trace.agent, np.int32),
        task=tasks(parents, trace.tool, np.asarray(trace.session)),
        tag=np.array(trace.tag, np.int16) if tag is None else np.zeros(count, np.int16),
        content_seed=_content_seeds(trace, base),
        tags=trace.tags if tag is None else (tag,),
        prefix_hashes=trace.prefix,
        prefix_block_tokens=0 if trace.prefix is None else trace.prefix.block_tokens,
        nominal_seconds=np.nan_to_num(nominal),
        shared_tokens=_shared(trace, turn, prefix_share) if prefix_share else None,
        texts=trace.texts,
        text_starts=trace.text_starts,
        own_answers=own_answers,
        closed_concurrency=concurrency,
        notes=tuple(notes),
        horizon_seconds=horizon,
        content_base=base,
        images=None if trace.images is None else np.array(trace.images, np.int16),
    )


def _content_seeds(trace: Trace, base: int) -> npt.NDArray[np.uint64]:
    """What each prompt is made from, shape (N,): the turns of a conversation have one.

    Requests without a session draw their content from their place. A session's first conversation draws it
    from the session; one of another agent, and a branch of one, from where it begins.
    """
    count = len(trace)
    own = np.where(trace.session >= 0, trace.session, np.arange(count)).astype(np.uint64)
    seeds = mixed(base, np.where(trace.session >= 0, 1, 0).astype(np.uint64), own)
    before = histories(trace.parents, trace.agent)
    rows = np.flatnonzero(trace.session >= 0)
    follow = before[rows]
    fresh = np.ones(len(rows), bool)
    # The first of the rows that go on from one turn, or that begin a session, goes on in its stream.
    firsts = np.where(follow >= 0, follow, -1 - np.asarray(trace.session)[rows])
    fresh[np.unique(firsts, return_index=True)[1]] = False
    apart = set(rows[fresh].tolist())
    if not apart:
        return seeds
    turn = places(np.asarray(trace.session))
    branches = mixed(base, _BRANCH, own, turn.astype(np.uint64))
    for row in rows.tolist():
        if row in apart:
            seeds[row] = branches[row]
        elif before[row] >= 0:
            seeds[row] = seeds[before[row]]
    return seeds


def _check_history(trace: Trace, options: ScheduleOptions) -> None:
    if options.sessions == "trace-times":
        raise InputError(
            "history", "server needs `sessions` after-answer: a turn needs the response before it"
        )
    if trace.parents is None:
        raise InputError("history", f"server: {trace.name} has no sessions of several turns")


def _shared(trace: Trace, turn: npt.NDArray[np.int32], share: float) -> npt.NDArray[np.int32]:
    """How many tokens a prompt shares with its tag's others; later turns as many as the first, to begin
    with it.
    """
    shared: npt.NDArray[np.int32] = np.floor(trace.prompt_tokens * share).astype(np.int32)
    first = np.flatnonzero((turn == 0) & (trace.session >= 0))
    later = np.flatnonzero(turn > 0)
    if len(later):
        order = first[np.argsort(trace.session[first])]
        found = order[np.searchsorted(trace.session[order], trace.session[later])]
        shared[later] = np.minimum(shared[found], trace.prompt_tokens[later])
    return shared
