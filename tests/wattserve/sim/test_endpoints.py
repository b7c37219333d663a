"""The endpoints beside completions and chat, over a real socket: shapes, counts, and joules that add up."""

from __future__ import annotations

import json
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from sim_server import simulating

WORDS = "bababa bababe bababi bababo bababu"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulating(adapters=["french", "german"]) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as made:
        yield made


def events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    found = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == event["type"] for name, event in found)
    return found


def test_responses_streamed_and_whole(client: httpx.Client) -> None:
    body = {"input": WORDS, "max_output_tokens": 7, "ignore_eos": True, "instructions": "Be brief."}
    whole = client.post("/v1/responses", json=body).json()
    assert (whole["object"], whole["status"]) == ("response", "incomplete")
    assert whole["usage"]["output_tokens"] == 7
    assert whole["usage"]["total_tokens"] == whole["usage"]["input_tokens"] + 7
    assert whole["usage"]["energy"]["joules"] > 0
    text = whole["output"][0]["content"][0]["text"]
    named = events(client.post("/v1/responses", json={**body, "stream": True}))
    begun = ("created", "in_progress", "output_item.added", "content_part.added")
    assert [name for name, _ in named][:4] == [f"response.{kind}" for kind in begun]
    assert [event["sequence_number"] for _, event in named] == list(range(len(named)))
    deltas = [event["delta"] for name, event in named if name == "response.output_text.delta"]
    assert (len(deltas), "".join(deltas)) == (7, text)
    name, last = named[-1]
    assert name == "response.completed"
    assert last["response"]["output"][0]["content"][0]["text"] == text
    assert last["response"]["usage"]["energy"]["joules"] > 0
    messages = [{"role": "user", "content": [{"type": "input_text", "text": WORDS}]}]
    same = client.post("/v1/responses", json={**body, "input": messages}).json()
    assert same["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_messages_streamed_and_whole(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 6, "system": "Be brief."}
    whole = client.post("/v1/messages", json=body).json()
    assert (whole["type"], whole["stop_reason"], whole["usage"]["output_tokens"]) == (
        "message", "max_tokens", 6,
    )  # fmt: skip
    assert whole["usage"]["energy"]["joules"] > 0
    named = events(client.post("/v1/messages", json={**body, "stream": True}))
    texts = [event["delta"]["text"] for name, event in named if name == "content_block_delta"]
    assert (len(texts), "".join(texts)) == (6, whole["content"][0]["text"])
    assert [name for name, _ in named[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    # What came from the cache is known at the end alone.
    assert named[0][1]["message"]["usage"]["input_tokens"] == sum(
        whole["usage"][name] for name in ("input_tokens", "cache_read_input_tokens")
    )
    final = named[-2][1]
    assert final["delta"]["stop_reason"] == "max_tokens"
    assert final["usage"]["energy"]["joules"] > 0
    # What came from the prefix cache is counted apart, and both together are the prompt.
    long = {**body, "messages": [{"role": "user", "content": f"{WORDS} " * 20}]}
    first, again = (client.post("/v1/messages", json=long).json()["usage"] for _ in range(2))
    assert again["cache_read_input_tokens"] > 0
    assert first["input_tokens"] + first["cache_read_input_tokens"] == (
        again["input_tokens"] + again["cache_read_input_tokens"]
    )


def test_messages_lengths_cannot_be_forced_and_errors_are_anthropics(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 4000, "ignore_eos": True}
    assert client.post("/v1/messages", json=body).json()["stop_reason"] == "end_turn"
    wrong = client.post("/v1/messages", json={"messages": body["messages"]})
    assert wrong.status_code == 400
    assert wrong.json() == {
        "type": "error", "error": {"type": "BadRequestError", "message": "max_tokens is missing."},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "count", "tokens"),
    [(WORDS, 1, 5), ([WORDS, "bababa"], 2, 6), ([7, 8, 9], 1, 3), ([[7, 8], [9], [10]], 3, 4)],
)
def test_embeddings_of_all_forms(client: httpx.Client, given: Any, count: int, tokens: int) -> None:
    if isinstance(given, str):
        given = f" {given}"
    elif isinstance(given[0], str):
        given = [f" {text}" for text in given]
    answer = client.post("/v1/embeddings", json={"input": given, "dimensions": 8}).json()
    assert [len(entry["embedding"]) for entry in answer["data"]] == [8] * count
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"], usage["completion_tokens"]) == (tokens, tokens, 0)
    assert usage["energy"]["joules"] > 0
    assert usage["energy"]["decode_joules"] == 0


def test_rerank_sorts_and_cuts(client: httpx.Client) -> None:
    documents = [" bababa", " bababe bababi", " bababo"]
    body = {"query": " bababu bababu", "documents": documents}
    answer = client.post("/v1/rerank", json=body).json()
    scores = [entry["relevance_score"] for entry in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(entry["index"] for entry in answer["results"]) == [0, 1, 2]
    assert all(documents[entry["index"]] == entry["document"]["text"] for entry in answer["results"])
    assert answer["usage"]["prompt_tokens"] == 3 * 2 + 4
    assert answer["usage"]["energy"]["joules"] > 0
    assert len(client.post("/rerank", json={**body, "top_n": 1}).json()["results"]) == 1


def test_score_pairs_one_with_many_and_many_with_as_many(client: httpx.Client) -> None:
    one = client.post("/v1/score", json={"text_1": " bababa", "text_2": [" bababe", " bababi"]}).json()
    assert [entry["index"] for entry in one["data"]] == [0, 1]
    assert one["usage"]["prompt_tokens"] == 4
    two = {"queries": [" bababa", " bababa"], "documents": [" bababe", " bababi"]}
    assert client.post("/score", json=two).json()["data"] == one["data"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/embeddings", {}, 400, "input must be"),
        ("/v1/embeddings", {"input": []}, 400, "input must be"),
        ("/v1/embeddings", {"input": ["a", ""]}, 400, "input must not be empty"),
        ("/v1/embeddings", {"input": [1, True]}, 400, "input holds"),
        ("/v1/embeddings", {"input": "a", "model": "gpt-9"}, 404, "gpt-9"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, 400, "dimensions"),
        ("/v1/embeddings", {"input": [5] * 20_000}, 400, "16384"),
        ("/v1/rerank", {"query": "a"}, 400, "documents must be"),
        ("/v1/rerank", {"query": ["a", "b"], "documents": ["c", "d"]}, 400, "one text"),
        ("/v1/rerank", {"query": "a", "documents": []}, 400, "documents must be"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, 400, "do not go with"),
        ("/v1/score", {"text_1": "a", "text_2": 3}, 400, "text_2 must be"),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, 400, "keeps no responses"),
        ("/v1/responses", {}, 400, "at least one message"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 0}, 400, "max_tokens"),
        ("/v1/responses", {"input": "a", "tools": [{"type": "function"}]}, 400, "tools"),
    ],
)
def test_what_cannot_be_served_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]


