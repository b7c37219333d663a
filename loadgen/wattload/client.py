"""One request to an OpenAI-compatible endpoint, streamed, and what became of it.

`Client.send` starts a request and returns; the answer is followed by callbacks of the event loop, and
`done` is called with the request's record once, whatever happens. Nothing is ever sent twice: there are no
retries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from wattload.client_events import DONE, EventError, body_error, is_plain_token, read_event
from wattload.client_repeated import RepeatedEvent
from wattload.errors import BadInput
from wattload.record import Outcome, RequestRecord
from wattload.transport.connection import Address, Connection, Pool
from wattload.transport.descriptors import OUT_OF_DESCRIPTORS, out_of_descriptors
from wattload.transport.http_response import HttpError, ResponseParser
from wattload.transport.sse import SseError, SseParser
from wattload.transport.tls import tls_context

MAX_ERROR_CHARACTERS = 300
_MAX_BODY_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, each from the end of the phase before; `total` from the sending. Judged every tenth of a
    second.
    """

    connect: float = 10.0
    first_token: float = 300.0
    between_tokens: float = 120.0
    total: float = 1800.0


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How requests are made. `api`: "completions" or "chat". `body` is merged into every request's JSON."""

    url: str
    model: str
    api: str = "completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    exact_output: bool = True
    timeouts: Timeouts = field(default_factory=Timeouts)
    verify_tls: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


class ServerError(Exception):
    """The server said in the middle of its stream that it failed."""


