"""A meter process that hangs, dies and comes back, as a thin middleware around a fake app sees it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meter_node import PROFILE, FakeEngine
from wattserve.http.middleware import EnergyMiddleware
from wattserve.meter.client import MeterClient
from wattserve.protocol import address, messages
from wattserve.protocol.messages import Answer, HttpQuestion, MeterQuestion
from wattserve.protocol.sender import Sender, ask
from wattserve.vllm.meter_process import MeterProcess, options_of
from wattserve.vllm.settings import Settings


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[MeterProcess]:
    at = address.address_of(str(tmp_path / "meter.sock"))
    process = MeterProcess(at, options_of(Settings(meter=f"modelled:{PROFILE}", record=tmp_path / "r"), at))
    process.await_ready()
    yield process
    process.stop()


def pid_of(meter: MeterProcess) -> int:
    answer = ask(meter.address, MeterQuestion(), seconds=20)
    assert isinstance(answer, Answer)
    return int(answer.content["pid"])


def state(meter: MeterProcess, query: str = "") -> dict[str, Any]:
    answer = ask(meter.address, HttpQuestion("s", 1, "GET", "/energy", query), seconds=20)
    assert isinstance(answer, Answer)
    assert answer.content["status"] == 200
    found: dict[str, Any] = json.loads(answer.body)
    return found


class Server:
    """An engine and an API process that are only messages: the app streams a chunk and then the usage."""

    def __init__(self, meter: MeterProcess) -> None:
        self.engine = FakeEngine()
        self.sender = Sender(meter.address)
        self.client = MeterClient(meter.address, "s")
        self.app = EnergyMiddleware(self._app, self.client)
        self.requests = 0

    def hello(self) -> bool:
        return self.sender.send(messages.encode(self.engine.hello()))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        name = dict(scope["headers"])[b"x-request-id"].decode()
        self.sender.send(messages.encode(self.engine.step(prompts={name: 50})))
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for content in ({"choices": [{"text": "a"}]}, {"choices": [], "usage": {"completion_tokens": 1}}):
            body = b"data: " + json.dumps(content).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def ask(self) -> dict[str, Any]:
        """The usage of one response, which must be whole."""
        self.requests += 1
        sent: list[bytes] = []

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        headers = [(b"x-request-id", f"r{self.requests}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await self.app(scope, receive, send)
        *events, done = b"".join(sent).decode().split("\n\n")[:-1]
        assert done == "data: [DONE]"
        assert len(events) == 2
        usage: dict[str, Any] = json.loads(events[-1].removeprefix("data: "))["usage"]
        assert usage["completion_tokens"] == 1
        return usage

    async def until_energy(self, seconds: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            self.hello()
            usage = await self.ask()
            if usage["energy"] is not None:
                return usage
            assert time.monotonic() < deadline, usage["energy_reason"]
            await asyncio.sleep(0.1)


def test_a_meter_that_hangs_costs_one_deadline_and_no_response(meter: MeterProcess) -> None:
    pid = pid_of(meter)

    async def go() -> None:
        server = Server(meter)
        server.client.start()
        assert (await server.until_energy())["energy"]["source"] == "modelled"
        os.kill(pid, signal.SIGSTOP)
        try:
            usage = await server.ask()
            assert usage["energy"] is None
            assert "did not answer in time" in usage["energy_reason"]
            # Nobody waits for it again until it speaks.
            reasons = [(await server.ask())["energy_reason"] for _ in range(50)]
            assert set(reasons) == {"the meter does not answer"}
        finally:
            os.kill(pid, signal.SIGCONT)
        await server.until_energy()
        server.client.close()
        server.sender.close()

    asyncio.run(go())


def test_a_meter_that_dies_is_started_again_and_the_hole_is_named(meter: MeterProcess) -> None:
    pid = pid_of(meter)

    async def go() -> None:
        server = Server(meter)
        server.client.start()
        await server.until_energy()
        await asyncio.sleep(1.5)  # what it knows is saved once a second
        server.hello()
        began = time.time()
        os.kill(pid, signal.SIGKILL)
        usage = await server.ask()
        while usage["energy"] is not None:
            usage = await server.ask()
        assert usage["energy_reason"]
        lost = server.requests
        await server.until_energy()
        assert server.requests > lost
        server.client.close()
        server.sender.close()
        assert pid_of(meter) != pid
        found = state(meter)
        assert [hole["device"] for hole in found["holes"]] == ["modelled-0"]
        assert found["holes"][0]["end"] > began
        (engine,) = found["engines"]
        # What met nobody is counted; what the meter before had taken is not lost.
        assert engine["lost_step_records"] >= 1
        assert engine["steps"] + engine["lost_step_records"] < server.engine.next_step
        window = state(meter, f"start={began - 0.5}&end={time.time()}")
        assert "meter_restarted" in window["flags"]
        assert not window["complete"]

    asyncio.run(go())


def test_a_meter_ends_with_its_server(meter: MeterProcess, tmp_path: Path) -> None:
    pid = pid_of(meter)
    meter.stop()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert not (tmp_path / "meter.sock").exists()
    assert not (tmp_path / "meter.state").exists()


def test_the_second_at_a_socket_finds_the_meter_of_the_first(meter: MeterProcess) -> None:
    pid = pid_of(meter)
    second = MeterProcess(meter.address, options_of(Settings(meter=f"modelled:{PROFILE}"), meter.address))
    second.await_ready()
    assert pid_of(meter) == pid
    second.stop()
    assert pid_of(meter) == pid


def test_another_version_is_refused_and_the_reason_reaches_the_response(
    meter: MeterProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "VERSION", 4)

    async def go() -> dict[str, Any]:
        server = Server(meter)
        server.client.start()
        deadline = time.monotonic() + 20
        usage: dict[str, Any] = {}
        while "speaks" not in usage.get("energy_reason", "") and time.monotonic() < deadline:
            usage = await server.ask()
            await asyncio.sleep(0.05)
        server.client.close()
        server.sender.close()
        return usage

    usage = asyncio.run(go())
    assert usage["energy"] is None
    assert "protocol" in usage["energy_reason"]
