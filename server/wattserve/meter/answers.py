"""What the meter answers: for everything on the node, or for the engines of one server alone."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from wattmeter.faults import Fault
from wattmeter.schema import (
    DeviceEnergy,
    DeviceSeries,
    DeviceStatus,
    IdleState,
    MonitorSnapshot,
    RequestEnergy,
    WindowEnergy,
)
from wattmeter.sensor_gain import SensorGain
from wattserve.http.metrics import MonitorCollector
from wattserve.http.routes import EnergyRoutes
from wattserve.meter.components.components import Components
from wattserve.meter.engines import Engine, Node, Segment
from wattserve.meter.tap import Hole

# Two monitors' coverage meets to within an update of the counter.
COVERED_SECONDS = 0.25
_SHORTEST_SECONDS = 1e-6
# The label `model` of joules that a device used while no engine had it.
NO_ENGINE = "no-engine"


class View:
    """The answers of a node as one EnergyMonitor would give them, about all engines or one server's."""

    def __init__(self, node: Node, server: str | None = None) -> None:
        self.node = node
        self.server = server

    def engines(self) -> list[Engine]:
        return self.node.engines(self.server)

    @property
    def device_ids(self) -> frozenset[str] | None:
        """The devices of the server's engines; None, for all, where none has said hello or all are meant."""
        engines = self.engines()
        if self.server is None or not engines:
            return None
        return frozenset(i for engine in engines for i in engine.segment.device_ids)

    def request_energy(self, request_id: str) -> RequestEnergy | None:
        return self.node.request_energy(request_id, self.server)

    # --- windows --------------------------------------------------------------------------------------------

    def window_energy(self, start_unix: float, end_unix: float) -> WindowEnergy:
        """Energy of [start, end); see `startup_joules` for what of it is neither idle nor attributed."""
        # Without any engine the watch is asked for all that it knows.
        own = {id(engine.segment) for engine in self.engines()} or {id(s) for s in self.node.segments()}
        parts: list[tuple[WindowEnergy, frozenset[str] | None, bool]] = []
        for segment in self.node.segments():
            for low, high, ids in _clipped(segment, start_unix, end_unix):
                whole = id(segment) in own
                wanted = ids if self.device_ids is None or whole else ids & self.device_ids
                if wanted:
                    parts.append((segment.monitor.window_energy(low, high), wanted, whole))
        holes = self.holes(start_unix, end_unix)
        if len(parts) == 1 and parts[0][2] and not holes:
            answer = parts[0][0]
            if (answer.start_unix, answer.end_unix) == (start_unix, end_unix):
                return answer
        startup = self.startup_joules(start_unix, end_unix)
        return _joined(start_unix, end_unix, parts, holes, startup)

    def holes(self, start_unix: float, end_unix: float) -> list[Hole]:
        """The holes in a window, of the devices that this view is about."""
        wanted = self.device_ids
        return [
            hole
            for hole in self.node.counters.holes
            if hole.start_unix < end_unix
            and hole.end_unix > start_unix
            and (wanted is None or hole.device_id in wanted)
        ]

    def startup_joules(self, start_unix: float, end_unix: float) -> float:
        """The joules of the window that engines used to start."""
        total = 0.0
        for engine in self.engines():
            startup = engine.startup
            if startup.end_unix is None or startup.joules is None:
                continue
            low, high = max(start_unix, startup.start_unix), min(end_unix, startup.end_unix)
            if (low, high) == (startup.start_unix, startup.end_unix):
                total += startup.joules
            elif high - low > _SHORTEST_SECONDS:
                total += self._part_of_startup(engine, low, high)
        return total

    def _part_of_startup(self, engine: Engine, low: float, high: float) -> float:
        total = 0.0
        ids = set(engine.segment.device_ids)
        for segment in self.node.segments():
            if segment is engine.segment:
                continue
            for start, end, devices in _clipped(segment, low, high):
                for device in segment.monitor.window_energy(start, end).devices:
                    if device.id in ids & devices and device.joules is not None:
                        total += device.joules
        return total

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        """Each device's counter, joined where another monitor took over; joules go on rising."""
        wanted = self.device_ids
        found: dict[str, DeviceSeries] = {}
        for segment in sorted(self.node.segments(), key=lambda s: s.begin_unix or -math.inf):
            for device in segment.monitor.series(start_unix, end_unix):
                if device.id not in segment.device_ids or not (wanted is None or device.id in wanted):
                    continue
                part = _cut(device, segment)
                before = found.get(device.id)
                found[device.id] = part if before is None else _appended(before, part)
        return list(found.values())

    # --- state ----------------------------------------------------------------------------------------------

    def devices(self) -> tuple[DeviceStatus, ...]:
        return self.snapshot().devices

    def snapshot(self, *, take_settled: bool = False) -> MonitorSnapshot:
        """The state of everything that this view is about, as one."""
        snapshots = [self.node.snapshot(e, take_settled=take_settled) for e in self._current()]
        watched = self.node.watch_snapshot()
        if watched is not None and (self.server is None or not snapshots):
            snapshots.append(watched)
        if not snapshots:
            snapshots = [self.node.snapshot(e, take_settled=take_settled) for e in self.engines()]
        snapshot = _together(snapshots)
        return (
            snapshot if self.server is not None else replace(snapshot, bucket_joules=self.node.all_joules())
        )

    def _current(self) -> list[Engine]:
        """The engines whose monitors still read their devices."""
        return [engine for engine in self.engines() if not engine.segment.stopped]


