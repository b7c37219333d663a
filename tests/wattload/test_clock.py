"""The client's clock does not step with the wall clock."""

from __future__ import annotations

import time

import pytest

from wattload import clock


def test_a_step_of_the_wall_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clock.unix_now()
    stepped = time.time() - 3600.0
    monkeypatch.setattr(time, "time", lambda: stepped)
    assert clock.unix_now() >= before
    assert clock.unix_now() == pytest.approx(time.perf_counter() + clock.unix_offset(), abs=5.0)
