"""vLLM's general plugin: notes every step of the scheduler and sends the records to the meter.

vLLM loads it in each of its processes. In the first one it settles where the meter is, and starts one where
nobody has, so that it reads the sensors before the engine uses the GPUs; the address is in the environment,
which the other processes inherit. In an engine core it wraps `Scheduler.schedule` and
`Scheduler.update_from_output`. Without our middleware in the command line it does nothing.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
import uuid
from typing import Any

from wattserve.protocol import address
from wattserve.protocol.host import boot_id, pid_namespace
from wattserve.protocol.messages import EngineHello
from wattserve.vllm.links import Links
from wattserve.vllm.recorder import StepRecorder
from wattserve.vllm.settings import SERVER_VARIABLE, STARTED_VARIABLE, further_meters, named_devices

logger = logging.getLogger("wattserve.vllm")


def register() -> None:
    """Called by vLLM in each of its processes, possibly more than once. Never raises: serving goes on without
    step records, and the middleware says so."""
    try:
        if not os.environ.get(SERVER_VARIABLE):
            if not any("wattserve" in argument for argument in sys.argv[1:]):
                return
            from wattserve.vllm.meter_process import settle

            settle(os.environ)
        _wrap_scheduler()
    except Exception:
        logger.exception(
            "wattserve could not attach to vLLM's scheduler: there will be no per-request energy"
        )


def _wrap_scheduler() -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    if getattr(Scheduler.schedule, "wattserve", False):
        return
    # The recorder is made with the scheduler, in the process that takes steps, and nowhere else.
    recorder: StepRecorder | None = None
    failed = False
    loaded_ns = time.monotonic_ns()

    def started(scheduler: Any) -> StepRecorder | None:
        nonlocal recorder, failed
        if recorder is None and not failed:
            try:
                recorder = make_recorder(scheduler, loaded_ns)
                recorder.start()
            except Exception as error:
                failed = True
                logger.warning("wattserve: this engine sends no step records: %s", error)
        return recorder

    made, schedule, update = Scheduler.__init__, Scheduler.schedule, Scheduler.update_from_output

    @functools.wraps(made)
    def noted_init(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        started(self)

    @functools.wraps(schedule)
    def noted_schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = schedule(self, *args, **kwargs)
        if recorder is not None:
            recorder.launched(output)
        return output

    @functools.wraps(update)
    def noted_update(self: Any, output: Any, model_output: Any, *args: Any, **kwargs: Any) -> Any:
        end_ns = time.monotonic_ns()
        result = update(self, output, model_output, *args, **kwargs)
        if recorder is not None:
            recorder.ended(output, end_ns, model_output, finished=self.finished_req_ids)
        return result

    noted_schedule.wattserve = True  # type: ignore[attr-defined]
    Scheduler.__init__ = noted_init
    Scheduler.schedule = noted_schedule
    Scheduler.update_from_output = noted_update


def make_recorder(scheduler: Any, loaded_ns: int) -> StepRecorder:
    """The recorder of this engine core, connected to its meters. `loaded_ns`: when the plugin was loaded."""
    hello = engine_hello(scheduler.vllm_config, os.environ, loaded_ns)
    links = Links(os.environ[address.VARIABLE], hello, further_meters(os.environ))
    randomised = os.environ.get("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "0") in ("", "0")
    return StepRecorder(links.send, engine=hello.engine, hello=links.hello, randomised=randomised)


def engine_hello(config: Any, environment: Any, loaded_ns: int) -> EngineHello:
    """Who the engine of a `VllmConfig` is. Raises RuntimeError where it cannot be metered."""
    from wattserve.vllm import engine_facts as facts

    parallel = config.parallel_config
    named, elsewhere = named_devices(environment), further_meters(environment)
    reason = facts.why_not_metered(parallel, named, [meter.devices for meter in elsewhere])
    if reason is not None:
        raise RuntimeError(reason)
    rank = int(getattr(parallel, "data_parallel_index", None) or 0)
    local_rank = getattr(parallel, "data_parallel_rank_local", None)
    padding = facts.engine_padding(config)
    started = environment.get(STARTED_VARIABLE, "")
    return EngineHello(
        engine=uuid.uuid4().hex,
        server=environment.get(SERVER_VARIABLE, ""),
        model=facts.model_name(config),
        boot_id=boot_id(),
        sent_ns=time.monotonic_ns(),
        started_ns=int(started) if started.isdigit() else loaded_ns,
        gpus=tuple(
            facts.engine_gpus(
                facts.local_gpus(parallel),
                environment,
                getattr(parallel, "assigned_physical_gpu_ids", None),
                local_rank=rank if local_rank is None else int(local_rank),
                named=named,
            )
        ),
        rank=rank,
        engines=max(int(getattr(parallel, "data_parallel_size", 1) or 1), rank + 1),
        software=facts.engine_version(),
        max_model_len=config.model_config.max_model_len,
        shape=facts.model_shape(config),
        padding={"graph_sizes": list(padding.graph_sizes), "tile_tokens": padding.tile_tokens},
        pid=os.getpid(),
        pid_namespace=pid_namespace(),
        hosts=1 + len(elsewhere),
    )
