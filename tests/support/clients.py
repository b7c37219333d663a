"""Clients made from settings by name, as a test has them, and single requests that they send."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent
from gevent.event import Event

from scripted_server import Script, scripted
from wattload.client.client import Client
from wattload.client.endpoint import EndpointOptions, RequestOptions
from wattload.client.record import RequestRecord
from wattload.client.transport.timer import Ticker


def client_of(url: str, *, headers: dict[str, str] | None = None, **settings: Any) -> Client:
    """A client for `url` with the settings of EndpointOptions and RequestOptions by name."""
    known = {setting.name for setting in EndpointOptions.settings()}
    options = {name: value for name, value in settings.items() if name in known}
    made = EndpointOptions.of({"model": "m", **options, "url": url}).endpoint()
    endpoint = replace(made, headers=headers or {})
    return Client(endpoint, RequestOptions(**{n: v for n, v in settings.items() if n not in known}))


LENGTH = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s"


def plain(status: bytes, body: bytes, headers: bytes = b"") -> Script:
    return [LENGTH % (status, len(body), headers, body)]


def one(client: Client, *, prompt: bytes = b"[1,2,3]", output: int = 3, tag: str = "") -> RequestRecord:
    """Sends one request and waits for its record; fails where there is not exactly one."""
    record = RequestRecord(0, "run-0", -1, tag, time.time(), 3, output)
    got: list[RequestRecord] = []
    over = Event()
    ticker = Ticker(0.02, client.tick)

    def done(record: RequestRecord) -> None:
        got.append(record)
        over.set()

    client.send(record, client.prepare(record, prompt), done)
    assert over.wait(5), "the request never ended"
    gevent.sleep(0.02)
    ticker.close()
    assert got == [record]
    assert not client.calls
    return record


def ask(answer: Callable[[dict[str, Any]], Script] | Script, **options: Any) -> RequestRecord:
    script = answer if callable(answer) else lambda _request: answer
    with scripted(script) as (url, _):
        client = client_of(url, **options)
        try:
            return one(client)
        finally:
            client.close()
