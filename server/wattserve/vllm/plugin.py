"""vLLM's general plugin: notes every step of the scheduler and sends the records to the API process.

vLLM loads it in each of its processes. In the API process it settles on a socket and leaves its address in
the environment, which the engine core inherits; in the engine core it wraps `Scheduler.schedule` and
`Scheduler.update_from_output`. Without our middleware in the command line it does nothing.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from wattserve.vllm import socket_path
from wattserve.vllm.records import StepRecorder

logger = logging.getLogger("wattserve.vllm")

# Messages, not steps: at one a 50 ms these are 100 s of an API process that does not read.
HIGH_WATER_MESSAGES = 2_000


def register() -> None:
    """Called by vLLM in each of its processes, possibly more than once. Never raises: serving goes on without
    step records, and the middleware says so."""
    try:
        if not os.environ.get(socket_path.VARIABLE):
            if not any("wattserve" in argument for argument in sys.argv[1:]):
                return
            os.environ[socket_path.VARIABLE] = socket_path.new()
        _wrap_scheduler()
    except Exception:
        logger.exception(
            "wattserve could not attach to vLLM's scheduler: there will be no per-request energy"
        )


def _wrap_scheduler() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    if getattr(Scheduler.schedule, "wattserve", False):
        return
    # The recorder is made at the first step, in the process that takes steps, and nowhere else.
    recorder: StepRecorder | None = None

    def started() -> StepRecorder:
        nonlocal recorder
        recorder = StepRecorder(sender(os.environ[socket_path.VARIABLE]), engine=os.getpid())
        recorder.start()
        return recorder

    schedule, update = Scheduler.schedule, Scheduler.update_from_output

    @functools.wraps(schedule)
    def noted_schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        (recorder or started()).launched(output)
        return output

    @functools.wraps(update)
    def noted_update(self: Any, output: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
        end_ns = time.monotonic_ns()
        result = update(self, output, model_output, *args, **kwargs)
        finished = bool(self.finished_req_ids)
        (recorder or started()).ended(output, end_ns, model_output, finished=finished)
        return result

    noted_schedule.wattserve = True  # type: ignore[attr-defined]
    Scheduler.schedule = noted_schedule
    Scheduler.update_from_output = noted_update


def sender(address: str) -> Callable[[bytes], bool]:
    """A function that sends one message to `address` without blocking and says whether it was taken."""
    import zmq

    socket = zmq.Context().socket(zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MESSAGES)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)

    def send(message: bytes) -> bool:
        try:
            socket.send(message, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    return send
