"""Node power from a command of the user's that prints watts, or joules so far, with their unit."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Callable

from wattmeter.faults import Fault
from wattserve.meter.components.gauge import SensorError, Value

TIMEOUT_SECONDS = 5.0
# A reading is one line; tools for BMCs print a page.
MOST_BYTES = 64 * 1024
_POLL_SECONDS = 0.05
_NUMBER = re.compile(r"^\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]+)\s*$")
_WATTS = {"W": 1.0, "Watts": 1.0, "mW": 1e-3, "kW": 1e3}
_JOULES = {"J": 1.0, "Joules": 1.0, "mJ": 1e-3, "uJ": 1e-6, "kJ": 1e3, "Wh": 3600.0, "kWh": 3.6e6}


def output_of(words: list[str]) -> str:
    """What a command prints. Raises SensorError where it fails, takes over TIMEOUT_SECONDS, or prints more
    than MOST_BYTES. Nothing that it started is left behind then: it is asked again each second.
    """
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise SensorError(f"{words[0]} is not installed", Fault.NOT_SUPPORTED) from None
    except PermissionError:
        raise SensorError(f"{words[0]} may not be run", Fault.NO_PERMISSION) from None
    except (OSError, ValueError) as error:
        raise SensorError(f"{words[0]}: {getattr(error, 'strerror', None) or error}") from None
    try:
        printed, errors = _read(process, words[0])
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        status = process.wait()
    if status:
        said = " ".join((errors or printed).split())[:200]
        raise SensorError(f"{words[0]} ended with status {status}: {said}")
    return printed


def _read(process: subprocess.Popen[bytes], name: str) -> tuple[str, str]:
    """(output, errors) of a process, to their end, which is also that of what it has started."""
    until = time.monotonic() + TIMEOUT_SECONDS
    held: dict[str, bytearray] = {"output": bytearray(), "errors": bytearray()}
    with selectors.DefaultSelector() as selector:
        for key, stream in zip(held, (process.stdout, process.stderr), strict=True):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, key)
        while selector.get_map() or process.poll() is None:
            left = until - time.monotonic()
            if left <= 0.0:
                raise SensorError(f"{name} took over {TIMEOUT_SECONDS:g} s", Fault.TIMEOUT)
            if not selector.get_map():
                time.sleep(min(left, _POLL_SECONDS))
                continue
            for found, _ in selector.select(min(left, 1.0)):
                part = os.read(found.fd, MOST_BYTES)
                if not part:
                    selector.unregister(found.fileobj)
                held[found.data] += part
                if len(held[found.data]) > MOST_BYTES:
                    raise SensorError(f"{name} printed more than {MOST_BYTES} bytes")
    return held["output"].decode("utf-8", "replace"), held["errors"].decode("utf-8", "replace")


def value_of(text: str) -> Value:
    """The value that one line of text holds. Raises SensorError.

    A number without a unit is refused, since watts taken for joules would be believed.
    """
    found = _NUMBER.match(text)
    if found is None:
        raise SensorError(
            f"it printed {' '.join(text.split())[:60]!r}, not one number with its unit, as 350 W or 12.5 kJ"
        )
    number, unit = float(found[1]), found[2]
    if unit in _WATTS:
        return Value(watts=number * _WATTS[unit])
    if unit in _JOULES:
        return Value(joules=number * _JOULES[unit])
    raise SensorError(f"it printed the unit {unit}, which is none of {', '.join([*_WATTS, *_JOULES])}")


def reader(command: str) -> Callable[[], Value]:
    """Runs the words of `command`, without a shell."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SensorError(f"{command}: {error}") from None
    if not words:
        raise SensorError("needs a command, as command:'/usr/local/bin/node-watts'")
    return lambda: value_of(output_of(words))
