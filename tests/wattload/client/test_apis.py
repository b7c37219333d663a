"""Requests to each endpoint: what is sent, and what is made of responses, good, odd and bad."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clients import ask, client_of, one, plain
from scripted_server import END, HEAD, Script, chunk, scripted
from wattload.client.record import Outcome, RequestRecord


def named(kind: str, **content: Any) -> bytes:
    data = json.dumps({"type": kind, **content}, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def stream(*events: bytes) -> Script:
    return [HEAD, *(chunk(event) for event in events), END]


def delta(text: str, kind: str = "output_text") -> bytes:
    return named(f"response.{kind}.delta", delta=text, item_id="i", output_index=0)


def response(kind: str = "completed", **whole: Any) -> bytes:
    return named(f"response.{kind}", response={"status": kind, **whole})


def block(kind: str = "text_delta", field: str = "text", text: str = "a") -> bytes:
    return named("content_block_delta", index=0, delta={"type": kind, field: text})


CREATED = named("response.created", response={"status": "in_progress", "usage": None, "error": None})
COUNTS = {"input_tokens": 9, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}
STARTED = named("message_start", message={"usage": {"input_tokens": 9, "output_tokens": 0}})
STOPPED = named("message_stop")


def ended(**counts: int) -> bytes:
    return named("message_delta", delta={"stop_reason": "max_tokens"}, usage=counts)


@pytest.mark.parametrize(
    ("api", "prompt", "path", "body"),
    [
        (
            "responses", b'[{"role":"user","content":"x"}]', "/v1/responses",
            {
                "input": [{"role": "user", "content": "x"}], "max_output_tokens": 3, "ignore_eos": True,
                "stream": True, "temperature": 0.0, "store": False, "model": "m",
            },
        ),
        (
            "messages", b'[{"role":"user","content":"x"}]', "/v1/messages",
            {
                "messages": [{"role": "user", "content": "x"}], "max_tokens": 3,
                "stream": True, "temperature": 0.0, "model": "m",
            },
        ),
        ("embeddings", b'["x","y"]', "/v1/embeddings", {"input": ["x", "y"], "model": "m"}),
        (
            "rerank", b'"q","documents":["x"]', "/v1/rerank",
            {"query": "q", "documents": ["x"], "model": "m"},
        ),
        ("score", b'"q","text_2":["x"]', "/v1/score", {"text_1": "q", "text_2": ["x"], "model": "m"}),
    ],
)  # fmt: skip
def test_what_is_sent(api: str, prompt: bytes, path: str, body: dict[str, Any]) -> None:
    with scripted(lambda _request: plain(b"500 Oh", b"{}")) as (url, seen):
        client = client_of(url, api=api)
        one(client, prompt=prompt)
        client.close()
    assert seen.requests == [body]
    assert seen.paths == [path]
    streamed = api in ("responses", "messages")
    assert seen.headers[0]["accept"] == ("text/event-stream" if streamed else "application/json")


@pytest.mark.parametrize(
    ("api", "system", "prompt", "sent"),
    [
        ("completions", b"7,8", b"[1,2]", {"prompt": [7, 8, 1, 2]}),
        ("completions", b'"Be brief."', b'"x"', {"prompt": "Be brief. x"}),
        (
            "chat", b'"Be."', b'[{"role":"user","content":"x"}]',
            {"messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "x"}]},
        ),
        ("responses", b'"Be."', b"[]", {"instructions": "Be.", "input": []}),
        ("messages", b'"Be."', b"[]", {"system": "Be.", "messages": []}),
    ],
)  # fmt: skip
def test_a_system_prompt_stands_where_the_endpoint_has_its_place(
    api: str, system: bytes, prompt: bytes, sent: dict[str, Any]
) -> None:
    with scripted(lambda _request: plain(b"500 Oh", b"{}")) as (url, seen):
        client = client_of(url, api=api)
        client.begin_with(system, glue=" ")
        one(client, prompt=prompt)
        client.close()
    assert seen.requests[0].items() >= sent.items()


def test_each_request_names_its_own_model() -> None:
    with scripted(lambda _request: plain(b"500 Oh", b"{}")) as (url, seen):
        client = client_of(url, model="m=3,n=1")
        for name in ("", "n", "m", "n"):
            record = RequestRecord(0, "run-0", -1, "", 0.0, 3, 3, model=name)
            prepared = client.prepare(record, b"[1]")
            assert b'"model":"%b"' % (name or "m").encode() in prepared
        client.close()
    assert not seen.requests


def check_three(record: RequestRecord) -> None:
    assert (record.outcome, record.error, record.unread) == (Outcome.COMPLETED, None, None)
    assert (record.chunks, len(record.itl_seconds)) == (3, 2)
    assert (record.prompt_tokens, record.output_tokens) == (9, 3)
    assert record.first_token_unix is not None
    assert record.tpot_seconds is None or record.tpot_seconds >= 0


@pytest.mark.parametrize(
    "last",
    [
        response("completed", usage=COUNTS),
        response("incomplete", usage=COUNTS, incomplete_details={"reason": "max_output_tokens"}),
        response("completed", usage={"prompt_tokens": 9, "completion_tokens": 3}) + b"data: [DONE]\n\n",
    ],
)
def test_a_response_of_three_tokens(last: bytes) -> None:
    odd = [
        named("response.content_part.added", part={"text": ""}),
        named("response.output_text.done", text="abc"),
    ]
    check_three(
        ask(stream(CREATED, odd[0], delta("a"), delta("é"), delta("c"), odd[1], last), api="responses")
    )


def test_a_message_of_three_tokens_and_what_came_from_the_cache() -> None:
    opened = named("content_block_start", index=0, content_block={"type": "text", "text": ""})
    final = ended(input_tokens=5, cache_read_input_tokens=4, output_tokens=3)
    events = [STARTED, opened, named("ping"), block(), block(text="é"), block(), final, STOPPED]
    record = ask(stream(*events), api="messages")
    check_three(record)
    assert record.cached_tokens == 4


def test_anthropics_own_counts_are_split_over_two_events() -> None:
    begun = {
        "input_tokens": 2,
        "cache_read_input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "output_tokens": 1,
    }
    started = named("message_start", message={"usage": begun})
    check_three(
        ask(stream(started, block(), block(), block(), ended(output_tokens=3), STOPPED), api="messages")
    )


def test_a_message_shorter_than_planned_is_whole_because_nothing_forces_it() -> None:
    record = ask(stream(STARTED, block(), ended(input_tokens=9, output_tokens=1), STOPPED), api="messages")
    assert (record.outcome, record.output_tokens) == (Outcome.COMPLETED, 1)


def test_a_response_shorter_than_forced_is_short() -> None:
    record = ask(stream(delta("a"), response(usage={**COUNTS, "output_tokens": 1})), api="responses")
    assert record.outcome is Outcome.SHORT_OUTPUT


def test_reasoning_and_tools_of_both() -> None:
    call = named("response.output_item.added", item={"type": "function_call"})
    final = response(usage={**COUNTS, "output_tokens_details": {"reasoning_tokens": 2}})
    events = [delta("h", "reasoning_text"), call, delta("{", "function_call_arguments"), delta("a"), final]
    record = ask(stream(*events), api="responses")
    assert (record.outcome, record.reasoning_chunks, record.tool_calls) == (Outcome.COMPLETED, 1, 1)
    assert record.reasoning_tokens == 2
    assert record.first_answer_unix is not None
    opened = named("content_block_start", index=1, content_block={"type": "tool_use", "name": "f"})
    thought = block("thinking_delta", "thinking", "h")
    signed = block("signature_delta", "signature", "s")
    given = block("input_json_delta", "partial_json", "{")
    events = [STARTED, thought, signed, opened, given, opened, given, ended(output_tokens=3), STOPPED]
    record = ask(stream(*events), api="messages")
    assert (record.outcome, record.reasoning_chunks, record.tool_calls) == (Outcome.COMPLETED, 1, 2)
    assert record.chunks == 3


@pytest.mark.parametrize(
    ("api", "events", "says"),
    [
        ("responses", [named("error", message="out of memory")], "out of memory"),
        ("responses", [delta("a"), response("failed", error={"message": "engine died"})], "engine died"),
        ("responses", [delta("a"), response("cancelled")], "was cancelled"),
        ("responses", [b'data: {"error":{"message":"too long"}}\n\n'], "too long"),
        (
            "messages",
            [STARTED, named("error", error={"type": "overloaded_error", "message": "busy"})],
            "busy",
        ),
        ("messages", [b'data: {"type":"error","error":{"message":"busy"}}\n\n'], "busy"),
    ],
)
def test_an_error_in_the_stream_is_the_servers(api: str, events: list[bytes], says: str) -> None:
    record = ask(stream(*events), api=api)
    assert record.outcome is Outcome.SERVER_ERROR
    assert says in (record.error or "")


@pytest.mark.parametrize(
    ("api", "events"),
    [
        ("responses", [named("response.output_text.delta", delta=5)]),
        ("responses", [named("response.completed")]),
        ("responses", [b'event: response.output_text.delta\ndata: {"type":"response.outp\n\n']),
        ("messages", [named("content_block_delta")]),
        ("messages", [named("content_block_delta", delta={"type": "text_delta"})]),
    ],
)
def test_a_damaged_event_fails_its_request(api: str, events: list[bytes]) -> None:
    assert ask(stream(*events), api=api).outcome is Outcome.MALFORMED_RESPONSE


@pytest.mark.parametrize(
    ("api", "events"),
    [
        ("responses", [CREATED, delta("a"), delta("b")]),
        ("messages", [STARTED, block()]),
    ],
)
def test_a_stream_that_ends_before_it_says_so_is_cut(api: str, events: list[bytes]) -> None:
    record = ask(stream(*events), api=api)
    assert record.outcome is Outcome.DISCONNECTED
    assert record.chunks > 0


@pytest.mark.parametrize(
    ("api", "events"),
    [
        ("responses", [delta("a"), delta("b"), delta("c"), response()]),
        (
            "messages",
            [block(), block(), block(), named("message_delta", delta={"stop_reason": "end_turn"}), STOPPED],
        ),
    ],
)
def test_without_usage_there_are_no_counts_and_no_zeros(api: str, events: list[bytes]) -> None:
    record = ask(stream(*events), api=api)
    assert (record.outcome, record.chunks) == (Outcome.COMPLETED, 3)
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (None, None, None)


def test_what_no_endpoint_says_is_quoted() -> None:
    events = [named("vendor.hint", text="x"), delta("a"), delta("b"), delta("c"), response(usage=COUNTS)]
    record = ask(stream(*events), api="responses")
    assert (record.outcome, record.unread) == (Outcome.COMPLETED, '{"type":"vendor.hint","text":"x"}')


def pooled(answer: Any, inputs: int | None = 2, api: str = "embeddings", **settings: Any) -> RequestRecord:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with scripted(lambda _request: plain(b"200 OK", data)) as (url, _):
        client = client_of(url, api=api, **settings)
        made: list[RequestRecord] = []
        original = client.prepare

        def with_inputs(record: RequestRecord, prompt: bytes) -> bytes:
            record.inputs = inputs
            made.append(record)
            return original(record, prompt)

        client.prepare = with_inputs  # type: ignore[method-assign]
        found = one(client, prompt=b'["x","y"]', output=0)
        client.close()
    return found


VECTORS = [{"index": place, "embedding": [0.5, 0.25]} for place in range(2)]


def test_embeddings_have_a_time_and_input_tokens_and_nothing_else() -> None:
    energy = {"joules": 1.5, "status": "provisional"}
    usage = {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "energy": energy}
    record = pooled({"data": VECTORS, "usage": usage})
    assert (record.outcome, record.error) == (Outcome.COMPLETED, None)
    assert (record.prompt_tokens, record.output_tokens, record.chunks) == (7, None, 0)
    assert (record.energy_joules, record.energy_status) == (1.5, "provisional")
    assert record.first_token_unix is None
    assert record.last_token_unix is not None
    assert record.last_token_unix >= (record.sent_unix or 0)
    assert record.tpot_seconds is None


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7.0}, 7), ({"prompt_tokens": "7"}, 7), ({"input_tokens": 7}, 7), ({}, None),
        ({"prompt_tokens": -7}, None), ({"prompt_tokens": 0}, None), ({"prompt_tokens": 1.5}, None),
        (["x"], None), (None, None),
        ({"prompt_tokens": True}, None), ({"total_tokens": 7}, None), ({"prompt_tokens": 2**40}, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("long", [False, True])
def test_odd_counts_cost_the_count_alone(usage: Any, tokens: int | None, long: bool) -> None:
    vectors = [{"embedding": [0.123456789] * (20_000 if long else 2)} for _ in range(2)]
    record = pooled({"data": vectors, "usage": usage})
    assert record.outcome is Outcome.COMPLETED
    assert record.prompt_tokens == tokens


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"data": VECTORS[:1], "usage": {"prompt_tokens": 7}}, "1 results for 2 inputs"),
        ({"data": [*VECTORS, *VECTORS[:1]], "usage": {"prompt_tokens": 7}}, "3 results for 2 inputs"),
        ({"data": []}, "0 results"),
        ({}, "0 results"),
        (b"[]", "not a JSON object"),
        (b"", "not a JSON object"),
        (b'{"data": [{"embedding": [1]', "not a JSON object"),
        (b'{"data": [{"embedding": [1]}', "not JSON"),
        (b'{"data": nonsense}', "not JSON"),
        (b"<html>busy</html>", "not a JSON object"),
    ],
)
def test_a_response_without_its_results_is_malformed(body: Any, says: str) -> None:
    record = pooled(body)
    assert record.outcome is Outcome.MALFORMED_RESPONSE
    assert says in (record.error or "")
    assert record.last_token_unix is None


def test_an_error_in_a_200_is_the_servers() -> None:
    record = pooled({"error": {"message": "the queue is full"}})
    assert (record.outcome, record.error) == (Outcome.SERVER_ERROR, "the queue is full")


def test_rerank_may_return_the_best_alone_where_that_was_asked() -> None:
    body = {"results": [{"index": 1, "relevance_score": 0.5}], "usage": {"prompt_tokens": 7}}
    assert pooled(body, api="rerank").outcome is Outcome.MALFORMED_RESPONSE
    assert pooled(body, api="rerank", body={"top_n": 1}).outcome is Outcome.COMPLETED
    said = {"usage": {"prompt_tokens": 7}, "results": [{"document": {"text": '"relevance_score":1'}}]}
    assert pooled(said, inputs=None, api="rerank").outcome is Outcome.MALFORMED_RESPONSE


def test_image_tokens_where_the_server_tells() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 1}

    def sent(details: dict[str, Any]) -> int | None:
        token = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"length"}]}\n\n'
        last = {"choices": [], "usage": {**usage, "prompt_tokens_details": details}}
        events = [token, b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"]
        return ask(stream(*events), api="chat", exact_output=False).image_tokens

    assert sent({"multimodal_tokens": {"image": 6}}) == 6
    assert sent({"image_tokens": 6}) == 6
    assert sent({"cached_tokens": 0}) is None
    assert sent({"multimodal_tokens": ["image"]}) is None
