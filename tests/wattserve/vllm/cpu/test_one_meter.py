"""One meter of several engines, and one that dies while a real vLLM serves."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from metered_vllm import MODEL_NAME, Server, start_meter

from wattmeter.steps import recording
from wattmeter.steps.batch import StepBatch

SMALL = ("--max-num-batched-tokens", "256", "--max-num-seqs", "8")


def ask(server: Server, request_id: str, *, prompt: int, output: int) -> dict[str, Any]:
    """The usage of a completion of exactly so many tokens."""
    seed = sum(request_id.encode())
    body = {
        "model": MODEL_NAME,
        "prompt": [300 + (seed + 7 * at) % 3000 for at in range(prompt)],
        "max_tokens": output,
        "min_tokens": output,
        "ignore_eos": True,
    }
    headers = {"content-type": "application/json", "x-request-id": request_id}
    request = urllib.request.Request(f"{server.url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        usage: dict[str, Any] = json.load(response)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, output)
    return usage


def metrics(server: Server) -> str:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        text: str = response.read().decode()
    return text


def steps_of(folder: Path) -> StepBatch:
    steps = recording.read(folder).steps
    assert steps.lost_steps == 0
    assert steps.index.tolist() == list(range(len(steps)))
    return steps


def check_tokens(parts: Iterable[StepBatch], request_id: str, *, prompt: int, output: int) -> int:
    """Whether a request's tokens are in the records exactly; the number of engines that ran it."""
    computed = decoded = engines = 0
    for steps in parts:
        if request_id not in steps.request_ids:
            continue
        mine = steps.request == steps.request_ids.index(request_id)
        computed += int(steps.prefill_tokens[mine].sum() + steps.cached_tokens[mine].sum())
        decoded += int(steps.decode_tokens[mine].sum())
        engines += 1
    assert computed == prompt, request_id
    assert decoded == output - 1, request_id
    return engines


