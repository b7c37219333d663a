"""Energy per session and per task of an agent: its turns', its share of idle energy, what cache hits saved.

A task is open from the scheduled time of its first turn to the last token of its last; a request of no
session is open by itself. At each moment, what is open shares idle power evenly: so all shares add up to the
idle energy of the time in which anything was open. A task's share while none of its turns was in flight is
apart: what it held while it waited for its tools. Between two tasks, while its user reads and writes, a
session holds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wattload.analysis.distributions import distribution
from wattload.analysis.statistics import LEAST_VALUES, Interval, interval_of, mean_interval
from wattload.rundir.requests import F64, Bool, Requests
from wattload.rundir.result import EnergyInfo, SessionsInfo, UnitInfo
from wattload.rundir.run import RunData
from wattload.rundir.sessions import UNIT_SCHEMA

I64 = npt.NDArray[np.int64]

_NO_IDLE = "the endpoint does not say what of the window's energy was idle"
_NO_OWN = "no complete one that began in the window has final energy of all its turns"
_NO_CACHE = "the endpoint gives no cached tokens, or no prefill energy"
_FEW_COMPLETE = 0.95


@dataclass(slots=True)
class Units:
    """Sessions, or tasks, in order of their beginning; arrays of shape (N,), NaN where a figure is not known.

    `joules`, `prefill_joules` and `decode_joules` are attributed to their turns; `idle_joules` and
    `waiting_joules` are their shares of idle energy, with turns in flight and without.
    """

    session: F64
    task: F64
    agents: F64
    tasks: F64
    turns: F64
    completed: F64
    begin: F64
    end: F64
    inside: Bool
    whole: Bool
    in_flight_seconds: F64
    waiting_seconds: F64
    prompt: F64
    output: F64
    cached: F64
    computed: F64
    joules: F64
    prefill_joules: F64
    decode_joules: F64
    idle_joules: F64
    waiting_joules: F64
    tag: list[str]

    @property
    def total_joules(self) -> F64:
        return self.joules + self.idle_joules + self.waiting_joules

    @property
    def seconds(self) -> F64:
        """From the scheduled time of the first turn to the last token of the last."""
        return self.end - self.begin

    @property
    def complete(self) -> I64:
        """The places of those that began in the window and are complete, in order of their beginning."""
        chosen = self.inside & self.whole
        return np.flatnonzero(chosen)[np.argsort(self.begin[chosen], kind="stable")]


@dataclass(slots=True)
class SessionsResult:
    """The section of run.json, the tables of sessions and tasks, why nulls are null, and notes."""

    info: SessionsInfo
    sessions: pa.Table
    tasks: pa.Table
    absent: dict[str, str]
    notes: list[str]


def sessions_section(data: RunData, energy: EnergyInfo) -> SessionsResult | None:
    """Computes the section `sessions` of run.json; None where no request belongs to a session."""
    requests = data.requests
    if not (requests.session >= 0).any():
        return None
    tasks, sessions = units_of_run(data, energy)
    saving = joules_per_computed_token(requests, data.done)
    info, absent, notes = SessionsInfo(), {}, []
    parts = [("per_session", "sessions", sessions)]
    if (sessions.turns > sessions.tasks).any():
        parts.append(("per_task", "tasks", tasks))
    for name, plural, units in parts:
        unit, missing = _unit(units, saving)
        setattr(info, name, unit)
        absent.update({f"sessions.{name}.{path}": why for path, why in missing.items()})
        if unit.begun and unit.completed < _FEW_COMPLETE * unit.begun:
            notes.append(
                f"{unit.begun - unit.completed:,} of the {unit.begun:,} {plural} that began in the window are"
                " not complete (the run ended, or a turn failed); figures per"
                f" {plural.removesuffix('s')} are of the complete ones, which tend to be the shorter"
            )
    return SessionsResult(info, _table(sessions, saving), _table(tasks, saving), absent, notes)


def units_of_run(data: RunData, energy: EnergyInfo) -> tuple[Units, Units]:
    """The tasks and the sessions of a run, with the mean idle power of its window."""
    length = data.window.end_unix - data.window.start_unix
    idle_watts = energy.idle_joules / length if energy.idle_joules is not None and length > 0 else np.nan
    return units_of(data.requests, idle_watts, data.window.start_unix, data.window.end_unix)


def units_of(requests: Requests, idle_watts: float, start: float, end: float) -> tuple[Units, Units]:
    """The tasks and the sessions of a run; those are inside that began in [start, end)."""
    rows = np.flatnonzero(requests.session >= 0)
    # Runs of earlier versions have no tasks: there each turn is one.
    task = np.where(requests.task >= 0, requests.task, -1.0 - np.arange(len(requests)))
    order = rows[np.lexsort((requests.due[rows], task[rows], requests.session[rows]))]
    session = requests.session[order]
    new_session = np.concatenate([[True], np.diff(session) != 0])
    starts = np.flatnonzero(new_session | np.concatenate([[True], np.diff(task[order]) != 0]))
    tasks = _summed(requests, order, starts, start, end)
    tasks.task = np.where(requests.task[order[starts]] >= 0, task[order[starts]], np.nan)
    _shares(tasks, requests, order, starts, idle_watts)
    sessions = _summed(requests, order, np.flatnonzero(new_session), start, end)
    bounds = np.flatnonzero(np.concatenate([[True], np.diff(tasks.session) != 0]))
    for name in ("in_flight_seconds", "waiting_seconds", "idle_joules", "waiting_joules"):
        setattr(sessions, name, np.add.reduceat(getattr(tasks, name), bounds))
    sessions.begin = np.minimum.reduceat(tasks.begin, bounds)
    sessions.end = np.maximum.reduceat(tasks.end, bounds)
    sessions.tasks = np.diff(np.append(bounds, len(tasks.session))).astype(np.float64)
    return tasks, sessions


def _shares(tasks: Units, requests: Requests, order: I64, starts: I64, idle_watts: float) -> None:
    """Fills in from when to when each task lasted, in flight and waiting, and its shares of idle energy."""
    sent = ~np.isnan(requests.sent)
    # A request was over with its last token; one without any, as far as is known, when it was sent.
    until = np.fmax(np.where(np.isnan(requests.last), requests.sent, requests.last), requests.due)
    owner, left, right = _pieces(requests.due, until, sent, order, starts)
    begin: F64 = np.full(len(starts), np.inf)
    end: F64 = np.full(len(starts), -np.inf)
    np.minimum.at(begin, owner, left)
    np.maximum.at(end, owner, right)
    alone = np.flatnonzero(~(requests.session >= 0) & sent)
    held = _Shares(np.concatenate([begin, requests.due[alone]]), np.concatenate([end, until[alone]]))
    in_flight, running = np.zeros(len(starts)), np.zeros(len(starts))
    np.add.at(in_flight, owner, right - left)
    np.add.at(running, owner, held.until(right) - held.until(left))
    tasks.begin, tasks.end = begin, end
    # Where nothing waited, the differences are what rounding leaves, of either sign.
    tasks.in_flight_seconds = in_flight
    tasks.waiting_seconds = np.maximum(end - begin - in_flight, 0.0)
    tasks.idle_joules = running * idle_watts
    tasks.waiting_joules = np.maximum(held.until(end) - held.until(begin) - running, 0.0) * idle_watts


def _pieces(due: F64, until: F64, sent: Bool, order: I64, starts: I64) -> tuple[I64, F64, F64]:
    """When each task had requests in flight: whose, from when and to when, in pieces that do not overlap."""
    count = np.diff(np.append(starts, len(order)))
    # Most tasks are one request, and a run may have a million.
    single = np.flatnonzero(count == 1)
    rows = order[starts[single]]
    owners, lefts, rights = [single], [due[rows]], [until[rows]]
    for task in np.flatnonzero(count > 1).tolist():
        mine = order[starts[task] : starts[task] + count[task]]
        known = mine[sent[mine]]
        # Of a task that was never begun there is one moment: when it should have.
        left, right = merged(due[known], until[known]) if len(known) else (due[mine[:1]],) * 2
        owners.append(np.full(len(left), task))
        lefts.append(left)
        rights.append(right)
    return np.concatenate(owners), np.concatenate(lefts), np.concatenate(rights)


def merged(left: F64, right: F64) -> tuple[F64, F64]:
    """Intervals [left, right) in order of `left` without their overlaps, as arrays of their edges."""
    reach = np.maximum.accumulate(right)
    new = np.concatenate([[True], left[1:] > reach[:-1]])
    last = np.concatenate([np.flatnonzero(new)[1:] - 1, [len(left) - 1]])
    return left[new], reach[last]


class _Shares:
    """How many seconds one of all that is open has had to itself, each moment shared evenly."""

    def __init__(self, left: F64, right: F64) -> None:
        edges, place = np.unique(np.concatenate([left, right]), return_inverse=True)
        change = np.zeros(len(edges))
        np.add.at(change, place, np.repeat([1.0, -1.0], len(left)))
        count = np.cumsum(change)[:-1]
        parts = np.where(count > 0.5, np.diff(edges) / np.maximum(count, 1.0), 0.0)
        self._edges, self._sums = edges, np.concatenate([[0.0], np.cumsum(parts)])

    def until(self, seconds: F64) -> F64:
        found: F64 = np.interp(seconds, self._edges, self._sums)
        return found


def _summed(requests: Requests, order: I64, starts: I64, start: float, end: float) -> Units:
    """Sums over the turns of each unit, whose rows lie one behind the other in `order` from `starts` on."""

    def total(values: F64) -> F64:
        found: F64 = np.add.reduceat(values[order], starts)
        return found

    sent = ~np.isnan(requests.sent)
    final = requests.settled & ~np.isnan(requests.joules)
    count = np.diff(np.append(starts, len(order))).astype(np.float64)
    done = total(requests.completed.astype(np.float64))
    known = total((sent & ~final).astype(np.float64)) == 0
    begin = np.minimum.reduceat(requests.due[order], starts)
    none = np.full(len(starts), np.nan)
    # Of what was not sent nothing was used; of what was sent every figure must be known.
    own = {
        name: np.where(known, total(np.where(sent, getattr(requests, name), 0.0)), np.nan)
        for name in ("joules", "prefill_joules", "decode_joules")
    }
    return Units(
        session=requests.session[order[starts]],
        task=none,
        agents=_distinct(np.nan_to_num(requests.agent[order]), count),
        tasks=np.ones(len(starts)),
        turns=count,
        completed=done,
        begin=begin,
        end=none,
        inside=(begin >= start) & (begin < end),
        whole=done == count,
        in_flight_seconds=none,
        waiting_seconds=none,
        prompt=total(requests.prompt),
        output=total(requests.output),
        cached=total(requests.cached),
        computed=total(requests.prompt - requests.cached),
        **own,
        idle_joules=none,
        waiting_joules=none,
        tag=[str(tag) for tag in requests.tag[order[starts]]],
    )


def _distinct(values: F64, count: F64) -> F64:
    """How many different values each unit has, of `count` values that lie one behind the other."""
    unit = np.repeat(np.arange(len(count)), count.astype(np.int64))
    pairs = np.unique(np.stack([unit, values]), axis=1)[0].astype(np.int64)
    return np.bincount(pairs, minlength=len(count)).astype(np.float64)


def joules_per_computed_token(requests: Requests, done: Bool) -> float | None:
    """Prefill energy per prompt token that was computed and not cached, over the completed requests of the
    window; None where the endpoint does not tell both.
    """
    known = (
        done & ~np.isnan(requests.prefill_joules) & ~np.isnan(requests.prompt) & ~np.isnan(requests.cached)
    )
    tokens = float((requests.prompt - requests.cached)[known].sum())
    joules = float(requests.prefill_joules[known].sum())
    return joules / tokens if tokens > 0 and joules > 0 else None


def _unit(units: Units, saving: float | None) -> tuple[UnitInfo, dict[str, str]]:
    order = units.complete
    info = UnitInfo(begun=int(units.inside.sum()), completed=len(order))
    absent: dict[str, str] = {}
    if not len(order):
        why = "none that began in the window is complete"
        return info, {name: why for name in UnitInfo.model_fields if name not in ("begun", "completed")}
    info.turns = float(units.turns[order].mean())
    info.agents = float(units.agents[order].mean())
    info.duration_seconds = distribution(units.seconds[order])
    info.waiting_seconds = float(units.waiting_seconds[order].mean())
    own = units.joules[order]
    no_idle = np.isnan(units.idle_joules[order]).any()
    if np.isnan(own).all():
        absent |= dict.fromkeys(("energy_joules", "attributed_joules"), _NO_OWN)
    else:
        _mean(info, "attributed_joules", own)
        info.energy_joules = distribution(units.total_joules[order])
    if no_idle:
        absent |= dict.fromkeys(("energy_joules", "idle_joules", "waiting_idle_joules"), _NO_IDLE)
    else:
        _mean(info, "idle_joules", units.idle_joules[order])
        _mean(info, "waiting_idle_joules", units.waiting_joules[order])
    if saving is None or np.isnan(units.cached[order]).all():
        absent["cache_saved_joules"] = _NO_CACHE
    else:
        _saved(info, units, order, saving)
    return info, absent


def _mean(info: UnitInfo, name: str, values: F64) -> None:
    known = values[~np.isnan(values)]
    setattr(info, name, float(known.mean()))
    interval = mean_interval(known)
    setattr(info, f"{name.removesuffix('_joules')}_ci95", interval.pair if interval is not None else None)


def _saved(info: UnitInfo, units: Units, order: I64, saving: float) -> None:
    """What cache hits saved: cached tokens at the price of those that were computed in this run."""
    known = order[~np.isnan(units.cached[order]) & ~np.isnan(units.prefill_joules[order])]
    cached, prefill, computed = (
        values[known] for values in (units.cached, units.prefill_joules, units.computed)
    )
    if not len(known):
        return
    info.cache_saved_joules = float(cached.mean()) * saving
    if len(known) < LEAST_VALUES or min(cached.sum(), prefill.sum(), computed.sum()) <= 0:
        return
    # The estimate is a product of three means: its logarithm errs by the sum of theirs.
    residuals = cached / cached.mean() + prefill / prefill.mean() - computed / computed.mean() - 1.0
    interval: Interval = interval_of(info.cache_saved_joules, residuals)
    info.cache_saved_ci95 = interval.pair


def _table(units: Units, saving: float | None) -> pa.Table:
    price = np.nan if saving is None else saving
    columns = {
        "session": units.session.astype(np.int64),
        "task": units.task,
        "tag": units.tag,
        "agents": units.agents.astype(np.int32),
        "tasks": units.tasks.astype(np.int32),
        "turns": units.turns.astype(np.int32),
        "completed_turns": units.completed.astype(np.int32),
        "begin_unix": units.begin,
        "end_unix": units.end,
        "in_window": units.inside,
        "in_flight_seconds": units.in_flight_seconds,
        "waiting_seconds": units.waiting_seconds,
        "prompt_tokens": units.prompt,
        "output_tokens": units.output,
        "cached_tokens": units.cached,
        "energy_joules": units.total_joules,
        "attributed_joules": units.joules,
        "prefill_joules": units.prefill_joules,
        "decode_joules": units.decode_joules,
        "idle_joules": units.idle_joules,
        "waiting_idle_joules": units.waiting_joules,
        "cache_saved_joules": units.cached * price,
    }
    made = [pa.array(columns[f.name], from_pandas=True).cast(f.type) for f in UNIT_SCHEMA]
    return pa.Table.from_arrays(made, schema=UNIT_SCHEMA)
