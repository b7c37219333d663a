"""Waiting for the idle power: when it ends, when it gives up, and what it says then."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from wattload.rundir.result import ClockInfo
from wattload.study.cooldown import IdlePower
from wattmeter.schema import DeviceSeries


class Source:
    """Devices whose power follows a list, a value per question. `idle` None: the meter does not know it."""

    has_split: ClassVar[bool] = True
    lookback_seconds: ClassVar[float] = 2.0
    url = "http://meter"

    def __init__(self, watts: list[float | None], idle: float | None, devices: int = 1) -> None:
        self.watts, self.idle, self.devices = watts, idle, devices

    def info(self) -> dict[str, Any]:
        return {"idle": {"watts": self.idle}}

    def series(self, start_unix: float, end_unix: float) -> list[DeviceSeries]:
        now = self.watts.pop(0) if len(self.watts) > 1 else self.watts[0]
        if now is None:
            return []
        seconds = np.array([start_unix, end_unix])
        joules = (seconds - start_unix) * now / self.devices
        return [
            DeviceSeries(f"g{i}", "GPU", "nvml", seconds, joules, np.full(2, np.nan))
            for i in range(self.devices)
        ]

    def clock(self) -> ClockInfo:
        return ClockInfo(offset_seconds=0.0, uncertainty_seconds=0.0)

    def window(self, start_unix: float, end_unix: float) -> Any:
        raise NotImplementedError

    def settle(self, ids: Any, *, timeout_seconds: float = 15.0) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes when somebody sleeps."""
    now = [1000.0]
    monkeypatch.setattr("wattload.study.cooldown.time.monotonic", lambda: now[0])
    monkeypatch.setattr("wattload.study.cooldown.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def test_it_ends_once_the_power_is_back(clock: list[float]) -> None:
    idle = IdlePower(Source([400.0, 300.0, 140.0, 121.0], 120.0, devices=2))
    cooled = idle.wait(limit_seconds=30, tolerance=0.05)
    assert cooled.watts == pytest.approx(121.0)
    assert cooled.idle_watts == 120.0
    assert cooled.note is None
    assert clock[0] < 1005


def test_it_gives_up_and_says_so() -> None:
    cooled = IdlePower(Source([200.0], 120.0)).wait(limit_seconds=10, tolerance=0.05)
    assert cooled.note == "started at 200 W: not back at its idle power of 120 W after 10 s"
    assert cooled.watts == pytest.approx(200.0)


def test_without_an_idle_power_it_waits_until_the_power_falls_no_more() -> None:
    source = Source([400.0, 300.0, 150.0, 119.0, 118.0], None)
    idle = IdlePower(source)
    cooled = idle.wait(limit_seconds=60, tolerance=0.05)
    assert cooled.watts == pytest.approx(118.0)
    assert cooled.note is None
    # From then on this is what is waited for.
    source.watts = [150.0, 122.0]
    again = idle.wait(limit_seconds=60, tolerance=0.05)
    assert again.watts == pytest.approx(122.0)
    assert again.idle_watts == pytest.approx(118.0)


def test_a_meter_that_has_just_started_is_asked_again() -> None:
    cooled = IdlePower(Source([None, None, 121.0], 120.0)).wait(limit_seconds=30, tolerance=0.05)
    assert cooled.watts == pytest.approx(121.0)


def test_power_that_is_not_to_be_had_is_noted_and_not_waited_for(clock: list[float]) -> None:
    cooled = IdlePower(Source([None], 120.0)).wait(limit_seconds=300, tolerance=0.05)
    assert cooled.watts is None
    assert cooled.note == "its power before the cell is not known"
    assert clock[0] < 1020
