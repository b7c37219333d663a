"""What stands around prompts: inputs shared out to the token, images, system prompts, and models drawn by
weight.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wattload.client.model_mix import parse_models
from wattload.errors import BadInput
from wattload.load.plan import planned_record
from wattload.schedule import content
from wattload.schedule.build import build_schedule
from wattload.schedule.frame import Frame, Images, lengths, query_and_documents, scaled, system_of
from wattload.schedule.models import with_models
from wattload.schedule.parquet import load, save
from wattload.schedule.table import Schedule
from wattload.traces import load as load_trace

WORDS = tuple(f"w{first}{second}x" for first in "abcdefghijkl" for second in "abcdefghijkl")


def planned(count: int = 12, tokens: int = 200) -> Schedule:
    trace = load_trace(f"random:prompt={tokens},output=5")
    return build_schedule(trace, "offline", requests=count)


def written(schedule: Schedule) -> Schedule:
    return replace(schedule, words=WORDS)


@given(st.integers(1, 5000), st.integers(1, 60))
def test_lengths_sum_up_and_are_even(total: int, parts: int) -> None:
    found = lengths(total, parts)
    assert (len(found), sum(found)) == (parts, total)
    assert max(found) - min(found) <= 1


@given(st.integers(2, 5000), st.integers(1, 60))
def test_a_query_with_each_document_is_the_prompt(total: int, documents: int) -> None:
    documents = min(documents, total // 2)
    query, parts = query_and_documents(total, documents)
    assert query >= 1
    assert min(parts) >= 1
    assert documents * query + sum(parts) == total


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 200))
def test_scaled_counts_fit(counts: list[int], more: int) -> None:
    total = len(counts) + more
    found = scaled(counts, total)
    assert min(found) >= 1
    assert sum(found) == min(total, sum(counts))


@pytest.mark.parametrize("inputs", [1, 3, 8])
def test_embeddings_of_token_ids_are_the_prompt_in_parts(inputs: int) -> None:
    schedule = replace(planned(), frame=Frame(inputs=inputs))
    make = content.prompt_maker(schedule, api="embeddings")
    for row in range(len(schedule)):
        sent = json.loads(make(schedule, row))
        texts = [sent] if inputs == 1 else sent
        assert len(texts) == inputs == planned_record(schedule, row, "run").inputs
        assert np.concatenate(texts).tolist() == content.prompt_token_ids(schedule, row).tolist()


@pytest.mark.parametrize("api", ["rerank", "score"])
@pytest.mark.parametrize("tokens", [2, 3, 17, 200])
def test_a_rank_is_as_many_words_as_planned(api: str, tokens: int) -> None:
    schedule = replace(written(planned(tokens=tokens)), frame=Frame(inputs=8))
    make = content.prompt_maker(schedule, api=api)
    key, documents = ("query", "documents") if api == "rerank" else ("text_1", "text_2")
    sent = json.loads(b'{"%b":' % key.encode() + make(schedule, 0) + b"}")
    count = min(8, tokens // 2)
    assert len(sent[documents]) == count == planned_record(schedule, 0, "run").inputs
    query = len(sent[key].split())
    assert sum(query + len(text.split()) for text in sent[documents]) == tokens


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=40), st.integers(1, 12))
def test_any_text_is_shared_out_to_parts_that_are_not_empty(text: str, parts: int) -> None:
    found = content.shared_out(text, [3] * parts)
    assert len(found) == parts
    assert all(found)


def decoded(url: str) -> Any:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (16, 16), (37, 53), (512, 384)])
def test_images_are_whole_have_their_size_and_differ(size: tuple[int, int]) -> None:
    images = Images(*size)
    first, again, other = (decoded(images.data_url(seed)) for seed in (1, 1, 2**63))
    assert first.shape == (size[1], size[0], 3)
    assert (first == again).all()
    assert (first != other).any()
    assert (first[:-1] == other[:-1]).all()
    # Two processes, or a second run, make the same ones.
    assert Images(*size).data_url(1) == images.data_url(1)
    assert zlib.crc32(images.data_url(1).encode()) != zlib.crc32(images.data_url(2).encode())


@pytest.mark.parametrize(
    ("api", "kind"), [("chat", "image_url"), ("responses", "input_image"), ("messages", "image")]
)
def test_a_message_holds_its_text_and_its_image(api: str, kind: str) -> None:
    schedule = replace(written(planned()), frame=Frame(image=(20, 10)))
    make = content.prompt_maker(schedule, api=api)
    sent = [json.loads(make(schedule, row)) for row in (0, 1)]
    text, image = sent[0][0]["content"]
    assert len(text["text"].split()) == 200
    assert image["type"] == kind
    assert sent[0][0]["content"][1] != sent[1][0]["content"][1]
    if api == "chat":
        url = image["image_url"]["url"]
    elif api == "responses":
        url = image["image_url"]
    else:
        url = f"data:{image['source']['media_type']};base64,{image['source']['data']}"
    assert decoded(url).shape == (10, 20, 3)


def test_a_system_prompt_is_counted_and_the_same_in_all_requests(tmp_path: Path) -> None:
    plain = planned()
    ids = replace(plain, frame=Frame(system_tokens=30))
    assert len(json.loads(b"[" + content.system_json(ids, salt=5) + b"]")) == 30
    assert (
        content.system_json(ids, salt=5)
        == content.system_json(ids, salt=5)
        != content.system_json(ids, salt=6)
    )
    assert planned_record(ids, 3, "run").prompt_tokens_planned == plain.prompt_tokens[3] + 30
    assert content.prompt_json_bytes(ids, 3) == content.prompt_json_bytes(plain, 3)
    words = replace(written(plain), frame=Frame(system_tokens=35, system_words=30))
    assert len(json.loads(content.system_json(words)).split()) == 30
    text = replace(plain, frame=Frame(system_tokens=4, system_text='Say "yes".'))
    assert json.loads(content.system_json(text)) == 'Say "yes".'
    assert content.system_json(plain) == b""
    save(replace(text, frame=replace(text.frame, image=(3, 4))), tmp_path / "s.parquet")
    assert load(tmp_path / "s.parquet").frame == replace(text.frame, image=(3, 4))


def test_where_a_system_prompt_comes_from(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    assert system_of("40") == (40, "")
    assert system_of("40 words at most") == (0, "40 words at most")
    assert system_of(f"@{tmp_path / 'system.txt'}") == (0, "Be brief.\n")
    (tmp_path / "bad").write_bytes(b"\xff\xfe\x00")
    for wrong in ("none", "bad"):
        with pytest.raises(BadInput, match=wrong):
            system_of(f"@{tmp_path / wrong}")


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("a", (("a", 1.0),)),
        ("org/a=b-7b", None),
        ("a=3,b=1", (("a", 3.0), ("b", 1.0))),
        ("org/a, b=.5", (("org/a", 1.0), ("b", 0.5))),
        ("a=", None), ("=1", None), ("a,", None), ("a=0,b", None), ("a=inf,b", None), ("a,a", None),
        ("", None),
    ],
)  # fmt: skip
def test_models_and_weights(text: str, mix: Any) -> None:
    if mix is None:
        with pytest.raises(ValueError, match=r"a=3,b=1|twice"):
            parse_models(text)
    else:
        assert parse_models(text) == mix


def test_models_are_drawn_by_weight_by_tenant_and_by_session(tmp_path: Path) -> None:
    many = planned(4000)
    tagged = replace(many, tags=("x", "y"), tag=np.arange(4000, dtype=np.int16) % 2)
    made = with_models(tagged, parse_models("a=3,b=1"), {"y": parse_models("c")}, seed=1)
    assert made.models == ("a", "b", "c")
    assert made.model is not None
    named = np.array(made.models)[made.model]
    assert set(named[tagged.tag == 1]) == {"c"}
    assert (named[tagged.tag == 0] == "a").mean() == pytest.approx(0.75, abs=0.04)
    again = with_models(tagged, parse_models("a=3,b=1"), {"y": parse_models("c")}, seed=1)
    other = with_models(tagged, parse_models("a=3,b=1"), {"y": parse_models("c")}, seed=2)
    assert again.model is not None
    assert np.array_equal(again.model, made.model)
    assert other.model is not None
    assert not np.array_equal(other.model, made.model)
    turns = replace(many, session=np.arange(4000) // 4)
    talk = with_models(turns, parse_models("a,b"), {}, seed=1)
    assert talk.model is not None
    by_session = talk.model.reshape(-1, 4)
    assert (by_session == by_session[:, :1]).all()
    assert 0.4 < (by_session[:, 0] == 0).mean() < 0.6
    assert with_models(many, parse_models("a"), {}, seed=1) is many
    save(made, tmp_path / "s.parquet")
    back = load(tmp_path / "s.parquet")
    assert back.model is not None
    assert (back.model == made.model).all()
    shard = back.shard(1, 3)
    assert [planned_record(shard, row, "r").model for row in range(5)] == named[shard.index[:5]].tolist()