def test_the_official_client_reads_them(url: str) -> None:
    made = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    vectors = made.embeddings.create(model="french", input=["bababa", "bababe"], dimensions=16)
    assert [len(entry.embedding) for entry in vectors.data] == [16, 16]
    answer = made.responses.create(model="german", input="Hello", max_output_tokens=5)
    assert answer.output_text
    with made.responses.stream(model="german", input="Hello", max_output_tokens=5) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.output_text.delta") == final.usage.output_tokens  # type: ignore[union-attr]
    assert final.usage.model_extra["energy"]["joules"] > 0  # type: ignore[union-attr, index]


def test_adapters_are_listed_and_share_no_prefix(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [(entry["id"], entry["parent"]) for entry in models[1:]] == [
        ("french", models[0]["id"]), ("german", models[0]["id"]),
    ]  # fmt: skip
    assert client.get("/v1/models/german").json()["id"] == "german"
    body = {"prompt": list(range(900, 1100)), "max_tokens": 1, "ignore_eos": True}

    def cached(model: str) -> int:
        answer = client.post("/v1/completions", json={**body, "model": model}).json()
        assert answer["model"] == model
        found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    assert [cached("french"), cached("german")] == [0, 0]
    assert min(cached("french"), cached("german")) > 100


def png(width: int, height: int, salt: bytes = b"") -> str:
    """A data URL that begins as a PNG of this size does."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big") + salt
    return f"data:image/png;base64,{b64encode(data).decode()}"


def test_images_are_counted_and_the_same_image_is_cached(client: httpx.Client) -> None:
    def ask(address: str) -> dict[str, Any]:
        parts = [{"type": "text", "text": WORDS}, {"type": "image_url", "image_url": {"url": address}}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 1}
        found: dict[str, Any] = client.post("/v1/chat/completions", json=body).json()["usage"]
        return found

    plain = {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 1}
    text = client.post("/v1/chat/completions", json=plain).json()["usage"]["prompt_tokens"]
    first, again, other = ask(png(280, 57)), ask(png(280, 57)), ask(png(280, 57, b"other"))
    assert first["prompt_tokens_details"]["multimodal_tokens"] == {"image": 10 * 3}
    assert first["prompt_tokens"] == text + 30
    assert again["prompt_tokens_details"]["cached_tokens"] > other["prompt_tokens_details"]["cached_tokens"]
    wrong = {"type": "image_url", "image_url": {"url": png(0, 5)}}
    body = {"messages": [{"role": "user", "content": [wrong]}]}
    assert "0x5 pixels" in client.post("/v1/chat/completions", json=body).json()["error"]["message"]


def test_joules_are_conserved_over_all_endpoints() -> None:
    with simulating() as (url, simulator), httpx.Client(base_url=url, timeout=20) as client:
        # While idle power is not known its joules go to requests, and windows cut seconds.
        until = time.monotonic() + 60
        while client.get("/energy").json()["idle"]["watts"] is None and time.monotonic() < until:
            time.sleep(0.1)
        start = time.time()
        time.sleep(0.5)  # the counter moves every 100 ms: an edge of the window is to lie in a quiet time
        bodies: list[tuple[str, dict[str, Any]]] = [
            ("/v1/embeddings", {"input": [list(range(500, 900)), list(range(40))]}),
            ("/v1/rerank", {"query": WORDS, "documents": [f"{WORDS} " * 30, WORDS]}),
            ("/v1/score", {"text_1": WORDS, "text_2": [f"{WORDS} " * 20]}),
            ("/v1/responses", {"input": WORDS, "max_output_tokens": 40, "ignore_eos": True, "stream": True}),
            ("/v1/messages", {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 40}),
        ]
        for place, (path, body) in enumerate(bodies * 3):
            answer = client.post(path, json=body, headers={"x-request-id": f"all-{place}"})
            assert answer.status_code == 200, answer.text
        ids = [f"all-{place}" for place in range(len(bodies) * 3)]
        deadline = time.monotonic() + 30
        found: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            found = client.post("/energy/requests", json={"ids": ids}).json()["requests"]
            if all(entry["status"] == "settled" for entry in found):
                break
            time.sleep(0.05)
        assert {entry["status"] for entry in found} == {"settled"}
        window = client.get("/energy", params={"start": start, "end": time.time()}).json()
        attributed = sum(window["attributed_joules"].values())
        # The window may end a little before its last readings, which are then provisional.
        assert sum(entry["joules"] for entry in found) == pytest.approx(attributed, rel=0.02)
        assert all(entry["joules"] > 0 for entry in found)
        pooled = [entry for entry in found if int(entry["id"].removeprefix("all-")) % 5 < 3]
        assert all(entry["decode_joules"] == 0 and entry["output_tokens"] in (0, None) for entry in pooled)
        assert simulator.engine.tokens_delivered == 3 * 80