def await_meters(server: Server, engines: int) -> None:
    """Returns once the meter has taken over the devices of all engines, which is when a start-up ends."""
    deadline = time.monotonic() + 60
    while True:
        found = server.get("/energy")["engines"]
        if len(found) == engines and all(engine["startup"]["end"] is not None for engine in found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def check_startup(state: dict[str, Any], engines: int) -> None:
    """Each engine's start is a component of its own. The model's device idles at 125 W meanwhile."""
    found = [engine["startup"] for engine in state["engines"]]
    assert len(found) == engines
    for startup in found:
        if startup["joules"] is None:
            # A modelled device exists from its engine's hello on.
            assert "not metered while it started" in startup["reason"]
            continue
        seconds = startup["end"] - startup["start"]
        assert seconds > 3
        assert abs(startup["joules"] / (124.82 * seconds) - 1) < 0.1
    assert found[0]["joules"] is not None


def test_two_servers_on_one_meter(model: Path, profile: str, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("meter", "one", "two")]
    for folder in folders:
        folder.mkdir()
    meter = start_meter(profile, folders[0], "--record", str(folders[0] / "recording"))
    servers: list[Server] = []
    at = str(folders[0] / "meter.sock")
    try:
        for folder in folders[1:]:
            servers.append(Server(folder, model, profile, *SMALL, meter_at=at))
            await_meters(servers[-1], 1)
        sent = {
            f"{name}-{number}": (servers[row], 20 + 31 * number, 5 + 3 * number)
            for row, name in enumerate(("one", "two"))
            for number in range(12)
        }
        with ThreadPoolExecutor(12) as pool:
            work = [
                pool.submit(ask, server, request_id, prompt=prompt, output=output)
                for request_id, (server, prompt, output) in sent.items()
            ]
            usages = [future.result() for future in work]
        # On two cores that two engines compute on, the meter may answer later than a response waits.
        assert all(told_or_why(usage) for usage in usages)
        for row, name in enumerate(("one", "two")):
            server, other = servers[row], servers[1 - row]
            mine = [request_id for request_id in sent if request_id.startswith(name)]
            answers = server.settled(*mine)
            assert all(answer["joules"] > 0 for answer in answers.values())
            # Each server's port is about its own engine and its own devices.
            assert other.get("/energy/requests", {"ids": mine[:1]})["requests"][0]["status"] == "unknown"
            state = server.get("/energy")
            assert [device["id"] for device in state["devices"]] == [f"modelled-{row}"]
            assert state["conservation_error_ratio"] < 1e-6
            assert "lost_step_records" not in state["flags"]
            assert f'wattserve_device_power_watts{{device="modelled-{row}"' in metrics(server)
            assert f'device="modelled-{1 - row}"' not in metrics(server)
        check_startup(servers[0].get("/energy"), 1)
    finally:
        statuses = [server.stop() for server in servers]
        meter.terminate()
        meter.wait(timeout=30)
    assert statuses == [0, 0]
    parts = [steps_of(folders[0] / "recording"), steps_of(folders[0] / "recording" / "engine-1")]
    for request_id, (_, prompt, output) in sent.items():
        assert check_tokens(parts, request_id, prompt=prompt, output=output) == 1


def told_or_why(usage: dict[str, Any]) -> bool:
    """Whether a response told its joules, or null with the reason."""
    energy = usage["energy"]
    return bool(usage["energy_reason"]) if energy is None else energy["joules"] > 0


def test_data_parallel_engines_and_two_api_processes(model: Path, profile: str, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    flags = ("--data-parallel-size", "2", "--api-server-count", "2", *SMALL)
    binding = f"{cpus[0]}|{cpus[-1]}"
    server = Server(tmp_path, model, profile, *flags, VLLM_CPU_OMP_THREADS_BIND=binding)
    sent = {f"dp-{number}": (20 + 17 * number, 4 + 2 * number) for number in range(24)}
    try:
        await_meters(server, 2)
        with ThreadPoolExecutor(12) as pool:
            work = [
                pool.submit(ask, server, request_id, prompt=prompt, output=output)
                for request_id, (prompt, output) in sent.items()
            ]
            usages = [future.result() for future in work]
        # On two cores that two engines compute on, the meter may answer later than a response waits.
        assert all(told_or_why(usage) for usage in usages)
        answers = server.settled(*sent)
        # Whichever API process is asked answers for both engines, and shows both kinds of metrics.
        states = [server.get("/energy") for _ in range(6)]
        texts = [metrics(server) for _ in range(6)]
    finally:
        status = server.stop()
    assert status == 0, server.log()[-2000:]
    for request_id, (prompt, output) in sent.items():
        answer = answers[request_id]
        assert answer["joules"] is not None, answer
        assert answer["joules"] > 0
        assert not answer["aborted"]
        assert (answer["prompt_tokens"], answer["output_tokens"]) == (prompt, output), request_id
    for state in states:
        assert [engine["rank"] for engine in state["engines"]] in ([0, 1], [1, 0])
        assert len(state["devices"]) == 2
        assert state["conservation_error_ratio"] < 1e-6
    check_startup(states[-1], 2)
    for text in texts:
        assert "vllm:num_requests_running" in text
        assert 'wattserve_device_power_watts{device="modelled-0"' in text
        assert 'wattserve_device_power_watts{device="modelled-1"' in text
    parts = [steps_of(server.recording), steps_of(server.recording / "engine-1")]
    ran = [check_tokens(parts, i, prompt=prompt, output=output) for i, (prompt, output) in sent.items()]
    assert ran == [1] * len(sent)
    assert all(len(steps) > 20 for steps in parts), "one engine had next to nothing to do"


def test_a_meter_that_is_killed_in_mid_run(model: Path, profile: str, tmp_path: Path) -> None:
    server = Server(tmp_path, model, profile, *SMALL)
    try:
        await_meters(server, 1)
        assert told_or_why(ask(server, "before", prompt=30, output=5))
        time.sleep(6.0)  # what the start cost is known soon, and saved within a second
        before = server.get("/energy")
        check_startup(before, 1)
        with ThreadPoolExecutor(4) as pool:
            long = [pool.submit(ask, server, f"long-{n}", prompt=40, output=600) for n in range(2)]
            time.sleep(0.5)
            killed = time.time()
            os.kill(before["meter"]["pid"], signal.SIGKILL)
            usages = [ask(server, f"during-{number}", prompt=20, output=3) for number in range(3)]
            assert usages[0]["energy"] is None
            assert usages[0]["energy_reason"]
            for future in long:
                future.result()
        deadline = time.monotonic() + 60
        number = 0
        while ask(server, f"after-{number}", prompt=20, output=3)["energy"] is None:
            assert time.monotonic() < deadline, "energy does not come back"
            number += 1
            time.sleep(0.2)
        assert server.settled(f"after-{number}")[f"after-{number}"]["joules"] > 0
        state = server.get("/energy")
        window = server.get(f"/energy?start={killed - 1}&end={time.time()}")
        text = metrics(server)
    finally:
        status = server.stop()
    assert status == 0, server.log()[-2000:]
    assert "the meter ended with status -9; it is started again" in server.log()
    assert state["meter"]["pid"] != before["meter"]["pid"]
    (hole,) = state["holes"]
    assert hole["device"] == "modelled-0"
    assert killed - 2 < hole["start"] < hole["end"]
    assert "meter_restarted" in window["flags"]
    assert not window["complete"]
    # The counter went on, and what the engine start cost is remembered.
    assert state["devices"][0]["energy_joules"] >= before["devices"][0]["energy_joules"]
    assert state["engines"][0]["startup"]["joules"] == before["engines"][0]["startup"]["joules"]
    assert "wattserve_lost_step_records_total" in text
    # The steps that met nobody are counted, and the numbers go on where they were.
    lost = state["engines"][0]["lost_step_records"]
    assert lost > 0
    steps = recording.read(server.recording / "engine-1").steps
    assert steps.lost_steps == lost
    assert int(steps.index[0]) >= before["engines"][0]["steps"] + lost
    assert (np.diff(steps.index) == 1).all()
