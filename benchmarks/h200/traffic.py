"""Sends planned requests to a completions endpoint at their times, with nothing but the standard library.

The machine with the GPU has no network and few packages, so this does not use wattload. Prompts are random
token ids, new for every request (no prefix is ever cached); answers have exactly the planned length.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import urllib.request
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

VOCABULARY = (1000, 120_000)  # token ids that are ordinary words in every vocabulary of this size


@dataclass(frozen=True, slots=True)
class Planned:
    """One request: seconds after the start of its window, lengths in tokens, and whose it is."""

    at_seconds: float
    prompt_tokens: int
    output_tokens: int
    group: str


@dataclass(slots=True)
class Sent:
    """What became of a planned request; UNIX seconds; `energy` is usage.energy as it came."""

    window: str
    group: str
    request_id: str
    due_unix: float
    sent_unix: float = 0.0
    done_unix: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    energy: Any = None
    error: str | None = None


class Endpoint:
    """An OpenAI-compatible server; `url` is its base without a path."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise SystemExit(f"--url: {url} is not of the form http://HOST:PORT")
        self.host, self.port = parts.hostname, parts.port or 80
        self.base = f"http://{self.host}:{self.port}"
        models = self.get("/v1/models")["data"]
        self.model = str(models[0]["id"])

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.base + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self.base + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    async def complete(self, planned: Planned, sent: Sent, seed: int) -> None:
        """Send one request now and wait for all of its answer; what goes wrong is kept in `sent.error`."""
        words = random.Random(seed)
        prompt = [words.randrange(*VOCABULARY) for _ in range(planned.prompt_tokens)]
        body = json.dumps(
            {
                "model": self.model,
                "prompt": prompt,
                "max_tokens": planned.output_tokens,
                "min_tokens": planned.output_tokens,
                "ignore_eos": True,
                "temperature": 0.0,
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\nx-request-id: {sent.request_id}\r\n"
            f"x-energy-group: {planned.group}\r\n\r\n"
        ).encode()
        await asyncio.sleep(max(0.0, sent.due_unix - time.time()))
        sent.sent_unix = time.time()
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 22)
            writer.write(head + body)
            status = (await reader.readline()).split()
            length, chunked = None, False
            while (line := (await reader.readline()).strip().lower()) != b"":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
                chunked = chunked or line == b"transfer-encoding: chunked"
            if chunked:
                data = b""
                while size := int((await reader.readline()).split(b";")[0], 16):
                    data += await reader.readexactly(size)
                    await reader.readline()
            else:
                data = await (reader.read() if length is None else reader.readexactly(length))
            writer.close()
            sent.done_unix = time.time()
            answer = json.loads(data)
            if status[1] != b"200":
                raise ValueError(f"status {status[1].decode()}: {str(answer)[:200]}")
            usage = answer["usage"]
            sent.prompt_tokens = usage["prompt_tokens"]
            sent.output_tokens = usage["completion_tokens"]
            sent.energy = usage.get("energy")
            if (sent.prompt_tokens, sent.output_tokens) != (planned.prompt_tokens, planned.output_tokens):
                raise ValueError(f"{sent.prompt_tokens} in, {sent.output_tokens} out: not as planned")
        except (OSError, ValueError, KeyError, IndexError, asyncio.IncompleteReadError) as error:
            sent.error = f"{type(error).__name__}: {error}"


async def play(
    endpoint: Endpoint, window: str, plan: list[Planned], *, calm_seconds: float
) -> dict[str, Any]:
    """Send a window's plan, wait for the last answer and then calm; returns the window with its requests.

    The window begins 0.3 s before the first arrival and ends `calm_seconds` after the last answer, in both
    cases with the device idle.
    """
    start = time.time()
    zero = start + 0.3
    seed = random.SystemRandom().randrange(1 << 48)
    plain = re.sub("[^A-Za-z0-9]+", "-", window)
    sent = [
        Sent(window, planned.group, f"{plain}-{seed:x}-{row}", zero + planned.at_seconds)
        for row, planned in enumerate(plan)
    ]
    await asyncio.gather(
        *(
            endpoint.complete(planned, record, seed + row)
            for row, (planned, record) in enumerate(zip(plan, sent, strict=True))
        )
    )
    await asyncio.sleep(calm_seconds)
    failed = [record for record in sent if record.error]
    late = max((record.sent_unix - record.due_unix for record in sent), default=0.0)
    end = time.time()
    print(
        f"{window:24s} {end - start:6.1f} s  {len(sent):4d} requests  {len(failed)} failed  "
        f"latest {1e3 * late:.0f} ms{'  ' + str(failed[0].error) if failed else ''}",
        flush=True,
    )
    return {
        "name": window,
        "start_unix": start,
        "end_unix": end,
        "requests": [asdict(record) for record in sent],
    }