class NodeRoutes(EnergyRoutes):
    """The energy routes of a view."""

    def __init__(
        self,
        view: View,
        *,
        software: str,
        components: Components | None = None,
        gains: Mapping[str, SensorGain] = MappingProxyType({}),
    ) -> None:
        super().__init__(view, engine=software, model_name="", extra=self._more)
        self.view = view
        self._components = components
        self._gains = {name: gain.as_json() for name, gain in gains.items()}

    def _more(self, start_unix: float, end_unix: float) -> tuple[Iterable[Fault], dict[str, Any]]:
        """Of a window what starting engines used; of the state what engines and holes there are."""
        engines, holes = self.view.engines(), self.view.holes(start_unix, end_unix)
        more: dict[str, Any] = {}
        flags: set[Fault] = set()
        since = time.time() if math.isinf(start_unix) else start_unix
        spread = [e.hello for e in engines if e.hello.hosts > 1 and e.ran_in(since, end_unix)]
        if spread:
            flags.add(Fault.OTHER_HOSTS)
            more["hosts_of_engines"] = {hello.engine: hello.hosts for hello in spread}
        if math.isinf(start_unix):
            more["meter"] = {"pid": os.getpid()}
            more["engines"] = [engine.as_json() for engine in engines]
            more["holes"] = [hole.as_json() for hole in holes]
            more["engines_forgotten"] = self.view.node.forgotten
            if self._components:
                more["components"] = self._components.state()
            if self._gains:
                more["gains"] = self._gains
            return flags, more | self._no_engine(engines)
        if engines:
            more["startup_joules"] = self.view.startup_joules(start_unix, end_unix)
        if self._components:
            more["components"], waiting = self._components.window(start_unix, end_unix)
            more |= {"complete": False} if waiting else {}
        flags |= {Fault.METER_RESTARTED} if holes else set()
        return flags, more | self._no_engine(engines)

    def _no_engine(self, engines: list[Engine]) -> dict[str, Any]:
        """Why the requests of a server that asks are not metered, where none of its engines is."""
        server = self.view.server
        return {} if engines or server is None else {"reason": self.view.node.no_engine_reason(server)}

    def unknown(self, request_id: str) -> str:
        """Also says where the request may have been of an engine that is not known any more."""
        number = self.view.node.forgotten
        engines = "1 engine that ended is" if number == 1 else f"{number} engines that ended are"
        return super().unknown(request_id) + (f"; {engines} forgotten, with their requests" if number else "")

    def state(self) -> dict[str, Any]:
        engines = self.view.engines()
        if engines:
            newest = engines[-1].hello
            self.engine, self.model_name = newest.software or self.engine, newest.model
            self.max_model_len = newest.max_model_len
        content = super().state()
        if engines and "bucket_joules" in content:
            content["bucket_joules"]["startup"] = sum(e.startup.joules or 0.0 for e in engines)
        return content


