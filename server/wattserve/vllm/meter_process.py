"""Where the meter of a server is: starting one before the engine, or finding the one that runs already.

The first process of a server settles it, and leaves in the environment what the others need: the meter's
address, the server's name, and when the server began to start. A meter that is started here is kept running
by a process of its own (`wattserve.meter.keeper`) until this process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import MutableMapping

from wattserve.meter.process import MeterOptions
from wattserve.protocol import address as addresses
from wattserve.protocol import messages
from wattserve.protocol.host import boot_id
from wattserve.protocol.sender import ask
from wattserve.vllm.settings import (
    REASON_VARIABLE,
    SERVER_VARIABLE,
    STARTED_VARIABLE,
    SettingError,
    Settings,
)

logger = logging.getLogger("wattserve.vllm")

START_SECONDS = 60.0
ASK_SECONDS = 0.5
STOP_SECONDS = 15.0
ATTACH_SECONDS = 5.0
# prometheus_client would write the meter's metrics into the folder that vLLM's processes share.
NOT_FOR_THE_METER = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
# The meter's arithmetic is small: threads for it would only take cores from what is metered.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class MeterStartError(RuntimeError):
    """The meter did not start; its own sentence is in the log above."""


class MeterProcess:
    """A meter that was started here. It ends with this process, or by `stop`."""

    def __init__(self, address: str, options: MeterOptions) -> None:
        self.address = address
        self._owner = os.getpid()
        reading, self._writing = os.pipe()
        environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_THE_METER}
        environment |= ONE_THREAD
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "wattserve.meter.keeper", str(reading), options.as_json()],
            pass_fds=(reading,),
            stdin=subprocess.DEVNULL,
            env=environment,
            # Signals to the server's group are not for the meter: it ends after the server.
            start_new_session=True,
        )
        os.close(reading)

    def await_ready(self) -> None:
        """Returns once the meter answers. Raises MeterStartError."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if why_unreachable(self.address, seconds=ASK_SECONDS) is None:
                return
            if self._keeper.poll() is not None:
                # Another process of this server may have been first.
                if why_unreachable(self.address) is None:
                    return
                raise MeterStartError("the meter did not start; the reason is further up in the log")
        self.stop()
        raise MeterStartError(f"the meter did not answer within {START_SECONDS:.0f} s")

    def stop(self) -> None:
        """Ends the meter, which writes what is left of its recording."""
        if self._writing < 0 or os.getpid() != self._owner:
            return
        os.close(self._writing)
        self._writing = -1
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(timeout=STOP_SECONDS)


def why_unreachable(address: str, *, seconds: float = ATTACH_SECONDS) -> str | None:
    """Why no meter can be used at an address; None where one answers."""
    try:
        answer = ask(address, messages.MeterQuestion(), seconds=seconds)
    except messages.ProtocolError as error:
        return str(error)
    if answer is None:
        return "no meter answers there"
    if isinstance(answer, messages.Refused):
        return answer.reason
    return None


def check_meter(settings: Settings) -> None:
    """Opens the meter of `settings` once. Raises SettingError where that cannot work."""
    from wattmeter.meters import MeterUnavailableError
    from wattserve.meter_spec import MeterSpec

    try:
        devices = None if settings.devices is None else ",".join(settings.devices)
        MeterSpec.parse(settings.meter, devices, flag="--energy-meter").open().close()
    except MeterUnavailableError as error:
        raise SettingError(str(error)) from None


def settle(environment: MutableMapping[str, str]) -> MeterProcess | None:
    """Settles the meter of the server that this process is the first of; starts it unless it is another's.

    The first to lock a socket has its meter there; others find that one. Raises SettingError or
    MeterStartError; the reason is then in the environment for who serves nevertheless.
    """
    try:
        return _settle(environment)
    except (SettingError, MeterStartError) as error:
        environment[REASON_VARIABLE] = f"not metered: {error}"
        raise


def _settle(environment: MutableMapping[str, str]) -> MeterProcess | None:
    settings = Settings.from_environment(environment)
    given = settings.meter_at or settings.socket
    try:
        address = addresses.new() if given is None else addresses.address_of(given)
    except ValueError as error:
        raise SettingError(f"--energy-{'meter-at' if settings.meter_at else 'socket'}: {error}") from None
    environment[addresses.VARIABLE] = address
    for further in settings.also_at:
        reason = why_unreachable(further.address)
        if reason is not None:
            logger.warning("wattserve: the meter at %s cannot be used yet: %s", further.address, reason)
    if settings.meter_at is not None:
        environment[SERVER_VARIABLE] = uuid.uuid4().hex
        reason = why_unreachable(address)
        if reason is not None:
            logger.warning("wattserve: the meter at %s cannot be used yet: %s", given, reason)
        environment[STARTED_VARIABLE] = str(time.monotonic_ns())
        return None
    # Who shares a socket that was given shares a server too.
    # On another host's meter the same path may name another server.
    on = f" on {boot_id()}" if settings.also_at else ""
    environment[SERVER_VARIABLE] = uuid.uuid4().hex if given is None else f"at {address}{on}"
    check_meter(settings)
    meter = MeterProcess(address, options_of(settings, address))
    atexit.register(meter.stop)
    meter.await_ready()
    # The engine starts from here on.
    environment[STARTED_VARIABLE] = str(time.monotonic_ns())
    return meter


def options_of(settings: Settings, address: str) -> MeterOptions:
    """The options of the meter that is started for a server."""
    return MeterOptions(
        meter=settings.meter,
        devices=None if settings.devices is None else ",".join(settings.devices),
        socket=address,
        port=0,
        idle_watts=settings.idle_watts,
        step_model=None if settings.step_model is None else str(settings.step_model.absolute()),
        record=None if settings.record is None else str(settings.record.absolute()),
        selftest_seconds=settings.selftest_seconds or None,
        selftest_beside=True,
        child=True,
        flag="--energy-meter",
    )
