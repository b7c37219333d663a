"""Each request's joules in its own response: pure ASGI, for any OpenAI-compatible app.

Puts `usage.energy` into the JSON body or into the last chunk of an event stream (never an extra chunk: the
common idiom `chunk.choices[0]` breaks on those), honours, makes and gives back `x-request-id`, and tells the
meter when a request began and ended. A meter that fails never takes a response down: `energy` is null, with
the reason.

A chunk of a stream costs one call more: what carries no final usage is handed on as it is. A request's way
through here is one coroutine, since whenever the app has waited, each coroutine around it is walked through.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Protocol

from wattmeter.endpoints import METERED_PATHS, output_count, prompt_count
from wattmeter.schema import RequestEnergy, no_energy

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

# A line longer than this is passed on as it comes: nobody's usage chunk is that long.
MAX_EVENT_BYTES = 1 << 20
MAX_ID_LENGTH = 256
# In a scope: the tenant of the request, where it is the key's and not the client's to say.
TENANT_KEY = "wattserve.tenant"


_USAGE = b'"usage"'
# How events end: each, and those of vLLM for a client that asks for a usage, where null is in all but the
# last.
_EVENT_END = b"\n\n"
_NULL_USAGE_END = b'"usage":null}\n\n'
# A chunk with a usage is the last one where it has no choices; others have running usage. Events of other
# APIs have no such list at all.
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
# The usage at the end of a long JSON body, as of embeddings: reading a megabyte of numbers takes tens of
# milliseconds, in which nothing else is served.
_LONG_BODY_BYTES = 1 << 16
_LAST_USAGE = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}"]|"[^"\\]*"|\{[^{}]*\})*\})\s*\}\s*$')


class Monitor(Protocol):
    """The part of wattmeter's EnergyMonitor that the middleware uses."""

    def request_started(
        self, request_id: str, *, prompt_tokens: int | None = None, group: str = ""
    ) -> None: ...

    def request_finished(
        self,
        request_id: str,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        aborted: bool = False,
        refused: bool = False,
        group: str | None = None,
    ) -> None: ...

    def request_energy(self, request_id: str) -> RequestEnergy | None: ...


class EnergySource(Protocol):
    """Who is told of requests and asked for their joules. Nothing here may block."""

    def request_started(self, request_id: str, *, group: str = "") -> None: ...

    def request_finished(
        self,
        request_id: str,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        aborted: bool = False,
        refused: bool = False,
        group: str | None = None,
    ) -> None: ...

    async def usage_fields(
        self, request_id: str, *, output_tokens: int | None = None, prompt_tokens: int | None = None
    ) -> dict[str, Any]:
        """What is added to `usage`, see the function of this name: asked once the request has run its last
        step, `request_finished` follows."""
        ...


