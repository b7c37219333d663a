"""The middleware around a stand-in for vLLM's application: metered, not metered, and at its end."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_app import VllmApp
from wattserve.protocol import address
from wattserve.vllm import outcome
from wattserve.vllm.middleware import EnergyMiddleware
from wattserve.vllm.settings import (
    REASON_VARIABLE,
    SERVER_VARIABLE,
    FurtherMeter,
    SettingError,
    Settings,
    flags_and_rest,
)


class App(VllmApp):
    """Answers every request with a usage, as vLLM does."""

    async def answer(self, send: Any) -> None:
        body = json.dumps({"choices": [], "usage": {"completion_tokens": 3}}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def served(app: App, *headers: tuple[bytes, bytes], die: bool = False) -> dict[str, Any]:
    """Start-up, one request and shutdown; the JSON body of the answer."""
    middleware = EnergyMiddleware(app)
    messages = asyncio.Queue[dict[str, Any]]()

    async def ignore(_: Any) -> None: ...

    lifespan = asyncio.create_task(middleware({"type": "lifespan", "app": app}, messages.get, ignore))
    await messages.put({"type": "lifespan.startup"})
    await asyncio.sleep(0.05)
    answers: list[dict[str, Any]] = []

    async def take(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": list(headers)}
    await middleware(scope, messages.get, take)
    app.state.engine_client.errored = die
    await messages.put({"type": "lifespan.shutdown"})
    await lifespan
    body: dict[str, Any] = json.loads(answers[-1]["body"])
    return body


@pytest.fixture(autouse=True)
def nothing_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (address.VARIABLE, SERVER_VARIABLE, REASON_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def settle(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """What the launcher or the plugin leaves in the environment."""
    monkeypatch.setenv(address.VARIABLE, at)
    monkeypatch.setenv(SERVER_VARIABLE, "s")


def test_without_the_plugin_it_serves_and_says_why() -> None:
    usage = asyncio.run(served(App()))["usage"]
    assert usage["completion_tokens"] == 3
    assert usage["energy"] is None
    assert "did not load the plugin" in usage["energy_reason"]


def test_without_a_meter_it_serves_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settle(monkeypatch, f"ipc://{tmp_path}/s.sock")
    usage = asyncio.run(served(App()))["usage"]
    assert usage["energy"] is None
    assert "the meter is not running" in usage["energy_reason"]
    monkeypatch.setenv(REASON_VARIABLE, "not metered: --energy-meter sundial: not a meter")
    usage = asyncio.run(served(App()))["usage"]
    assert usage["energy_reason"] == "not metered: --energy-meter sundial: not a meter"


def test_an_engine_that_cannot_be_metered_here_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settle(monkeypatch, f"ipc://{tmp_path}/s.sock")
    app = App()
    app.state.vllm_config.parallel_config.nnodes = 2
    assert "several hosts" in asyncio.run(served(app))["usage"]["energy_reason"]


def test_a_key_names_its_tenant_only_as_a_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settle(monkeypatch, f"ipc://{tmp_path}/s.sock")
    monkeypatch.setenv("WATTSERVE_GROUP_HEADER", "Authorization")
    app = App()
    usage = asyncio.run(served(app, (b"authorization", b"Bearer secret"), (b"x-energy-group", b"forged")))
    assert "energy" in usage["usage"]
    assert any(route.path == "/energy" for route in app.routes)
    assert len(app.seen[b"x-energy-group"]) == 12
    assert b"secret" not in app.seen[b"x-energy-group"]


@pytest.fixture
def new_process() -> Iterator[None]:
    """`outcome` as a process finds it that has served nothing yet."""
    importlib.reload(outcome)
    yield
    importlib.reload(outcome)


@pytest.mark.usefixtures("new_process")
def test_a_dead_engine_is_told_and_an_ordinary_end_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(served(App()))
    assert outcome.engine_death() is None
    asyncio.run(served(App(), die=True))
    assert "engine died while serving" in (outcome.engine_death() or "")
    assert "engine died while serving" in capsys.readouterr().err


def test_vllms_flags_pass_untouched_and_in_order() -> None:
    given = [
        "m",
        "--port",
        "1",
        "--energy-meter",
        "nvml",
        "-tp",
        "2",
        "--energy-record=x",
        "--",
        "--energy-x",
    ]
    variables, rest = flags_and_rest(given)
    assert variables == {"WATTSERVE_METER": "nvml", "WATTSERVE_RECORD": "x"}
    assert rest == ["m", "--port", "1", "-tp", "2", "--", "--energy-x"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WATTSERVE_IDLE_WATTS", "-1"), ("WATTSERVE_IDLE_WATTS", "nan"), ("WATTSERVE_SELFTEST_SECONDS", "61")],
)
def test_settings_that_make_no_sense(variable: str, value: str) -> None:
    with pytest.raises(SettingError, match=variable):
        Settings.from_environment({variable: value})


def test_further_meters_are_given_once_for_each_host() -> None:
    given = ["m", "--energy-also-at", "tcp://b:9600?devices=0,1", "--energy-also-at=tcp://c:9600?devices=all"]
    variables, rest = flags_and_rest(given)
    assert rest == ["m"]
    settings = Settings.from_environment(variables)
    assert settings.also_at == (
        FurtherMeter("tcp://b:9600", ("0", "1")),
        FurtherMeter("tcp://c:9600", ()),
    )
    assert Settings.from_environment({"WATTSERVE_ALSO_AT": " "}).also_at == ()


@pytest.mark.parametrize(
    ("also", "word"),
    [
        ("tcp://b:9600", "names no devices"),
        ("tcp://b:9600?devices=", "names no devices"),
        ("tcp://b:9600?devices= , ", "names no devices"),
        ("tcp://b:9600?gpu=0", "names no devices"),
        ("tcp://b:9600?devices=0&more=1", "names no devices"),
        ("tcp://b?devices=0", "host and a port"),
        ("/run/meter.sock?devices=0", "another host"),
        ("http://b:8790?devices=0", "another host"),
        ("tcp://b:9600?devices=0 tcp://b:9600?devices=1", "named twice"),
        ("tcp://a:9600?devices=0", "named twice"),
    ],
)
def test_further_meters_that_make_no_sense(also: str, word: str) -> None:
    with pytest.raises(SettingError, match="WATTSERVE_ALSO_AT") as refused:
        Settings.from_environment({"WATTSERVE_ALSO_AT": also, "WATTSERVE_METER_AT": "tcp://a:9600"})
    assert word in str(refused.value)


class AuthenticationMiddleware:
    """vLLM's check by its name: it looks at the paths below /v1 alone."""


