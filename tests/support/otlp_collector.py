"""A stand-in for an OpenTelemetry collector on loopback: it decodes what comes, and may misbehave."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(one) for one in value.array_value.values]
    return getattr(value, kind)


def attributes(pairs: Any) -> dict[str, Any]:
    """Key-value pairs of the protocol as a mapping."""
    return {pair.key: _plain(pair.value) for pair in pairs}


@dataclass
class Collector:
    """What arrived. `status` is what it answers; `silent`: it answers nothing until it is closed."""

    status: int = 200
    said: bytes = b""
    rejects: int = 0
    silent: bool = False
    url: str = ""
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def _messages(self, path: str, kind: Any) -> list[Any]:
        found = []
        for seen, raw in zip(self.paths, self.raw, strict=True):
            if seen == path:
                message = kind()
                message.ParseFromString(raw)
                found.append(message)
        return found

    def resources(self) -> list[dict[str, Any]]:
        """The attributes of every resource that spoke."""
        metrics = self._messages("/v1/metrics", ExportMetricsServiceRequest)
        spans = self._messages("/v1/traces", ExportTraceServiceRequest)
        groups = [r for m in metrics for r in m.resource_metrics] + [
            r for m in spans for r in m.resource_spans
        ]
        return [attributes(group.resource.attributes) for group in groups]

    def metrics(self) -> dict[str, Any]:
        """The metrics by name."""
        return {
            metric.name: metric
            for message in self._messages("/v1/metrics", ExportMetricsServiceRequest)
            for resource in message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def spans(self) -> list[Any]:
        """The spans in the order in which they came."""
        return [
            span
            for message in self._messages("/v1/traces", ExportTraceServiceRequest)
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def requests(self) -> dict[int, tuple[Any, dict[str, Any]]]:
        """The spans of requests with their attributes, by the request's index."""
        known = ((span, attributes(span.attributes)) for span in self.spans())
        return {
            found["wattload.request.index"]: (span, found)
            for span, found in known
            if "wattload.request.index" in found
        }

    def answer(self, path: str) -> bytes:
        """The body of its response."""
        if self.status != 200 or not self.rejects:
            return self.said
        if path.endswith("/traces"):
            spans = ExportTraceServiceResponse()
            spans.partial_success.rejected_spans = self.rejects
            spans.partial_success.error_message = self.said.decode()
            return bytes(spans.SerializeToString())
        return bytes(ExportMetricsServiceResponse().SerializeToString())


@contextlib.contextmanager
def collecting(**options: Any) -> Iterator[Collector]:
    """A collector that listens until the block ends."""
    collector = Collector(**options)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            collector.raw.append(raw)
            collector.paths.append(self.path)
            if collector.silent:
                collector.closed.wait(60)
                return
            answer = collector.answer(self.path)
            self.send_response(collector.status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    try:
        yield collector
    finally:
        collector.closed.set()
        server.shutdown()
        server.server_close()
