"""The Locust user that replays a schedule, and what it tells Locust's statistics."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from wattload.client.record import Outcome, RequestRecord

# Locust keeps every different error of a test. A server whose errors name the request would fill the memory.
_MOST_DIFFERENT_ERRORS = 100


class RequestError(Exception):
    """A request that ended otherwise than completed, as Locust's tables show it."""


def replay_user(replay: Callable[[Environment], None]) -> type[User]:
    """A user class whose one task is `replay`: one user a worker, each with its share of the schedule."""

    class ReplayUser(User):  # type: ignore[misc]
        """Sends a schedule's requests when they are due; its pace is the schedule's, not that of its
        answers.
        """

        @task  # type: ignore[untyped-decorator]
        def replay(self) -> None:
            replay(self.environment)
            raise StopUser

    return ReplayUser


def report_to_locust(environment: Environment, record: RequestRecord) -> None:
    """Fires Locust's request event: POST for the whole request, TTFT, TPOT, ITL and ENERGY for its parts.

    Times are milliseconds from the due time, as Locust shows them; ENERGY's number is joules. ITL is one
    gap taken at random from each request: firing for every gap would cost more than reading it.
    """
    if record.outcome is Outcome.UNSENT:
        return
    fire: Any = environment.events.request.fire
    name = record.tag or "completion"
    done = record.outcome is Outcome.COMPLETED
    last = record.last_token_unix
    whole = (last - record.due_unix) * 1e3 if last is not None else 0.0
    context = {"request_id": record.request_id, "index": record.index}
    said = f"{record.outcome.value}: {record.error}"
    if not done and len(environment.stats.errors) >= _MOST_DIFFERENT_ERRORS:
        said = record.outcome.value
    fire(
        request_type="POST",
        name=name,
        response_time=whole,
        response_length=record.output_tokens or 0,
        exception=None if done else RequestError(said),
        context=context,
    )
    if not done or record.first_token_unix is None:
        return
    parts = [("TTFT", (record.first_token_unix - record.due_unix) * 1e3)]
    tpot = record.tpot_seconds
    if tpot is not None:
        parts.append(("TPOT", tpot * 1e3))
    if record.itl_seconds:
        parts.append(("ITL", random.choice(record.itl_seconds) * 1e3))
    if record.energy_joules is not None:
        parts.append(("ENERGY", record.energy_joules))
    for kind, value in parts:
        fire(
            request_type=kind,
            name=name,
            response_time=value,
            response_length=0,
            exception=None,
            context=context,
        )
