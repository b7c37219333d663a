"""A DCGM exporter and a Prometheus on loopback whose contents a test decides."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
POWER = "DCGM_FI_DEV_POWER_USAGE"
NOT_SUPPORTED = "9223372036854775794"
_SELECTOR = re.compile(r"\s*[A-Za-z_:][A-Za-z0-9_:]*\s*(\{[^{}]*\})?\s*")


def line(metric: str, value: object, **labels: object) -> str:
    """One line of the exposition format."""
    inside = ",".join(f'{name}="{text}"' for name, text in labels.items())
    return f"{metric}{{{inside}}} {value}\n"


@dataclass
class Exporter:
    """`text(now)`: what /metrics shows. `samples(now)`: (labels, value) of the one counter in Prometheus.

    Prometheus evaluates any query to these samples; as the real one, it takes a range only after a bare
    selector, and scrapes every `scrape_seconds`. `endpoint`: text of /metrics at the path /target.
    """

    text: Callable[[float], str] = lambda _now: ""
    samples: Callable[[float], list[tuple[dict[str, str], float]]] = lambda _now: []
    scrape_seconds: float = 1.0
    url: str = ""
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def prometheus(self, path: str, asked: dict[str, str]) -> tuple[int, dict[str, Any]]:
        query, now = asked["query"], time.time()
        if query == "time()":
            return 200, self.data("scalar", [now, str(now)])
        if path.endswith("query_range"):
            begin, end, step = (float(asked[name]) for name in ("start", "end", "step"))
            count = int((end - begin) / step) + 1
            return 200, self.matrix([begin + i * step for i in range(count)])
        ranged = re.fullmatch(r"(.*)\[(\d+)s\]", query, re.DOTALL)
        if ranged is None:
            result = [{"metric": labels, "value": [now, str(value)]} for labels, value in self.samples(now)]
            return 200, self.data("vector", result)
        if not _SELECTOR.fullmatch(ranged[1]):
            error = "parse error: ranges only allowed for vector selectors"
            return 400, {"status": "error", "errorType": "bad_data", "error": error}
        end = float(asked.get("time", now))
        first = int((end - int(ranged[2])) / self.scrape_seconds) + 1
        last = int(end / self.scrape_seconds)
        return 200, self.matrix([i * self.scrape_seconds for i in range(first, last + 1)], scraped=True)

    def matrix(self, times: list[float], *, scraped: bool = False) -> dict[str, Any]:
        """Series at `times`; unless they are those of the scrapes, with the value of the scrape before."""
        rows: dict[str, list[list[Any]]] = {}
        for moment in times:
            at = moment if scraped else moment // self.scrape_seconds * self.scrape_seconds
            for labels, value in self.samples(at):
                rows.setdefault(json.dumps(labels), []).append([moment, str(value)])
        return self.data("matrix", [{"metric": json.loads(key), "values": rows[key]} for key in rows])

    @staticmethod
    def data(kind: str, result: Any) -> dict[str, Any]:
        return {"status": "success", "data": {"resultType": kind, "result": result}}


@contextmanager
def exporting(exporter: Exporter) -> Iterator[Exporter]:
    """Serves the exporter on a free port, and sets its `url`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            exporter.paths.append(self.path)
            exporter.headers.append({name.lower(): value for name, value in self.headers.items()})
            status, body = 200, b""
            if parts.path == "/metrics":
                body = exporter.text(time.time()).encode()
            elif parts.path.startswith("/api/v1/"):
                status, answer = exporter.prometheus(parts.path, asked)
                body = json.dumps(answer).encode()
            elif parts.path == "/v1/models":
                body = b'{"data": [{"id": "m"}]}'
            else:
                status = 404
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    exporter.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield exporter
    finally:
        server.shutdown()
        server.server_close()
