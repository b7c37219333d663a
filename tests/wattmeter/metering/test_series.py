"""The series of a long window: converted at once, while nobody waits for the monitor's lock."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest

from wattmeter.clock import WallClock
from world import MODEL, World


def test_nobody_waits_while_a_series_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(step_model=MODEL)
    world.pass_time(6.0)
    free: list[bool] = []
    plain = WallClock.converter

    def ask() -> None:
        world.monitor.has_steps("a request")
        free.append(True)

    def watched(clock: WallClock) -> object:
        convert = plain(clock)

        def slow(times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(timeout=30.0)  # for ever, were the lock held meanwhile
            return convert(times)

        return slow

    monkeypatch.setattr(WallClock, "converter", watched)
    (series,) = world.monitor.series(world.unix - 3.0, world.unix)
    assert free == [True]
    assert series.unix_seconds[-1] == pytest.approx(world.unix, abs=0.3)
