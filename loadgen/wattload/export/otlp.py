"""A run sent to an OpenTelemetry collector by OTLP over HTTP, within a bounded time.

OpenTelemetry's own exporters do it, so its environment variables hold: endpoints, headers, certificates,
compression, timeouts, the resource.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from wattload.client.readable import readable
from wattload.client.unreachable import why_unreachable
from wattload.export.failure import ExportFailed
from wattload.export.options import FROM_ENVIRONMENT, ExportOptions
from wattload.export.otel_metrics import metrics
from wattload.export.otel_spans import Spans
from wattload.redaction import shown
from wattload.rundir.run import Run
from wattmeter import __version__

_BATCH = 512
_SAID = 120
_GRPC_PORT = ":4317"


class _Collector(requests.Session):
    """Remembers why a collector did not take something, and what it took only in part."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble = ""
        self.rejected = 0

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        try:
            response = super().send(request, **options)
        except OSError as error:  # also those of requests, and a file of certificates that is none
            # The advice that follows is for an endpoint of a model.
            self.trouble = why_unreachable(error).partition(";")[0]
            raise
        if not response.ok:
            said = readable(response.text)[:_SAID]
            self.trouble = f"HTTP {response.status_code}{': ' if said else ''}{said}"
        else:
            self._partly_taken(request.url or "", response.content)
        return response

    def _partly_taken(self, url: str, content: bytes) -> None:
        spans = url.rstrip("/").endswith("/traces")
        answer: Any = ExportTraceServiceResponse() if spans else ExportMetricsServiceResponse()
        try:
            answer.ParseFromString(content)
        except Exception:  # of JSON or nothing: the status says that it was taken
            return
        part = answer.partial_success
        rejected = part.rejected_spans if spans else part.rejected_data_points
        if rejected:
            self.rejected += rejected
            self.trouble = readable(part.error_message)[:_SAID] or "it gave no reason"


def export(run: Run, options: ExportOptions, seconds: float) -> str:
    """Sends the metrics of `run` and the spans of a share of its requests; what was sent, as a sentence.

    Ends within about `seconds`. Raises ExportFailed where not all of it was taken.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OpenTelemetry: nothing exported, since OTEL_SDK_DISABLED is true"
    with _Collector() as for_metrics, _Collector() as for_spans, _quiet():
        try:
            return _Sending(run, options, for_metrics, for_spans, time.monotonic() + seconds).send()
        except ExportFailed:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            # Some versions of the exporters raise what a collector did, or what the environment says that
            # cannot be used, as a timeout that is no number.
            why = for_spans.trouble or for_metrics.trouble or str(error)
            raise ExportFailed(f"OpenTelemetry: {shown(why)}") from error


class _Sending:
    def __init__(
        self,
        run: Run,
        options: ExportOptions,
        for_metrics: _Collector,
        for_spans: _Collector,
        deadline: float,
    ) -> None:
        # A session for each: the environment may give each a certificate of its own.
        self._for_metrics, self._for_spans, self._deadline = for_metrics, for_spans, deadline
        base = None if options.otel in (None, FROM_ENVIRONMENT) else options.otel
        self._to_metrics = OTLPMetricExporter(f"{base}/v1/metrics" if base else None, session=for_metrics)
        self._to_traces = OTLPSpanExporter(f"{base}/v1/traces" if base else None, session=for_spans)
        self._base = base or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://localhost:4318"
        scope, resource = InstrumentationScope("wattload", __version__), _resource(run)
        self._metrics = metrics(run, resource, scope)
        self._spans = Spans(run, options.otel_sample, resource, scope)

    def send(self) -> str:
        sent = []
        if _wanted("METRICS"):
            if self._to_metrics.export(self._metrics) is not MetricExportResult.SUCCESS:
                raise self._failure(self._for_metrics, "its metrics were not exported")
            count = sum(len(s.metrics) for r in self._metrics.resource_metrics for s in r.scope_metrics)
            sent.append(f"{count} metrics")
        if _wanted("TRACES"):
            sent.append(f"{self._send_spans()} requests as spans")
        for collector, what in ((self._for_metrics, "data points"), (self._for_spans, "spans")):
            if collector.rejected:
                raise self._failure(collector, f"{collector.rejected} {what} were rejected")
        return f"OpenTelemetry: exported {' and '.join(sent) or 'nothing'} to {shown(self._base)}"

    def _send_spans(self) -> int:
        spans = itertools.chain([self._spans.of_run()], self._spans.of_requests())
        sent = 0
        while batch := list(itertools.islice(spans, _BATCH)):
            late = time.monotonic() > self._deadline
            if late:
                self._for_spans.trouble = "it took too long"
            if late or self._to_traces.export(batch) is not SpanExportResult.SUCCESS:
                what = f"only {max(0, sent - 1)} requests were exported as spans"
                raise self._failure(self._for_spans, what)
            sent += len(batch)
        return sent - 1

    def _failure(self, collector: _Collector, what: str) -> ExportFailed:
        why = shown(collector.trouble or "the exporter gave no reason")
        if self._base.rstrip("/").endswith(_GRPC_PORT):
            why += "; port 4317 is for gRPC, OTLP over HTTP has 4318"
        return ExportFailed(f"OpenTelemetry: {what}: {shown(self._base)}: {why}")


def _wanted(signal: str) -> bool:
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def _resource(run: Run) -> Resource:
    """Who speaks; what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say takes precedence."""
    ours = {
        "service.name": "wattload",
        "service.version": __version__,
        "service.instance.id": run.result.name,
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters log is told once, as the sentence of the failure."""
    logger = logging.getLogger("opentelemetry")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
