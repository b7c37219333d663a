"""Engines on several GPUs: which GPUs are metered, and step records with several batches in flight."""

from __future__ import annotations

import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meter_node import keeping
from wattserve.protocol import messages as protocol
from wattserve.protocol.messages import Frames, StepRecords
from wattserve.vllm.engine_facts import engine_gpus, why_not_metered
from wattserve.vllm.plugin import engine_hello
from wattserve.vllm.recorder import StepRecorder
from wattserve.vllm.settings import STARTED_VARIABLE


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


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HIP_VISIBLE_DEVICES": "3,1"}, ["3", "1"]),
        ({"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "1,2"}, ["5", "6"]),
        # Slurm may set ROCm's variable on a host of NVIDIA's, too.
        ({"CUDA_VISIBLE_DEVICES": "2,3", "ROCR_VISIBLE_DEVICES": "2,3"}, ["2", "3"]),
    ],
)
def test_the_gpus_of_an_engine_on_rocm(environment: dict[str, str], expected: list[str]) -> None:
    assert engine_gpus(2, environment) == expected


@pytest.mark.parametrize(
    ("rank", "visible", "assigned", "named", "expected"),
    [
        (1, None, None, None, ["2", "3"]),
        (1, "4,5,6,7", None, None, ["6", "7"]),
        # A list that was cut for this engine alone.
        (1, "6,7", None, None, ["6", "7"]),
        (1, "0,1,2,3", [3, 2, 1, 0], None, ["1", "0"]),
        (0, None, None, ["5", "6", "7"], ["5", "6", "7"]),
        (1, None, None, ["4", "5", "6", "7"], ["6", "7"]),
    ],
)
def test_the_gpus_of_a_data_parallel_engine_of_two(
    rank: int,
    visible: str | None,
    assigned: list[int] | None,
    named: list[str] | None,
    expected: list[str],
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert engine_gpus(2, environment, assigned, local_rank=rank, named=named) == expected


def parallel(**more: Any) -> SimpleNamespace:
    plain = {
        "world_size": 2,
        "data_parallel_size": 1,
        "data_parallel_index": 0,
        "data_parallel_rank_local": None,
        "nnodes": 1,
        "distributed_executor_backend": "mp",
        "assigned_physical_gpu_ids": None,
        "tensor_parallel_size": 2,
    }
    return SimpleNamespace(**{**plain, **more})


def config(**more: Any) -> SimpleNamespace:
    shape = SimpleNamespace(num_hidden_layers=16, num_experts=64, num_experts_per_tok=8, hidden_size=2048)
    model = SimpleNamespace(
        served_model_name=["m", "n"],
        model="org/m",
        max_model_len=100,
        hf_text_config=shape,
        dtype="torch.bfloat16",
    )
    return SimpleNamespace(parallel_config=parallel(**more), model_config=model)


class RayDistributedExecutor:
    """Named as vLLM's, which a configuration may hold instead of the word."""


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"nnodes": 2}, "several hosts"),
        ({"distributed_executor_backend": "ray"}, "--energy-devices"),
        ({"distributed_executor_backend": RayDistributedExecutor}, "--energy-devices"),
    ],
)
def test_gpus_that_are_not_known_here_are_refused(more: dict[str, Any], word: str) -> None:
    assert why_not_metered(parallel(), None) is None
    assert word in str(why_not_metered(parallel(**more), None))
    with pytest.raises(RuntimeError, match=word):
        engine_hello(config(**more), {}, 1)


def test_named_gpus_are_enough_for_ray_but_not_for_other_hosts() -> None:
    named = ("0", "1")
    assert why_not_metered(parallel(distributed_executor_backend="ray"), named) is None
    assert "several hosts" in str(why_not_metered(parallel(nnodes=2), named))


