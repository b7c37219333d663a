"""This host's own sensors as a source: `--energy nvml` needs no meter that somebody has started.

They are read in a process of its own, so that the load and the readings do not wait for one another. It is
started when it is first asked for, serves all runs of this process, and ends with it.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO

import httpx

from wattload.energy.client import EnergyClient
from wattload.errors import InputError
from wattload.own_server import announced, end

# Kinds of meter, and whether ?gpu= selects among their devices.
KINDS = {"nvml": True, "amdsmi": True, "rapl": False}
# Counters are refreshed ten times a second or more often.
COUNTING_SECONDS = 3.0
_SOURCE = re.compile(rf"({'|'.join(KINDS)})(?:\?gpu=([^?&\s]+))?")


@dataclass(frozen=True, slots=True)
class _Meter:
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    address: str


_running: dict[str, _Meter] = {}


def is_local(source: str) -> bool:
    """Whether a source is this host's own sensors: `nvml`, `nvml?gpu=0,2`, `amdsmi` or `rapl`."""
    found = _SOURCE.fullmatch(source)
    return found is not None and (found[2] is None or KINDS[found[1]])


def address_of(source: str) -> str:
    """The address of the meter that reads this host's sensors; any other source is its own.

    Raises InputError where the sensors cannot be read.
    """
    if not is_local(source):
        return source
    meter = _running.get(source)
    if meter is None or meter.process.poll() is not None:
        meter = _running[source] = _started(source)
    return meter.address


def _started(source: str) -> _Meter:
    kind, _, gpus = source.partition("?gpu=")
    return start(kind, gpus or None, f"energy: {source}")


def start(kind: str, devices: str | None, shown: str) -> _Meter:
    """A meter of a kind in a process of its own. Raises InputError, which begins with what is `shown`."""
    options = {"meter": kind, "devices": devices, "port": 0, "ends_with_input": True, "flag": "--energy"}
    output = tempfile.TemporaryFile()  # noqa: SIM115 -- for as long as the meter runs
    # Its standard input is a pipe of ours: it ends where this process does, however that happens. A session
    # of its own: Ctrl-C reaches the load first, whose last window is asked for afterwards.
    process = subprocess.Popen(
        [sys.executable, "-m", "wattserve.meter.process", json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Keys are those of meters that others reach.
        env={name: value for name, value in os.environ.items() if not name.startswith("WATTSERVE_")},
    )
    atexit.register(end, process)
    address, last = announced(process, output)
    if address is None:
        end(process)
        raise InputError(f"{shown}: {last.removeprefix('wattserve meter: ')}")
    _await_first_joules(address)
    return _Meter(process, output, address)


def _await_first_joules(address: str) -> None:
    """Returns once every counter was seen to move, after COUNTING_SECONDS at the latest: from then on a
    window is covered from its begin."""
    client = EnergyClient(address)
    deadline = time.monotonic() + COUNTING_SECONDS
    try:
        while not all(device["energy_joules"] for device in client.info()["devices"]):
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)
    except (httpx.HTTPError, ValueError, KeyError):
        return  # whoever asks next says it better
    finally:
        client.close()
