"""The energy middleware on any app: streams however they are cut, JSON bodies, failures of the meter."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattmeter.endpoints import METERED_PATHS
from wattmeter.schema import RequestEnergy
from wattserve.http.middleware import EnergyMiddleware, MonitorSource, Receive, RequestIds, Scope, Send


def energy(request_id: str, joules: float | None = 12.5, reason: str | None = None) -> RequestEnergy:
    return RequestEnergy(
        request_id, "provisional", joules, 2.5, 10.0, 0.5, 3, 4, "nvml", frozenset(), reason=reason
    )


class Books:
    """Remembers what it was told; answers, knows nothing, or fails."""

    def __init__(self, answer: Any = energy) -> None:
        self.answer = answer
        self.started: list[tuple[str, str]] = []
        self.finished: list[tuple[str, int | None, bool]] = []
        self.prompts: list[int | None] = []
        self.refused: list[bool] = []
        self.groups: list[str | None] = []

    def request_started(self, request_id: str, *, prompt_tokens: int | None = None, group: str = "") -> None:
        self.started.append((request_id, group))

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
        self.groups.append(group)
        self.finished.append((request_id, output_tokens, aborted))
        self.prompts.append(prompt_tokens)
        self.refused.append(refused)

    def request_energy(self, request_id: str) -> RequestEnergy | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        found: RequestEnergy | None = self.answer(request_id) if callable(self.answer) else self.answer
        return found


def run(
    parts: list[bytes],
    books: Books | None,
    *,
    kind: bytes = b"text/event-stream; charset=utf-8",
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
    path: str = "/v1/completions",
    extra: list[tuple[bytes, bytes]] | None = None,
) -> tuple[dict[bytes, bytes], list[bytes], Scope]:
    """What comes out of the middleware around an app that sends `parts`: headers, bodies, the app's scope."""
    seen: list[Scope] = []
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        start = [(b"content-type", kind), *(extra or [])]
        await send({"type": "http.response.start", "status": status, "headers": start})
        for number, part in enumerate(parts):
            more = number < len(parts) - 1
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": headers or []}
    source = None if books is None else MonitorSource(books)
    asyncio.run(EnergyMiddleware(app, source)(scope, receive, send))
    return dict(sent[0]["headers"]), [message["body"] for message in sent[1:]], seen[0]


USAGE = {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
TOKEN = {"id": "x", "choices": [{"index": 0, "text": 'é\u2028 the "usage" word', "finish_reason": None}]}


def stream(ending: str = "\n\n") -> bytes:
    texts = [json.dumps(TOKEN, ensure_ascii=False)] * 3 + [json.dumps(USAGE), "[DONE]"]
    return "".join(f"data: {text}{ending}" for text in texts).encode()


def chunks(body: bytes) -> list[Any]:
    lines = [line[6:] for line in body.decode().replace("\r\n", "\n").split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(stream())), max_size=8), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_a_stream_cut_anywhere_is_the_same_stream_with_energy(cuts: list[int], ending: str) -> None:
    whole = stream(ending)
    places = [0, *sorted(cuts), len(whole)]
    parts = [whole[a:b] for a, b in itertools.pairwise(places)]
    books = Books()
    _, bodies, _ = run(parts, books)
    *tokens, last = chunks(b"".join(bodies))
    assert tokens == [TOKEN] * 3
    assert last["usage"]["energy"]["joules"] == 12.5
    assert last["usage"]["energy"] | {} == {
        "joules": 12.5, "prefill_joules": 2.5, "decode_joules": 10.0, "uncertainty_joules": 0.5,
        "status": "provisional", "source": "nvml",
    }  # fmt: skip
    assert last["usage"]["completion_tokens"] == 4
    assert books.finished[0][1:] == (4, False)
    assert books.prompts == [3]


def test_whole_events_are_passed_on_at_once_and_untouched() -> None:
    event = b"data: " + json.dumps({"choices": [{"text": "a"}]}).encode() + b"\n\n"
    _, bodies, _ = run([event] * 3 + [b"data: [DONE]\n\n"], Books())
    assert bodies == [event] * 3 + [b"data: [DONE]\n\n"]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b"\r\r"])
