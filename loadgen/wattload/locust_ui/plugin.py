"""Hooks of Locust's events: a run begins when its test starts, and the test stops when the run is over.

Locust is only ever extended by what it offers for that: events, one user class, one shape class, custom
messages, the web UI's template arguments and routes.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import gevent
from locust import LoadTestShape, User, events, task
from locust.env import Environment
from locust.exception import StopUser

from wattload.locust_ui.locust_test import LocustTest
from wattload.locust_ui.options import add_options
from wattload.locust_ui.tab import add_tab

_tests: dict[int, LocustTest] = {}


def _of(environment: Environment) -> LocustTest | None:
    return _tests.get(id(environment))


class ReplayUser(User):  # type: ignore[misc]
    """Sends a schedule's requests when they are due; its pace is the schedule's, not that of its answers."""

    @task  # type: ignore[untyped-decorator]
    def replay(self) -> None:
        test = _of(self.environment)
        if test is not None:
            test.replay()
        raise StopUser


class ReplayShape(LoadTestShape):  # type: ignore[misc]
    """One user a worker, as long as the run goes on: users are not what makes the load here."""

    def reset_time(self) -> None:
        super().reset_time()
        test = _of(self.runner.environment) if self.runner is not None else None
        if test is not None and not test.running:
            test.finished = False

    def tick(self) -> tuple[int, float] | None:
        test = _of(self.runner.environment) if self.runner is not None else None
        if test is None or test.finished:
            return None
        count = test.workers()
        return count, float(max(1, count))


def install() -> None:
    """Adds the listeners; a locustfile calls it once."""
    # It tells of every request of the control plane, a few a second.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    events.init_command_line_parser.add_listener(lambda parser, **_: add_options(parser))
    events.init.add_listener(_init)
    events.test_start.add_listener(_test_start)
    events.test_stopping.add_listener(_test_stopping)


def _init(environment: Environment, **_: Any) -> None:
    test = _tests[id(environment)] = LocustTest(environment)
    _end_at_hangup()
    if environment.web_ui is not None:
        add_tab(environment.web_ui, test)


def _test_start(environment: Environment, **_: Any) -> None:
    test = _of(environment)
    if test is not None:
        test.begin()


def _test_stopping(environment: Environment, **_: Any) -> None:
    test = _of(environment)
    if test is not None:
        test.stop()


def _end_at_hangup() -> None:
    """A terminal that closes ends the test as SIGTERM does, unless the process was told to ignore that."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        gevent.signal_handler(signal.SIGHUP, os.kill, os.getpid(), signal.SIGTERM)