class Call:
    """One request in flight. Times inside are of `time.perf_counter()`; the record's are UNIX seconds."""

    __slots__ = (
        "_body", "_client", "_done", "_last", "_parser", "_plain", "_repeated", "_said_done", "_sse",
        "connection", "finish", "record", "sent", "started", "usage",
    )  # fmt: skip

    def __init__(self, client: Client, record: RequestRecord, done: Callable[[RequestRecord], None]) -> None:
        self._client, self.record, self._done = client, record, done
        self._parser = ResponseParser()
        self._sse: SseParser | None = None
        self._plain = False
        # Set only while both parsers are between two events.
        self._repeated: RepeatedEvent | None = None
        self._body = b""
        self._last = 0.0
        self._said_done = False
        self.connection: Connection | None = None
        self.started = time.perf_counter()
        self.sent: float | None = None
        self.finish: str | None = None
        self.usage: dict[str, Any] | None = None

    def sending(self, now: float) -> None:
        self.sent = now
        self.record.sent_unix = now + self._client.unix_offset

    def received(self, data: bytes, now: float) -> None:
        if self._repeated is not None:
            if self._repeated.is_all_of(data):
                self._token(now)
                return
            self._repeated = None
        try:
            body = self._parser.feed(data)
            if self._plain:
                if body:
                    self._events(body, now)
            elif self._parser.status:
                self._first_bytes(body, now)
            if self._parser.complete:
                self._ended()
        except (HttpError, SseError, EventError) as error:
            self._fail(Outcome.MALFORMED_RESPONSE, str(error))
        except ServerError as error:
            self._fail(Outcome.SERVER_ERROR, str(error))
        except Exception as error:  # a bug of ours must not lose the request's row
            self._fail(Outcome.MALFORMED_RESPONSE, f"wattload: {type(error).__name__}: {error}")

    def _first_bytes(self, body: bytes, now: float) -> None:
        """The head is whole. Only a 200 with server-sent events is read as a stream."""
        record = self.record
        record.status_code = self._parser.status
        kind = self._parser.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._parser.status == 200 and kind == "text/event-stream":
            self._sse = SseParser()
            self._plain = True
            if body:
                self._events(body, now)
        elif len(self._body) < _MAX_BODY_BYTES:
            self._body += body[: _MAX_BODY_BYTES - len(self._body)]
            if len(self._body) >= _MAX_BODY_BYTES:
                # What an error says stands at its beginning; the rest is not worth the time.
                self._ended()

    def _events(self, body: bytes, now: float) -> None:
        assert self._sse is not None
        for payload in self._sse.feed(body):
            if is_plain_token(payload):
                self._token(now)
                if self._parser.between_chunks and self._sse.between_events:
                    self._repeated = RepeatedEvent.of(payload)
            elif payload == DONE:
                self._said_done = True
            else:
                self._event(payload, now)

    def _event(self, payload: bytes, now: float) -> None:
        event = read_event(payload)
        if event.error is not None:
            raise ServerError(event.error)
        if event.token:
            self._token(now)
        if event.finish is not None:
            self.finish = event.finish
        if event.usage is not None:
            self.usage = event.usage

    def _token(self, now: float) -> None:
        record = self.record
        if record.chunks:
            record.itl_seconds.append(now - self._last)
        else:
            record.first_token_unix = now + self._client.unix_offset
        record.chunks += 1
        self._last = now

    def closed(self, now: float) -> None:
        self.connection = None
        try:
            self._parser.end()
        except HttpError as error:
            self._fail(Outcome.DISCONNECTED, str(error))
            return
        if self._parser.status and not self._plain and self.record.status_code is None:
            self.record.status_code = self._parser.status
        self._ended()

    def lost(self, error: OSError, *, connecting: bool, now: float) -> None:
        self.connection = None
        said = f"{type(error).__name__}: {error.strerror or error}"
        if out_of_descriptors(error):
            said = f"{OUT_OF_DESCRIPTORS} ({error.strerror})"
        self._fail(Outcome.CONNECT_ERROR if connecting else Outcome.DISCONNECTED, said)

    def overdue(self, now: float) -> tuple[Outcome, str] | None:
        """Which time limit has passed, if one has."""
        limits = self._client.options.timeouts
        if self.sent is None:
            if now - self.started > limits.connect:
                return Outcome.CONNECT_TIMEOUT, f"no connection within {limits.connect:g} s"
        elif now - self.sent > limits.total:
            return Outcome.TOTAL_TIMEOUT, f"not answered within {limits.total:g} s"
        elif not self.record.chunks:
            if now - self.sent > limits.first_token:
                return Outcome.FIRST_TOKEN_TIMEOUT, f"no token within {limits.first_token:g} s"
        elif now - self._last > limits.between_tokens:
            return Outcome.STALL_TIMEOUT, f"no token for {limits.between_tokens:g} s"
        return None

    def abort(self, outcome: Outcome, why: str) -> None:
        self._fail(outcome, why)

    def _ended(self) -> None:
        """The response is whole: judge it."""
        if self not in self._client.calls:
            return
        record = self.record
        status = self._parser.status
        if status != 200:
            self._http_failure(status)
        elif not self._plain:
            kind = self._parser.headers.get("content-type", "no type")
            start = body_error(self._body)[:120]
            self._fail(Outcome.MALFORMED_RESPONSE, f"an answer of {kind} instead of an event stream: {start}")
        elif not self._said_done and self.finish is None:
            self._fail(Outcome.DISCONNECTED, "the stream ended without a finish reason and without [DONE]")
        elif self._sse is not None and self._sse.pending:
            self._fail(Outcome.MALFORMED_RESPONSE, "the stream ended in the middle of an event")
        else:
            self._read_usage()
            if not record.chunks and record.output_tokens:
                self._fail(Outcome.MALFORMED_RESPONSE, "usage counts tokens, but no event carried one")
                return
            planned, got = record.output_tokens_planned, record.output_tokens
            if got is not None and got < planned and self._client.options.exact_output:
                self._fail(Outcome.SHORT_OUTPUT, f"{got} of {planned} tokens, finish reason {self.finish}")
                return
            if not record.chunks:
                self._fail(Outcome.SHORT_OUTPUT, f"no token at all, finish reason {self.finish}")
                return
            self._finish(Outcome.COMPLETED)

    def _http_failure(self, status: int) -> None:
        said = body_error(self._body)
        headers = self._parser.headers
        if status == 429:
            wait = headers.get("retry-after")
            self._fail(Outcome.HTTP_429, f"{said} (Retry-After: {wait})" if wait else said)
        elif status >= 500:
            self._fail(Outcome.HTTP_5XX, f"{status}: {said}")
        elif status >= 400:
            self._fail(Outcome.HTTP_4XX, f"{status}: {said}")
        elif status >= 300:
            place = headers.get("location", "nowhere")
            self._fail(
                Outcome.MALFORMED_RESPONSE, f"{status}: redirected to {place}; name that address instead"
            )
        else:
            self._fail(Outcome.MALFORMED_RESPONSE, f"status {status} for a completion")

    def _read_usage(self) -> None:
        usage = self.usage
        if usage is None:
            return
        record = self.record
        record.prompt_tokens = _count(usage.get("prompt_tokens"))
        record.output_tokens = _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            record.cached_tokens = _count(details.get("cached_tokens"))
        energy = usage.get("energy")
        if isinstance(energy, dict) and isinstance(energy.get("joules"), (int, float)):
            record.energy_joules = float(energy["joules"])
            record.energy_status = str(energy.get("status", "provisional"))

    def _fail(self, outcome: Outcome, why: str) -> None:
        if self not in self._client.calls:
            return
        if self.usage is not None and self.record.output_tokens is None:
            self._read_usage()
        self.record.error = why[:MAX_ERROR_CHARACTERS] or outcome.value
        self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        self._client.calls.discard(self)
        if self.record.status_code is None and self._parser.status:
            self.record.status_code = self._parser.status
        self.record.outcome = outcome
        if self.record.chunks:
            self.record.last_token_unix = self._last + self._client.unix_offset
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.finished(reusable=self._parser.complete and self._parser.reusable)
        self._done(self.record)


