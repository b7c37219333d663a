"""Each request's joules in its own response: pure ASGI, for any OpenAI-compatible app.

Puts `usage.energy` into the JSON body or into the last chunk of an event stream (never an extra chunk: the
common idiom `chunk.choices[0]` breaks on those), honours, makes and gives back `x-request-id`, and tells the
account when a request began and ended. A meter that fails never takes a response down: `energy` is null, with
the reason.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from wattmeter.answers import RequestEnergy

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

METERED_PATHS = ("/v1/completions", "/v1/chat/completions")
# An event longer than this is passed on as it comes: nobody's usage chunk is that long.
MAX_EVENT_BYTES = 1 << 20
MAX_ID_LENGTH = 256


class RequestBooks(Protocol):
    """The part of wattmeter's Account that the middleware uses."""

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
    ) -> None: ...

    def request_energy(self, request_id: str) -> RequestEnergy | None: ...


class EnergyMiddleware:
    """Wraps `app`. `account` may be set later (at start-up); until then energy is null with that reason."""

    def __init__(
        self,
        app: ASGIApp,
        account: RequestBooks | None = None,
        *,
        metered_paths: tuple[str, ...] = METERED_PATHS,
        no_energy_reason: str | None = None,
    ) -> None:
        self.app = app
        self.account = account
        self.metered_paths = metered_paths
        self.no_energy_reason = no_energy_reason

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        responder = _Responder(self, receive, send)
        await responder.run(scope, metered=self._is_metered(scope))

    def _is_metered(self, scope: Scope) -> bool:
        if scope["method"] != "POST":
            return False
        path = scope["path"]
        root = scope.get("root_path", "")
        return path in self.metered_paths or (bool(root) and path.removeprefix(root) in self.metered_paths)

    def usage_fields(self, request_id: str) -> dict[str, Any]:
        """What is added to `usage`: `energy`, and `energy_reason` where it is null."""
        if self.account is None:
            return {"energy": None, "energy_reason": self.no_energy_reason or "the meter has not started"}
        if self.no_energy_reason is not None:
            return {"energy": None, "energy_reason": self.no_energy_reason}
        try:
            energy = self.account.request_energy(request_id)
        except Exception as error:
            log.exception("request %s: its energy could not be asked", request_id)
            return {"energy": None, "energy_reason": f"the meter failed: {error}"}
        if energy is None:
            return {"energy": None, "energy_reason": "no engine step of this request is known"}
        if energy.joules is None:
            return {"energy": None, "energy_reason": energy.reason or "the meter gave no energy"}
        return {
            "energy": {
                "joules": energy.joules,
                "prefill_joules": energy.prefill_joules,
                "decode_joules": energy.decode_joules,
                "uncertainty_joules": energy.uncertainty_joules,
                "status": energy.status,
                "source": energy.source,
            }
        }


