"""What every process that sends requests needs: its dispatcher, its memory kept small, and what it used."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from wattload.client.client import Client
from wattload.client.record import RequestRecord
from wattload.client.transport.kernel_time import keeps_stamps
from wattload.load.dispatcher import Dispatcher
from wattload.schedule.content import prompt_maker, salt_of, system_json
from wattload.schedule.conversation import Conversations
from wattload.schedule.frame import TEXT_GLUE, WORDS_GLUE
from wattload.schedule.options import PromptOptions
from wattload.schedule.table import Schedule


def make_dispatcher(
    schedule: Schedule,
    client: Client,
    run_id: str,
    on_record: Callable[[RequestRecord], None],
    *,
    prompts: PromptOptions,
    drain_seconds: float,
    worker: int = 0,
    background: Callable[[], bool] | None = None,
) -> Dispatcher:
    """The dispatcher of a share of a run. `background`: work for when nothing is due, done in short steps."""
    salt = salt_of(run_id) if prompts.content_salt is None else prompts.content_salt
    waiting = schedule.parents is not None or schedule.closed_concurrency > 0
    chat = client.api.chat
    conversations = None
    if schedule.own_answers:
        conversations = Conversations(schedule, chat=chat, salt=salt, vocab_size=prompts.vocab_size)
        if conversations.by_ids:
            client.return_ids()
    prompt = prompt_maker(schedule, api=client.endpoint.api, vocab_size=prompts.vocab_size, salt=salt)
    system = system_json(schedule, vocab_size=prompts.vocab_size, salt=salt)
    if system:
        client.begin_with(system, glue=WORDS_GLUE if schedule.texts is None else TEXT_GLUE)
    return Dispatcher(
        schedule,
        client,
        run_id=run_id,
        on_record=on_record,
        worker=worker,
        background=background,
        end_seconds=schedule.horizon_seconds if waiting and schedule.horizon_seconds > 0 else None,
        drain_seconds=drain_seconds,
        prompt=prompt,
        conversations=conversations,
    )


class Usage:
    """What this process used since the object was made."""

    def __init__(self) -> None:
        self._cpu_seconds = time.process_time()

    def since(self) -> dict[str, Any]:
        """CPU seconds, the most memory the process ever had, in MB (None where /proc does not tell), and who
        notes when tokens arrive: `kernel`, or `process`, which adds how late the process reads.
        """
        peak = None
        with contextlib.suppress(OSError):
            match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            peak = int(match[1]) / 1024 if match is not None else None
        return {
            "cpu_seconds": time.process_time() - self._cpu_seconds,
            "peak_memory_megabytes": peak,
            "arrival_times": "kernel" if keeps_stamps() else "process",
        }


def give_back_memory() -> None:
    """Hands memory that reading and planning have freed back to the system, before a load that is to stay
    small.
    """
    gc.collect()
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
