"""Engines on several GPUs: which GPUs are metered, and step records with several batches in flight."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from wattserve.vllm import metering, middleware, wire
from wattserve.vllm.metering import engine_gpus
from wattserve.vllm.records import StepRecorder
from wattserve.vllm.settings import Settings


@pytest.mark.parametrize(
    ("visible", "assigned", "expected"),
    [
        (None, None, ["0", "1"]),
        ("3,1,2", None, ["3", "1"]),
        (" GPU-aa , GPU-bb", None, ["GPU-aa", "GPU-bb"]),
        (None, [2, 3], ["2", "3"]),
        # vLLM has resolved --device-ids against CUDA_VISIBLE_DEVICES already.
        ("4,5,6,7", [6, 7, 4], ["6", "7"]),
    ],
)
def test_the_gpus_of_an_engine_of_two(
    visible: str | None, assigned: list[int] | None, expected: list[str]
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert engine_gpus(2, environment, assigned) == expected


def parallel(**more: Any) -> SimpleNamespace:
    plain = {
        "world_size": 2,
        "data_parallel_size": 1,
        "nnodes": 1,
        "distributed_executor_backend": "mp",
        "assigned_physical_gpu_ids": None,
    }
    return SimpleNamespace(**{**plain, **more})


class RayDistributedExecutor:
    """Named as vLLM's, which a configuration may hold instead of the word."""


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"nnodes": 2}, "several hosts"),
        ({"distributed_executor_backend": "ray"}, "--energy-devices"),
        ({"distributed_executor_backend": RayDistributedExecutor}, "--energy-devices"),
        ({"data_parallel_size": 2}, "several data-parallel"),
    ],
)
def test_gpus_that_are_not_known_here_are_refused(more: dict[str, Any], word: str) -> None:
    arguments = SimpleNamespace(api_server_count=1)
    middleware._check_one_engine(parallel(), arguments, Settings())
    with pytest.raises(RuntimeError, match=word):
        middleware._check_one_engine(parallel(**more), arguments, Settings())


def test_named_gpus_are_enough_for_ray_but_not_for_other_hosts() -> None:
    named = dataclasses.replace(Settings(), devices=("0", "1"))
    arguments = SimpleNamespace(api_server_count=None)
    middleware._check_one_engine(parallel(distributed_executor_backend="ray"), arguments, named)
    with pytest.raises(RuntimeError, match="several hosts"):
        middleware._check_one_engine(parallel(nnodes=2), arguments, named)


def test_the_middleware_meters_the_assigned_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: list[Any] = []

    def noted(settings: Settings, *, gpus: Any) -> Any:
        asked.append(list(gpus))
        raise metering.MeterUnavailableError("no GPU in this test")

    monkeypatch.setattr(metering, "open_meter", noted)
    monkeypatch.setenv("WATTSERVE_STEP_SOCKET", f"ipc://{tmp_path}/s.sock")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    model = SimpleNamespace(served_model_name="m", model="m", max_model_len=100)

    async def nothing(*_: Any) -> None: ...

    for config in (parallel(), parallel(assigned_physical_gpu_ids=[2, 3])):
        state = SimpleNamespace(
            engine_client=SimpleNamespace(errored=False, shutdown=lambda timeout=0: None),
            args=SimpleNamespace(api_server_count=1),
            vllm_config=SimpleNamespace(parallel_config=config, model_config=model),
        )
        messages = asyncio.Queue[dict[str, Any]]()
        messages.put_nowait({"type": "lifespan.startup"})

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()

        scope = {"type": "lifespan", "app": SimpleNamespace(state=state, routes=[])}
        asyncio.run(middleware.EnergyMiddleware(app)(scope, messages.get, nothing))
    assert asked == [["0", "1"], ["2", "3"]]


def step(
    new: dict[str, int] | None = None, old: dict[str, int] | None = None, *, finished: set[str] = frozenset()
) -> Any:
    """new: id -> prompt tokens, all of them now; old: id -> context, one token now."""
    new, old = new or {}, old or {}
    tokens = {**new, **dict.fromkeys(old, 1)}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=i, prompt_token_ids=[0] * n, num_computed_tokens=0) for i, n in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(old), num_computed_tokens=list(old.values()), resumed_req_ids=set()
        ),
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens={},
        finished_req_ids=set(finished),
    )


@pytest.mark.parametrize("in_flight", [2, 3])
def test_several_batches_in_flight_keep_their_launches_and_tokens(in_flight: int) -> None:
    """Pipeline stages work on different batches: a batch is launched before earlier ones have ended. `a` and
    `b` take turns; `b` is aborted while a step of it is under way, as an empty batch tells."""
    outputs = [
        step({"a": 5}),
        step({"b": 3}),
        step(old={"a": 5}),
        step(old={"b": 3}),
        step(old={"a": 6}),
        step(finished={"b"}),
        step(old={"a": 7}),
        step({"b": 2}, finished={"a"}),
    ]
    messages: list[bytes] = []
    recorder = StepRecorder(lambda message: not messages.append(message))
    launched: list[int] = []
    ended = 0
    for output in outputs:
        recorder.launched(output)
        launched.append(recorder._launches[id(output)])
        if len(launched) - ended == in_flight:
            recorder.ended(outputs[ended], launched[-1] + 1, None)
            ended += 1
    for output in outputs[ended:]:
        recorder.ended(output, launched[-1] + 1, None)
    recorder.flush()
    batch = wire.decode(messages[0]).batch
    # The empty batch is no step; the others keep the order in which they ended, without a gap.
    assert batch.index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert batch.launch_ns.tolist() == launched[:5] + launched[6:]
    assert (np.diff(batch.end_ns) >= 0).all()
    # The first five overlap: each was launched while the one before was under way.
    assert (batch.launch_ns[1:5] < batch.end_ns[:4]).all()
    names = [batch.request_ids[row] for row in batch.request]
    assert names == ["a", "b", "a", "b", "a", "a", "b"]
    assert batch.prefill_tokens.tolist() == [5, 3, 0, 0, 0, 0, 2]
    assert batch.decode_tokens.tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert batch.context_tokens.tolist() == [0, 0, 5, 3, 6, 7, 0]
    assert not recorder._launches