@pytest.mark.parametrize("how", ["checked", "flag", "variable", "unreadable"])
def test_energy_asks_for_vllms_keys(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A middleware of vLLM stands outside of its key check, which is about /v1 alone."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    app = App()
    kwargs: dict[str, Any]
    if how == "checked":
        kwargs = {"tokens": ["k1", "k2"]}
        app.user_middleware = [SimpleNamespace(cls=AuthenticationMiddleware, args=(), kwargs=kwargs)]
    elif how == "unreadable":
        kwargs = {"tokens": object()}
        app.user_middleware = [SimpleNamespace(cls=AuthenticationMiddleware, args=(), kwargs=kwargs)]
    elif how == "flag":
        app.state.args.api_key = ["k1", "k2"]
    else:
        monkeypatch.setenv("VLLM_API_KEY", "k1")
    answers = asyncio.run(
        asked(
            app,
            [
                ("/energy", None),
                ("/energy/requests/a", "wrong"),
                ("/energy", "k1"),
                ("/v1/completions", None),
            ],
        )
    )
    opened = 401 if how == "unreadable" else 200
    assert answers == [401, 401, opened, 200], "below /v1 vLLM answers itself"


async def asked(app: App, questions: list[tuple[str, str | None]]) -> list[int]:
    """The statuses of requests to (path, with the key)."""
    middleware = EnergyMiddleware(app)
    messages = asyncio.Queue[dict[str, Any]]()

    async def ignore(_: Any) -> None: ...

    lifespan = asyncio.create_task(middleware({"type": "lifespan", "app": app}, messages.get, ignore))
    await messages.put({"type": "lifespan.startup"})
    await asyncio.sleep(0.05)
    statuses: list[int] = []

    async def take(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    for path, key in questions:
        headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
        await middleware(scope, messages.get, take)
    await messages.put({"type": "lifespan.shutdown"})
    await lifespan
    return statuses
