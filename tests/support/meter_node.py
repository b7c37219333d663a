"""A meter without vLLM: engines and API processes that are only messages, for tests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from wattserve.meter.app import MeterApp, state_file
from wattserve.meter.engines import Node
from wattserve.meter_spec import MeterSpec
from wattserve.protocol import messages
from wattserve.protocol.address import address_of
from wattserve.protocol.host import boot_id
from wattserve.protocol.messages import EngineHello, StepRecords

T = TypeVar("T")
PROFILE = "h200-llama-3.1-8b"


def modelled_node(**options: object) -> Node:
    """A node whose devices are modelled from its engines' own steps."""
    return Node(MeterSpec.parse(f"modelled:{PROFILE}"), **options)  # type: ignore[arg-type]


def keeping(taken: list[T], accepts: list[bool] | None = None) -> Callable[[T], bool]:
    """A `send` that keeps messages in `taken`; of `accepts`, one a message, False refuses its message."""

    def send(message: T) -> bool:
        if accepts is not None and not accepts.pop(0):
            return False
        taken.append(message)
        return True

    return send


def hello(engine: str = "e0", server: str = "s", **more: object) -> EngineHello:
    now = time.monotonic_ns()
    plain = {"model": "tiny", "boot_id": boot_id(), "sent_ns": now, "started_ns": now, "software": "fake 1"}
    return EngineHello(engine, server, **{**plain, **more})  # type: ignore[arg-type]


class FakeEngine:
    """Numbers and makes the step records of one engine. One step decodes a token for each request, or
    computes the whole prompt of those in `prompts`."""

    def __init__(self, name: str = "e0", server: str = "s", *, next_step: int = 0) -> None:
        self.name = name
        self.server = server
        self.next_step = next_step
        self._context: dict[str, int] = {}

    def hello(self, **more: object) -> EngineHello:
        return hello(self.name, self.server, next_step=self.next_step, **more)

    def step(self, *decoding: str, prompts: dict[str, int] | None = None, lose: bool = False) -> StepRecords:
        """One step of 10 ms that ends now. `lose`: its record is to get lost, the next one shows it."""
        prompts = prompts or {}
        ids = [*decoding, *prompts]
        end = time.monotonic_ns()
        columns = {
            "index": np.array([self.next_step]),
            "launch_ns": np.array([end - 10_000_000]),
            "end_ns": np.array([end]),
            "step": np.zeros(len(ids)),
            "request": np.arange(len(ids)),
            "prefill_tokens": np.array([0] * len(decoding) + list(prompts.values())),
            "decode_tokens": np.array([1] * len(decoding) + [0] * len(prompts)),
            "context_tokens": np.array([self._context.get(i, 0) for i in ids]),
        }
        for name in decoding:
            self._context[name] = self._context.get(name, 0) + 1
        self._context.update(prompts)
        self.next_step += 1
        frames = messages.encode_steps(
            engine=self.name,
            next_step=self.next_step,
            columns=columns,
            request_ids=ids,
            prompts=[(ids.index(name), name, tokens) for name, tokens in prompts.items()],
        )
        records = messages.decode(frames)
        assert isinstance(records, StepRecords)
        return records


@contextlib.contextmanager
def serving_meter(folder: Path, **options: object) -> Iterator[tuple[MeterApp, str, str]]:
    """A whole meter on a socket in `folder`: the app, its HTTP address and its socket's address."""
    from sim_server import serving

    address = address_of(str(folder / "meter.sock"))
    app = MeterApp(modelled_node(state=state_file(address), **options), address=address)
    with serving(app.app) as url:
        yield app, url, address


def until(condition: Callable[[], object], what: str, *, seconds: float = 20.0) -> None:
    """Waits until `condition` holds, and fails with `what` where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
