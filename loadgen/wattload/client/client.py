"""One request to an endpoint, streamed where it generates, and what became of it.

`Client.send` starts a request and returns; the answer is followed by callbacks of the event loop, and
`done` is called with the request's record once, whatever happens. Nothing is ever sent twice: there are no
retries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from wattload import clock
from wattload.client.api import RETURN_IDS
from wattload.client.endpoint import Endpoint, RequestOptions
from wattload.client.events import (
    MOST_SAID_CHARACTERS,
    EventError,
    RepeatedEvent,
    RepeatedIds,
    StreamEvent,
    body_error,
    json_ids,
    json_text,
    merged_usage,
    plain_ids,
    plain_text,
    quoted,
    read_event,
    read_line,
    token_count,
    without_prompt_ids,
)
from wattload.client.proxy import proxy_for
from wattload.client.readable import readable, request_energy
from wattload.client.record import Outcome, RequestRecord
from wattload.client.signs_of_life import drop_chunks, signs_of_life
from wattload.client.transport.connection import Address, Connection, Pool
from wattload.client.transport.descriptors import OUT_OF_DESCRIPTORS, out_of_descriptors
from wattload.client.transport.http1 import HttpError, ResponseParser
from wattload.client.transport.sse import SseError, SseParser
from wattload.client.transport.tls import tls_context
from wattload.client.whole import MAX_BYTES, read_whole
from wattload.errors import InputError
from wattload.redaction import Redactor, secrets_of, shown

MAX_ERROR_CHARACTERS = 300
# A stream of more chunks than this, and than were asked for, has no end: each is a number that is kept.
MOST_CHUNKS = 1_000_000
# What a template, a system prompt of the server's or images may add to the prompt that was sent.
MOST_ADDED_PROMPT_TOKENS = 1_000_000
_MAX_BODY_BYTES = 256 * 1024


class ServerError(Exception):
    """The server said in the middle of its stream that it failed."""


class Call:
    """One request in flight. Times inside are of `time.perf_counter()`; the record's are UNIX seconds."""

    __slots__ = (
        "_api",
        "_blanks",
        "_body",
        "_client",
        "_done",
        "_finished",
        "_ids",
        "_last",
        "_parser",
        "_parts",
        "_plain",
        "_reasoned",
        "_repeated",
        "_said",
        "_said_done",
        "_sse",
        "connection",
        "finish",
        "record",
        "sent",
        "started",
        "target",
        "usage",
    )  # fmt: skip

    def __init__(
        self,
        client: Client,
        record: RequestRecord,
        done: Callable[[RequestRecord], None],
        said: list[bytes] | None = None,
    ) -> None:
        self._client, self.record, self._done = client, record, done
        self._api = client.api
        # Pieces of the answer, as a next prompt has them: of its text, or its token ids where they are told.
        self._said = said
        self._ids = client.returns_ids
        self._parser = ResponseParser()
        self._sse: SseParser | None = None
        self._plain = False
        # Set only while both parsers are between two events.
        self._repeated: RepeatedEvent | None = None
        self._body = b""
        # A whole response that is not streamed, as it came in.
        self._parts: list[bytes] = []
        # Which of the chunks held no text: tokens or signs of life, which the counts at the end decide.
        self._blanks: list[int] = []
        self._last = 0.0
        # When the event with the finish reason came.
        self._finished = 0.0
        # Whether reasoning came, and no part of the answer since.
        self._reasoned = False
        self._said_done = False
        self.connection: Connection | None = None
        self.started = time.perf_counter()
        self.sent: float | None = None
        self.finish: str | None = None
        self.target: Target | None = None
        self.usage: dict[str, Any] | None = None

    def sending(self, now: float) -> None:
        self.sent = now
        self.record.sent_unix = now + self._client.unix_offset

    def received(self, data: bytes, now: float) -> None:
        if self._repeated is not None:
            if self._repeated.is_all_of(data):
                self._token(now)
                if self._said is not None:
                    self._said.append(self._repeated.said_in(data))
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
        if self._parser.status == 200 and not self._api.streams:
            self._take_whole(body, now)
            return
        record = self.record
        record.status_code = self._parser.status
        kind = self._parser.headers.get("content-type", "").partition(";")[0].strip().lower()
        coding = self._parser.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", ""):
            raise HttpError(f"the response is encoded as {coding[:40]}, which was not asked for")
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

    def _take_whole(self, body: bytes, now: float) -> None:
        """A part of a response that is not streamed: what it says is looked at when it has ended."""
        if body:
            self._parts.append(body)
            self._last = now
        if len(self._parts) > MAX_BYTES // _MAX_BODY_BYTES and sum(map(len, self._parts)) > MAX_BYTES:
            self._fail(Outcome.MALFORMED_RESPONSE, f"the response is longer than {MAX_BYTES} bytes")

    def _events(self, body: bytes, now: float) -> None:
        sse = self._sse
        assert sse is not None
        api = self._api
        payloads = sse.feed(body)
        if self._ids:
            payloads = [without_prompt_ids(payload) for payload in payloads]
        for payload in payloads:
            if api.is_plain(payload):
                self._token(now)
                if self._reasoned:
                    self._answered(now)
                if self._said is not None:
                    self._said.append(plain_ids(payload) if self._ids else plain_text(payload))
                if api.repeats and self._parser.between_chunks and sse.between_events:
                    repeated = RepeatedIds if self._ids else RepeatedEvent
                    self._repeated = repeated.of(payload, api.event)
            else:
                self._event(read_event(payload, api.read), payload, now)
        if sse.failures:
            raise ServerError(body_error(sse.failures[0]) or "error")
        while sse.strays:
            line = sse.strays.pop(0)
            self._event(read_line(line), line, now)

    def _event(self, event: StreamEvent, data: bytes, now: float) -> None:
        if event.error is not None:
            raise ServerError(event.error)
        if event.token:
            self._token(now)
            if event.reasoning:
                self._reasoned = True
                self.record.reasoning_chunks += 1
            elif self._reasoned:
                self._answered(now)
            if event.tool_calls:
                self.record.tool_calls = max(self.record.tool_calls or 0, event.tool_calls)
        elif event.blank:
            self._blanks.append(self.record.chunks)
            self._token(now)
        if self._said is not None:
            # An id may have no text: of half a character, of the token that ends a response.
            self._said.append(json_ids(event.token_ids) if self._ids else json_text(event.text))
        if event.begins_tool_call:
            self.record.tool_calls = (self.record.tool_calls or 0) + 1
        if event.finish is not None:
            self.finish, self._finished = event.finish, now
        if event.usage is not None:
            self.usage = merged_usage(self.usage, event.usage)
        if event.done:
            self._said_done = True
        if event.unread and self.record.unread is None:
            told = self._client.redact(data[:MOST_SAID_CHARACTERS].decode("utf-8", "replace"))
            self.record.unread = quoted(told.encode())

    def _token(self, now: float) -> None:
        record = self.record
        if record.chunks:
            record.itl_seconds.append(now - self._last)
        else:
            record.first_token_unix = now + self._client.unix_offset
        record.chunks += 1
        self._last = now

    def _answered(self, now: float) -> None:
        """A part of the answer came, after reasoning."""
        self._reasoned = False
        if self.record.first_answer_unix is None:
            self.record.first_answer_unix = now + self._client.unix_offset

    def closed(self, now: float) -> None:
        self.connection = None
        try:
            self._parser.end()
        except HttpError as error:
            if not self._is_whole:
                self._fail(Outcome.DISCONNECTED, str(error))
                return
        if self._parser.status and not self._plain and self.record.status_code is None:
            self.record.status_code = self._parser.status
        try:
            self._ended()
        except Exception as error:  # a bug of ours must not lose the request's row
            self._fail(Outcome.MALFORMED_RESPONSE, f"wattload: {type(error).__name__}: {error}")

    def lost(self, error: OSError, *, connecting: bool, now: float) -> None:
        self.connection = None
        if self._is_whole:
            self._ended()
            return
        said = f"{type(error).__name__}: {error.strerror or error}"
        if out_of_descriptors(error):
            said = f"{OUT_OF_DESCRIPTORS} ({error.strerror})"
        self._fail(Outcome.CONNECT_ERROR if connecting else Outcome.DISCONNECTED, said)

    def overdue(self, now: float) -> tuple[Outcome, str] | None:
        """Which time limit has passed, if one has."""
        limits = self._client.options
        if self.sent is None:
            if now - self.started > limits.connect_timeout_seconds:
                return Outcome.CONNECT_TIMEOUT, f"no connection within {limits.connect_timeout_seconds:g} s"
        elif now - self.sent > limits.total_timeout_seconds:
            return Outcome.TOTAL_TIMEOUT, f"no whole response within {limits.total_timeout_seconds:g} s"
        elif self.record.chunks > max(MOST_CHUNKS, 2 * self._asked):
            return (
                Outcome.MALFORMED_RESPONSE,
                f"the response does not end: {self.record.chunks} chunks of {self._asked} tokens asked for",
            )
        elif self.record.chunks == len(self._blanks):
            if now - self.sent > limits.first_token_timeout_seconds:
                what = "token" if self._api.streams else "response"
                return (
                    Outcome.FIRST_TOKEN_TIMEOUT,
                    f"no {what} within {limits.first_token_timeout_seconds:g} s",
                )
        elif now - self._last > limits.between_tokens_timeout_seconds:
            return Outcome.STALL_TIMEOUT, f"no token for {limits.between_tokens_timeout_seconds:g} s"
        return None

    def abort(self, outcome: Outcome, why: str) -> None:
        self._fail(outcome, why)

    @property
    def _is_whole(self) -> bool:
        """The server has said that it is done, and why or how much: no more was to come."""
        return self._said_done and (self.finish is not None or self.usage is not None)

    def _ended(self) -> None:
        """The response is whole: judge it."""
        if self not in self._client.calls:
            return
        status = self._parser.status
        if status != 200:
            self._http_failure(status)
        elif not self._api.streams:
            self._judge_whole()
        elif not self._plain:
            self._no_stream()
        else:
            try:
                self._last_event()
            except (SseError, EventError) as error:
                if self.finish is None or self.usage is None:
                    why = f"the stream ended in the middle of an event ({error})"
                    self._fail(Outcome.MALFORMED_RESPONSE, why)
                    return
            except ServerError as error:
                self._fail(Outcome.SERVER_ERROR, str(error))
                return
            self._judge_stream()

    def _last_event(self) -> None:
        """Reads the event that the end of the stream has cut off from its blank line, where there is one."""
        assert self._sse is not None
        if self._sse.pending:
            for payload in self._sse.end():
                self._event(read_event(payload, self._api.read), payload, self._last)
            self._events(b"", self._last)

    def _no_stream(self) -> None:
        said = self._complaint()
        try:
            event = read_event(self._body)
        except EventError:
            event = StreamEvent()
        if event.error is not None:
            self._fail(Outcome.SERVER_ERROR, said)
            return
        kind = self._parser.headers.get("content-type", "no type")
        self._fail(
            Outcome.MALFORMED_RESPONSE, f"a response of {kind} instead of an event stream: {said[:120]}"
        )

    def _judge_whole(self) -> None:
        record = self.record
        try:
            found = read_whole(b"".join(self._parts), self._api.item)
        except EventError as error:
            self._fail(Outcome.MALFORMED_RESPONSE, str(error))
            return
        self._parts = []
        self.usage = found.usage
        asked = record.inputs
        if found.error is not None:
            self._fail(Outcome.SERVER_ERROR, found.error)
        elif not found.results or (asked is not None and self._client.all_results and found.results != asked):
            many = "" if asked is None else f" for {asked} inputs"
            self._fail(Outcome.MALFORMED_RESPONSE, f"{found.results} results{many}")
        else:
            self._settle()
            self._finish(Outcome.COMPLETED)

    def _judge_stream(self) -> None:
        record = self.record
        if not self._said_done and self.finish is None:
            self._fail(Outcome.DISCONNECTED, "the stream ended without a finish reason and without [DONE]")
            return
        if self.finish is None and self.usage is None and record.unread is not None:
            self._fail(Outcome.SERVER_ERROR, "the stream ended without a finish reason and without counts")
            return
        self._settle()
        self._check_ids()
        planned, got = record.output_tokens_planned, record.output_tokens
        if not record.chunks and got:
            self._fail(Outcome.MALFORMED_RESPONSE, "usage counts tokens, but no event carried one")
        elif got is not None and got < planned and self._client.forced:
            self._fail(Outcome.SHORT_OUTPUT, f"{got} of {planned} tokens, finish reason {self.finish}")
        elif not record.chunks:
            self._fail(Outcome.SHORT_OUTPUT, f"no token at all, finish reason {self.finish}")
        else:
            self._finish(Outcome.COMPLETED)

    def _check_ids(self) -> None:
        """Says in the row where the ids that were told are not those of all tokens that were counted."""
        record = self.record
        if self._said is None or not self._ids or record.output_tokens is None or record.unread is not None:
            return
        told = sum(piece.count(b",") for piece in self._said)
        if told != record.output_tokens:
            record.unread = f"token_ids: {told} ids, where usage counts {record.output_tokens} tokens"

    def _complaint(self) -> str:
        """What the body of a failure says."""
        return self._client.redact(readable(body_error(self._body)))

    def _http_failure(self, status: int) -> None:
        said = self._complaint()
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

    def _settle(self) -> None:
        """Reads the counts, and with them which chunks without text were tokens. Once: at the end."""
        record, blanks = self.record, self._blanks
        with_text = record.chunks - len(blanks)
        if self.usage is not None:
            self._read_usage(self.usage)
            if record.output_tokens == 0 and with_text:
                # Text came, so this is no count of it.
                record.output_tokens = None
        if blanks:
            dropped = signs_of_life(blanks, with_text, record.output_tokens)
            self._last = drop_chunks(record, dropped, self._last)
            self._blanks = []
        if not record.chunks and record.output_tokens == 1 and self.finish is not None:
            # An only token without text (half a character, a special one) comes with the finish reason.
            self._token(self._finished)

    def _read_usage(self, usage: dict[str, Any]) -> None:
        record = self.record
        prompt = token_count(usage.get("prompt_tokens", usage.get("input_tokens"))) or None
        output = token_count(usage.get("completion_tokens", usage.get("output_tokens")))
        details, thought = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        reasoning = token_count(thought.get("reasoning_tokens")) if isinstance(thought, dict) else None
        cached = token_count(details.get("cached_tokens")) if isinstance(details, dict) else None
        images = _image_tokens(details) if isinstance(details, dict) else None
        # A server may generate more than it was asked for, a chunk each; reasoning may not count.
        most = max(self._asked, record.chunks) + (reasoning or 0 if record.reasoning_chunks else 0)
        most_prompt = record.prompt_tokens_planned + (record.history_tokens or 0) + MOST_ADDED_PROMPT_TOKENS
        if self._api.streams:
            record.output_tokens = self._believed("completion_tokens", output, most)
        record.prompt_tokens = self._believed("prompt_tokens", prompt, most_prompt)
        record.reasoning_tokens = self._believed("reasoning_tokens", reasoning, record.output_tokens)
        record.cached_tokens = self._believed("cached_tokens", cached, record.prompt_tokens)
        record.image_tokens = self._believed("image tokens", images, record.prompt_tokens)
        energy = request_energy(usage.get("energy"))
        if energy is not None:
            record.energy_joules, record.energy_status = energy

    @property
    def _asked(self) -> int:
        """How many tokens the response may have, by what the request says."""
        options = self._client.options
        return (options.natural_lengths or self.record.output_tokens_planned) * self._client.sequences

    def _believed(self, name: str, count: int | None, most: int | None) -> int | None:
        """A count of tokens, None where it is more than can be; the row then says so."""
        if count is None or most is None or count <= most:
            return count
        if self.record.unread is None:
            self.record.unread = f"usage: {count} {name}, where {most} are possible"
        return None

    def _fail(self, outcome: Outcome, why: str) -> None:
        if self not in self._client.calls:
            return
        self._settle()
        # Redacted before it is cut: half a key is a key too.
        said = self._client.redact(readable(why[:MOST_SAID_CHARACTERS]))[:MAX_ERROR_CHARACTERS]
        said = said or outcome.value
        if self.record.unread is not None:
            # What was not understood may be the reason.
            passed = f"; not understood: {self.record.unread}"
            said = said[: MAX_ERROR_CHARACTERS - len(passed)] + passed
        self.record.error = said
        self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        self._client.calls.discard(self)
        if self.target is not None:
            self.target.in_flight -= 1
        if self.record.status_code is None and self._parser.status:
            self.record.status_code = self._parser.status
        self.record.outcome = outcome
        if self.record.chunks or (outcome is Outcome.COMPLETED and not self._api.streams):
            self.record.last_token_unix = self._last + self._client.unix_offset
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.finished(reusable=self._parser.complete and self._parser.reusable)
        self._done(self.record)