class MonitorSource:
    """An EnergyMonitor in this process as the source."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def request_started(self, request_id: str, *, group: str = "") -> None:
        self._monitor.request_started(request_id, group=group)

    def request_finished(
        self,
        request_id: str,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        aborted: bool = False,
        refused: bool = False,
        group: str | None = None,
    ) -> None:
        self._monitor.request_finished(
            request_id,
            output_tokens=output_tokens,
            prompt_tokens=prompt_tokens,
            aborted=aborted,
            refused=refused,
            group=group,
        )

    async def usage_fields(
        self, request_id: str, *, output_tokens: int | None = None, prompt_tokens: int | None = None
    ) -> dict[str, Any]:
        return usage_fields(self._monitor.request_energy(request_id))


def usage_fields(energy: RequestEnergy | None) -> dict[str, Any]:
    """What is added to `usage`: `energy`, and `energy_reason` where it is null."""
    return no_energy("no engine step of this request is known") if energy is None else energy.to_usage()


class RequestIds:
    """The ids of the requests of one process: those that run, and the last ones that ran.

    An id is the name under which a request's joules are kept and asked for, and clients choose it. One that
    is in use, or was used, is not given to another request: that one gets an id of its own, in its response.
    """

    def __init__(self, *, most: int = 100_000) -> None:
        self._most = most
        self._running: set[str] = set()
        self._past: OrderedDict[str, None] = OrderedDict()

    def take(self, request_id: str) -> bool:
        """Whether a request may have this id; it has it then."""
        if request_id in self._running or request_id in self._past:
            return False
        self._running.add(request_id)
        return True

    def give_back(self, request_id: str, *, refused: bool) -> None:
        """The request has ended. One that the server refused leaves its id to others."""
        self._running.discard(request_id)
        if refused:
            return
        self._past[request_id] = None
        while len(self._past) > self._most:
            self._past.popitem(last=False)


class EnergyMiddleware:
    """Wraps `app`. `source` may be set later (at start-up); until then energy is null with that reason."""

    def __init__(
        self,
        app: ASGIApp,
        source: EnergySource | None = None,
        *,
        metered_paths: tuple[str, ...] = METERED_PATHS,
        no_energy_reason: str | None = None,
    ) -> None:
        self.app = app
        self.source = source
        self.metered_paths = frozenset(metered_paths)
        self.no_energy_reason = no_energy_reason
        self.ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.respond(scope, receive, send)

    def respond(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """The same without a coroutine of its own, for an app of ours around this one. Servers want a
        coroutine function of what they are given."""
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        return _Responder(self, receive, send).run(scope, metered=self._is_metered(scope))

    def _is_metered(self, scope: Scope) -> bool:
        if scope["method"] != "POST":
            return False
        path = scope["path"]
        root = scope.get("root_path", "")
        return path in self.metered_paths or (bool(root) and path.removeprefix(root) in self.metered_paths)

    async def usage_fields(
        self, request_id: str, output_tokens: int | None, prompt_tokens: int | None
    ) -> dict[str, Any]:
        """What is added to `usage` of this request."""
        if self.source is None:
            return no_energy(self.no_energy_reason or "the meter has not started")
        try:
            return await self.source.usage_fields(
                request_id, output_tokens=output_tokens, prompt_tokens=prompt_tokens
            )
        except Exception as error:
            log.exception("request %s: its energy could not be read", request_id)
            return no_energy(f"the meter failed: {error}")


class _Responder:
    """One request on its way through."""

    __slots__ = ("aborted", "body", "ending", "finished", "injecting", "middleware", "output_tokens",
                 "prompt_tokens", "receive", "refused", "request_id", "send", "start", "tail")  # fmt: skip

    def __init__(self, middleware: EnergyMiddleware, receive: Receive, send: Send) -> None:
        self.middleware = middleware
        self.receive = receive
        self.send = send
        self.request_id = ""
        self.injecting: str | None = None  # "json" or "sse" once the headers said so
        # How the events that go out as they are end, in a stream of which no part of a line waits in `tail`.
        self.ending = b""
        self.start: Message | None = None  # a JSON response's start waits for its length
        self.body: list[bytes] = []
        self.tail = b""
        self.output_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.aborted = False
        self.finished = False
        self.refused = False

    async def run(self, scope: Scope, *, metered: bool) -> None:
        middleware = self.middleware
        scope, group = self._named(scope, metered=metered)
        if not metered:
            await middleware.app(scope, self.receive, self.send_with_id)
            return
        source = middleware.source
        if source is not None:
            try:
                source.request_started(self.request_id, group=group)
            except Exception:
                log.exception("request %s: its start could not be told to the meter", self.request_id)
        # For apps of ours that send thousands of chunks a second: the way out past the framework's wrappers.
        send = scope["wattserve.send"] = self.sender()
        try:
            await middleware.app(scope, self.receive_watched, send)
        finally:
            # The way past this object, and back to it: a cycle that would live until it is collected.
            scope.pop("wattserve.send", None)
            middleware.ids.give_back(self.request_id, refused=self.refused)
            if source is not None:
                try:
                    source.request_finished(
                        self.request_id,
                        output_tokens=self.output_tokens,
                        # An app of ours says it itself: a stream may end without a usage.
                        prompt_tokens=scope.get("wattserve.prompt_tokens", self.prompt_tokens),
                        aborted=self.aborted or not self.finished,
                        refused=self.refused,
                        group=group if self.refused else None,
                    )
                except Exception:
                    log.exception("request %s: its end could not be told to the meter", self.request_id)

    def _named(self, scope: Scope, *, metered: bool) -> tuple[Scope, str]:
        """A copy of `scope` in which the request has one id, which it is given here, and its tenant."""
        ids = self.middleware.ids
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given: list[bytes] = []
        tenant: bytes | None = None
        for key, value in headers:
            name = key.lower()
            if name == b"x-request-id":
                given.append(value)
            elif name == b"x-energy-group" and tenant is None:
                tenant = value
        wanted = given[0].strip().decode("latin-1") if given else ""
        if wanted and len(wanted) <= MAX_ID_LENGTH and (not metered or ids.take(wanted)):
            self.request_id = wanted
        else:
            self.request_id = f"req-{secrets.token_hex(16)}"
            if metered:
                ids.take(self.request_id)
        encoded = self.request_id.encode("latin-1")
        scope = {**scope}
        if given != [encoded]:
            # One id alone, ours: an engine may take another of several, which may be another request's.
            kept = [pair for pair in headers if pair[0].lower() != b"x-request-id"] if given else headers
            scope["headers"] = [*kept, (b"x-request-id", encoded)]
        group: str | None = scope.get(TENANT_KEY)
        if group is None:
            group = tenant.decode("latin-1").strip() if tenant else ""
        return scope, group

    async def receive_watched(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect" and not self.finished:
            self.aborted = True
        return message

    async def send_with_id(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._give_id_back(message)
        await self.send(message)

    def sender(self) -> Send:
        """What the app sends by. Not a coroutine: a whole event without a final usage, the common case, is
        handed to the server's `send` and nothing else."""
        responder, send, send_other = self, self.send, self._send_other

        def send_metered(message: Message) -> Awaitable[None]:
            ending = responder.ending
            if ending:
                try:
                    body = message["body"]
                    # Searched from its end: in an event of vLLM's the usage is the last thing.
                    if (
                        body.endswith(ending)
                        and message["more_body"]
                        and (ending is _NULL_USAGE_END or body.rfind(_USAGE) < 0)
                    ):
                        return send(message)
                except KeyError:
                    pass
            return send_other(message)

        return send_metered

    def _send_other(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.body":
            body: bytes = message.get("body", b"")
            more: bool = message.get("more_body", False)
            if not more:
                self.finished = True
            if self.injecting == "sse":
                if self.ending and more and body.endswith(_EVENT_END) and not _may_end(body):
                    self.ending = _NULL_USAGE_END if body.endswith(_NULL_USAGE_END) else _EVENT_END
                    return self.send(message)
                whole = self._whole_lines(body, more=more)
                if _USAGE in whole:
                    return self._send_with_energy(message, whole)
                return self.send(message if whole is body else {**message, "body": whole})
            if self.injecting == "json":
                self.body.append(body)
                return _nothing() if more else self._send_json()
        elif message["type"] == "http.response.start":
            return self._send_start(message)
        return self.send(message)

    def _send_start(self, message: Message) -> Awaitable[None]:
        headers = self._give_id_back(message)
        known = {key.lower(): value for key, value in reversed(headers)}
        if message["status"] >= 400:
            self.aborted = self.refused = True
        kind = known.get(b"content-type", b"")
        if message["status"] != 200 or known.get(b"content-encoding"):
            pass
        elif kind.startswith(b"text/event-stream"):
            self.injecting = "sse"
            self.ending = _EVENT_END
            if b"content-length" in known:
                # What is added to the usage at the stream's end makes it longer than its first headers said.
                message = {
                    **message,
                    "headers": [pair for pair in headers if pair[0].lower() != b"content-length"],
                }
        elif kind.startswith(b"application/json"):
            self.injecting = "json"
            self.start = message
            return _nothing()
        return self.send(message)

    def _give_id_back(self, message: Message) -> list[tuple[bytes, bytes]]:
        """The headers of a response's start, in which the request's id now is."""
        headers = list(message.get("headers", ()))
        if not next((value for key, value in headers if key.lower() == b"x-request-id"), b""):
            headers.append((b"x-request-id", self.request_id.encode("latin-1")))
            message["headers"] = headers
        return headers

    async def _send_json(self) -> None:
        body = await self._with_energy(b"".join(self.body), stream=False)
        assert self.start is not None
        headers = [pair for pair in self.start.get("headers", ()) if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    def _whole_lines(self, body: bytes, *, more: bool) -> bytes:
        """The whole lines in what has come so far; the rest waits for its end.

        Energy is put into one line, and blank lines are not waited for: servers leave them out.
        """
        data = self.tail + body
        self.tail = b""
        if more and len(data) < MAX_EVENT_BYTES:
            end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            self.tail = data[end:]
            data = data[:end]
        self.ending = b"" if self.tail else _EVENT_END
        return data

    async def _send_with_energy(self, message: Message, data: bytes) -> None:
        lines = data.splitlines(keepends=True)
        for number, line in enumerate(lines):
            if line.startswith(b"data:") and _USAGE in line:
                content = line[5:].rstrip(b"\r\n")
                ending = line[5 + len(content) :]
                content = content.strip()
                changed = await self._with_energy(content, stream=True)
                if changed != content:
                    lines[number] = b"data: " + changed + ending
        await self.send({**message, "body": b"".join(lines)})

    async def _with_energy(self, text: bytes, *, stream: bool) -> bytes:
        """`text` with energy in its usage; unchanged where it is not an object with a final usage."""
        if len(text) >= _LONG_BODY_BYTES and not stream:
            found = _LAST_USAGE.search(text, len(text) - _LONG_BODY_BYTES // 16)
            if found is not None:
                end = await self._with_energy(b'{"usage":' + found[1] + b"}", stream=False)
                return text[: found.start()] + end[1:]
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return text
        usage = _final_usage(content, stream=stream)
        if usage is None:
            return text
        self.output_tokens = _whole(output_count(usage))
        self.prompt_tokens = _whole(prompt_count(usage))
        if usage.get("energy") is not None:
            return text  # a proxy in front of a server that meters itself, which knows better
        fields = await self.middleware.usage_fields(self.request_id, self.output_tokens, self.prompt_tokens)
        return _written(text, content, usage, fields) if fields else text


def _written(text: bytes, content: dict[str, Any], usage: dict[str, Any], fields: dict[str, Any]) -> bytes:
    """`text`, the JSON of `content`, with `fields` in its `usage`. Where the usage stands at the end, as in
    vLLM's events, nothing else is written again."""
    is_last = content.get("usage") is usage and next(reversed(content)) == "usage"
    if is_last and usage and usage.keys().isdisjoint(fields):
        found = _LAST_USAGE.match(text, text.rfind(_USAGE))
        if found is not None:
            brace = found.end(1) - 1
            return b"%b,%b%b" % (text[:brace], _encoded(fields)[1:-1], text[brace:])
    usage.update(fields)
    return _encoded(content)


async def _nothing() -> None:
    """Sends nothing: what was given is kept for later."""


def _may_end(events: bytes) -> bool:
    """Whether a final usage may be in these whole events; certain only that there is none."""
    # From the end: where a client asks for a usage, vLLM puts null there in every chunk.
    at = events.rfind(_USAGE)
    if at < 0 or events.startswith(b":null", at + len(_USAGE)):
        return False
    return b'"choices"' not in events or _NO_CHOICES.search(events) is not None


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _encoded(content: Any) -> bytes:
    """As compact JSON. Half a surrogate pair (a token may end inside a character) stays the escape that it
    came as."""
    return _encode(content).encode("utf-8", "backslashreplace")


def _final_usage(content: Any, *, stream: bool) -> dict[str, Any] | None:
    """The usage of the whole response in a JSON body, or in an event of a stream that has it.

    The events of /v1/responses carry the whole response, with a usage once it is complete. Those of
    /v1/messages have it in `message_delta`; the one in `message_start` is within a message and not looked at.
    """
    if not isinstance(content, dict) or (stream and content.get("choices")):
        return None  # running usage of a stream that goes on
    inner = content.get("response") if stream else None
    usage = (inner if isinstance(inner, dict) else content).get("usage")
    return usage if isinstance(usage, dict) else None


def _whole(tokens: object) -> int | None:
    return tokens if isinstance(tokens, int) else None
