"""The embedded workloads: one JSON file each, written by benchmarks/fit_workloads.py and fit_agent.py."""

from __future__ import annotations

import hashlib
from importlib import resources

from wattload.traces.embedded.agent import AgentWorkload
from wattload.traces.embedded.model import Workload

_KINDS: dict[str, type[Workload] | type[AgentWorkload]] = {
    "conv": Workload,
    "code": Workload,
    "agent": AgentWorkload,
}
NAMES = tuple(_KINDS)


def load(name: str) -> Workload | AgentWorkload:
    """The embedded workload called `name`, one of NAMES. Raises KeyError for another."""
    if name not in NAMES:
        raise KeyError(name)
    data = (resources.files(__package__) / f"{name}.json").read_bytes()
    return _KINDS[name].from_json(data.decode(), hashlib.sha256(data).hexdigest())
