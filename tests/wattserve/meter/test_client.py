"""What an API process tells the meter of a request: its beginning, and its end together with the question."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from meter_node import FakeEngine, serving_meter, until
from wattserve.meter.client import MeterClient
from wattserve.protocol import messages
from wattserve.protocol.messages import (
    Answer,
    EnergyQuestion,
    Message,
    Refused,
    RequestFinished,
    RequestStarted,
)
from wattserve.protocol.sender import Sender


class Meter:
    """Receives messages and answers each question with `content`."""

    def __init__(self, address: str) -> None:
        self.context: Any = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self.socket.bind(address)
        self.content: dict[str, Any] = {"energy": {"joules": 1.0}}

    def take(self) -> Message:
        sender, *frames = self.socket.recv_multipart()
        message = messages.decode(frames)
        if isinstance(message, EnergyQuestion):
            self.socket.send_multipart([sender, *messages.encode(Answer(message.number, self.content))])
        return message


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/meter.sock"


@pytest.fixture
def meter(address: str) -> Iterator[Meter]:
    meter = Meter(address)
    yield meter
    meter.socket.close(linger=0)
    meter.context.term()


async def one_request(client: MeterClient, meter: Meter, name: str) -> tuple[dict[str, Any], list[Message]]:
    """(the usage's fields, what the meter received), with a second request's start behind it all."""
    taking = asyncio.create_task(asyncio.to_thread(lambda: [meter.take(), meter.take()]))
    client.request_started(name, group="g")
    usage = await client.usage_fields(name, output_tokens=7, prompt_tokens=3)
    received = await taking
    client.request_finished(name, output_tokens=7, prompt_tokens=3)
    client.request_started("another")
    received.append(await asyncio.to_thread(meter.take))
    if received[-1] != RequestStarted("s", "another"):
        received.append(await asyncio.to_thread(meter.take))
    return usage, received


@pytest.mark.parametrize("newer", [True, False])
def test_the_end_goes_with_the_question_where_the_meter_understands_it(
    meter: Meter, address: str, newer: bool
) -> None:
    if newer:
        meter.content["ended"] = True

    async def go() -> tuple[dict[str, Any], list[Message]]:
        client = MeterClient(address, "s", deadline_seconds=30.0)
        await connected(client)
        await asyncio.to_thread(meter.take)
        found = await one_request(client, meter, "a")
        client.close()
        return found

    usage, (started, question, *rest) = asyncio.run(go())
    assert usage == {"energy": {"joules": 1.0}}
    assert started == RequestStarted("s", "a", "g")
    assert isinstance(question, EnergyQuestion)
    assert (question.ended, question.prompt_tokens, question.output_tokens) == (True, 3, 7)
    another = RequestStarted("s", "another")
    assert rest == ([another] if newer else [RequestFinished("s", "a", 3, 7), another])


async def connected(client: MeterClient, request_id: str = "first") -> None:
    client.start()
    await started(client, request_id)


async def started(client: MeterClient, request_id: str) -> None:
    """A socket that is not connected yet takes nothing: the first message may take a few attempts."""
    while True:
        lost = client.lost_messages
        client.request_started(request_id)
        if client.lost_messages == lost:
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("together", [1, 40])
@pytest.mark.parametrize("replies", [True, False])
def test_no_answer_is_overlooked_between_other_messages(
    meter: Meter, address: str, together: int, replies: bool
) -> None:
    """The descriptor tells an arrival once, and each send and each other arrival may take note of it."""
    each = 400 // together

    def serve() -> None:
        taken = 0
        while taken < 400:
            sender, *frames = meter.socket.recv_multipart()
            message = messages.decode(frames)
            if isinstance(message, EnergyQuestion):
                taken += 1
                answer = Answer(message.number, {"energy": {"joules": message.output_tokens}})
                meter.socket.send_multipart([sender, *messages.encode(answer)])
            elif replies:
                meter.socket.send_multipart([sender, *messages.encode(Refused("no"))])

    async def requests(client: MeterClient, number: int) -> list[Any]:
        found = []
        for turn in range(each):
            client.request_started(f"{number}-{turn}")
            if turn % 3:
                await asyncio.sleep(0)
            found.append(await client.usage_fields(f"{number}-{turn}", output_tokens=turn))
        return found

    async def go() -> list[list[Any]]:
        client = MeterClient(address, "s", deadline_seconds=20.0)
        serving = asyncio.create_task(asyncio.to_thread(serve))
        await connected(client)
        found = await asyncio.gather(*(requests(client, number) for number in range(together)))
        await serving
        client.close()
        return found

    wanted = [{"energy": {"joules": turn}} for turn in range(each)]
    assert asyncio.run(go()) == [wanted] * together


def test_a_question_at_its_end_ends_a_request(tmp_path: Path) -> None:
    with serving_meter(tmp_path) as (app, _, address):
        sender, engine = Sender(address), FakeEngine()
        until(lambda: sender.send(messages.encode(engine.hello())), "the meter takes a hello")
        until(app.node.engines, "the engine is known")

        async def go() -> dict[str, Any]:
            client = MeterClient(address, "s", deadline_seconds=30.0)
            await connected(client, "a")
            sender.send(messages.encode(engine.step(prompts={"a": 50})))
            usage = await client.usage_fields("a", output_tokens=7, prompt_tokens=50)
            client.close()
            return usage

        usage = asyncio.run(go())
        sender.close()
        assert set(usage) == {"energy"}
        (known,) = app.node.engines("s")
        assert known.monitor.snapshot().active_requests == 0
        energy = app.node.request_energy("a", "s")
        assert energy is not None
        assert (energy.prompt_tokens, energy.output_tokens, energy.aborted) == (50, 7, False)


def test_ends_that_a_meter_did_not_take_are_told_when_it_is_back(address: str) -> None:
    """Otherwise a request that ended while the meter was away would run there for ever."""

    async def go() -> list[Message]:
        client = MeterClient(address, "s", deadline_seconds=30.0)
        client.start()
        for name in ("a", "b"):
            client.request_started(name)
            client.request_finished(name, output_tokens=1)
        assert client.lost_messages == 2  # the beginnings
        meter = Meter(address)
        await started(client, "c")
        lost = client.lost_messages
        taking = asyncio.to_thread(lambda: [meter.take() for _ in range(4)])
        _, received = await asyncio.gather(client.usage_fields("c"), taking)
        client.close()
        meter.socket.close(linger=0)
        meter.context.term()
        question = next(message for message in received if isinstance(message, EnergyQuestion))
        assert question.lost == lost
        return [*received]

    received = asyncio.run(go())
    assert RequestStarted("s", "c") in received
    ends = [message for message in received if isinstance(message, RequestFinished)]
    assert ends == [RequestFinished("s", name, None, 1) for name in ("a", "b")]