class _EngineState:
    """One engine as the collector sees it."""

    def __init__(self, node: Node, engine: Engine) -> None:
        self._node = node
        self._engine = engine

    def snapshot(self, *, take_settled: bool = False) -> MonitorSnapshot:
        snapshot = self._node.snapshot(self._engine, take_settled=take_settled)
        if self._engine.segment.stopped:
            # Another monitor reads its devices now; what it attributed stays.
            snapshot = replace(snapshot, devices=())
        several = len(self._node.engines(self._engine.hello.server)) > 1
        if several:
            # A request that ran on another engine cost nothing on this one.
            settled = [r for r in snapshot.settled_requests if not (r.aborted and r.joules == 0.0)]
            snapshot = replace(snapshot, settled_requests=tuple(settled))
        return snapshot


class _WatchState:
    """The devices that no engine uses, as the collector sees them, and the joules of all while none did."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def snapshot(self, *, take_settled: bool = False) -> MonitorSnapshot:
        snapshot = self._node.watch_snapshot() or _together([])
        return replace(snapshot, model_name=NO_ENGINE, bucket_joules=self._node.unused_joules())


class NodeCollector(Collector):
    """The metrics of all engines and devices of a node, or of one server's, as one exposition."""

    def __init__(self, node: Node, *, info: dict[str, str], registry: CollectorRegistry) -> None:
        self._node = node
        self._info = info
        self._engines: dict[str, MonitorCollector] = {}
        self._watch = MonitorCollector(_WatchState(node), info=info, registry=CollectorRegistry())
        self.selftest: dict[str, Any] | None = None
        # What counted on engines that are forgotten, of each server that still has one, and of all.
        self._lock = threading.Lock()
        self._forgotten: list[Metric] = []
        self._forgotten_of: dict[str, list[Metric]] = {}
        node.departing = self._depart
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        return self.of(None)

    def of(self, server: str | None) -> Iterator[Metric]:
        """The metrics of one server's engines; of everything where None."""
        with self._lock:
            families = list(self._families(server))
        yield from families

    def _families(self, server: str | None) -> Iterator[Metric]:
        engines = self._node.engines(server)
        collectors = [self._collector(engine) for engine in engines]
        if server is None or not engines:
            collectors.append(self._watch)
        if collectors:
            collectors[0].selftest = self.selftest
        families = [family for collector in collectors for family in collector.collect()]
        if engines:
            families += self._about_engines(engines)
        lost = dict(self._node.lost_messages)
        families.append(_lost_messages(sum(lost.values()) if server is None else lost.get(server, 0)))
        forgotten = self._forgotten if server is None else self._forgotten_of.get(server, [])
        yield from _merged([*families, *forgotten])

    def _depart(self, engine: Engine) -> None:
        """Keep what counted on an engine, so that no counter falls, and have it forgotten."""
        with self._lock:
            families = [*self._collector(engine).collect(), *self._about_engines([engine])]
            counted = [family for family in families if family.type in ("counter", "histogram")]
            server = engine.hello.server
            self._forgotten = list(_merged([*self._forgotten, *counted]))
            self._forgotten_of[server] = list(_merged([*self._forgotten_of.get(server, []), *counted]))
            self._node.forget(engine)
            del self._engines[engine.hello.engine]
            for name in [name for name in self._forgotten_of if not self._node.engines(name)]:
                del self._forgotten_of[name]

    def _collector(self, engine: Engine) -> MonitorCollector:
        collector = self._engines.get(engine.hello.engine)
        if collector is None:
            info = {**self._info, "engine": engine.hello.software, "model": engine.hello.model}
            collector = MonitorCollector(
                _EngineState(self._node, engine), info=info, registry=CollectorRegistry()
            )
            self._engines[engine.hello.engine] = collector
        collector.selftest = None
        return collector

    def _about_engines(self, engines: list[Engine]) -> Iterator[Metric]:
        startup = CounterMetricFamily(
            "wattserve_startup_joules",
            f"Joules that engines used to start; they are in the bucket unattributed of {NO_ENGINE}, too.",
            labels=["model"],
        )
        steps = CounterMetricFamily(
            "wattserve_engine_steps", "Steps whose records have arrived.", labels=["model", "rank"]
        )
        lost = CounterMetricFamily(
            "wattserve_lost_step_records", "Steps whose records never arrived.", labels=["model", "rank"]
        )
        hosts = GaugeMetricFamily(
            "wattserve_engine_hosts",
            "Hosts with GPUs of the engine; where more than one, joules here are of this host's part alone.",
            labels=["model", "rank"],
        )
        totals: dict[tuple[str, str], list[float]] = {}
        starts: dict[str, float] = {}
        most: dict[tuple[str, str], int] = {}
        for engine in engines:
            key = (engine.hello.model, str(engine.hello.rank))
            row = totals.setdefault(key, [0.0, 0.0])
            row[0] += engine.steps
            row[1] += engine.lost_steps
            most[key] = max(most.get(key, 1), engine.hello.hosts if engine.alive else 1)
            starts[engine.hello.model] = starts.get(engine.hello.model, 0.0) + (engine.startup.joules or 0.0)
        for model, joules in starts.items():
            startup.add_metric((model,), joules)
        for key, (taken, missing) in totals.items():
            steps.add_metric(key, taken)
            lost.add_metric(key, missing)
            hosts.add_metric(key, most[key])
        yield from (startup, steps, lost, hosts)