def test_a_stream_without_blank_lines_is_not_held_back(end: bytes) -> None:
    """All of it came at once, at its end."""
    token = b"data:" + json.dumps(TOKEN, ensure_ascii=False).encode() + end
    parts = [token, token[:9], token[9:], b"event: last" + end, b"data: " + json.dumps(USAGE).encode() + end]
    _, bodies, _ = run([*parts, b"data: [DONE]" + end], Books())
    assert bodies[:4] == [token, b"", token, b"event: last" + end]
    assert json.loads(bodies[4][6:])["usage"]["energy"]["joules"] == 12.5
    assert bodies[4].endswith(end)


def test_running_usage_is_left_alone() -> None:
    running = {"choices": [{"index": 0}], "usage": {"completion_tokens": 1}}
    event = b"data: " + json.dumps(running).encode() + b"\n\n"
    _, bodies, _ = run([event, b"data: [DONE]\n\n"], Books())
    assert bodies[0] == event


def test_comments_and_garbage_pass_through() -> None:
    parts = [b": ping\n\n", b'data: {"usage": broken\n\n', b"data: [DONE]\n\n"]
    _, bodies, _ = run(parts, Books())
    assert b"".join(bodies) == b"".join(parts)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", " : ")])
def test_a_final_usage_is_found_behind_chunks_without_one_in_the_same_body(
    separators: tuple[str, str],
) -> None:
    """Servers put null into every chunk, and may send several events at once."""

    def event(**content: Any) -> bytes:
        return b"data: " + json.dumps(content, separators=separators).encode() + b"\n\n"

    token = event(choices=[{"text": 'says "usage"'}], usage=None)
    final = event(choices=[], usage={"completion_tokens": 4})
    for parts in ([token, final], [token + final], [token, token + final], [token, final + b": ping\n\n"]):
        _, bodies, _ = run([*parts, b"data: [DONE]\n\n"], Books())
        (found,) = [line for line in b"".join(bodies).split(b"\n\n") if b"completion_tokens" in line]
        assert json.loads(found[6:])["usage"]["energy"]["joules"] == 12.5
        assert b"".join(bodies).count(token) == sum(part.count(token) for part in parts)


EVENTS = {
    "null": b'data: {"choices":[{"text":"a"}],"usage":null}\n\n',
    "absent": b'data: {"choices":[{"text":"a"}]}\n\n',
    "running": b'data: {"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}\n\n',
    "comment": b": ping\n\n",
    "half": b'data: {"choices":[{"text":"a"',
    "other half": b'}],"usage":null}\n\n',
}
FINAL = b'data: {"choices":[],"usage":{"completion_tokens":4}}\n\n'


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=12), st.booleans())
def test_chunks_of_any_kind_in_any_order_come_out_as_they_came(kinds: list[str], joined: bool) -> None:
    """What passes at once depends on the chunks before; what comes out does not."""
    whole = [EVENTS["half"] + EVENTS["other half"] if "half" in kind else EVENTS[kind] for kind in kinds]
    parts = [
        part
        for kind, event in zip(kinds, whole, strict=True)
        for part in ([EVENTS["half"], EVENTS["other half"]] if "half" in kind else [event])
    ]
    last = [parts.pop() + FINAL] if joined and parts else [FINAL]
    books = Books()
    _, bodies, _ = run([*parts, *last, b"data: [DONE]\n\n"], books)
    before, _, rest = b"".join(bodies).partition(b'data: {"choices":[],')
    assert before == b"".join(whole)
    assert b'"joules":12.5' in rest
    assert rest.endswith(b"}}\n\ndata: [DONE]\n\n")
    assert books.finished[0][1:] == (4, False)


@settings(max_examples=200, deadline=None)
@given(
    st.permutations(["choices", "usage", "x", "response"]),
    st.dictionaries(st.sampled_from(["completion_tokens", "energy", "energy_reason", "details"]), st.none()),
    st.sampled_from([None, 'a "usage":{}}', {"usage": 1}, {"usage": {"a": 1}}, {"usage": {}}]),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.booleans(),
)
def test_energy_comes_to_the_usage_wherever_that_stands(
    order: list[str], usage: dict[str, Any], other: Any, separators: tuple[str, str], nested: bool
) -> None:
    usage = {name: {"cached": 1} if nested and name == "details" else None for name in usage}
    values = {"choices": [], "usage": usage, "x": other, "response": "text"}
    content = {name: values[name] for name in order}
    body = json.dumps(content, separators=separators).encode()
    for parts, kind in (
        ([body], b"application/json"),
        ([b"data: " + body + b"\n\n", b"data: [DONE]\n\n"], b"text/event-stream"),
    ):
        _, bodies, _ = run(parts, Books(), kind=kind)
        found = json.loads(bodies[0].removeprefix(b"data: "))
        assert list(found) == order
        assert found["usage"].pop("energy")["joules"] == 12.5
        usage.pop("energy", None)
        assert found == {**content, "usage": usage}


