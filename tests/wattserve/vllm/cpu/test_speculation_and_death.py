"""Started without our launcher: speculation counted to the token, and an engine that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from metered_vllm import MODEL_NAME, Server

from wattmeter.steps import recording

SPECULATION = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}


def test_speculation_and_the_drop_in_way(model: Path, profile: str, tmp_path: Path) -> None:
    """`vllm serve --middleware` alone does the same; each drafted and each kept token is in the records."""
    server = Server(
        tmp_path, model, profile, "--speculative-config", json.dumps(SPECULATION), command="drop-in"
    )
    try:
        sent = {}
        for number in range(6):
            # A period repeats, so that drafts are made; random weights make most of them wrong.
            body = {
                "model": MODEL_NAME,
                "prompt": [400 + at % 5 for at in range(60 + number)],
                "max_tokens": 60,
                "min_tokens": 60,
                "ignore_eos": True,
                "temperature": 0.0,
            }
            request = urllib.request.Request(
                f"{server.url}/v1/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json", "x-request-id": f"spec-{number}"},
            )
            with urllib.request.urlopen(request, timeout=120) as response:
                usage = json.load(response)["usage"]
            assert usage["energy"]["joules"] > 0
            assert usage["energy"]["source"] == "modelled"
            sent[f"spec-{number}"] = usage
        assert all(answer["joules"] > 0 for answer in server.settled(*sent).values())
    finally:
        status = server.stop()
    assert status == 0
    steps = recording.read(server.recording).steps
    assert steps.lost_steps == 0
    assert steps.draft_tokens.sum() > 0
    assert (steps.accepted_tokens <= steps.draft_tokens).all()
    for request_id, usage in sent.items():
        mine = steps.request == steps.request_ids.index(request_id)
        computed = steps.decode_tokens[mine].sum()
        rejected = steps.draft_tokens[mine].sum() - steps.accepted_tokens[mine].sum()
        assert computed - rejected == usage["completion_tokens"] - 1, request_id
        assert steps.prefill_tokens[mine].sum() == usage["prompt_tokens"] - steps.cached_tokens[mine].sum()


def test_an_engine_that_dies_ends_the_server_with_a_sentence(
    model: Path, profile: str, tmp_path: Path
) -> None:
    server = Server(tmp_path, model, profile)
    children = subprocess.run(
        ["ps", "--ppid", str(server.process.pid), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    (engine,) = (int(line.split()[0]) for line in children if "EngineCore" in line)
    os.kill(engine, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while server.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.stop() == 1
    assert "engine died while serving" in server.log()
