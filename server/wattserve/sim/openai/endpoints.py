"""The endpoints that generate, and those that only compute their input, as ASGI apps on the virtual
engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from collections.abc import Callable
from collections.abc import Sequence as Names
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from wattserve.http.middleware import Receive, Scope, Send
from wattserve.sim.engine import Engine
from wattserve.sim.openai.errors import ApiError
from wattserve.sim.openai.pooled import PooledJob, PooledKind, encoded, read_pooled
from wattserve.sim.openai.protocol import Job, Kind, parse_json, read_job
from wattserve.sim.openai.stream import Answer, Choice
from wattserve.sim.openai.vocabulary import Answers, Tokenizer
from wattserve.sim.scheduler import Sequence

J = TypeVar("J", Job, PooledJob)

log = logging.getLogger(__name__)

# 256 prompts of 4,000 token ids. Reading the JSON of a longer body would stop the event loop for a second.
MAX_BODY_BYTES = 8 << 20
# A longer one is read beside the event loop, one at a time: turning 6 MB of text into tokens takes seconds,
# in which everybody else would wait.
LONG_BODY_BYTES = 256 << 10
_READER = ThreadPoolExecutor(1, "long-bodies")
# Without ignore_eos an answer ends by itself: lengths are log-normal, as chat answers' roughly are.
_NATURAL_MEDIAN_TOKENS = 180.0
_NATURAL_SIGMA = 0.8


class Model:
    """What the endpoints serve: one tokenizer, one fixed text to answer with, one name, and those of LoRA
    adapters.

    An adapter is a name with a prefix cache of its own. That its weights cost a little more to compute is not
    simulated.
    """

    def __init__(
        self, name: str, tokenizer: Tokenizer, *, max_model_len: int, seed: int, adapters: Names[str] = ()
    ) -> None:
        self.name = name
        self.names = (name, *adapters)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"--lora: a name is given twice among {', '.join(self.names)}")
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.seed = seed
        self.words = Answers(tokenizer, seed)
        self.created = int(time.time())

    def salt(self, name: str) -> int:
        """What keeps the cached prefixes of one name from the others'; 0 for the model itself."""
        return 0 if name == self.name else zlib.crc32(name.encode("utf-8", "replace")) + 1

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


class _Endpoint:
    """An endpoint of some kind: the way from a request to the job that its body asks for."""

    def __init__(self, engine: Engine, model: Model) -> None:
        self.engine = engine
        self.model = model

    async def _job(
        self, scope: Scope, receive: Receive, send: Send, read: Callable[..., J], *, anthropic: bool = False
    ) -> J | None:
        """What a request asks for, by `read`; None where it was refused, or its client went away."""
        try:
            body = await read_body(receive)
            if body is None:
                return None
            if len(body) <= LONG_BODY_BYTES:
                job = self._read(body, read)
            else:
                job = await asyncio.get_running_loop().run_in_executor(_READER, self._read, body, read)
        except ApiError as error:
            await send_error(send, error, anthropic=anthropic)
            return None
        scope["wattserve.prompt_tokens"] = sum(map(len, job.prompts))
        return job

    def _read(self, body: bytes, read: Callable[..., J]) -> J:
        model = self.model
        return read(parse_json(body), model.tokenizer, models=model.names, max_model_len=model.max_model_len)