class _Responder:
    """One request on its way through."""

    __slots__ = ("aborted", "body", "finished", "injecting", "middleware", "output_tokens", "prompt_tokens",
                 "receive", "request_id", "send", "start", "tail")  # fmt: skip

    def __init__(self, middleware: EnergyMiddleware, receive: Receive, send: Send) -> None:
        self.middleware = middleware
        self.receive = receive
        self.send = send
        self.request_id = ""
        self.injecting: str | None = None  # "json" or "sse" once the headers said so
        self.start: Message | None = None  # a JSON response's start waits for its length
        self.body = b""
        self.tail = b""
        self.output_tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.aborted = False
        self.finished = False

    async def run(self, scope: Scope, *, metered: bool) -> None:
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        given = _header(headers, b"x-request-id").strip()
        if given and len(given) <= MAX_ID_LENGTH:
            self.request_id = given.decode("latin-1")
        else:
            self.request_id = f"req-{uuid.uuid4().hex}"
            headers = [pair for pair in headers if pair[0] != b"x-request-id"]
            headers.append((b"x-request-id", self.request_id.encode()))
            scope = {**scope, "headers": headers}
        if not metered:
            await self.middleware.app(scope, self.receive, self.send_with_id)
            return
        account = self.middleware.account
        if account is not None:
            group = _header(headers, b"x-energy-group").decode("latin-1").strip()
            try:
                account.request_started(self.request_id, group=group)
            except Exception:
                log.exception("request %s: its start could not be booked", self.request_id)
        # For apps of ours that send thousands of chunks a second: the way out past the framework's wrappers.
        scope = {**scope, "wattserve.send": self.send_metered}
        try:
            await self.middleware.app(scope, self.receive_watched, self.send_metered)
        finally:
            if account is not None:
                try:
                    account.request_finished(
                        self.request_id,
                        output_tokens=self.output_tokens,
                        # An app of ours says it itself: a stream may end without a usage.
                        prompt_tokens=scope.get("wattserve.prompt_tokens", self.prompt_tokens),
                        aborted=self.aborted or not self.finished,
                    )
                except Exception:
                    log.exception("request %s: its end could not be booked", self.request_id)

    async def receive_watched(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect" and not self.finished:
            self.aborted = True
        return message

    async def send_with_id(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._give_id_back(message)
        await self.send(message)

    async def send_metered(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            more = message.get("more_body", False)
            if not more:
                self.finished = True
            if self.injecting == "sse":
                body = message.get("body", b"")
                # The common case costs three tests: a whole event without usage goes straight on.
                if more and not self.tail and b'"usage"' not in body and body.endswith(b"\n\n"):
                    await self.send(message)
                    return
                await self.send({**message, "body": self._events(body, more=more)})
                return
            if self.injecting == "json":
                self.body += message.get("body", b"")
                if more:
                    return
                await self._send_json()
                return
        elif message["type"] == "http.response.start":
            self._give_id_back(message)
            self.injecting = self._what_to_inject(message)
            if message["status"] >= 400:
                self.aborted = True
            if self.injecting == "json":
                self.start = message
                return
            if self.injecting == "sse":
                # What is added to the usage at the stream's end makes it longer than its first headers said.
                headers = message.get("headers", ())
                kept = [pair for pair in headers if pair[0].lower() != b"content-length"]
                message = {**message, "headers": kept}
        await self.send(message)

    def _give_id_back(self, message: Message) -> None:
        headers = list(message.get("headers", ()))
        if not _header(headers, b"x-request-id"):
            headers.append((b"x-request-id", self.request_id.encode("latin-1")))
            message["headers"] = headers

    def _what_to_inject(self, message: Message) -> str | None:
        headers = list(message.get("headers", ()))
        kind = _header(headers, b"content-type")
        if message["status"] != 200 or _header(headers, b"content-encoding"):
            return None
        if kind.startswith(b"text/event-stream"):
            return "sse"
        return "json" if kind.startswith(b"application/json") else None

    async def _send_json(self) -> None:
        body = self._with_energy(self.body, stream=False)
        assert self.start is not None
        headers = [pair for pair in self.start.get("headers", ()) if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self.send({**self.start, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    def _events(self, body: bytes, *, more: bool) -> bytes:
        """The whole events in what has come so far, energy added; the rest waits for its end."""
        data = self.tail + body
        if more and len(data) < MAX_EVENT_BYTES:
            end = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
            if end < 4:
                end = 2 if data.startswith(b"\n\n") else 0
            self.tail = data[end:]
            data = data[:end]
        else:
            self.tail = b""
        if b'"usage"' not in data:
            return data
        return b"".join(map(self._line, data.splitlines(keepends=True)))

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:") or b'"usage"' not in line:
            return line
        content = line[5:].rstrip(b"\r\n")
        ending = line[5 + len(content) :]
        changed = self._with_energy(content.strip(), stream=True)
        return line if changed == content.strip() else b"data: " + changed + ending

    def _with_energy(self, text: bytes, *, stream: bool) -> bytes:
        """`text` with energy in its usage; unchanged where it is not an object with a final usage."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if not isinstance(content, dict) or not isinstance(content.get("usage"), dict):
            return text
        if stream and content.get("choices"):
            return text  # running usage of a stream that goes on
        usage = content["usage"]
        self.output_tokens = _count(usage, "completion_tokens")
        self.prompt_tokens = _count(usage, "prompt_tokens")
        if self.middleware.account is None and usage.get("energy") is not None:
            return text  # a proxy in front of a server that meters itself
        usage.update(self.middleware.usage_fields(self.request_id))
        # Half a surrogate pair (a token may end inside a character) stays the escape that it came as.
        encoded = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        return encoded.encode("utf-8", "backslashreplace")


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes:
    for key, value in headers:
        if key.lower() == name:
            return value
    return b""


def _count(usage: dict[str, Any], name: str) -> int | None:
    tokens = usage.get(name)
    return tokens if isinstance(tokens, int) else None
