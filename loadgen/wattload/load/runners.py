"""Locust's runners, without what of them depends on the wall clock or fails for want of a file descriptor."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any, NoReturn

import gevent
from locust import runners
from locust.env import Environment
from locust.stats import RequestStats

from wattload.errors import InputError

log = logging.getLogger("wattload")


class _CalmMonitor:
    """Locust's look at the process's own CPU and memory, made again after it failed.

    A client out of file descriptors cannot read /proc. That ended the look with a traceback on the screen,
    beside the sentence that names the descriptors.
    """

    def monitor_cpu_and_memory(self) -> NoReturn:
        while True:
            with contextlib.suppress(Exception):
                super().monitor_cpu_and_memory()  # type: ignore[misc]
            gevent.sleep(runners.CPU_MONITOR_INTERVAL)


class LocalRunner(_CalmMonitor, runners.LocalRunner):  # type: ignore[misc, unused-ignore]
    """A user in this process."""


class MasterRunner(_CalmMonitor, runners.MasterRunner):  # type: ignore[misc, unused-ignore]
    """The master of workers that it has to wait for."""


class WorkerRunner(_CalmMonitor, runners.WorkerRunner):  # type: ignore[misc, unused-ignore]
    """A worker whose patience with a silent master is measured by a clock that nobody sets.

    Locust compares wall clock times: a clock that was put forward by an hour ended all workers in mid-run.
    """

    def __init__(self, environment: Environment, master_host: str, master_port: int) -> None:
        self._heard_at: float | None = None
        environment.stats = RequestStats(use_response_times_cache=False)
        environment.events.heartbeat_received.add_listener(self._heard)
        super().__init__(environment, master_host, master_port)

    def _heard(self, **_: Any) -> None:
        self._heard_at = time.monotonic()

    def connect_to_master(self) -> None:
        """Waits for a master to answer. Raises InputError where none did, and KeyboardInterrupt."""
        try:
            super().connect_to_master()
        except SystemExit:
            # Locust ends the process without a word when an interrupt comes while it waits.
            raise KeyboardInterrupt from None
        except ConnectionError:
            minutes = runners.CONNECT_TIMEOUT * runners.CONNECT_RETRY_COUNT / 60
            where = f"{self.master_host}:{self.master_port}"
            raise InputError("master_host", f"no master answered at {where} for {minutes:.0f} min") from None

    def heartbeat_timeout_checker(self) -> NoReturn:
        while True:
            gevent.sleep(1.0)
            heard_at, patience = self._heard_at, runners.MASTER_HEARTBEAT_TIMEOUT
            if heard_at is not None and time.monotonic() - heard_at > patience:
                log.error("the master has not been heard of for %d s, so this worker ends", patience)
                self.quit()
