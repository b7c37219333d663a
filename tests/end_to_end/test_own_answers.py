"""Sessions with the server's own responses on a simulated GPU: by their token ids, and as text where it tells
none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sim_server import fast_profile, serving, simulating
from wattserve.http.middleware import ASGIApp, Message, Receive, Scope, Send
from wattserve.sim.app import Simulator
from wattserve.sim.kv_cache import BLOCK_TOKENS

pytestmark = pytest.mark.e2e

# Other programs may share the machine: they make a client or a simulation late, which a run rightly says. And
# a run of a second knows its joules to no tenth.
PASSED_OVER = ("client saturated", "simulator ran late", "uncertainty of the total")
TURNS, OUTPUT = 4, 21


class WithoutIds:
    """A server before vLLM 0.10.2: it passes over `return_token_ids`, and its tokenizer may be missing."""

    def __init__(self, app: ASGIApp, *, tokenizes: bool) -> None:
        self._app, self._tokenizes = app, tokenizes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def without() -> Message:
            message = dict(await receive())
            if message["type"] == "http.request":
                message["body"] = message["body"].replace(b'"return_token_ids":true', b'"ignored":true')
            return message

        if scope["type"] == "http" and scope["path"] == "/tokenize" and not self._tokenizes:
            scope = {**scope, "path": "/nowhere", "raw_path": b"/nowhere"}
        await self._app(scope, without, send)


def wattload(url: str, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WATTLOAD_", "OPENAI_"))}
    trace = f"random:prompt=40..90,output={OUTPUT},turns={TURNS},think=0.01"
    load = ["--trace", trace, "--concurrency", "4", "--requests", "24", "--duration", "60", "--warmup", "0"]
    command = [sys.executable, "-m", "wattload.cli", "run", url, "--out", str(out), "--progress", "plain"]
    return subprocess.run(
        [*command, *load, "--history", "server", "--no-report", *flags],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip


def measured(url: str, out: Path, *flags: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """run.json, the rows of requests, and what was said on the terminal."""
    done = wattload(url, out, *flags)
    assert (out / "run.json").exists(), done.stderr
    run = json.loads((out / "run.json").read_text())
    assert all(any(known in reason for known in PASSED_OVER) for reason in run["reasons"]), run["reasons"]
    rows = pq.read_table(out / "requests.parquet").to_pylist()
    assert [row["outcome"] for row in rows] == ["completed"] * 24
    return run, sorted(rows, key=lambda row: int(row["index"])), done.stdout + done.stderr


def test_every_block_of_what_was_sent_and_generated_comes_from_the_cache(tmp_path: Path) -> None:
    with simulating() as (url, _):
        run, rows, _ = measured(url, tmp_path / "run")
    assert run["workload"]["history"] == "token_ids"
    assert run["tokens"]["mismatches"] == 0
    assert not any(row["unread"] for row in rows)
    turns: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        turns.setdefault(row["session"], []).append(row)
    assert [len(each) for each in turns.values()] == [TURNS] * 6
    for first, *later in turns.values():
        assert (first["history_tokens"], first["cached_tokens"]) == (None, 0)
        before = first
        for row in later:
            said = before["prompt_tokens"] + OUTPUT
            assert row["history_tokens"] == said
            assert row["prompt_tokens"] == row["prompt_tokens_planned"] > said
            # The last token of a response was sampled and never computed.
            assert row["cached_tokens"] == (said - 1) // BLOCK_TOKENS * BLOCK_TOKENS
            before = row


def test_a_server_that_tells_no_ids_gets_text_with_a_note(tmp_path: Path) -> None:
    with serving(WithoutIds(Simulator(fast_profile()).app, tokenizes=True)) as url:
        run, rows, said = measured(url, tmp_path / "run")
    assert run["workload"]["history"] == "text"
    assert "later turns repeat the server's responses as text" in said
    assert "have no token_ids" in said
    assert sum(row["history_tokens"] is not None for row in rows) == 6 * (TURNS - 1)


def test_a_tokenizer_that_is_named_means_text(tmp_path: Path) -> None:
    with simulating() as (url, _):
        run, _, said = measured(url, tmp_path / "run", "--tokenizer", "server")
    assert run["workload"]["history"] == "text"
    assert "as text" not in said


def test_where_neither_can_be_had_a_sentence_says_what_to_do(tmp_path: Path) -> None:
    with serving(WithoutIds(Simulator(fast_profile()).app, tokenizes=False)) as url:
        done = wattload(url, tmp_path / "run")
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()
    (sentence,) = done.stderr.strip().splitlines()
    assert f"--history server: the responses of {url}/v1/completions have no token_ids" in sentence
    assert "/tokenize answered 404" in sentence
    assert sentence.endswith("use such a server, or --history planned")


def test_several_choices_are_no_history(tmp_path: Path) -> None:
    done = wattload("http://127.0.0.1:9", tmp_path / "run", "--body", '{"n": 2}')
    assert done.returncode == 2
    assert "--body: asks for 2 responses" in done.stderr
