"""The middleware around a stand-in for vLLM's application: metered, not metered, and at its end."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from wattserve.vllm import outcome, selftest
from wattserve.vllm.middleware import EnergyMiddleware
from wattserve.vllm.settings import SettingError, Settings, flags_and_rest


class App:
    """Answers every request with a usage, as vLLM does; `seen` are the headers it was given."""

    def __init__(self) -> None:
        self.seen: dict[bytes, bytes] = {}
        self.routes: list[Any] = []
        client = SimpleNamespace(errored=False, shutdown=lambda timeout=0: None)
        parallel = SimpleNamespace(world_size=1, data_parallel_size=1)
        model = SimpleNamespace(served_model_name="m", model="m", max_model_len=100)
        self.state = SimpleNamespace(
            engine_client=client,
            args=SimpleNamespace(api_server_count=1),
            vllm_config=SimpleNamespace(parallel_config=parallel, model_config=model),
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": message["type"] + ".complete"})
            return
        self.seen = dict(scope["headers"])
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
    return json.loads(answers[-1]["body"])


def test_without_the_plugin_it_serves_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTSERVE_STEP_SOCKET", raising=False)
    usage = asyncio.run(served(App()))["usage"]
    assert usage["completion_tokens"] == 3
    assert usage["energy"] is None
    assert "did not load the plugin" in usage["energy_reason"]


def test_without_a_meter_it_serves_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("WATTSERVE_STEP_SOCKET", f"ipc://{tmp_path}/s.sock")
    monkeypatch.setenv("WATTSERVE_METER", "sundial")
    usage = asyncio.run(served(App()))["usage"]
    assert usage["energy"] is None
    assert "sundial" in usage["energy_reason"]


@pytest.mark.parametrize("attribute", ["data_parallel_size", "api_server_count"])
def test_several_engines_or_api_processes_are_not_metered(
    monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    monkeypatch.setenv("WATTSERVE_METER", "modelled:h200-llama-3.1-8b")
    app = App()
    holder = app.state.args if attribute == "api_server_count" else app.state.vllm_config.parallel_config
    setattr(holder, attribute, 2)
    usage = asyncio.run(served(app))["usage"]
    assert usage["energy"] is None
    assert "several" in usage["energy_reason"]


def test_a_key_names_its_tenant_only_as_a_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("WATTSERVE_STEP_SOCKET", f"ipc://{tmp_path}/s.sock")
    monkeypatch.setenv("WATTSERVE_METER", "modelled:h200-llama-3.1-8b")
    monkeypatch.setenv("WATTSERVE_GROUP_HEADER", "Authorization")
    app = App()
    usage = asyncio.run(served(app, (b"authorization", b"Bearer secret"), (b"x-energy-group", b"forged")))
    assert "energy" in usage["usage"]
    assert any(route.path == "/energy" for route in app.routes)
    assert len(app.seen[b"x-energy-group"]) == 12
    assert b"secret" not in app.seen[b"x-energy-group"]


def test_a_self_test_that_ends_late_is_in_the_books(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("WATTSERVE_STEP_SOCKET", f"ipc://{tmp_path}/s.sock")
    monkeypatch.setenv("WATTSERVE_METER", "modelled:h200-llama-3.1-8b")
    found = tmp_path / "found.json"
    found.write_text("")
    monkeypatch.setenv(selftest.VARIABLE, str(found))
    monkeypatch.setattr(selftest, "follow", _late(found, selftest.follow))
    app = App()
    asyncio.run(served(app))
    routes = next(route for route in app.routes if route.path == "/energy").endpoint.__self__
    assert routes.selftest == {"status": "done", "flags": ["sensor_disagreement"]}
    assert "sensor_disagreement" in routes.state()["flags"]


def _late(found: Any, follow: Any) -> Any:
    """`follow` beside a test that ends during the first wait."""

    def wait(_seconds: float) -> bool:
        found.write_text('{"flags": ["sensor_disagreement"]}')
        return False

    return lambda tell, **_: follow(tell, wait=wait)


def test_a_dead_engine_is_told_and_an_ordinary_end_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outcome, "_engine_death", None)
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
