"""Locust's runners as we use them: what fails beside the load neither ends nor shows."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import gevent.event
import pytest
from locust import runners
from locust.env import Environment
from locust.event import Events

from wattload.load.runners import LocalRunner


@pytest.mark.parametrize("fails_at", ["the process", "its figures"])
def test_a_look_at_the_process_that_fails_is_made_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails_at: str
) -> None:
    """Out of file descriptors, /proc cannot be read: a traceback was shown, and nothing looked again."""
    failures = [OSError(errno.EMFILE, "Too many open files"), RuntimeError("no such process")]

    def fail_first() -> None:
        if failures:
            raise failures.pop()

    def percent() -> float:
        if fails_at == "its figures":
            fail_first()
        return 1.0

    def process() -> Any:
        if fails_at == "the process":
            fail_first()
        return SimpleNamespace(cpu_percent=percent, memory_info=lambda: SimpleNamespace(rss=1))

    monkeypatch.setattr("locust.runners.psutil.Process", process)
    monkeypatch.setattr(runners, "CPU_MONITOR_INTERVAL", 0.01)
    looked = gevent.event.Event()
    environment = Environment(events=Events())
    environment.events.usage_monitor.add_listener(lambda **_: looked.set())
    runner = LocalRunner(environment)
    try:
        assert looked.wait(20)
    finally:
        runner.quit()
    assert not failures
    assert "Traceback" not in capfd.readouterr().err
