"""The embedded workloads: one JSON file each, written by benchmarks/fit_workloads.py."""

from __future__ import annotations

import hashlib
from importlib import resources

from wattload.workloads.model import Workload

NAMES = ("conv", "code")


def load(name: str) -> Workload:
    """The embedded workload called `name`, one of NAMES. Raises KeyError for another."""
    if name not in NAMES:
        raise KeyError(name)
    data = (resources.files(__package__) / f"{name}.json").read_bytes()
    return Workload.from_json(data.decode(), hashlib.sha256(data).hexdigest())