class Client:
    """Requests to one endpoint. For one thread, with gevent's loop; raises BadInput where the address is
    none.
    """

    def __init__(self, options: ClientOptions, *, unix_offset: float | None = None) -> None:
        self.options = options
        parts = urlsplit(options.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(
                f"{options.url!r} is no address of a server: it needs http:// or https:// and a host"
            )
        tls = None
        if parts.scheme == "https":
            tls = tls_context(
                verify=options.verify_tls,
                ca_file=options.ca_file,
                cert_file=options.cert_file,
                key_file=options.key_file,
            )
        try:
            port = parts.port or (443 if tls else 80)
        except ValueError as error:
            raise BadInput(f"{options.url!r}: the port is no number from 1 to 65535") from error
        self.pool = Pool(Address.resolve(parts.hostname, port, tls))
        self.calls: set[Call] = set()
        # What turns `time.perf_counter()` into UNIX time; fixed, so that a step of the wall clock moves
        # nothing.
        self.unix_offset = time.time() - time.perf_counter() if unix_offset is None else unix_offset
        path = parts.path.rstrip("/").removesuffix("/v1")
        route = "/v1/chat/completions" if options.api == "chat" else "/v1/completions"
        host = parts.netloc.rpartition("@")[2]
        head = {
            "Host": host,
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "User-Agent": "wattload",
        }
        # Header names know no case: the user's take the place of ours.
        given = {name.lower() for name in options.headers}
        head = {name: value for name, value in head.items() if name.lower() not in given} | dict(
            options.headers
        )
        lines = [f"POST {path}{route} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        self._head = "".join(line + "\r\n" for line in lines).encode("latin-1")
        self._common = _common_body(options)

    def prepare(self, record: RequestRecord, prompt: bytes) -> bytes:
        """The whole request as bytes. `prompt`: JSON of the prompt, or of the messages for chat."""
        key = b'{"messages":' if self.options.api == "chat" else b'{"prompt":'
        tokens = record.output_tokens_planned
        limits = b',"max_tokens":%d' % tokens
        if self.options.exact_output:
            limits += b',"min_tokens":%d' % tokens
        body = b"".join((key, prompt, limits, self._common))
        group = f"x-energy-group: {record.tag}\r\n" if record.tag else ""
        own = f"x-request-id: {record.request_id}\r\n{group}Content-Length: {len(body)}\r\n\r\n"
        return b"".join((self._head, own.encode("latin-1", "replace"), body))

    def send(self, record: RequestRecord, request: bytes, done: Callable[[RequestRecord], None]) -> None:
        """Sends what `prepare` made. `done` gets the record once, later or, on an error at once, in this
        call.
        """
        call = Call(self, record, done)
        self.calls.add(call)
        try:
            connection = self.pool.start(call, request)
        except OSError as error:
            call.lost(error, connecting=True, now=time.perf_counter())
            return
        if call in self.calls:
            call.connection = connection

    def tick(self) -> None:
        """Ends the calls whose time is over. To be called every tenth of a second."""
        now = time.perf_counter()
        late = [(call, why) for call in self.calls if (why := call.overdue(now)) is not None]
        for call, (outcome, said) in late:
            call.abort(outcome, said)
        self.pool.prune()

    def abort_all(self, why: str) -> None:
        for call in list(self.calls):
            call.abort(Outcome.ABORTED, why)

    def close(self) -> None:
        self.abort_all("the client was closed")
        self.pool.close()


def _common_body(options: ClientOptions) -> bytes:
    body: dict[str, Any] = {
        "model": options.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
    }
    if options.exact_output:
        body["ignore_eos"] = True
    body.update(options.body)
    return b"," + json.dumps(body, separators=(",", ":")).encode()[1:]


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
