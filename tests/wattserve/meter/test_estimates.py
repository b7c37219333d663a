"""Energy estimated from streams, beside engines without step records: conserving, labelled and near."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sim_server import serving, simulating
from wattserve.http.middleware import EnergyMiddleware, MonitorSource, Receive, Scope, Send
from wattserve.meter.app import MeterApp
from wattserve.meter.engines import Node
from wattserve.meter.estimates import prompt_size
from wattserve.meter_spec import MeterSpec
from wattserve.sim.app import Simulator
from wattserve.sim.profile import load_profile


class Quiet(MonitorSource):
    """Keeps a server's energy to itself, as servers without a meter of their own do."""

    async def usage_fields(
        self, request_id: str, *, output_tokens: int | None = None, prompt_tokens: int | None = None
    ) -> dict[str, Any]:
        return {}


@contextlib.contextmanager
def beside() -> Iterator[tuple[httpx.Client, httpx.Client, Simulator]]:
    """Clients of a proxy that estimates, and of the simulator whose device it reads."""
    with simulating(profile=load_profile("h200-llama-3.1-8b")) as (url, simulator):
        node = Node(
            MeterSpec("modelled", "none"), meter=simulator.meter, idle_watts=simulator.profile.idle_watts
        )
        assert isinstance(simulator.app, EnergyMiddleware)
        simulator.app.source = Quiet(simulator.account)
        with (
            serving(MeterApp(node, upstream=url + "/v1").app) as through,
            httpx.Client(base_url=through, timeout=60) as proxy,
            httpx.Client(base_url=url, timeout=60) as direct,
        ):
            # Both meters know joules from the first movement of the counter that they have seen.
            for number in range(100):
                ask(proxy, f"first-{number}", [1], 5, stream=True)
                time.sleep(0.1)
                if settled(proxy, [f"first-{number}"])[0]["joules"] is not None:
                    break
            yield proxy, direct, simulator


def ask(client: httpx.Client, name: str, prompt: Any, tokens: int, *, stream: bool, group: str = "") -> Any:
    """The usage of one response."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    headers = {"x-request-id": name, "x-energy-group": group}
    answer = client.post("/v1/completions", json=body, headers=headers)
    answer.raise_for_status()
    if not stream:
        return answer.json()["usage"]
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return json.loads(lines[-1].removeprefix("data: "))["usage"]


def settled(client: httpx.Client, names: list[str]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 90
    while True:
        found = client.post("/energy/requests", json={"ids": names}).json()["requests"]
        if all(one["status"] == "settled" for one in found):
            return list(found)
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def test_a_response_has_an_estimate_that_says_so() -> None:
    with beside() as (proxy, _, _):
        for stream in (True, False):
            usage = ask(proxy, f"one-{stream}", list(range(300)), 200, stream=stream)
            assert usage["energy"]["joules"] > 0, usage
            assert usage["energy"]["estimated"] is True
            assert usage["energy"]["status"] == "provisional"
        for one in settled(proxy, ["one-True", "one-False"]):
            assert one["joules"] > 0, one
            assert "estimated" in one["flags"]
            assert one["prompt_tokens"] == 300
            assert one["uncertainty_joules"] >= 0.19 * one["joules"]
        state = proxy.get("/energy").json()
        assert "estimated" in state["flags"]
        assert state["engines"][0]["lost_step_records"] == 0
        assert state["model_name"] == "llama-3.1-8b"


def test_tenants_get_what_the_step_records_say_within_15_percent_and_the_sum_is_the_counters() -> None:
    """Prompt-heavy, decode-heavy and unstreamed traffic at once."""
    with beside() as (proxy, _, simulator):
        kinds = {"code": (1500, 60, True), "chat": (60, 400, True), "whole": (200, 150, False)}
        start = time.time()
        jobs = [
            # No prompt begins as another: what a prefix cache saves cannot be seen from outside.
            (f"{group}-{number}", [1000 * len(group) + number, *range(prompt - 1)], tokens, stream, group)
            for number in range(12)
            for group, (prompt, tokens, stream) in kinds.items()
        ]
        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            list(pool.map(lambda job: ask(proxy, job[0], job[1], job[2], stream=job[3], group=job[4]), jobs))
        names = [job[0] for job in jobs]
        own = [simulator.account.request_energy(name) for name in names]
        estimated = settled(proxy, names)
        deadline = time.monotonic() + 60
        while any(one is None or one.status != "settled" for one in own):
            assert time.monotonic() < deadline
            time.sleep(0.2)
            own = [simulator.account.request_energy(name) for name in names]
        total = sum(one.joules or 0.0 for one in own if one is not None)
        assert sum(one["joules"] for one in estimated) == pytest.approx(total, rel=0.05)
        for group in kinds:
            truth = sum(
                one.joules or 0.0 for one, job in zip(own, jobs, strict=True) if job[4] == group and one
            )
            found = sum(one["joules"] for one, job in zip(estimated, jobs, strict=True) if job[4] == group)
            assert found == pytest.approx(truth, rel=0.15 if kinds[group][2] else 0.4), group
        window = proxy.get("/energy", params={"start": start, "end": time.time() - 1.0}).json()
        parts = (
            window["idle_joules"] + window["unattributed_joules"] + sum(window["attributed_joules"].values())
        )
        assert parts == pytest.approx(window["total_joules"], rel=1e-6)


def test_a_server_that_answers_nonsense_is_passed_on_and_not_metered() -> None:
    async def odd(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": message["type"] + ".complete"})
            return
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": nothing\n\n", "more_body": False})

    with simulating() as (_, simulator), serving(odd) as url:
        node = Node(MeterSpec("modelled", "none"), meter=simulator.meter)
        with (
            serving(MeterApp(node, upstream=url).app) as through,
            httpx.Client(base_url=through, timeout=60) as proxy,
        ):
            answer = proxy.post("/v1/completions", content=b"{not json", headers={"x-request-id": "odd"})
            assert answer.text == ": nothing\n\n"
            (one,) = settled(proxy, ["odd"])
            assert one["joules"] is None, one


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"prompt": [1, 2, 3]}, (3, 0)),
        ({"prompt": [[1, 2], [3]]}, (3, 0)),
        ({"prompt": "abc"}, (0, 3)),
        ({"prompt": ["ab", "é"]}, (0, 4)),
        ({"messages": [{"role": "user", "content": "hello"}]}, (0, 5)),
        ({"messages": [{"content": [{"type": "text", "text": "ab"}, {"type": "image_url"}]}]}, (0, 2)),
        ({"messages": "none", "prompt": 7}, (0, 0)),
        ({}, (0, 0)),
    ],
)
def test_the_size_of_a_prompt(asked: dict[str, Any], size: tuple[int, int]) -> None:
    assert prompt_size(asked) == size
