"""Prompts of text are as many tokens as planned, by the tokenizer that counts them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from wattload import traces
from wattload.errors import BadInput
from wattload.prompts.tokenizer import (
    CANDIDATES,
    LocalTokenizer,
    ServerTokenizer,
    open_tokenizer,
    word_pool,
)
from wattload.schedule import content as prompts
from wattload.schedule.build import build_schedule
from wattload.schedule.parquet import load as load_schedule
from wattload.schedule.parquet import save as save_schedule
from wattload.schedule.text import with_counts, with_words

TEMPLATE_TOKENS = 7


def count(text: str) -> int:
    """Words are one token, those with a q or z two, and a text begins with one more."""
    return 1 + sum(2 if set(word) & set("qz") else 1 for word in text.split())


class Counting:
    def counts(self, texts: Sequence[str], *, chat: bool, system: str = "") -> list[int]:
        return [count(text) + (TEMPLATE_TOKENS if chat else 0) for text in texts]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = "messages" in asked
        text = asked["messages"][0]["content"] if chat else asked["prompt"]
        body = json.dumps({"count": count(text) + (TEMPLATE_TOKENS if chat else 0)}).encode()
        self.send_response(200 if asked["model"] == "m" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_candidates_are_distinct_and_of_one_width() -> None:
    assert len(set(CANDIDATES)) == len(CANDIDATES) > 400
    assert {len(word) for word in CANDIDATES} == {4}


@pytest.mark.parametrize(("chat", "extra"), [(False, 1), (True, 1 + TEMPLATE_TOKENS)])
def test_text_has_the_planned_number_of_tokens(server: str, chat: bool, extra: int) -> None:
    tokenizer = open_tokenizer("server", url=server, model="m")
    pool = word_pool(tokenizer, chat=chat)
    assert pool.extra_tokens == extra
    assert set(pool.words) == {word for word in CANDIDATES if not set(word) & set("qz")}
    planned = with_words(build_schedule(traces.load("conv"), rate=20, duration=5, max_model_len=20_000), pool)
    make = prompts.prompt_maker(planned, api="chat" if chat else "completions")
    for i in range(len(planned)):
        body = json.loads(make(planned, i))
        text = body[0]["content"] if chat else body
        assert Counting().counts([text], chat=chat) == [planned.prompt_tokens[i]]


def test_text_shares_what_token_ids_share() -> None:
    pool = word_pool(Counting(), chat=False)
    shared = with_words(build_schedule(traces.load("conv"), rate=5, duration=4, prefix_share=1.0), pool)
    texts = [prompts.prompt_text(shared, i) for i in range(len(shared))]
    longest = max(texts, key=len)
    assert all(longest.startswith(text) for text in texts)
    alone = with_words(build_schedule(traces.load("conv"), rate=5, duration=4), pool)
    assert len({prompts.prompt_text(alone, i)[:60] for i in range(len(alone))}) == len(alone)


def test_prompts_shorter_than_the_template_are_one_word_and_said() -> None:
    pool = word_pool(Counting(), chat=True)
    trace = traces.load("conv")
    planned = build_schedule(trace, rate=5, duration=2)
    planned.prompt_tokens[0] = 3
    planned = with_words(planned, pool)
    assert planned.prompt_tokens[0] == TEMPLATE_TOKENS + 2
    assert any("1 prompts are shorter" in note for note in planned.notes)
    assert len(prompts.prompt_text(planned, 0).split()) == 1


def test_words_survive_the_file(tmp_path: Path) -> None:
    planned = with_words(
        build_schedule(traces.load("conv"), rate=5, duration=2), word_pool(Counting(), chat=False)
    )
    save_schedule(planned, tmp_path / "s.parquet")
    back = load_schedule(tmp_path / "s.parquet")
    assert [prompts.prompt_text(back, i) for i in range(len(back))] == [
        prompts.prompt_text(planned, i) for i in range(len(planned))
    ]


def test_texts_of_a_trace_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(
        '[{"conversations":[{"from":"human","value":"one quiz \\"x\\""},{"from":"gpt","value":"ho"}]}]'
    )
    planned = with_counts(build_schedule(traces.load(path), "offline"), Counting(), chat=False)
    assert planned.prompt_tokens.tolist() == [5]
    assert json.loads(prompts.prompt_maker(planned)(planned, 0)) == 'one quiz "x"'
    message = json.loads(prompts.prompt_maker(planned, api="chat")(planned, 0))
    assert message == [{"role": "user", "content": 'one quiz "x"'}]


def test_a_local_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=4000, special_tokens=["?"], show_progress=False)
    rng = np.random.default_rng(0)
    model.train_from_iterator([" ".join(rng.choice(CANDIDATES[:300], 400)) for _ in range(50)], trainer)
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = LocalTokenizer(tmp_path / "tokenizer.json")
    pool = word_pool(tokenizer, chat=False)
    planned = with_words(build_schedule(traces.load("code"), rate=5, duration=4), pool)
    texts = [prompts.prompt_text(planned, i) for i in range(len(planned))]
    assert tokenizer.counts(texts, chat=False) == planned.prompt_tokens.tolist()


def test_tokenizers_that_cannot_serve(tmp_path: Path, server: str) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BadInput, match="tokenizer"):
        open_tokenizer(str(tmp_path / "t.json"))
    with pytest.raises(BadInput, match="neither 'server' nor a file"):
        open_tokenizer(str(tmp_path / "none"))
    with pytest.raises(BadInput, match="answered 404"):
        word_pool(ServerTokenizer(server, "other"), chat=False)
    with pytest.raises(BadInput, match="cannot reach"):
        word_pool(ServerTokenizer("http://127.0.0.1:9", "m"), chat=False)

    class Letters:
        def counts(self, texts: Sequence[str], *, chat: bool, system: str = "") -> list[int]:
            return [len(text) for text in texts]

    with pytest.raises(BadInput, match="are one token each"):
        word_pool(Letters(), chat=False)


def test_token_ids_are_no_chat() -> None:
    planned = build_schedule(traces.load("conv"), rate=5, duration=2)
    with pytest.raises(ValueError, match="a chat needs text"):
        prompts.prompt_maker(planned, api="chat")
    with pytest.raises(ValueError, match="token ids"):
        prompts.prompt_text(planned, 0)
    made = prompts.prompt_maker(planned, vocab_size=50_000)(planned, 0)
    assert made == prompts.prompt_json_bytes(planned, 0, 50_000)