def _lost_messages(number: int) -> Metric:
    return CounterMetricFamily(
        "wattserve_lost_request_messages",
        "Messages about requests that API processes could not send, because the meter did not take them.",
        value=number,
    )


def _merged(families: Iterable[Metric]) -> Iterator[Metric]:
    """Families of one name become one: counters and histograms add up, of gauges the first stays."""
    by_name: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], Any]] = {}
    for family in families:
        known = by_name.setdefault(family.name, family)
        samples = values.setdefault(family.name, {})
        adds = family.type in ("counter", "histogram")
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if key in samples:
                if adds:
                    samples[key] = samples[key]._replace(value=samples[key].value + sample.value)
            else:
                samples[key] = sample
        by_name[family.name] = known
    for name, family in by_name.items():
        if values[name]:
            joined = Metric(family.name, family.documentation, family.type, family.unit)
            joined.samples = list(values[name].values())
            yield joined


def _clipped(segment: Segment, start: float, end: float) -> list[tuple[float, float, frozenset[str]]]:
    """(low, high, devices) for which the segment answers about a window: one for each of its ends."""
    low = start if segment.begin_unix is None else max(start, segment.begin_unix)
    ends: dict[float, set[str]] = {}
    for device_id in segment.device_ids:
        ends.setdefault(min(end, segment.until_unix.get(device_id, end)), set()).add(device_id)
    return [(low, high, frozenset(ids)) for high, ids in ends.items() if high - low > _SHORTEST_SECONDS]


def _joined(
    start: float,
    end: float,
    parts: list[tuple[WindowEnergy, frozenset[str] | None, bool]],
    holes: list[Hole],
    startup: float,
) -> WindowEnergy:
    """One window out of those of several monitors. What is not an engine's own has devices alone; its joules
    are nobody's but for `startup`, which is neither idle nor unattributed."""
    devices: dict[str, DeviceEnergy] = {}
    flags: set[str] = set()
    idle: float | None = 0.0
    prefill = decode = 0.0
    complete = True
    groups: dict[str, float] = {}
    for answer, ids, whole in parts:
        for device in answer.devices:
            if ids is None or device.id in ids:
                devices[device.id] = _added(devices.get(device.id), device)
        if not whole:
            continue
        complete = complete and answer.complete
        flags |= answer.flags - {Fault.PARTIAL_COVERAGE}
        prefill += answer.prefill_joules or 0.0
        decode += answer.decode_joules or 0.0
        idle = None if idle is None or answer.idle_joules is None else idle + answer.idle_joules
        for name, joules in answer.groups.items():
            groups[name] = groups.get(name, 0.0) + joules
    for hole in holes:
        known = devices.get(hole.device_id)
        known_joules = hole.part(start, end)
        flags.add(Fault.METER_RESTARTED)
        if known is not None and known_joules is not None:
            seconds = min(end, hole.end_unix) - max(start, hole.start_unix)
            devices[hole.device_id] = replace(
                known,
                joules=(known.joules or 0.0) + known_joules,
                uncertainty_joules=known.uncertainty_joules or 0.0,
                covered_seconds=known.covered_seconds + seconds,
                flags=known.flags | {Fault.METER_RESTARTED},
            )
    total: float | None = 0.0
    variance = 0.0
    for key, device in devices.items():
        missing = end - start - device.covered_seconds > COVERED_SECONDS
        kept = device.flags - {Fault.PARTIAL_COVERAGE} | ({Fault.PARTIAL_COVERAGE} if missing else set())
        devices[key] = replace(device, flags=frozenset(kept))
        flags |= kept
        if device.joules is None:
            total = None
        elif total is not None:
            total += device.joules
            variance += (device.uncertainty_joules or 0.0) ** 2
    complete = complete and bool(devices) and Fault.PARTIAL_COVERAGE not in flags
    if total is None or not devices:
        none = None
        return WindowEnergy(
            start, end, False, none, none, none, none, none, none, tuple(devices.values()), {},
            frozenset(flags),
        )  # fmt: skip
    rest = total - prefill - decode - (idle or 0.0) - startup
    return WindowEnergy(
        start,
        end,
        complete,
        total,
        variance**0.5,
        idle,
        prefill,
        decode,
        rest,
        tuple(devices.values()),
        groups,
        frozenset(flags),
    )


