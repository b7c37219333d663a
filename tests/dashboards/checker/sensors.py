"""Two devices with every sensor of a GPU, one of which fails: real accounting, a scripted meter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from checker.prometheus import free_port
from wattmeter.faults import Fault
from wattmeter.meters.base import Device, DeviceState, Reading
from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattserve.http.metrics import MonitorCollector

GOOD, FAILING = "GPU-good", "GPU-failing"
WATTS = 300.0


class ScriptedMeter:
    """Constant power; the counter of FAILING gives no answer from `fails_after_seconds` on."""

    source = "nvml"
    min_energy_interval_seconds = 0.1

    def __init__(self, fails_after_seconds: float) -> None:
        self._start = time.monotonic()
        self._fails_after = fails_after_seconds
        self.devices = tuple(Device(i, "NVIDIA H200", "nvml", 700.0) for i in (GOOD, FAILING))

    def _reading(self, device_id: str, *, energy: bool) -> Reading:
        elapsed = time.monotonic() - self._start
        now, unix = time.monotonic_ns(), time.time()
        if device_id == FAILING and elapsed > self._fails_after:
            return Reading(device_id, now, unix, fault=Fault.GPU_LOST)
        joules = 1000 + WATTS * (elapsed // 0.1) * 0.1
        return Reading(device_id, now, unix, joules if energy else None, None if energy else WATTS)

    def read_energy(self, device_id: str) -> Reading:
        return self._reading(device_id, energy=True)

    def read_power(self, device_id: str) -> Reading:
        return self._reading(device_id, energy=False)

    def read_state(self, device_id: str) -> DeviceState:
        return DeviceState(temperature_celsius=61.0, sm_clock_hertz=1.98e9, power_limit_watts=700.0)

    def close(self) -> None:
        pass


@contextmanager
def exporter(fails_after_seconds: float) -> Iterator[str]:
    """Serves the metrics of the scripted meter's account; yields the address."""
    registry = CollectorRegistry()
    account = EnergyMonitor(ScriptedMeter(fails_after_seconds), model="scripted", idle_watts=100.0)
    selftest = {"devices": [{"id": GOOD, "disagreement_ratio": 0.004}]}
    MonitorCollector(account, info={"engine": "scripted"}, registry=registry, selftest=selftest)
    port = free_port()
    account.start()
    server, thread = start_http_server(port, "127.0.0.1", registry)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.shutdown()
        thread.join(5)
        account.stop()
