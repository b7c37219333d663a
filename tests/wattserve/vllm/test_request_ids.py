"""vLLM's engine ids give the HTTP request id back, whatever characters that one has."""

import pytest

from wattserve.vllm.request_ids import request_id_of

IDS = [
    "abc",
    "a-0-deadbeef",
    "0_x",
    "chatcmpl-1",
    "cmpl-x-0",
    "ünï/:code",
    "f" * 200,
    "1_cmpl-y",
    "-",
    "a\tb",
]


@pytest.mark.parametrize("request_id", IDS)
@pytest.mark.parametrize("suffix", ["-0123abcd", "-ffffffff"])
def test_completions_chat_and_children(request_id: str, suffix: str) -> None:
    for prompt in (0, 7, 123):
        engine_id = f"cmpl-{request_id}-{prompt}{suffix}"
        assert request_id_of(engine_id) == request_id
        assert request_id_of(f"3_{engine_id}") == request_id
    assert request_id_of(f"chatcmpl-{request_id}{suffix}") == request_id
    assert request_id_of(f"12_chatcmpl-{request_id}{suffix}") == request_id
    assert request_id_of(f"generate-tokens-{request_id}{suffix}") == request_id


@pytest.mark.parametrize("request_id", IDS)
def test_pooling_and_responses(request_id: str) -> None:
    for prefix in ("embd", "score", "pooling", "classify"):
        for number in (0, 31):
            assert request_id_of(f"{prefix}-{request_id}-{number}-0123abcd") == request_id
    assert request_id_of(f"embd-{request_id}-prompt-2-chunk-13-0123abcd") == request_id
    assert request_id_of(f"resp_{request_id}_0-0123abcd") == request_id
    assert request_id_of(f"resp_{request_id}_12", randomised=False) == request_id


def test_without_the_random_suffix() -> None:
    assert request_id_of("cmpl-abc-0", randomised=False) == "abc"
    assert request_id_of("cmpl-a-0123abcd-0", randomised=False) == "a-0123abcd"
    assert request_id_of("chatcmpl-a-0123abcd", randomised=False) == "a-0123abcd"


def test_an_unknown_form_stays_as_it_is() -> None:
    assert request_id_of("whatever-0123abcd") == "whatever-0123abcd"
    assert request_id_of("0_whatever") == "0_whatever"
