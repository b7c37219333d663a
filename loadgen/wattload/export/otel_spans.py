"""The requests of a run as OpenTelemetry's spans, one each, and the span of the run that they link to.

The ids of a span follow from the run and the request: exported again, it is the same span.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from wattload.client.record import Outcome, RequestRecord
from wattload.export import attributes as names
from wattload.export.figures import description
from wattload.export.identity import identity
from wattload.export.otel_metrics import nanoseconds
from wattload.rundir.numbers import headline
from wattload.rundir.run import Run
from wattmeter.schema import UNKNOWN

# As the sampler by ratio of OpenTelemetry: the lower 56 bits of a trace's id against the share.
_RANDOM_BITS = 56


class Spans:
    """The spans of one run: `of_run` and, for the share `sample` of the requests, `of_requests`."""

    def __init__(self, run: Run, sample: float, resource: Resource, scope: InstrumentationScope) -> None:
        self._run, self._sample = run, sample
        self._resource, self._scope = resource, scope
        self._identity = identity(run)
        self._root = self._context("run")
        self._common = {
            **names.of_run(run.result),
            **names.of_operation(run.result),
            **names.present({names.FLAGS: run.energy.flags or None}),
        }
        capture = run.data.capture
        absent = run.absent.get("energy.per_request_joules.attributed_mean")
        self._no_energy = capture.no_energy_reason or absent or "the meter gave no figure"

    def _context(self, key: str) -> SpanContext:
        digest = hashlib.sha256(f"{self._identity}:{key}".encode()).digest()
        trace, span = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")
        return SpanContext(trace or 1, span or 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    def of_run(self) -> ReadableSpan:
        """The span of the whole run, with what it was and its headline figure."""
        result = self._run.result
        number = headline(result)
        value = number.of(result)
        about = {f"wattload.{name}": value for name, value in description(result).items()}
        ends = [result.finished_unix, result.window.end_unix if result.window else None, result.started_unix]
        return self._span(
            self._root,
            "wattload run",
            kind=SpanKind.INTERNAL,
            times=(result.started_unix, next(end for end in ends if end is not None)),
            attributes={
                **about,
                **self._common,
                "wattload.valid": result.valid,
                "wattload.reasons": result.reasons or None,
                f"wattload.{number.path}": value,
                "wattload.sample": self._sample,
            },
            status=Status(StatusCode.UNSET)
            if result.valid
            else Status(StatusCode.ERROR, "; ".join(result.reasons)),
        )

    def of_requests(self) -> Iterator[ReadableSpan]:
        """The spans of the requests in the sample, in the order of the rows. What was never sent has a span
        of no length.
        """
        table = self._run.directory.read_requests()
        bound = round(self._sample * 2**_RANDOM_BITS)
        for batch in table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                context = self._context(row["request_id"])
                if context.trace_id & (2**_RANDOM_BITS - 1) < bound:
                    yield self._request(context, RequestRecord(**row))

    def _request(self, context: SpanContext, record: RequestRecord) -> ReadableSpan:
        start, completed = record.due_unix, record.outcome == Outcome.COMPLETED
        times = (record.last_token_unix, record.first_token_unix, record.sent_unix)
        # A request that failed has no recorded end: its span ends with the last thing that is known of it.
        last = next((unix for unix in times if unix is not None), start)
        own = {
            "wattload.request.id": record.request_id,
            "wattload.request.index": record.index,
            "wattload.tenant": record.tag or None,
            "wattload.in_window": record.in_window,
            "wattload.replica": record.replica,
            "wattload.dispatch_delay_seconds": _since(record.sent_unix, start),
            "wattload.ttft_seconds": _since(record.first_token_unix, start),
            "wattload.tpot_seconds": record.tpot_seconds,
            names.FIRST_CHUNK: _since(record.first_token_unix, record.sent_unix),
            names.MAX_TOKENS: record.output_tokens_planned,
            names.INPUT_TOKENS: record.prompt_tokens,
            names.OUTPUT_TOKENS: record.output_tokens,
            names.CACHED_TOKENS: record.cached_tokens,
            names.REASONING_TOKENS: record.reasoning_tokens,
            names.CONVERSATION: str(record.session) if record.session >= 0 else None,
            names.STATUS_CODE: record.status_code,
            names.ERROR: None if completed else str(record.outcome),
            **self._joules(record),
        }
        operation, model = self._common[names.OPERATION], self._common.get(names.REQUEST_MODEL, "")
        return self._span(
            context,
            f"{operation} {model}".strip(),
            kind=SpanKind.CLIENT,
            times=(start, max(start, last)),
            attributes={**self._common, **own},
            status=Status(StatusCode.UNSET) if completed else Status(StatusCode.ERROR, record.error),
            links=(Link(self._root),),
        )

    def _joules(self, record: RequestRecord) -> dict[str, Any]:
        if record.energy_joules is None:
            reason = self._no_energy
            if record.sent_unix is None:
                reason = "the request was not sent"
            elif record.energy_status == UNKNOWN:
                reason = "the meter does not know the request"
            return {"wattload.energy.reason": reason}
        return {
            "wattload.energy.joules": record.energy_joules,
            "wattload.energy.prefill_joules": record.prefill_joules,
            "wattload.energy.decode_joules": record.decode_joules,
            "wattload.energy.status": record.energy_status,
        }

    def _span(
        self,
        context: SpanContext,
        name: str,
        *,
        kind: SpanKind,
        times: tuple[float, float],
        attributes: dict[str, Any],
        status: Status,
        links: tuple[Link, ...] = (),
    ) -> ReadableSpan:
        return ReadableSpan(
            name=name,
            context=context,
            resource=self._resource,
            attributes=names.present(attributes),
            links=links,
            kind=kind,
            status=status,
            start_time=nanoseconds(times[0]),
            end_time=nanoseconds(times[1]),
            instrumentation_scope=self._scope,
        )


def _since(unix: float | None, start_unix: float | None) -> float | None:
    return None if unix is None or start_unix is None else unix - start_unix
