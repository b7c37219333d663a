"""A vLLM that embeds and scores: requests that generate nothing have their joules too, and they add up."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from metered_vllm import MODEL_NAME, Server


@pytest.fixture(scope="module")
def pooling(model: Path, profile: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pooling")
    running = Server(folder, model, profile, "--runner", "pooling", "--convert", "embed")
    yield running
    running.stop()


def ask(server: Server, path: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.url + path,
        json.dumps({"model": MODEL_NAME, **body}).encode(),
        {"content-type": "application/json", "x-request-id": name, "x-energy-group": "pooled"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_embeddings_and_scores_carry_their_joules_and_add_up(pooling: Server) -> None:
    ask(pooling, "/v1/embeddings", "first", {"input": [1, 2, 3]})
    deadline = time.monotonic() + 30
    while pooling.get("/energy")["idle"]["how"] != "measured":
        assert time.monotonic() < deadline, pooling.get("/energy")
        time.sleep(0.3)
    start = time.time()
    time.sleep(0.5)  # both edges of the window lie in idle time
    several = {"input": [list(range(300, 500)), list(range(40)), [7, 8, 9]]}
    usage = ask(pooling, "/v1/embeddings", "several", several)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (243, 0)
    assert usage["energy"]["joules"] > 0
    assert usage["energy"]["decode_joules"] == 0
    documents = {"query": "how many", "documents": ["ten", "a hundred and one", "none"]}
    ranked = ask(pooling, "/v1/rerank", "ranked", documents)
    assert len(ranked["results"]) == 3
    assert ranked["usage"]["energy"]["joules"] > 0
    scored = ask(pooling, "/v1/score", "scored", {"text_1": "how many", "text_2": ["ten", "none"]})
    assert scored["usage"]["energy"]["joules"] > 0
    names = ("several", "ranked", "scored")
    told = pooling.settled(*names)
    assert told["several"]["prompt_tokens"] == 243
    assert all(told[name]["joules"] > 0 for name in names)
    time.sleep(1.5)
    end = time.time()
    deadline = time.monotonic() + 20
    window = pooling.get(f"/energy?start={start}&end={end}&group_by=tag")
    while not window["complete"] and time.monotonic() < deadline:
        time.sleep(0.3)
        window = pooling.get(f"/energy?start={start}&end={end}&group_by=tag")
    attributed = sum(window["attributed_joules"].values())
    assert window["groups"]["pooled"] == pytest.approx(attributed, rel=0.02)
    # A few steps of milliseconds on a busy CPU: what each cost settles within the counter's resolution.
    assert sum(told[name]["joules"] for name in names) == pytest.approx(attributed, rel=0.15)
