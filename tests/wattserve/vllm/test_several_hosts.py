"""An engine with GPUs of two hosts: its steps and requests go to both meters, whose joules add up. vLLM's
classes are stand-ins; both hosts are this one, in the last test with a clock of the other's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meter_node import PROFILE, modelled_node, serving_meter, until
from sim_server import serving
from vllm_app import VllmApp
from wattload.energy.client import EnergyClient
from wattload.energy.several import Host, SeveralMeters
from wattload.errors import InputError
from wattmeter.schema import RequestEnergy
from wattserve.meter.app import MeterApp
from wattserve.meter.process import MeterOptions
from wattserve.protocol import address
from wattserve.protocol.messages import Answer, HttpQuestion, MeterQuestion
from wattserve.protocol.sender import ask
from wattserve.vllm.links import Links
from wattserve.vllm.meter_process import MeterProcess, options_of
from wattserve.vllm.middleware import EnergyMiddleware
from wattserve.vllm.plugin import engine_hello, make_recorder
from wattserve.vllm.recorder import StepRecorder
from wattserve.vllm.settings import REASON_VARIABLE, SERVER_VARIABLE, FurtherMeter, Settings


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def parallel() -> SimpleNamespace:
    """Two hosts of two GPUs each."""
    return SimpleNamespace(
        world_size=4,
        nnodes=2,
        data_parallel_size=1,
        data_parallel_index=0,
        data_parallel_rank_local=None,
        distributed_executor_backend="mp",
        assigned_physical_gpu_ids=None,
    )


def engine_config() -> SimpleNamespace:
    model = SimpleNamespace(served_model_name="m", model="m", max_model_len=100)
    return SimpleNamespace(parallel_config=parallel(), model_config=model)


def step(new: dict[str, int], old: dict[str, int]) -> Any:
    """new: id -> prompt tokens, all of them now; old: id -> context, one token now."""
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
        finished_req_ids=set(),
    )


class Server(VllmApp):
    """vLLM's application and engine core: each request is a step of its prompt and one that decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.state.vllm_config = engine_config()
        scheduler = SimpleNamespace(vllm_config=self.state.vllm_config)
        self.recorder: StepRecorder = make_recorder(scheduler, time.monotonic_ns())
        self.recorder.start()
        self.middleware = EnergyMiddleware(self)
        self.requests = 0
        self._lifespan: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def _step(self, output: Any, finished: tuple[str, ...] = ()) -> None:
        self.recorder.launched(output)
        await asyncio.sleep(0.01)
        self.recorder.ended(output, time.monotonic_ns(), None, finished=finished)

    async def answer(self, send: Any) -> None:
        name = f"cmpl-{self.seen[b'x-request-id'].decode()}-0-0a1b2c3d"
        await self._step(step({name: 50}, {}))
        await self._step(step({}, {name: 50}), (name,))
        body = json.dumps({"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 50}}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    @contextlib.asynccontextmanager
    async def serving(self) -> Any:
        async def ignore(_: Any) -> None: ...

        scope = {"type": "lifespan", "app": self}
        task = asyncio.create_task(self.middleware(scope, self._lifespan.get, ignore))
        await self._lifespan.put({"type": "lifespan.startup"})
        await asyncio.sleep(0.05)
        try:
            yield self
        finally:
            await self._lifespan.put({"type": "lifespan.shutdown"})
            await task
            self.recorder.stop()

    async def ask(self, method: str, path: str, name: str = "", query: str = "", body: bytes = b"") -> Any:
        """The JSON answer to a request to the model's port."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        headers = [(b"x-request-id", name.encode())] if name else []
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": headers,
            "query_string": query.encode(),
        }
        route = next((route for route in self.routes if route.matches(scope)[0].value == 2), None)
        if route is None:
            await self.middleware(scope, receive, send)
        else:
            scope.update(route.matches(scope)[1])
            await route.handle(scope, receive, send)
        return json.loads(b"".join(message.get("body", b"") for message in sent[1:]))

    async def generate(self) -> dict[str, Any]:
        """The usage of one more response."""
        self.requests += 1
        usage: dict[str, Any] = (await self.ask("POST", "/v1/completions", f"r{self.requests}"))["usage"]
        assert usage["completion_tokens"] == 2
        return usage

    async def until_energy(self, seconds: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (usage := await self.generate())["energy"] is None:
            assert time.monotonic() < deadline, usage["energy_reason"]
            await asyncio.sleep(0.1)
        return usage

    async def settled(self, name: str, seconds: float = 60.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (found := await self.ask("GET", f"/energy/requests/{name}"))["status"] != "settled":
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.2)
        return dict(found)


@pytest.fixture(autouse=True)
def settled_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REASON_VARIABLE, raising=False)
    monkeypatch.setenv(SERVER_VARIABLE, "s")


@contextlib.contextmanager
def two_meters(
    folder: Path, monkeypatch: pytest.MonkeyPatch, urls: list[str] | None = None
) -> Iterator[tuple[MeterApp, MeterApp, str]]:
    """The meters of both hosts in this process, and the address of the further one. `urls` gets where they
    answer over HTTP."""
    further = free_address()
    other = MeterApp(modelled_node(idle_watts=100.0), address=further)
    with serving_meter(folder, idle_watts=90.0) as (own, url, at), serving(other.app) as other_url:
        (urls if urls is not None else []).extend([url, other_url])
        monkeypatch.setenv(address.VARIABLE, at)
        monkeypatch.setenv("WATTSERVE_ALSO_AT", f"{further}?devices=0,1")
        yield own, other, further


def test_the_joules_of_both_hosts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_meters(tmp_path, monkeypatch) as (own, other, _):

        async def go() -> None:
            async with Server().serving() as server:
                first = await server.until_energy()
                assert first["energy"]["hosts"] == 2
                names = []
                for _ in range(8):
                    usage = await server.generate()
                    names.append(f"r{server.requests}")
                    assert usage["energy"]["joules"] > 0
                for name in names:
                    found = await server.settled(name)
                    parts = [app.node.request_energy(name, "s") for app in (own, other)]
                    assert all(part is not None and part.joules for part in parts)
                    assert [part.hosts for part in parts if part] == [2, 2]
                    assert found["joules"] == pytest.approx(sum(part.joules or 0.0 for part in parts if part))
                    assert found["hosts"] == 2
                    assert "other_hosts" not in found["flags"]
                    assert (found["prompt_tokens"], found["output_tokens"]) == (50, 2)
                # What both counters gave to requests is what the requests have, and nothing besides.
                everything = [f"r{number + 1}" for number in range(server.requests)]
                for name in everything:
                    await server.settled(name)
                body = json.dumps({"ids": everything}).encode()
                answer = await server.ask("POST", "/energy/requests", body=body)
                told = [entry["joules"] for entry in answer["requests"]]
                assert None not in told
                states = [app.node.engines("s")[0].monitor.snapshot() for app in (own, other)]
                attributed = [s.bucket_joules["prefill"] + s.bucket_joules["decode"] for s in states]
                for state in states:
                    assert sum(state.bucket_joules.values()) == pytest.approx(state.settled_joules)
                assert sum(told) == pytest.approx(sum(attributed), rel=1e-9)

        asyncio.run(go())


def test_a_load_generator_adds_both_meters_up_and_takes_neither_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls: list[str] = []
    with two_meters(tmp_path, monkeypatch, urls):

        async def go() -> None:
            async with Server().serving() as server:
                began = time.time()
                await server.until_energy()
                name = f"r{server.requests}"
                found = await server.settled(name)
                clients = [EnergyClient(url) for url in urls]
                both = SeveralMeters([Host(client.url, client) for client in clients])
                both.info()
                window = both.window(began, time.time())
                assert "other_hosts" not in window.all_flags
                each = [client.window(began, window.end_unix) for client in clients]
                assert all("other_hosts" in part.flags for part in each)
                assert both.settle([name])[name].joules == pytest.approx(found["joules"])
                for client in clients:
                    alone = SeveralMeters([Host(client.url, client)])
                    with pytest.raises(InputError, match="GPUs of 2 hosts"):
                        alone.info()
                    client.close()

        asyncio.run(go())


def test_what_one_meter_answers_alone_says_that_it_is_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_meters(tmp_path, monkeypatch) as (own, other, _):

        async def go() -> None:
            async with Server().serving() as server:
                began = time.time()
                await server.until_energy()
                name = f"r{server.requests}"
                await server.settled(name)
                (engine,) = own.node.engines("s")
                assert engine.hello.gpus == ("0", "1")
                window = await server.ask("GET", "/energy", query=f"start={began}&end={time.time()}")
                assert "other_hosts" in window["flags"]
                assert window["hosts_of_engines"] == {engine.hello.engine: 2}
                state = await server.ask("GET", "/energy")
                assert "other_hosts" in state["flags"]
                assert state["hosts_of_engines"] == window["hosts_of_engines"]
                (elsewhere,) = other.node.engines("s")
                assert elsewhere.hello.gpus == ("0", "1")
                assert elsewhere.hello.engine == engine.hello.engine
                assert elsewhere.hello.pid is None
                for app in (own, other):
                    part = app.node.request_energy(name, "s")
                    assert part is not None
                    assert "other_hosts" in part.flags

        asyncio.run(go())
        families = {family.name: family for family in own.collector.collect()}
        assert [sample.value for sample in families["wattserve_engine_hosts"].samples] == [2]


def test_a_request_that_one_meter_does_not_know_has_no_joules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_meters(tmp_path, monkeypatch) as (_, other, further):

        async def go() -> None:
            async with Server().serving() as server:
                await server.until_energy()
                name = f"r{server.requests}"
                await server.settled(name)
                other.node.forget(other.node.engines("s")[0])
                found = await server.ask("GET", f"/energy/requests/{name}")
                assert found["joules"] is None
                assert found["reason"] == f"the meter at {further}: it does not know this request"
                unknown = await server.ask("GET", "/energy/requests/nobody")
                assert "nobody" in unknown["error"]["message"]

        asyncio.run(go())


def pid_of(meter: MeterProcess) -> int:
    answer = ask(meter.address, MeterQuestion(), seconds=20)
    assert isinstance(answer, Answer)
    return int(answer.content["pid"])


def test_a_further_meter_that_dies_leaves_no_sum_and_the_engine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    further = free_address()
    settings = Settings(meter=f"modelled:{PROFILE}")
    with serving_meter(tmp_path) as (own, _, at):
        other = MeterProcess(further, options_of(settings, further))
        other.await_ready()
        monkeypatch.setenv(address.VARIABLE, at)
        monkeypatch.setenv("WATTSERVE_ALSO_AT", f"{further}?devices=all")

        async def go() -> None:
            async with Server().serving() as server:
                await server.until_energy()
                pid = pid_of(other)
                os.kill(pid, signal.SIGKILL)
                usage = await server.generate()
                while usage["energy"] is not None:
                    usage = await server.generate()
                assert usage["energy_reason"].startswith(f"the meter at {further}: ")
                lost = server.requests
                # The meter of this host has all steps nevertheless.
                (engine,) = own.node.engines("s")
                until(lambda: engine.steps == 2 * server.requests, "steps are missing")
                assert engine.lost_steps == 0
                part = own.node.request_energy(f"r{lost}", "s")
                assert part is not None
                assert part.joules is not None
                usage = await server.until_energy()
                assert usage["energy"]["hosts"] == 2
                assert server.requests > lost
                assert pid_of(other) != pid
                found = await server.ask("GET", f"/energy/requests/r{lost}")
                assert found["joules"] is None
                assert further in found["reason"]

        try:
            asyncio.run(go())
        finally:
            other.stop()


def test_a_further_meter_that_never_was_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    further = free_address()
    with serving_meter(tmp_path) as (own, _, at):
        monkeypatch.setenv(address.VARIABLE, at)
        monkeypatch.setenv("WATTSERVE_ALSO_AT", f"{further}?devices=0,1")

        async def go() -> None:
            async with Server().serving() as server:
                usage = await server.generate()
                assert usage["energy"] is None
                assert "meter" in usage["energy_reason"]
                until(lambda: own.node.engines("s"), "the engine is not known to the meter of its host")
                usage = await server.generate()
                assert usage["energy_reason"].startswith(f"the meter at {further}: the meter is not running")

        asyncio.run(go())


def part(joules: float | None, *, hosts: int = 1, alone: bool = False, reason: str = "") -> RequestEnergy:
    flags = frozenset({"other_hosts"}) if alone else frozenset()
    return RequestEnergy(
        "r", "settled", joules, joules, 0.0, 3.0, flags=flags, hosts=hosts, reason=reason or None
    )


@pytest.mark.parametrize(
    ("parts", "joules", "flagged"),
    [
        ([part(1.0, hosts=2, alone=True), part(2.0, hosts=2, alone=True)], 3.0, False),
        ([part(1.0, hosts=3, alone=True), part(2.0, hosts=3, alone=True)], None, True),
        ([part(1.0, hosts=2, alone=True)], None, True),
        # A sum over both hosts, as the model's port tells it, beside the part of one.
        ([part(3.0, hosts=2), part(2.0, hosts=2, alone=True)], 3.0, False),
        # Replicas of a server: a request's joules on each.
        ([part(1.0), part(2.0)], 3.0, False),
        ([part(1.0, hosts=2, alone=True), part(None, hosts=2, alone=True, reason="-")], None, False),
    ],
)
def test_parts_are_a_sum_only_where_all_are_there(
    parts: list[RequestEnergy], joules: float | None, flagged: bool
) -> None:
    found = RequestEnergy.over_hosts(parts)
    assert found.joules == joules
    assert ("other_hosts" in found.flags) == flagged
    assert (found.reason is None) == (joules is not None)
    assert RequestEnergy.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_joules_of_different_kinds_are_not_added() -> None:
    usage = {"joules": 1.0, "prefill_joules": 1.0, "decode_joules": 0.0, "uncertainty_joules": 1.0}
    assert (
        RequestEnergy.from_usage("r", {"energy": {**usage, "status": "settled", "source": "x"}}).joules == 1
    )
    refused = RequestEnergy.from_usage("r", {"energy": None, "energy_reason": "away"})
    assert (refused.joules, refused.reason) == (None, "away")


def test_the_first_hello_to_another_host_says_how_the_clocks_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's host as the further meter sees it is another one, whose clock happens to be the same."""
    with two_meters(tmp_path, monkeypatch) as (_, other, further):
        hello = engine_hello(engine_config(), os.environ, 1)
        elsewhere = replace(hello, boot_id="of-another-host", started_ns=time.monotonic_ns())
        links = Links(os.environ[address.VARIABLE], elsewhere, [FurtherMeter(further, ("0", "1"))])
        taken = other.node

        def greeted() -> bool:
            links.hello(0)
            return bool(taken.engines("s") or taken.refusals)

        until(greeted, "no hello has come")
        assert other.node.refusals == {}
        (engine,) = other.node.engines("s")
        assert abs(engine.hello.sent_ns - time.monotonic_ns()) < 60_000_000_000
        links.close()


@contextlib.contextmanager
def meter_of_another_host(folder: Path, at: str) -> Iterator[subprocess.Popen[bytes]]:
    """A meter process that has another monotonic clock and another boot id than ours, as on another host.
    Skips where the system does not let us."""
    boot = folder / "boot_id"
    boot.write_text("00000000-1111-2222-3333-444444444444\n")
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    apart = ["unshare", "--time", "--monotonic", "500000", "--mount", "--fork", "--kill-child"]
    apart += ["sh", "-c", script, str(boot)]
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and the unshare command")
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("the system gives no clock of its own")
    options = MeterOptions(
        meter=f"modelled:{PROFILE}", socket=at, port=0, idle_watts=100.0, ends_with_input=True
    )
    command = [*apart, sys.executable, "-m", "wattserve.meter.process", options.as_json()]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=20)


def test_a_meter_with_another_clock_divides_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    further = free_address()
    with serving_meter(tmp_path, idle_watts=100.0) as (own, _, at), meter_of_another_host(tmp_path, further):
        until(lambda: ask(further, MeterQuestion(), seconds=1.0), "the meter does not answer", seconds=60.0)
        monkeypatch.setenv(address.VARIABLE, at)
        monkeypatch.setenv("WATTSERVE_ALSO_AT", f"{further}?devices=all")

        async def go() -> None:
            async with Server().serving() as server:
                await server.until_energy()
                for _ in range(30):
                    assert (await server.generate())["energy"]["hosts"] == 2
                # The first ones ran before the monitors had read their counters.
                names = [f"r{number + 1}" for number in range(server.requests - 30, server.requests)]
                found = [await server.settled(name) for name in names]
                parts = [own.node.request_energy(name, "s") for name in names]
                here = sum(part.joules or 0.0 for part in parts if part)
                both = sum(entry["joules"] for entry in found)
                # The same modelled GPU computes the same steps on both hosts.
                assert both == pytest.approx(2 * here, rel=0.15)
                assert all("clock_uncertain" not in entry["flags"] for entry in found)
                question = HttpQuestion("s", 1, "GET", "/energy")
                answer = ask(further, question, seconds=20)
                assert isinstance(answer, Answer)
                (engine,) = json.loads(answer.body)["engines"]
                assert engine["steps"] >= 20
                assert abs(engine["startup"]["start"] - time.time()) < 120.0

        asyncio.run(go())
