"""Meters of several hosts on loopback, whose watts and clocks a test decides."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np


class Meter:
    """A host's meter: devices of `watts` each, a clock that is `ahead` seconds ahead of ours."""

    def __init__(
        self,
        watts: list[float],
        ahead: float,
        ids: list[str] | None = None,
        place: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.watts, self.ahead, self.down = watts, ahead, False
        self.kind = "nvml"
        self.ids = ids or [f"gpu-{number}" for number in range(len(watts))]
        meter = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                url = urlparse(self.path)
                query = {name: float(values[0]) for name, values in parse_qs(url.query).items()}
                self.answer(*meter.answer(url.path, query))

            def do_POST(self) -> None:
                ids = json.loads(self.rfile.read(int(self.headers["content-length"])))["ids"]
                self.answer(*meter.requests(ids))

            def answer(self, content: dict[str, Any], status: int = 200) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(place, Handler)
        self.server.daemon_threads = True
        self.port = int(self.server.server_address[1])
        self.url = f"http://{place[0]}:{self.port}"
        self.known: dict[str, float] = {}
        # Of each engine that uses GPUs of several hosts, how many.
        self.engines: dict[str, int] = {}

    def answer(self, path: str, query: dict[str, float]) -> tuple[dict[str, Any], int]:
        if self.down:
            return {"error": "down"}, 500
        if path == "/v1/models":
            return {"data": [{"id": "m"}]}, 200
        if path == "/energy/clock":
            return {"unix_seconds": time.time() + self.ahead}, 200
        devices = [{"id": name, "name": "GPU", "source": self.kind} for name in self.ids]
        if path == "/energy/series":
            ticks = np.arange(np.ceil(query["start"] * 10), query["end"] * 10) / 10
            rows = [
                {
                    **d,
                    "unix_seconds": ticks.tolist(),
                    "joules": (w * ticks).tolist(),
                    "watts": [w] * len(ticks),
                }
                for d, w in zip(devices, self.watts, strict=True)
            ]
            return {"devices": rows}, 200
        if path == "/energy" and query:
            seconds = query["end"] - query["start"]
            # What the window holds depends on where it lies on this host's own clock.
            rows = [
                {
                    **d,
                    "joules": w * seconds,
                    "uncertainty_joules": 3.0,
                    "covered_seconds": seconds,
                    "flags": [],
                }
                for d, w in zip(devices, self.watts, strict=True)
            ]
            total = sum(self.watts) * seconds
            return {
                "start": query["start"], "end": query["end"], "complete": True, "total_joules": total,
                "uncertainty_joules": 3.0, "idle_joules": 0.25 * total,
                "attributed_joules": {"prefill": 0.25 * total, "decode": 0.5 * total},
                "unattributed_joules": 0.0, "devices": rows,
                "flags": ["modelled", *(["other_hosts"] if self.engines else [])], **self._engines(),
            }, 200  # fmt: skip
        return {"devices": devices, "engine": "e", **self._engines()}, 200

    def _engines(self) -> dict[str, Any]:
        return {"hosts_of_engines": self.engines} if self.engines else {}

    def requests(self, ids: list[str]) -> tuple[dict[str, Any], int]:
        entries = [
            {"id": i, "status": "settled", "joules": self.known[i], "prefill_joules": 0.0,
             "decode_joules": self.known[i], "uncertainty_joules": 3.0, "source": "nvml",
             "hosts": max(self.engines.values(), default=1), "flags": ["other_hosts"] if self.engines else []}
            if i in self.known else {"id": i, "status": "unknown"}
            for i in ids
        ]  # fmt: skip
        return {"requests": entries}, 200


@contextlib.contextmanager
def meters(*made: Meter) -> Iterator[list[Meter]]:
    threads = [Thread(target=m.server.serve_forever, args=(0.05,), daemon=True) for m in made]
    for thread in threads:
        thread.start()
    try:
        yield list(made)
    finally:
        for meter in made:
            meter.server.shutdown()
            meter.server.server_close()
