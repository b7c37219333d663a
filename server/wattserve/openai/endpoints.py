"""/v1/completions and /v1/chat/completions as ASGI apps on the virtual engine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from collections.abc import Callable
from typing import Any, Literal

from wattserve.middleware import Receive, Scope, Send
from wattserve.openai.answer import Answer, Choice
from wattserve.openai.errors import ApiError
from wattserve.openai.protocol import Job, parse_json, read_job
from wattserve.openai.tokenizer import Answers, Tokenizer
from wattserve.virtual_gpu.engine import Engine
from wattserve.virtual_gpu.scheduler import Sequence

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20
# Without ignore_eos an answer ends by itself: lengths are log-normal, as chat answers' roughly are.
_NATURAL_MEDIAN_TOKENS = 180.0
_NATURAL_SIGMA = 0.8


class Model:
    """What the endpoints serve: one name, one tokenizer, one fixed text to answer with."""

    def __init__(self, name: str, tokenizer: Tokenizer, *, max_model_len: int, seed: int) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.seed = seed
        self.words = Answers(tokenizer, seed)
        self.created = int(time.time())

    def plan_choice(self, job: Job, prompt: int, number: int) -> tuple[int, int, int, str]:
        """(start, output tokens, tokens whose text is shown, finish reason) of one answer, by its seed."""
        parameters = job.parameters
        ids = job.prompts[prompt]
        seed = self.seed if parameters.seed is None else parameters.seed
        digest = zlib.crc32(f"{seed}/{number}/{len(ids)}/{ids[:32]}/{ids[-32:]}".encode())
        start = digest % Answers.LENGTH
        limit = job.max_tokens[prompt]
        tokens, reason = limit, "length"
        if not parameters.ignore_eos:
            natural = max(parameters.min_tokens, 1, self._natural_length(digest))
            if natural <= limit:
                tokens, reason = natural, "stop"
        shown = tokens
        for stopped, kept in self._stops(job, start, tokens):
            if stopped < tokens or (stopped == tokens and reason == "length"):
                tokens, shown, reason = stopped, kept, "stop"
        return start, tokens, shown, reason

    def _natural_length(self, digest: int) -> int:
        # Two uniform numbers from the digest make one normal one (Box and Muller).
        u = ((digest & 0xFFFF) + 0.5) / 65536
        v = ((digest >> 16) + 0.5) / 65536
        normal = math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)
        return max(1, round(_NATURAL_MEDIAN_TOKENS * math.exp(_NATURAL_SIGMA * normal)))

    def _stops(self, job: Job, start: int, tokens: int) -> list[tuple[int, int]]:
        """Where stop strings or stop token ids would end the answer: (tokens made, tokens shown)."""
        parameters = job.parameters
        found = []
        least = max(parameters.min_tokens, 1)
        if parameters.stop_token_ids:
            wanted = set(parameters.stop_token_ids)
            for position, token_id in enumerate(self.words.token_ids(start, tokens)):
                if token_id in wanted and position + 1 >= least:
                    found.append((position + 1, position))
                    break
        if job.stops:
            # Every piece is the same length, so a place in the text is a token.
            width = len(self.words.pieces[0])
            text = self.words.text(start, tokens)
            for stop in job.stops:
                at = text.find(stop, max(0, (least - 1) * width))
                if at >= 0:
                    made = -(-(at + len(stop)) // width)
                    kept = made if parameters.include_stop_str_in_output else at // width
                    found.append((made, kept))
        return sorted(found)[:1]


class GenerateEndpoint:
    """One of the two endpoints. A client that goes away ends its sequences at once."""

    def __init__(
        self,
        kind: Literal["completion", "chat"],
        engine: Engine,
        model: Model,
        *,
        on_first_token: Callable[[Sequence], None],
        on_end: Callable[[Answer], None],
        on_abort: Callable[[Answer], None],
    ) -> None:
        self.kind: Literal["completion", "chat"] = kind
        self.engine = engine
        self.model = model
        self.on_first_token = on_first_token
        self.on_end = on_end
        self.on_abort = on_abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received_ns = time.monotonic_ns()
        send = scope.get("wattserve.send", send)
        try:
            body = await _read_body(receive)
            if body is None:
                return
            job = read_job(
                self.kind,
                parse_json(body),
                self.model.tokenizer,
                model=self.model.name,
                max_model_len=self.model.max_model_len,
            )
        except ApiError as error:
            await send_error(send, error)
            return
        scope["wattserve.prompt_tokens"] = sum(map(len, job.prompts))
        delay = self.engine.profile.frontend_seconds
        if delay > 0:
            await asyncio.sleep(delay)
        answer = self._answer(job, _request_id(scope), send)
        answer.arrival_ns = received_ns
        answer.begin()
        self.engine.submit([choice.sequence for choice in answer.choices])
        # The server says "disconnect" when the client has gone, and also once the response is complete.
        await receive()
        if not answer.ended:
            for choice in answer.choices:
                self.engine.abort(choice.sequence)
            self.on_abort(answer)

    def _answer(self, job: Job, request_id: str, send: Send) -> Answer:
        model = self.model
        answer = Answer(
            job,
            request_id,
            model.name,
            model.words,
            send,
            on_first_token=self.on_first_token,
            on_end=self.on_end,
        )
        arrival_ns = time.monotonic_ns()
        for prompt, ids in enumerate(job.prompts):
            for number in range(job.parameters.n):
                start, tokens, shown, reason = model.plan_choice(job, prompt, number)
                choice = Choice(answer, len(answer.choices), start, tokens, reason)
                choice.text_tokens = shown
                plain = answer.is_plain and shown == tokens
                choice.sequence = Sequence(
                    request_id,
                    ids,
                    tokens,
                    arrival_ns=arrival_ns,
                    deliver=choice.deliver_fast if plain else choice.deliver,
                    output_id=choice.output_id,
                )
                answer.add(choice)
        return answer


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body, or None where the client went away before its end. Raises ApiError if too long."""
    message = await receive()
    if message["type"] != "http.request":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        return body
    parts, length = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > MAX_BODY_BYTES:
            raise ApiError(f"The body is longer than {MAX_BODY_BYTES} bytes.", status=413)
    return b"".join(parts)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return str(value.decode("latin-1"))
    raise RuntimeError("the middleware gives every request an id")


async def send_error(send: Send, error: ApiError) -> None:
    body = error.encoded()
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    start: dict[str, Any] = {"type": "http.response.start", "status": error.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})
