"""Tensor and pipeline parallel on real vLLM: step records of engines with several workers, to the token."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metered_vllm import MODEL_NAME, Server

from wattmeter.steps import recording


def bound_to_two_cpus() -> str:
    """One CPU for each of two workers; by itself vLLM wants a NUMA node for each."""
    cpus = sorted(os.sched_getaffinity(0))
    return f"{cpus[0]}|{cpus[-1]}"


def ask(server: Server, number: int) -> tuple[str, dict[str, Any]]:
    body = {
        "model": MODEL_NAME,
        "prompt": [300 + (7 * number + at) % 3000 for at in range(20 + 31 * number)],
        "max_tokens": 10 + 3 * number,
        "min_tokens": 10 + 3 * number,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-request-id": f"parallel-{number}"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        usage: dict[str, Any] = json.load(response)["usage"]
    return f"parallel-{number}", usage


@pytest.mark.parametrize(
    ("flag", "eager"),
    [
        ("--tensor-parallel-size", True),
        # vLLM 0.32's CPU worker makes the tensors between two stages only where it compiles the model.
        pytest.param(
            "--pipeline-parallel-size",
            False,
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="the CPU backend compiles with g++"),
        ),
    ],
)
def test_two_workers(model: Path, profile: str, tmp_path: Path, flag: str, eager: bool) -> None:
    binding = bound_to_two_cpus()
    flags = (flag, "2", "--max-num-batched-tokens", "256", "--max-num-seqs", "8")
    server = Server(tmp_path, model, profile, *flags, eager=eager, VLLM_CPU_OMP_THREADS_BIND=binding)
    try:
        with ThreadPoolExecutor(12) as pool:
            usages = dict(pool.map(lambda number: ask(server, number), range(24)))
        answers = server.settled(*usages)
        state = server.get("/energy")
    finally:
        status = server.stop()
    assert status == 0, server.log()[-2000:]
    without = [answer for answer in answers.values() if not answer["joules"]]
    assert not without, f"{without}\nflags {state['flags']}"
    assert "lost_step_records" not in state["flags"]
    assert state["conservation_error_ratio"] < 1e-6
    steps = recording.read(server.recording).steps
    assert steps.lost_steps == 0
    assert steps.index.tolist() == list(range(len(steps)))
    assert (np.diff(steps.end_ns) >= 0).all()
    for request_id, usage in usages.items():
        mine = steps.request == steps.request_ids.index(request_id)
        computed = steps.prefill_tokens[mine].sum() + steps.cached_tokens[mine].sum()
        assert computed == usage["prompt_tokens"], request_id
        assert steps.decode_tokens[mine].sum() == usage["completion_tokens"] - 1, request_id
    overlapping = int((steps.launch_ns[1:] < steps.end_ns[:-1]).sum())
    if flag == "--pipeline-parallel-size":
        assert overlapping > len(steps) // 4, "the two stages never worked on different batches"