class GenerateEndpoint(_Endpoint):
    """An endpoint that generates. A client that goes away ends its sequences at once."""

    def __init__(
        self,
        kind: Kind,
        engine: Engine,
        model: Model,
        *,
        on_first_token: Callable[[Sequence], None],
        on_end: Callable[[Answer], None],
        on_abort: Callable[[Answer], None],
    ) -> None:
        super().__init__(engine, model)
        self.kind: Kind = kind
        self.on_first_token = on_first_token
        self.on_end = on_end
        self.on_abort = on_abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received_ns = time.monotonic_ns()
        send = scope.get("wattserve.send", send)
        read = partial(read_job, self.kind)
        job = await self._job(scope, receive, send, read, anthropic=self.kind == "messages")
        if job is None:
            return
        delay = self.engine.profile.frontend_seconds
        if delay > 0:
            await asyncio.sleep(delay)
        answer = self._answer(job, _request_id(scope), send)
        answer.arrival_ns = received_ns
        try:
            answer.begin()
            self.engine.submit([choice.sequence for choice in answer.choices])
            # The server says "disconnect" when the client has gone, and also once the response is complete.
            await receive()
            if not answer.ended:
                for choice in answer.choices:
                    self.engine.abort(choice.sequence)
                self.on_abort(answer)
        finally:
            answer.close()

    def _answer(self, job: Job, request_id: str, send: Send) -> Answer:
        model = self.model
        answer = Answer(
            job,
            request_id,
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
                    salt=model.salt(job.model),
                )
                answer.add(choice)
        return answer


class PooledEndpoint(_Endpoint):
    """An endpoint that computes its input and generates nothing. `on_end` gets the request's arrival
    (time.monotonic_ns) and its sequences; `on_abort` how many were not computed to their end.
    """

    def __init__(
        self,
        kind: PooledKind,
        engine: Engine,
        model: Model,
        *,
        on_end: Callable[[int, list[Sequence]], None],
        on_abort: Callable[[int], None],
    ) -> None:
        super().__init__(engine, model)
        self.kind: PooledKind = kind
        self._on_end = on_end
        self._on_abort = on_abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival_ns = time.monotonic_ns()
        send = scope.get("wattserve.send", send)
        job = await self._job(scope, receive, send, partial(read_pooled, self.kind))
        if job is None:
            return
        await asyncio.sleep(self.engine.profile.frontend_seconds)
        await self._compute(job, _request_id(scope), arrival_ns, receive, send)

    async def _compute(
        self, job: PooledJob, request_id: str, arrival_ns: int, receive: Receive, send: Send
    ) -> None:
        computed = asyncio.Event()
        open_sequences = len(job.prompts)

        def deliver(_seq: Sequence) -> None:
            nonlocal open_sequences
            open_sequences -= 1
            if not open_sequences:
                computed.set()

        salt = self.model.salt(job.model)
        sequences = [
            Sequence(request_id, ids, 0, arrival_ns=arrival_ns, deliver=deliver, salt=salt)
            for ids in job.prompts
        ]
        self.engine.submit(sequences)
        whole = asyncio.create_task(computed.wait())
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not computed.is_set():
                self._on_abort(sum(not seq.finished for seq in sequences))
                for seq in sequences:
                    self.engine.abort(seq)
                return
            self._on_end(arrival_ns, sequences)
            await send_json(send, 200, encoded(job.body(request_id, sum(map(len, job.prompts)))))
        finally:
            whole.cancel()
            gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(receive: Receive) -> bytes | None:
    """The whole body, or None where the client went away before its end. Raises ApiError if too long."""
    message = await receive()
    if message["type"] != "http.request":
        return None
    parts: list[bytes] = [message.get("body", b"")]
    length = len(parts[0])
    while length <= MAX_BODY_BYTES:
        if not message.get("more_body", False):
            return b"".join(parts) if len(parts) > 1 else parts[0]
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        length += len(parts[-1])
    raise ApiError(f"The body is longer than {MAX_BODY_BYTES} bytes.", status=413)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return str(value.decode("latin-1"))
    raise RuntimeError("the middleware gives every request an id")


async def send_error(send: Send, error: ApiError, *, anthropic: bool = False) -> None:
    """Sends the whole response of an error, in OpenAI's shape or Anthropic's."""
    await send_json(send, error.status, error.encoded(anthropic=anthropic))


async def send_json(send: Send, status: int, body: bytes) -> None:
    """Sends a whole response."""
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
