"""Damages valid inputs and hands them to every parser, for as long as it is given.

    python tests/support/fuzz.py [--seconds 60] [--seed N] [target ...]

A parser may refuse what it gets with its own error, and with no other. An input that raises anything else, or
takes longer than ten seconds, is printed and ends the command with 1.
"""
# ruff: noqa: E501 - inputs

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from engine_metrics import PAGES
from wattload.client.events import EventError, body_error, quoted, read_event, read_line
from wattload.client.readable import readable_json, request_energy
from wattload.client.transport.http1 import HttpError, ResponseParser
from wattload.client.transport.sse import SseError, SseParser
from wattload.energy.dcgm import DcgmSource
from wattload.errors import InputError
from wattload.server_metrics.common import chosen, series_of
from wattload.server_metrics.exposition import Exposition
from wattload.server_metrics.series import labels_of
from wattload.traces.loading import load
from wattmeter.schema import SchemaError, WindowEnergy, requests_from_json, series_from_json
from wattmeter.sensor_gain import load_gains
from wattmeter.steps.batch import StepBatch
from wattserve.protocol import messages
from wattserve.sim.openai.errors import ApiError
from wattserve.sim.openai.protocol import parse_json, read_job
from wattserve.sim.openai.vocabulary import Tokenizer

SLOW_SECONDS = 10.0
PIECES = [b"\x00", b"\xff\xfe", b"\r\n", b"\n\n", b"\"", b"{", b"[" * 2000, b"-1", b"1e999", b"NaN", b"null", b"\\ud800",
          b"99999999999999999999", b",", b":", b"data: ", b"Content-Length: 5\r\n", b"a" * 5000, b"\xed\xa0\x80"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """`parse` gets the bytes; `refusals` are the errors with which it may answer."""

    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]


def _http(data: bytes) -> None:
    parser = ResponseParser()
    for start in range(0, len(data), 700):
        parser.feed(data[start : start + 700])
    parser.end()


def _sse(data: bytes) -> None:
    parser = SseParser()
    for start in range(0, len(data), 300):
        for payload in parser.feed(data[start : start + 300]):
            try:
                read_event(payload)
            except EventError:
                continue
    read_line(data)
    quoted(data)
    body_error(data)


def _energy(data: bytes) -> None:
    value = readable_json(json.loads(data))
    request_energy(value)
    for read in (WindowEnergy.from_json, series_from_json, requests_from_json):
        try:
            read(value)
        except SchemaError:
            continue


class _Exporter(DcgmSource):
    """An exporter that answers one text."""

    text = b""

    def client(self) -> httpx.Client:
        answered = httpx.MockTransport(lambda _request: httpx.Response(200, content=self.text))
        return httpx.Client(transport=answered)


def _exporter(data: bytes) -> None:
    source = _Exporter("http://exporter/metrics")
    source.text = data
    source.devices()
    source.series(0.0, 1.0)


def _metrics(data: bytes) -> None:
    page = Exposition(lambda: None)
    for _ in range(2):
        page.read(data.decode("utf-8", "replace"))
    labels = [labels_of(one.labels) for one in page.series]
    for origin in chosen({"server": [one.metric for one in page.series]}).values():
        series_of(origin, labels)


