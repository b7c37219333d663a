"""Spans of agents by OpenTelemetry's conventions for generative AI, as OTLP JSON (a collector's file export).

https://opentelemetry.io/docs/specs/semconv/gen-ai/: a span whose operation is `chat`, `text_completion` or
`generate_content` is a request to a model, `invoke_agent` an agent, `execute_tool` a tool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wattload.errors import InputError
from wattload.traces.options import ReadOptions
from wattload.traces.reading.entries import entries, place_name
from wattload.traces.reading.files import Head
from wattload.traces.reading.raw import RawTrace
from wattload.traces.reading.turns import Path, Turn, raw_of

_ASKING = ("chat", "text_completion", "generate_content")
_AGENTS = ("invoke_agent", "create_agent")
# The names of today, then those of earlier versions of the conventions.
_PROMPT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_NAMES = {
    "prompt_tokens": _PROMPT[0],
    "output_tokens": _OUTPUT[0],
    "seconds": "startTimeUnixNano",
}


@dataclass(frozen=True, slots=True)
class _Span:
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    place: int

    @property
    def operation(self) -> str:
        return str(self.attributes.get("gen_ai.operation.name", ""))

    def count(self, names: tuple[str, ...]) -> int | None:
        value = next((self.attributes[name] for name in names if name in self.attributes), None)
        return int(value) if isinstance(value, str | int) and str(value).isdecimal() else None

    @property
    def asks(self) -> bool:
        counted = any(name in self.attributes for name in (*_PROMPT, *_OUTPUT))
        return self.operation in _ASKING or (not self.operation and counted)


class OpenTelemetry:
    """One export, or one a line. A conversation (`gen_ai.conversation.id`, else a trace) is a session, a
    trace in it a task. Of requests that hold others, as a framework's around a client's, the inner count.
    """

    name = "otel"
    header = 'OTLP JSON: {"resourceSpans": [{"scopeSpans": [{"spans": [...]}]}]} with gen_ai attributes'
    required = ("resourceSpans",)

    def recognises(self, head: Head) -> bool:
        return head.kind in ("jsonl", "document") and head.has(*self.required)

    def read(self, head: Head, options: ReadOptions) -> RawTrace:
        spans: dict[tuple[str, str], _Span] = {}
        for place, entry in entries(head):
            for span in _spans(head, place, entry):
                spans[span.trace, span.id] = span
        passed: Counter[str] = Counter()
        turns = list(_turns(spans, passed))
        if not turns:
            why = "".join(f"; {what}: {count}" for what, count in passed.items())
            raise InputError(f"{head.path} holds no span of a request to a model with token counts{why}")
        return raw_of(
            turns,
            timed=True,
            unit=place_name(head),
            names=_NAMES,
            notes=[f"{what}, passed over: {count}" for what, count in passed.items()],
        )


def _spans(head: Head, place: int, entry: Mapping[str, Any]) -> Iterator[_Span]:
    where = f"{head.path}, {place_name(head)} {place}"
    try:
        for resource in entry["resourceSpans"]:
            for scope in resource.get("scopeSpans", ()):
                for span in scope.get("spans", ()):
                    yield _Span(
                        trace=str(span["traceId"]),
                        id=str(span["spanId"]),
                        parent=str(span.get("parentSpanId", "")),
                        start_ns=int(span["startTimeUnixNano"]),
                        end_ns=int(span["endTimeUnixNano"]),
                        attributes={a["key"]: _value(a["value"]) for a in span.get("attributes", ())},
                        place=place,
                    )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{where}: no spans of OTLP JSON: {missing}") from error


def _value(value: Mapping[str, Any]) -> Any:
    """The content of an attribute, of whichever type."""
    return next(iter(value.values()), None)


def _turns(spans: Mapping[tuple[str, str], _Span], passed: Counter[str]) -> Iterator[Turn]:
    asking = [span for span in spans.values() if span.asks]
    outer = {(span.trace, above.id) for span in asking for above in _above(spans, span) if above.asks}
    talks = _conversations(spans)
    first_agents: dict[str, str] = {}
    origin = min((span.start_ns for span in asking), default=0)
    begun: dict[str, int] = {}
    for span in asking:
        begun[span.trace] = min(begun.get(span.trace, span.end_ns), span.end_ns)
    for span in sorted(asking, key=lambda span: span.start_ns):
        prompt, output = span.count(_PROMPT), span.count(_OUTPUT)
        if (span.trace, span.id) in outer:
            passed["requests that hold others"] += 1
        elif not prompt or not output:
            passed["requests without token counts"] += 1
        else:
            session = talks.get(span.trace, span.trace)
            yield Turn(
                session=session,
                agent=_agent(spans, span, session, first_agents),
                start=(span.start_ns - origin) / 1e9,
                end=(max(span.start_ns, span.end_ns) - origin) / 1e9,
                prompt_tokens=prompt,
                output_tokens=output,
                # A trace begins with what its user asked: before any of its requests has ended.
                by_user=span.start_ns < begun[span.trace],
                place=span.place,
            )


def _above(spans: Mapping[tuple[str, str], _Span], span: _Span) -> Iterator[_Span]:
    """The spans that a span is in, the nearest first."""
    seen = {span.id}
    above = spans.get((span.trace, span.parent))
    while above is not None and above.id not in seen:
        seen.add(above.id)
        yield above
        above = spans.get((above.trace, above.parent))


def _conversations(spans: Mapping[tuple[str, str], _Span]) -> dict[str, str]:
    """The conversation of each trace that names one."""
    found: dict[str, str] = {}
    for span in spans.values():
        named = span.attributes.get("gen_ai.conversation.id")
        if named:
            found.setdefault(span.trace, str(named))
    return found


def _agent(
    spans: Mapping[tuple[str, str], _Span], span: _Span, session: str, first_agents: dict[str, str]
) -> Path:
    """The way to the agent that asks: the session's first is (), an agent in another is one of its own."""
    agents = [above for above in _above(spans, span) if above.operation in _AGENTS]
    if not agents:
        return ()
    *inner, outermost = agents
    named = outermost.attributes.get("gen_ai.agent.name") or outermost.attributes.get("gen_ai.agent.id") or ""
    name = str(named)
    outside = () if first_agents.setdefault(session, name) == name else (name,)
    return (*outside, *(f"{agent.trace}/{agent.id}" for agent in reversed(inner)))