class Target:
    """One address that requests go to: its connections, and how a request to it begins."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises InputError where the address is none."""
        try:
            parts = urlsplit(endpoint.url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            told = shown(repr(endpoint.url))
            raise InputError(f"{told}: not the address of a server (example: http://localhost:8000)")
        tls = (endpoint.tls() or tls_context()) if parts.scheme == "https" else None
        try:
            port = parts.port or (443 if tls else 80)
        except ValueError as error:
            raise InputError(
                f"{shown(repr(endpoint.url))}: the port is not a number from 1 to 65535"
            ) from error
        proxy = proxy_for(endpoint.url)
        self.pool = Pool(Address.resolve(parts.hostname, port, tls, proxy))
        self.in_flight = 0
        path = urlsplit(endpoint.address).path
        host = parts.netloc.rpartition("@")[2]
        # A proxy for plain HTTP is told the whole address; through its tunnel TLS carries only the path.
        absolute = f"http://{host}" if proxy is not None and tls is None else ""
        head = {
            "Host": host,
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if endpoint.shape.streams else "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "wattload",
        }
        if absolute and proxy is not None and proxy.authorization is not None:
            head["Proxy-Authorization"] = proxy.authorization
        # Header names know no case: the user's take the place of ours.
        given = {name.lower() for name in endpoint.headers}
        head = {name: value for name, value in head.items() if name.lower() not in given} | dict(
            endpoint.headers
        )
        lines = [
            f"POST {absolute}{path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in head.items()),
        ]
        self.head = "".join(line + "\r\n" for line in lines).encode("latin-1")


class Client:
    """Requests to one endpoint, or to replicas of it. For one thread, with gevent's loop; raises InputError
    where an address is none.
    """

    def __init__(
        self, endpoint: Endpoint, options: RequestOptions | None = None, *, unix_offset: float | None = None
    ) -> None:
        self.endpoint, self.options = endpoint, options or RequestOptions()
        self.redact = Redactor(secrets_of(endpoint.headers, self.options.body))
        self.targets = [Target(one) for one in endpoint.targets]
        self._turn = 0
        self.calls: set[Call] = set()
        # Added to `time.perf_counter()` for the UNIX time of a record.
        self.unix_offset = clock.unix_offset() if unix_offset is None else unix_offset
        self._head = self.targets[0].head
        self.api = endpoint.shape
        # Whether responses are as long as planned, and have a result for each input.
        self.forced = self.options.forced and self.api.forces
        self.all_results = "top_n" not in (self.options.body or {})
        self._content = self.api.content
        # Whether a prompt goes on in a JSON value that has begun with the system prompt.
        self._goes_on = False
        # Whether responses are asked to tell the ids of their tokens.
        self.returns_ids = False
        self._common = {"": self._common_body(endpoint.model)}
        wanted = [(self.options.body or {}).get(name) for name in ("n", "best_of")]
        # How many sequences a request asks for.
        self.sequences = max([1, *(n for n in wanted if isinstance(n, int) and not isinstance(n, bool))])
        name = "max_tokens" if self.options.output_limit == "auto" else self.options.output_limit
        self._limit = f',"{self.api.limit or name}":%d'.encode()

    @property
    def opened(self) -> int:
        """How many connections were made."""
        return sum(target.pool.opened for target in self.targets)

    def _chosen(self, record: RequestRecord) -> int:
        """Which of several targets a request goes to."""
        count, balance = len(self.targets), self.endpoint.balance
        if balance == "session" and record.session >= 0:
            return record.session % count
        self._turn += 1
        if balance != "least-busy":
            return (self._turn - 1) % count
        # Of those that are as little busy, another one each time.
        return min(range(count), key=lambda i: (self.targets[i].in_flight, (i - self._turn) % count))

    def return_ids(self) -> None:
        """Asks for the ids of the tokens that are generated, in every request that is prepared from now on;
        `send` then tells them in place of the text.
        """
        self.returns_ids = True
        self._common = {"": self._common_body(self.endpoint.model)}

    def begin_with(self, system: bytes, *, glue: str) -> None:
        """Puts a system prompt into every request that is prepared from now on.

        `system`: JSON of its text, or token ids for completions. `glue`: what stands between it and a prompt
        that is one text with it.
        """
        api = self.api
        if api.system:
            self._content = b"{" + b'"' + api.system + b'":' + system + b"," + api.content[1:]
            return
        self._goes_on = True
        if api.chat:
            message = b'[{"role":"system","content":' + system + b"},"
            self._content = api.content + message
        elif system[:1] == b'"':
            self._content = api.content + system[:-1] + json.dumps(glue)[1:-1].encode()
        else:
            self._content = api.content + b"[" + system + b","

    def prepare(self, record: RequestRecord, prompt: bytes) -> bytes:
        """The whole request as bytes. `prompt`: JSON of the prompt, of the messages, or of the inputs."""
        limits = b""
        if self.api.streams:
            tokens = self.options.natural_lengths or record.output_tokens_planned
            limits = self._limit % tokens
            if self.forced and self.api.least:
                limits += b',"min_tokens":%d' % tokens
        common = self._common.get(record.model)
        if common is None:
            common = self._common[record.model] = self._common_body(record.model)
        if self._goes_on:
            prompt = prompt[1:]
        body = b"".join((self._content, prompt, limits, common))
        group = f"x-energy-group: {record.tag}\r\n" if record.tag else ""
        own = f"x-request-id: {record.request_id}\r\n{group}Content-Length: {len(body)}\r\n\r\n"
        return b"".join((self._head, own.encode("latin-1", "replace"), body))

    def _common_body(self, model: str) -> bytes:
        """What every request for `model` ends with."""
        body: dict[str, Any] = {"model": model, **dict(self.api.fixed)}
        if self.forced:
            body["ignore_eos"] = True
        if self.returns_ids:
            body[RETURN_IDS] = True
        body.update(self.options.body or {})
        return b"," + json.dumps(body, separators=(",", ":")).encode()[1:]

    def send(
        self,
        record: RequestRecord,
        request: bytes,
        done: Callable[[RequestRecord], None],
        said: list[bytes] | None = None,
    ) -> None:
        """Sends what `prepare` made. `done` gets the record once, later or, on an error at once, in this
        call. `said` gets the text of the answer, piece by piece, as JSON has it between quotes; after
        `return_ids` the ids of its tokens, each behind a comma.
        """
        call = Call(self, record, done, said)
        self.calls.add(call)
        target = self.targets[0]
        if len(self.targets) > 1:
            record.replica = self._chosen(record)
            target = self.targets[record.replica]
            if record.replica:
                request = target.head + request[len(self._head) :]
        call.target = target
        target.in_flight += 1
        try:
            connection = target.pool.start(call, request)
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
        for target in self.targets:
            target.pool.prune()

    def abort_all(self, why: str) -> None:
        for call in list(self.calls):
            call.abort(Outcome.ABORTED, why)

    def close(self) -> None:
        self.abort_all("the client was closed")
        for target in self.targets:
            target.pool.close()


def _image_tokens(details: dict[str, Any]) -> int | None:
    """Prompt tokens of images, where the server tells: as vLLM does, or under a name that others have."""
    parts = details.get("multimodal_tokens")
    found = parts.get("image") if isinstance(parts, dict) else details.get("image_tokens")
    return token_count(found)