def _added(known: DeviceEnergy | None, device: DeviceEnergy) -> DeviceEnergy:
    """One device's energy over two windows that follow one another."""
    if known is None:
        return device
    if device.joules is None or known.joules is None:
        some = known if device.joules is None else device
        return replace(some, flags=known.flags | device.flags)
    deviation = ((known.uncertainty_joules or 0.0) ** 2 + (device.uncertainty_joules or 0.0) ** 2) ** 0.5
    return replace(
        device,
        joules=known.joules + device.joules,
        uncertainty_joules=deviation,
        covered_seconds=known.covered_seconds + device.covered_seconds,
        flags=known.flags | device.flags,
    )


def _cut(device: DeviceSeries, segment: Segment) -> DeviceSeries:
    """The part of a series for which its monitor answers."""
    low = segment.begin_unix if segment.begin_unix is not None else -math.inf
    high = segment.until_unix.get(device.id, math.inf)
    kept = (device.unix_seconds >= low) & (device.unix_seconds < high)
    return replace(
        device,
        unix_seconds=device.unix_seconds[kept],
        joules=device.joules[kept],
        watts=device.watts[kept],
    )


def _appended(before: DeviceSeries, after: DeviceSeries) -> DeviceSeries:
    """Two series of one device, the second one's joules counted on from the first's."""
    if not len(before.unix_seconds) or not len(after.unix_seconds):
        return after if not len(before.unix_seconds) else before
    seconds = float(after.unix_seconds[0] - before.unix_seconds[-1])
    watts = after.watts[1] if len(after.watts) > 1 else before.watts[-1]
    between = 0.0 if np.isnan(watts) else float(watts) * max(seconds, 0.0)
    offset = float(before.joules[-1]) + between - float(after.joules[0])
    return replace(
        after,
        unix_seconds=np.concatenate([before.unix_seconds, after.unix_seconds]),
        joules=np.concatenate([before.joules, after.joules + offset]),
        watts=np.concatenate([before.watts, after.watts]),
    )


def _together(snapshots: list[MonitorSnapshot]) -> MonitorSnapshot:
    """Several monitors' states as one; the step model is that of the first."""
    if len(snapshots) == 1:
        return snapshots[0]
    if not snapshots:
        empty = dict.fromkeys(("prefill", "decode", "idle", "unattributed"), 0.0)
        unknown = IdleState(None, None, None)
        return MonitorSnapshot(time.time(), "", "", (), empty, 0.0, None, unknown, (), 0, 0.0, None)
    first = snapshots[0]
    buckets: dict[str, float] = {}
    faults: dict[str, int] = {}
    for snapshot in snapshots:
        for name, joules in snapshot.bucket_joules.items():
            buckets[name] = buckets.get(name, 0.0) + joules
        for name, count in snapshot.faults.items():
            faults[name] = faults.get(name, 0) + count
    watts = [s.idle.watts for s in snapshots]
    known = None if None in watts else sum(w for w in watts if w is not None)
    frontiers = [s.settled_unix for s in snapshots if s.settled_unix is not None]
    return replace(
        first,
        devices=tuple(device for s in snapshots for device in s.devices),
        bucket_joules=buckets,
        settled_joules=sum(s.settled_joules for s in snapshots),
        settled_unix=min(frontiers, default=None),
        idle=replace(first.idle, watts=known, how=first.idle.how if known is not None else None),
        settled_requests=tuple(r for s in snapshots for r in s.settled_requests),
        active_requests=sum(s.active_requests for s in snapshots),
        conservation_error_ratio=max(s.conservation_error_ratio for s in snapshots),
        faults=faults,
        flags=frozenset().union(*(s.flags for s in snapshots)),
    )
