"""The energy routes refuse what cannot be answered, with a sentence and never with a 500."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.applications import Starlette

from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattserve.http.routes import EnergyRoutes, add_energy_routes


def asked(method: str, path: str, *, query: str = "", body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Status and JSON of one request to an app whose account knows no request and answers no window."""
    app = Starlette()
    account = cast(EnergyMonitor, SimpleNamespace(request_energy=lambda _id: None))
    add_energy_routes(app, EnergyRoutes(account, engine="scripted", model_name="m"))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": []}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[-1]["body"])


@pytest.mark.parametrize("path", ["/energy", "/energy/series"])
@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("start=1&end=1.0000000001", "at least 1 microsecond"),
        ("start=0&end=1e300", "end must be UNIX seconds"),
        ("start=-1e300&end=1", "start must be UNIX seconds"),
    ],
)
def test_windows_that_hold_no_time_or_too_much(path: str, query: str, says: str) -> None:
    status, answer = asked("GET", path, query=query)
    assert status == 400
    assert says in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"ids":["\\ud800"]}', "surrogate"),
        (b'{"ids":' + b"[" * 200_000, "JSON object"),
    ],
)
def test_bodies_that_cannot_be_answered(body: bytes, says: str) -> None:
    status, answer = asked("POST", "/energy/requests", body=body)
    assert status == 400
    assert says in answer["error"]["message"]


def test_ids_in_any_script_are_answered() -> None:
    status, answer = asked("POST", "/energy/requests", body='{"ids": ["\u00e9\U0001f600"]}'.encode())
    assert (status, answer["requests"]) == (200, [{"id": "\u00e9\U0001f600", "status": "unknown"}])
