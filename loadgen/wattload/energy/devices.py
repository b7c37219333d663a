"""Which devices of an exporter or a Prometheus are counted: their names, the user's selection, and proof.

An exporter has every GPU of its node and a Prometheus those of a cluster, most of them somebody else's. A run
counts the devices that the user selected, those that the endpoint names itself, or the only one that there
is; else it is refused before any load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wattload.errors import InputError
from wattmeter.faults import Fault

# A Prometheus that keeps its own labels renames the exporter's: those are the workload's, and come first.
_LABELS: dict[str, tuple[str, ...]] = {
    "gpu": ("gpu", "device"),
    "uuid": ("UUID", "uuid", "device"),
    "pod": ("exported_pod", "pod"),
    "namespace": ("exported_namespace", "namespace"),
    "instance": ("instance", "Hostname", "hostname"),
}
KEYS = tuple(_LABELS)
_HOSTS = ("Hostname", "hostname", "instance", "node", "kubernetes_node")
_NAMES = ("UUID", "uuid", "device", "gpu", "instance")
_MIG_KEYS = ("mig", "gpu_i_id", "gpu_i_profile")
MIG_REASON = "each MIG instance shows the energy of the whole GPU, and that of an instance is not known"
# The beginning of a UUID must leave no doubt.
_SHORTEST_UUID = 8
_LISTED = 16
# More than any board, module or node of eight boards draws. Millijoules taken for joules are above it even
# where the device idles.
MOST_WATTS = 20_000.0
# More than one GPU draws, and less than the least that a metered device does while it serves: a counter of
# another unit is beyond one of them, or unlike its power gauge.
MOST_GPU_WATTS = 4_000.0
LEAST_WATTS = 1.0


def most_watts(device_id: str) -> float:
    """The most that a device can draw, by its id: a UUID names one GPU."""
    return MOST_GPU_WATTS if device_id.rpartition("/")[2].startswith("GPU-") else MOST_WATTS


@dataclass(frozen=True, slots=True)
class MeteredDevice:
    """One device of a source. `labels` are those of its counter; `fault` says why it has no counter.

    `pods` are the workloads that the exporter names for it: more than one where they share it.
    """

    id: str
    name: str
    source: str
    labels: Mapping[str, str]
    fault: Fault | None = None
    pods: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = [self.name] if self.name != self.id else []
        host = host_of(self.labels)
        shown += [f"gpu {self.labels['gpu']}"] if self.labels.get("gpu", self.id) != self.id else []
        shown += [f"host {host}"] if host and not self.id.startswith(host) else []
        shown += [f"pod {pod}" for pod in self.pods]
        return self.id + (f" ({', '.join(shown)})" if shown else "")

    def as_json(self) -> dict[str, Any]:
        """An entry of `devices`, as `/energy` lists them."""
        entry: dict[str, Any] = {"id": self.id, "name": self.name, "source": self.source}
        return entry | ({"flags": [self.fault.value]} if self.fault is not None else {})


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user selected, by key: a device must have one of the values of each. Empty: everything."""

    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __str__(self) -> str:
        return "&".join(f"{key}={','.join(values)}" for key, values in self.values.items())

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(any(_is(key, wanted, labels) for wanted in values) for key, values in self.values.items())


