"""Lists of models in every shape that endpoints give them, and which model is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from wattload.client.models import listed, served
from wattload.errors import InputError

ENTRY = {"id": "org/model", "max_model_len": 8192}


@pytest.mark.parametrize(
    "body",
    [
        {"object": "list", "data": [ENTRY]},
        [ENTRY],
        {"models": [ENTRY]},
        {"data": ENTRY},
        {"data": {"org/model": {"max_model_len": 8192}}},
        [{"name": "org/model", "max_model_len": 8192}],
        {"data": None, "models": [{"model": "org/model", "max_model_len": 8192}]},
        [ENTRY, 7, None, {}, {"id": 3}, {"id": "org/model"}],
    ],
)
def test_shapes_of_lists(body: Any) -> None:
    found = listed(body)
    assert list(found) == ["org/model"]
    assert (found["org/model"]["id"], found["org/model"]["max_model_len"]) == ("org/model", 8192)
    assert served("http://h", lambda: body, None)[1]["id"] == "org/model"
    assert served("http://h", lambda: body, "org/model")[1]["max_model_len"] == 8192


def test_names_alone() -> None:
    assert list(listed(["a", "b"])) == ["a", "b"]
    assert list(listed({"data": ["a"]})) == ["a"]


@pytest.mark.parametrize("body", [None, [], {}, {"data": None}, "text", 7, {"data": "text"}, {"data": [[]]}])
def test_a_list_of_nothing_leaves_the_users_word(body: Any) -> None:
    assert listed(body) == {}
    assert served("http://h", lambda: body, "mine") == (["mine"], {"id": "mine"})
    with pytest.raises(InputError, match="lists no model"):
        served("http://h", lambda: body, None)


PATTERNS = [{"id": "openai/*"}, {"id": "*-mini"}, {"id": "openai/gpt-4.1"}]


@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai/", "o3-mini", "openai/gpt-4.1"])
def test_a_pattern_stands_for_the_models_behind_it(model: str) -> None:
    assert served("http://h", lambda: PATTERNS, model)[1]["id"] == model


@pytest.mark.parametrize("model", ["anthropic/x", "mini", "OPENAI/gpt", "openai"])
def test_a_model_that_no_entry_stands_for_is_refused(model: str) -> None:
    with pytest.raises(InputError, match="serves"):
        served("http://h", lambda: PATTERNS, model)


def test_a_pattern_is_not_taken_for_a_model() -> None:
    assert served("http://h", lambda: PATTERNS, None)[1]["id"] == "openai/gpt-4.1"
    with pytest.raises(InputError, match=r"patterns alone \(openai/\*, \*-mini\)"):
        served("http://h", lambda: PATTERNS[:2], None)


def test_the_tag_latest_needs_not_be_written() -> None:
    body = {"data": [{"id": "llama3:latest"}, {"id": "llama3:8b"}]}
    assert served("http://h", lambda: body, "llama3")[1]["id"] == "llama3"
    with pytest.raises(InputError, match="serves"):
        served("http://h", lambda: body, "llama3:70b")