def test_what_is_around_a_usage_at_the_end_is_not_written_again() -> None:
    body = b'{"a": 1.10, "b":  "\\u00e9", "choices": [], "usage": {"completion_tokens": 4 } }'
    _, bodies, _ = run([body], Books(), kind=b"application/json")
    assert bodies[0].startswith(body.rstrip(b" }"))
    assert json.loads(bodies[0])["usage"]["energy"]["joules"] == 12.5


def test_where_nothing_is_to_be_added_a_usage_stays_as_it_is() -> None:
    class Quiet(MonitorSource):
        async def usage_fields(self, request_id: str, **_: Any) -> dict[str, Any]:
            return {}

    books = Books()
    for whole, kind in ((FINAL, b"text/event-stream"), (FINAL[6:].strip(), b"application/json")):
        sent: list[Any] = []

        async def app(
            _scope: Scope, _receive: Receive, send: Send, kind: bytes = kind, whole: bytes = whole
        ) -> None:
            headers = [(b"content-type", kind)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": whole})

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        asyncio.run(EnergyMiddleware(app, Quiet(books))(scope, None, send))  # type: ignore[arg-type]
        assert sent[-1]["body"] == whole
    assert [tokens for _, tokens, _ in books.finished] == [4, 4]


def test_an_endless_event_is_not_kept() -> None:
    part = b"x" * 300_000
    _, bodies, _ = run([part] * 5 + [b"end"], Books())
    assert b"".join(bodies) == part * 5 + b"end"
    assert any(bodies[:5]), "nothing came before the end: it was buffered"


@pytest.mark.parametrize("cuts", [[], [1], [5, 9, 30]])
def test_a_json_body_gets_energy_and_the_right_length(cuts: list[int]) -> None:
    usage = {"completion_tokens": 4, "prompt_tokens": 7}
    whole = json.dumps({"choices": [{"text": "\u00e9"}], "usage": usage}).encode()
    places = [0, *cuts, len(whole)]
    parts = [whole[a:b] for a, b in itertools.pairwise(places)]
    length = (b"content-length", str(len(whole)).encode())
    books = Books()
    headers, bodies, _ = run(parts, books, kind=b"application/json", extra=[length])
    body = b"".join(bodies)
    assert books.prompts == [7]
    assert headers[b"content-length"] == str(len(body)).encode()
    assert json.loads(body)["usage"]["energy"]["joules"] == 12.5
    assert json.loads(body)["choices"] == [{"text": "\u00e9"}]


@pytest.mark.parametrize(
    ("kind", "body", "status", "extra"),
    [
        (b"text/html", b"<p>usage</p>", 200, []),
        (b"application/json", b'{"usage": {}}', 500, []),
        (b"application/json", b"[1]", 200, []),
        (b"application/json", b"not json", 200, []),
        (b"application/json", b"[" * 200_000, 200, []),
        (b"application/json", b"\x1f\x8b", 200, [(b"content-encoding", b"gzip")]),
        (b"application/json", b'{"usage": null}', 200, []),
    ],
)
def test_everything_else_passes_unchanged(
    kind: bytes, body: bytes, status: int, extra: list[tuple[bytes, bytes]]
) -> None:
    _, bodies, _ = run([body], Books(), kind=kind, status=status, extra=extra)
    assert b"".join(bodies) == body


@pytest.mark.parametrize(
    ("books", "reason"),
    [
        (None, "the meter has not started"),
        (Books(RuntimeError("NVML is gone")), "the meter failed: NVML is gone"),
        (Books(lambda _: None), "no engine step"),
        (Books(lambda i: energy(i, None, "gpu_lost")), "gpu_lost"),
    ],
)
def test_a_meter_that_fails_gives_null_and_the_reason_and_the_answer_goes_on(
    books: Books | None, reason: str
) -> None:
    _, bodies, _ = run([stream()], books)
    *tokens, last = chunks(b"".join(bodies))
    assert tokens == [TOKEN] * 3
    assert last["usage"]["energy"] is None
    assert reason in last["usage"]["energy_reason"]


def test_books_that_fail_take_nothing_down() -> None:
    class Broken(Books):
        def request_started(self, request_id: str, **_: Any) -> None:
            raise RuntimeError

        def request_finished(self, request_id: str, **_: Any) -> None:
            raise RuntimeError

    _, bodies, _ = run([stream()], Broken())
    assert len(chunks(b"".join(bodies))) == 4


def test_ids_and_groups() -> None:
    books = Books()
    sent = [(b"x-request-id", b"abc"), (b"x-energy-group", b"team-1")]
    headers, _, scope = run([b"data: [DONE]\n\n"], books, headers=sent)
    assert headers[b"x-request-id"] == b"abc"
    assert books.started == [("abc", "team-1")]
    headers, _, scope = run([b"data: [DONE]\n\n"], books)
    made = dict(scope["headers"])[b"x-request-id"]
    assert headers[b"x-request-id"] == made
    assert books.started[1] == (made.decode(), "")
    _, _, scope = run([b"data: [DONE]\n\n"], books, headers=[(b"x-request-id", b"x" * 300)])
    assert dict(scope["headers"])[b"x-request-id"] != b"x" * 300


@pytest.mark.parametrize("names", [(b"x-request-id", b"x-request-id"), (b"x-request-id", b"X-Request-ID")])
def test_of_several_ids_the_app_sees_the_one_that_is_booked(names: tuple[bytes, bytes]) -> None:
    """An engine that takes the last one gave a stranger's steps to the request of that id."""
    books = Books()
    given = [(names[0], b"mine"), (b"x-energy-group", b"a"), (names[1], b"victim")]
    _, _, scope = run([stream()], books, headers=given)
    ids = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
    assert ids == [b"mine"]
    assert [request_id for request_id, *_ in books.finished] == ["mine"]


def test_other_routes_are_not_booked() -> None:
    books = Books()
    headers, _, _ = run([b"ok"], books, path="/health", kind=b"text/plain")
    assert not books.started
    assert b"x-request-id" in headers


def test_refused_and_broken_answers_are_booked_as_aborted() -> None:
    books = Books()
    run([b'{"error": {}}'], books, status=400, kind=b"application/json")
    assert books.finished[0][2] is True

    async def broken(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("engine died")

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    with pytest.raises(RuntimeError, match="engine died"):
        asyncio.run(EnergyMiddleware(broken, MonitorSource(books))(scope, None, None))  # type: ignore[arg-type]
    assert books.finished[1][2] is True
    # One that broke may have run; one that was refused has not.
    assert books.refused == [True, False]
    assert books.groups == [books.started[0][1], None], "of a refused one the tenant is told"


def test_an_id_that_is_in_use_or_was_used_is_not_given_again() -> None:
    """A stranger who knows the id of another's request gets an id of its own, in its response."""
    books = Books()
    given: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.append(dict(scope["headers"])[b"x-request-id"].decode())
        if len(given) == 1:  # while the first one runs
            await middleware(request, receive, send)
        status = 401 if b"refuse" in scope["query_string"] else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            told.append(dict(message["headers"])[b"x-request-id"].decode())

    told: list[str] = []
    middleware = EnergyMiddleware(app, MonitorSource(books))
    headers = [(b"x-request-id", b"mine")]
    request: Scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    request["query_string"] = b""
    asyncio.run(middleware(request, receive, send))
    asyncio.run(middleware(request, receive, send))
    assert given[0] == "mine"
    assert len(set(given)) == 3
    assert sorted(told) == sorted(given)
    assert [name for name, _ in books.started] == given
    # A refused request leaves its id to the one that is accepted.
    again = {**request, "headers": [(b"x-request-id", b"other")]}
    asyncio.run(middleware({**again, "query_string": b"refuse"}, receive, send))
    asyncio.run(middleware(again, receive, send))
    assert given[3:] == ["other", "other"]


def test_ids_that_are_remembered_have_a_bound() -> None:
    ids = RequestIds(most=3)
    for name in "abcde":
        assert ids.take(name)
        ids.give_back(name, refused=False)
    assert ids.take("a")
    assert not ids.take("e")


def test_half_a_surrogate_pair_comes_out_as_it_came() -> None:
    """A token that ends inside a character: JSON may hold it, UTF-8 may not."""
    text = b'{"choices":[{"text":"\\ud83d \\u00e9"}],"usage":{"completion_tokens":1}}'
    _, bodies, _ = run([text], Books(), kind=b"application/json")
    answer = json.loads(b"".join(bodies))
    assert answer["choices"][0]["text"] == "\ud83d \u00e9"
    assert answer["usage"]["energy"]["joules"] == 12.5


def test_a_stream_that_gets_longer_does_not_keep_its_length() -> None:
    length = (b"content-length", str(len(stream())).encode())
    headers, bodies, _ = run([stream()], Books(), extra=[length])
    assert len(b"".join(bodies)) > len(stream())
    assert b"content-length" not in headers


def test_a_chunk_on_its_way_is_handed_to_the_server_and_to_nothing_else() -> None:
    """The awaitable that the app gets for a chunk without a final usage is the server's own."""
    given: list[Any] = []
    got: list[Any] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        start = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        for body in (
            b'data: {"choices":[{"text":"a"}]}\n\n',
            b'data: {"choices":[{}],"usage":{}}\n\n',
            b'data: {"choices":[{"text":"a"}],"usage":null}\n\n',
            b'data: {"choices":[],"usage":null}\n\n',
        ):
            sending = send({"type": "http.response.body", "body": body, "more_body": True})
            got.append(sending)
            await sending

    async def nothing() -> None:
        return None

    def send(_message: Any) -> Any:
        given.append(nothing())
        return given[-1]

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(EnergyMiddleware(app, MonitorSource(Books()))(scope, None, send))  # type: ignore[arg-type]
    assert got == given[1:]


RESPONSES = b"""event: response.created
data: {"type":"response.created","response":{"id":"r","usage":null}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","delta":"the \\"usage\\": {} word"}

event: response.completed
data: {"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}

"""
MESSAGES = b"""event: message_start
data: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":0}}}

event: content_block_delta
data: {"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}

event: message_delta
data: {"type":"message_delta","usage":{"input_tokens":1,"cache_read_input_tokens":2,"output_tokens":4}}

event: message_stop
data: {"type":"message_stop"}

"""


@pytest.mark.parametrize(
    ("path", "whole", "place"),
    [("/v1/responses", RESPONSES, "response"), ("/v1/messages", MESSAGES, None)],
)
@pytest.mark.parametrize("every", [1, 7, 10_000])
def test_named_events_carry_energy_in_the_usage_of_the_whole_response(
    path: str, whole: bytes, place: str | None, every: int
) -> None:
    books = Books()
    events = [part + b"\n\n" for part in whole.split(b"\n\n") if part]
    parts = events if every == 7 else [whole[at : at + every] for at in range(0, len(whole), every)]
    _, bodies, _ = run(parts, books, path=path)
    lines = b"".join(bodies).decode().splitlines()
    read = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [line for line in lines if line.startswith("event: ")] == [
        line for line in whole.decode().splitlines() if line.startswith("event: ")
    ]
    having = [event for event in read if "energy" in json.dumps(event)]
    assert len(having) == 1
    usage = having[0][place]["usage"] if place else having[0]["usage"]
    assert usage["energy"]["joules"] == 12.5
    assert (books.prompts, books.finished[0][1:]) == ([3], (4, False))


def test_a_long_body_of_embeddings_gets_its_energy_and_keeps_its_numbers() -> None:
    numbers = [round(0.1 * place, 9) for place in range(20_000)]
    answer = {"data": [{"embedding": numbers, "note": 'a "usage": {'}], "usage": {"prompt_tokens": 9}}
    body = json.dumps(answer).encode()
    assert len(body) > 1 << 16
    books = Books()
    headers, bodies, _ = run([body], books, kind=b"application/json", path="/v1/embeddings")
    got = b"".join(bodies)
    read = json.loads(got)
    assert read["data"] == answer["data"]
    assert read["usage"]["energy"]["joules"] == 12.5
    assert int(headers[b"content-length"]) == len(got)
    assert books.prompts == [9]
    # The usage elsewhere: found by reading the whole.
    other = json.dumps({"usage": {"prompt_tokens": 9}, "results": ["x" * 100_000]}).encode()
    _, bodies, _ = run([other], Books(), kind=b"application/json", path="/v1/rerank")
    assert json.loads(b"".join(bodies))["usage"]["energy"]["joules"] == 12.5


@pytest.mark.parametrize("path", METERED_PATHS)
def test_every_measured_path_is_metered(path: str) -> None:
    books = Books()
    run([b"{}"], books, kind=b"application/json", path=path)
    assert len(books.started) == len(books.finished) == 1