def _gains(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gains.json"
        path.write_bytes(data)
        load_gains(path)


def _trace(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("t.jsonl" if data[:1] in b"{[" else "t.csv")
        path.write_bytes(data)
        load(path)


def _protocol(data: bytes) -> None:
    messages.decode(data.split(b"|frame|"))


def _request(data: bytes) -> None:
    tokenizer = Tokenizer(128_000)
    for kind in ("completion", "chat"):
        try:
            read_job(kind, parse_json(data), tokenizer, models=["m"], max_model_len=4096)
        except ApiError as error:
            error.encoded()


def _steps() -> bytes:
    columns = {
        "index": [0],
        "launch_ns": [1],
        "end_ns": [2],
        "step": [0],
        "request": [0],
        "prefill_tokens": [3],
    }
    batch = StepBatch.of(("r",), {**columns, "decode_tokens": [0]})
    return b"|frame|".join(messages.encode(messages.StepRecords("e", 1, batch, ((0, "p", 3),))))


_EVENT = b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1,"energy":{"joules":1.5}}}\n\n'
_GAUGE = b'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a",modelName="H100"} 5000000\n'
_WEKA = (
    b'{"id":"a","block_size":64,"requests":[{"t":0,"type":"n","in":9,"out":2,"hash_ids":[1],"api_time":1.5},'
    b'{"t":2,"type":"subagent","requests":[{"t":0,"type":"s","in":9,"out":2}]},{"t":5,"type":"n","in":9,"out":2}]}\n'
)
_SPANS = (
    b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"t","spanId":"s","parentSpanId":"","startTimeUnixNano":"5",'
    b'"endTimeUnixNano":"9","attributes":[{"key":"gen_ai.usage.input_tokens","value":{"intValue":"7"}},'
    b'{"key":"gen_ai.usage.output_tokens","value":{"intValue":3}}]}]}]}]}\n'
)
_TRACELAB = (
    b'{"session_id":"a","round_index":0,"input_tokens_total":9,"output_tokens":2,"timing_events":[{"event_type":'
    b'"user_message","timestamp":"2026-06-01T05:40:20.1Z"},{"event_type":"text","timestamp":"2026-06-01T05:40:29Z"}]}\n'
)
_BAILIAN = (
    b'{"chat_id":1,"parent_chat_id":-1,"timestamp":0.5,"input_length":5,"output_length":6,"hash_ids":[1]}\n'
    * 2
)
TARGETS = {
    "http": Target(
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
         b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"),
        _http, (HttpError,),
    ),
    "events": Target((_EVENT * 3 + _USAGE + b"data: [DONE]\n\n", b": ping\n\nerror: x\n\n" + _EVENT), _sse, (SseError,)),
    "energy": Target(
        (b'{"start":1.0,"end":2.0,"complete":true,"total_joules":5.0,"devices":[{"id":"g","joules":5.0}],"flags":[]}',
         b'{"requests":[{"id":"a","status":"settled","joules":1.0}]}',
         b'{"devices":[{"id":"g","unix_seconds":[1,2],"joules":[1,null],"watts":[null,2]}]}'),
        _energy, (ValueError, RecursionError),
    ),
    "exporter": Target((b"# TYPE x counter\n" + _GAUGE + _GAUGE.replace(b"GPU-a", b"GPU-b"),), _exporter, (ValueError,)),
    "metrics": Target(tuple(text.encode() for text, _ in PAGES.values()), _metrics, (ValueError,)),
    "gains": Target(
        (b'{"schema":"wattmeter.gain/1","devices":{"GPU-1":{"gain":1.02,"uncertainty_fraction":0.01,"windows":3}}}',),
        _gains, (ValueError,),
    ),
    "trace": Target(
        (b"seconds,prompt_tokens,output_tokens,session,tag\n0,5,6,1,a\n1.5,7,8,1,b\n",
         b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,4808,10\n2023-11-16 18:15:47.0,3180,8\n",
         b'{"timestamp": 0, "input_length": 5, "output_length": 6, "hash_ids": [1]}\n' * 2,
         b'[{"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}]',
         _WEKA, _SPANS, _TRACELAB, _BAILIAN),
        _trace, (InputError,),
    ),
    "protocol": Target(
        (_steps(), b"|frame|".join(messages.encode(messages.RequestStarted("s", "r", "g"))),
         b"|frame|".join(messages.encode(messages.HttpQuestion("s", 1, "GET", "/energy", "", b"body")))),
        _protocol, (messages.ProtocolError,),
    ),
    "request": Target(
        (b'{"model":"m","prompt":[1,2,3],"max_tokens":5,"stream":true,"stop":["x"],"n":2,"ignore_eos":true}',
         b'{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_completion_tokens":4}'),
        _request, (),
    ),
}  # fmt: skip


def damaged(chance: random.Random, data: bytes) -> bytes:
    """A few random changes: bytes, cuts, repeats, and pieces that parsers are known to trip over."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted(chance.randint(0, len(data)) for _ in range(2))
        match chance.randrange(5):
            case 0:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[to:]
            case 2:
                data = data[:to] + data[at:to] * chance.randint(1, 20) + data[to:]
            case 3:
                data = data[:at] + chance.choice(PIECES) + data[at:]
            case _:
                data = data[:at] + chance.choice(PIECES) + data[to:]
    return data[:200_000]


def fault_of(target: Target, data: bytes) -> str | None:
    """What the parser did that it must not, None where it parsed or refused."""
    began = time.perf_counter()
    try:
        with np.errstate(all="ignore"):
            target.parse(data)
    except target.refusals:
        pass
    except Exception:
        return traceback.format_exc(limit=-3)
    seconds = time.perf_counter() - began
    return f"it took {seconds:.1f} s" if seconds > SLOW_SECONDS else None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("targets", nargs="*", default=sorted(TARGETS))
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**9)
    chance, until, tried = random.Random(seed), time.monotonic() + given.seconds, 0
    while time.monotonic() < until:
        name = chance.choice(given.targets)
        data = damaged(chance, chance.choice(TARGETS[name].seeds))
        fault = fault_of(TARGETS[name], data)
        if fault is not None:
            print(f"{name}, seed {seed}, after {tried} inputs: {data[:2000]!r}\n{fault}")
            return 1
        tried += 1
    print(f"seed {seed}: {tried} damaged inputs, every one parsed or refused")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