@pytest.mark.parametrize(
    ("more", "named", "elsewhere", "word"),
    [
        ({"nnodes": 2}, None, [("0",)], None),
        ({"nnodes": 2}, None, [()], None),
        ({"nnodes": 2}, None, [("0", "1")], "uses 2 GPUs, and 3 are named: 1 of this host"),
        ({"nnodes": 2}, ("0",), [("7",)], None),
        ({"nnodes": 2}, ("0", "1"), [("7",)], "3 are named: 2 of this host"),
        ({"nnodes": 3, "world_size": 6}, None, [("0", "1"), ("2", "3")], None),
        ({"nnodes": 3, "world_size": 6}, None, [("0", "1")], "of 2 other hosts 1 are named"),
        ({"nnodes": 2, "data_parallel_size": 2}, None, [("0",)], "data-parallel"),
        ({"distributed_executor_backend": "ray"}, ("0",), [("0",)], None),
        ({"distributed_executor_backend": "ray"}, ("0",), [()], None),
        ({"distributed_executor_backend": "ray"}, None, [("0",)], "--energy-devices"),
        # A part of the engine's GPUs would give a part of its joules.
        ({"distributed_executor_backend": "ray"}, ("0",), [], "uses 2 GPUs, and 1 are named"),
        ({"distributed_executor_backend": "ray", "data_parallel_size": 2}, ("0", "1", "2", "3"), [], None),
        ({}, None, [("0",)], "runs on one host alone"),
    ],
)
def test_the_gpus_of_all_hosts_are_to_be_known(
    more: dict[str, Any], named: tuple[str, ...] | None, elsewhere: list[tuple[str, ...]], word: str | None
) -> None:
    reason = why_not_metered(parallel(**more), named, elsewhere)
    assert reason is None if word is None else word in str(reason)


def test_an_engine_of_two_hosts_has_half_its_gpus_here() -> None:
    environment = {"WATTSERVE_ALSO_AT": "tcp://two:9600?devices=4,5"}
    hello = engine_hello(config(nnodes=2, world_size=4), environment, 1)
    assert (hello.gpus, hello.hosts) == (("0", "1"), 2)
    assert engine_hello(config(), {}, 1).hosts == 1


def test_an_engine_tells_its_gpus_its_model_and_its_shape() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "WATTSERVE_SERVER": "s", STARTED_VARIABLE: "17"}
    hello = engine_hello(config(data_parallel_index=1, data_parallel_rank_local=1), environment, 99)
    assert hello.gpus == ("2", "3")
    assert (hello.server, hello.model, hello.started_ns, hello.rank) == ("s", "m", 17, 1)
    assert hello.max_model_len == 100
    assert hello.shape["experts"] == 64
    assert hello.shape["experts_per_token"] == 8
    assert hello.shape["dtype"] == "bfloat16"
    assert "kv_heads" not in hello.shape
    assert hello.padding == {"graph_sizes": [], "tile_tokens": 1}
    assert protocol.decode(protocol.encode(hello)) == hello
    assert engine_hello(config(assigned_physical_gpu_ids=[2, 3]), {}, 99).started_ns == 99


def step(
    new: dict[str, int] | None = None, old: dict[str, int] | None = None, *, finished: Collection[str] = ()
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
    messages: list[Frames] = []
    recorder = StepRecorder(keeping(messages))
    launched: list[int] = []
    ended = 0
    for output in outputs:
        recorder.launched(output)
        launched.append(time.monotonic_ns())
        if len(launched) - ended == in_flight:
            recorder.ended(outputs[ended], launched[-1] + 1, None)
            ended += 1
    for output in outputs[ended:]:
        recorder.ended(output, launched[-1] + 1, None)
    recorder.flush()
    records = protocol.decode(messages[0])
    assert isinstance(records, StepRecords)
    batch = records.batch
    # The empty batch is no step; the others keep the order in which they ended, without a gap.
    assert batch.index.tolist() == [0, 1, 2, 3, 4, 5, 6]
    noted = [*launched[:5], *launched[6:]]
    assert all(mine <= noted_ns for mine, noted_ns in zip(batch.launch_ns.tolist(), noted, strict=True))
    assert (np.diff(batch.launch_ns) > 0).all()
    assert (np.diff(batch.end_ns) >= 0).all()
    # The first five overlap: each was launched while the one before was under way.
    assert (batch.launch_ns[1:5] < batch.end_ns[:4]).all()
    names = [batch.request_ids[row] for row in batch.request]
    assert names == ["a", "b", "a", "b", "a", "a", "b"]
    assert batch.prefill_tokens.tolist() == [5, 3, 0, 0, 0, 0, 2]
    assert batch.decode_tokens.tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert batch.context_tokens.tolist() == [0, 0, 5, 3, 6, 7, 0]