def parse_selection(pairs: Iterable[tuple[str, str]]) -> tuple[Selection, list[tuple[str, str]]]:
    """The selection among the parameters of an address, and the parameters that are not part of it.

    Raises InputError for MIG, whose energy is not known, and for a key without a value.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    rest: list[tuple[str, str]] = []
    for name, value in pairs:
        key = name.lower()
        if key in _MIG_KEYS or (key == "uuid" and value.upper().startswith("MIG-")):
            raise InputError("energy", f": {name}={value} selects a MIG instance: {MIG_REASON}")
        if key not in _LABELS:
            rest.append((name, value))
            continue
        values = tuple(part.strip() for part in value.split(",") if part.strip())
        if not values:
            raise InputError("energy", f": {name}= selects nothing; write {key}=VALUE")
        chosen[key] = chosen.get(key, ()) + values
    return Selection(chosen), rest


def _is(key: str, wanted: str, labels: Mapping[str, str]) -> bool:
    value = next((labels[name] for name in _LABELS[key] if labels.get(name)), "")
    if key == "gpu":
        return wanted in (value, labels.get("device"), labels.get("device", "").removeprefix("nvidia"))
    if key == "uuid":
        return value == wanted or (len(wanted) >= _SHORTEST_UUID and value.startswith(wanted))
    if key == "instance":
        names = [labels[name] for name in _LABELS[key] if labels.get(name)]
        return wanted in names or wanted in [name.rpartition(":")[0] for name in names]
    return value == wanted


def host_of(labels: Mapping[str, str]) -> str:
    """The host that a device is on, as its labels say; empty where they do not."""
    return next((labels[name] for name in _HOSTS if labels.get(name)), "")


def pod_of(labels: Mapping[str, str]) -> str:
    """The workload that a series is labelled with, as namespace/pod; empty where it has none."""
    pod = next((labels[name] for name in _LABELS["pod"] if labels.get(name)), "")
    # Beside `exported_pod`, `pod` is the exporter's own; without it and without a device it may be too.
    space = next((labels[name] for name in _LABELS["namespace"] if labels.get(name)), "")
    return f"{space}/{pod}" if space and pod else pod


def device_names(series: Sequence[Mapping[str, str]]) -> list[str]:
    """A name for the device of each series. Several series of one UUID are one device.

    A name without a UUID that occurs on several hosts is told apart by its host. Raises ValueError where two
    series cannot be told apart: one of two counters would be left out.
    """
    names = [next((labels[name] for name in _NAMES if labels.get(name)), "device") for labels in series]
    unique = [bool(labels.get("UUID") or labels.get("uuid")) for labels in series]
    if _repeated(names, unique):
        names = [
            name if own else "/".join(filter(None, (host_of(labels), name)))
            for name, own, labels in zip(names, unique, series, strict=True)
        ]
    again = _repeated(names, unique)
    if again:
        raise ValueError(f"there are several series for {again}: sum them by (instance, device)")
    return names


def _repeated(names: Sequence[str], unique: Sequence[bool]) -> str:
    counts = Counter(name for name, own in zip(names, unique, strict=True) if not own)
    return next((name for name, count in counts.items() if count > 1), "")


@dataclass(frozen=True, slots=True)
class Counted:
    """The devices that a run counts, and how that is known, as the end of a sentence."""

    devices: tuple[MeteredDevice, ...]
    known_by: str

    def __str__(self) -> str:
        shown = [str(device) for device in self.devices[:_LISTED]]
        more = len(self.devices) - len(shown)
        tail = f" and {more} more" if more else ""
        count = f"{len(self.devices)} device{'s' if len(self.devices) != 1 else ''}"
        return f"{count}, {self.known_by}: {', '.join(shown)}{tail}"


def choose(
    devices: Sequence[MeteredDevice],
    selection: Selection,
    *,
    shown: frozenset[str] = frozenset(),
    all_devices: bool = False,
    by_query: bool = False,
    where: str = "the source",
) -> Counted:
    """The devices to count.

    `shown`: ids that the endpoint names as its own. `by_query`: the user's query selects devices itself.
    Raises InputError, listing the devices, where it is not known which of them the endpoint uses.
    """
    if selection:
        picked = tuple(device for device in devices if selection.matches(device.labels))
        if not picked:
            raise InputError(
                "energy", f": {selection} selects none of the devices of {where}: {_list(devices)}"
            )
        shared = [device for device in picked if len(device.pods) > 1]
        if shared and "pod" in selection.values and not all_devices:
            raise InputError(
                "energy",
                f": {shared[0].id} is shared by the pods {', '.join(shared[0].pods)}, and its energy"
                " cannot be divided among them; select it by uuid= to count all of it",
            )
        return Counted(picked, f"selected by {selection}")
    if all_devices:
        return Counted(tuple(devices), "every device of the source (--energy-all-devices)")
    own = tuple(device for device in devices if device.id in shown)
    if own and len(own) == len(shown):
        return Counted(own, "which the endpoint names as its own")
    if by_query:
        return Counted(tuple(devices), "selected by the query")
    if len(devices) == 1:
        return Counted(tuple(devices), "the only one of the source")
    raise InputError(
        "energy",
        f": {where} has {len(devices)} devices, and the endpoint does not say which of them it uses:"
        f" {_list(devices)}. Select with uuid=, gpu=, pod=, namespace= or instance= in the address"
        " (…?gpu=0,1), or count all of them with `energy_all_devices`",
    )


def _list(devices: Sequence[MeteredDevice]) -> str:
    shown = "; ".join(str(device) for device in devices[:_LISTED])
    return shown + (f"; and {len(devices) - _LISTED} more" if len(devices) > _LISTED else "")
