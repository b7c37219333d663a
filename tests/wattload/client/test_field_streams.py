"""Streams as real endpoints and gateways send them: one test a kind, with variants of each."""

from __future__ import annotations

from typing import Any

import pytest

from clients import ask, client_of, one, plain
from scripted_server import DONE, END, HEAD, Script, chunk, event, scripted, token, usage
from wattload.client.record import Outcome

BLANK = token("")
TOKENS = token() + token() + token("c", "length")
COUNTED = usage(3, 3)


def stream(*parts: bytes | float, end: bytes = COUNTED + DONE) -> Script:
    return [HEAD, *(chunk(part) if isinstance(part, bytes) else part for part in parts), chunk(end) + END]


def delta(body: dict[str, Any], finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": body, "finish_reason": finish}]})


SIGNS_OF_LIFE: dict[str, bytes] = {
    "empty text": BLANK,
    "empty content": delta({"content": ""}),
    "empty reasoning": delta({"reasoning_content": ""}),
    "no delta": event({"choices": [{"index": 0, "delta": None, "finish_reason": None}]}),
    "no choices": event({"choices": []}),
    "comment": b": ping\n\n",
    "bare comment": b":\n\n",
    "empty data": b"data:\n\n",
    "blank data": b"data: \n\n",
    "data without a colon": b"data\n\n",
    "null": event(b"null"),
    "an empty object": event(b"{}"),
    "a word": event(b"ping"),
    "a named event": b'event: ping\ndata: {"type":"ping"}\n\n',
    "retry": b"retry: 3000\n\n",
}


@pytest.mark.parametrize("sign", SIGNS_OF_LIFE.values(), ids=SIGNS_OF_LIFE)
def test_a_sign_of_life_is_no_token(sign: bytes) -> None:
    record = ask(stream(sign, 0.03, sign, 0.03, token(), sign, token(), token("c", "length"), sign))
    assert (record.outcome, record.chunks, record.output_tokens) == (Outcome.COMPLETED, 3, 3), record.error
    assert record.sent_unix is not None
    assert record.first_token_unix is not None
    assert record.last_token_unix is not None
    assert record.first_token_unix - record.sent_unix > 0.05
    assert len(record.itl_seconds) == 2
    between = record.last_token_unix - record.first_token_unix
    assert between == pytest.approx(sum(record.itl_seconds), abs=1e-5)


def test_tokens_without_text_are_tokens_where_the_count_says_so() -> None:
    record = ask(stream(BLANK, 0.03, BLANK, token("c", "length")))
    assert (record.outcome, record.chunks, len(record.itl_seconds)) == (Outcome.COMPLETED, 3, 2)
    assert record.itl_seconds[0] > 0.02
    silent = ask(stream(BLANK, BLANK, BLANK, event({"choices": [{"text": "", "finish_reason": "length"}]})))
    assert (silent.outcome, silent.chunks) == (Outcome.COMPLETED, 3)


@pytest.mark.parametrize(
    "ending",
    [
        event({"choices": [{"text": "", "finish_reason": "length"}]}),
        delta({"content": ""}, "stop"),
        delta({}, "length"),
        delta({"role": "assistant", "content": ""}) + delta({}, "length"),
    ],
    ids=["empty text", "empty content", "no content", "role before it"],
)
def test_an_only_token_without_text_comes_with_the_finish_reason(ending: bytes) -> None:
    with scripted(lambda _request: stream(0.03, ending, 0.03, end=usage(3, 1) + DONE)) as (url, _):
        client = client_of(url)
        record = one(client, output=1)
        client.close()
    assert (record.outcome, record.chunks, record.output_tokens) == (Outcome.COMPLETED, 1, 1), record.error
    assert record.sent_unix is not None
    assert record.first_token_unix is not None
    assert record.first_token_unix - record.sent_unix > 0.02
    assert record.last_token_unix == pytest.approx(record.first_token_unix, abs=1e-6)
    several = ask(stream(ending, end=COUNTED + DONE))
    assert several.outcome == Outcome.MALFORMED_RESPONSE, "three tokens, and none was seen to come"


def test_signs_of_life_do_not_put_off_the_limit_of_the_first_token() -> None:
    endless: Script = [chunk(BLANK), 0.02] * 60
    record = ask([HEAD, *endless], first_token_timeout=0.2)
    assert (record.outcome, record.chunks) == (Outcome.FIRST_TOKEN_TIMEOUT, 0)
    assert record.first_token_unix is None


COUNTS = {"prompt_tokens": 3, "completion_tokens": 3}
REPORTS: dict[str, bytes] = {
    "null choices": event({"choices": None, "usage": COUNTS}),
    "no choices": event({"usage": COUNTS}),
    "a choice's own": event({"choices": [{"delta": {}, "usage": COUNTS}]}),
    "other names": event({"choices": [], "usage": {"input_tokens": 3, "output_tokens": 3}}),
    "text": event({"choices": [], "usage": {"prompt_tokens": "3", "completion_tokens": "3"}}),
    "then without counts": COUNTED + event({"choices": [], "usage": {"total_tokens": 0}}),
    "then zeros": COUNTED + usage(0, 0),
    "then null": COUNTED + event({"choices": [], "usage": None}),
    "in every event": usage(3, 1) + usage(3, 2) + COUNTED,
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_counts_are_found_and_kept(report: bytes) -> None:
    record = ask(stream(TOKENS, end=report + DONE))
    assert record.outcome is Outcome.COMPLETED, record.error
    assert (record.prompt_tokens, record.output_tokens, record.unread) == (3, 3, None)


def test_a_count_of_nothing_beside_text_is_no_count() -> None:
    record = ask(stream(TOKENS, end=usage(0, 0) + DONE))
    assert (record.outcome, record.prompt_tokens, record.output_tokens) == (Outcome.COMPLETED, None, None)


ENDS: dict[str, bytes] = {
    "no newline": b"data: [DONE]",
    "one newline": b"data: [DONE]\n",
    "a carriage return": b"data: [DONE]\r",
    "blanks": b"data: [DONE] \n\n",
    "no [DONE]": b"",
    "half a [DONE]": b"data: [DO",
    "half a line": b"da",
    "a comment": DONE + b": bye",
}


@pytest.mark.parametrize("last", ENDS.values(), ids=ENDS)
def test_a_response_that_said_all_is_whole_however_it_ends(last: bytes) -> None:
    record = ask(stream(TOKENS, end=COUNTED + last))
    assert (record.outcome, record.output_tokens, record.error) == (Outcome.COMPLETED, 3, None)


def test_the_counts_may_be_what_lacks_its_blank_line() -> None:
    record = ask(stream(TOKENS, end=COUNTED.rstrip()))
    assert (record.outcome, record.output_tokens) == (Outcome.COMPLETED, 3)


@pytest.mark.parametrize("last", [b"[done]", b'"[Done]"', b"[DONE] "])
def test_the_end_may_be_written_otherwise(last: bytes) -> None:
    record = ask(stream(TOKENS, end=COUNTED + b"data: " + last + b"\n\n"))
    assert (record.outcome, record.output_tokens) == (Outcome.COMPLETED, 3), record.error


@pytest.mark.parametrize("rest", [b"<html><body>502 Bad Gateway</body></html>", b'data: {"choices":[{"te'])
def test_what_a_stream_ends_with_is_quoted(rest: bytes) -> None:
    record = ask(stream(token(), end=rest))
    assert record.outcome is Outcome.MALFORMED_RESPONSE
    assert rest.removeprefix(b"data: ").decode()[:20] in (record.error or "")


@pytest.mark.parametrize("cut", [COUNTED[:30], token()[:20], b"data: {", b"da"])
def test_a_response_cut_off_before_its_counts_is_not_whole(cut: bytes) -> None:
    record = ask(stream(TOKENS, end=cut))
    assert record.outcome is Outcome.MALFORMED_RESPONSE
    assert "middle" in (record.error or "")


def test_a_connection_that_breaks_after_the_end_loses_nothing() -> None:
    record = ask([HEAD, chunk(TOKENS + COUNTED + DONE), None])
    assert record.outcome is Outcome.COMPLETED
    assert ask([HEAD, chunk(TOKENS + COUNTED), None]).outcome is Outcome.DISCONNECTED


SAID = "over the context size"
FAILED: dict[str, bytes] = {
    "field": b'error: {"code":400,"message":"over the context size"}\n\n',
    "named event": b'event: error\ndata: {"message":"over the context size"}\n\n',
    "named event of words": b"event: error\ndata: over the context size\n\n",
    "object": event({"error": {"message": SAID}}),
    "text": event({"error": SAID}),
    "typed": event({"type": "error", "message": SAID}),
    "in a choice": event({"choices": [{"delta": {}, "error": {"message": SAID}}]}),
    "words": event(b"Error: over the context size"),
    "a line of JSON": b'{"error":{"message":"over the context size"}}\n\n',
    "a line of words": b"Internal server error, over the context size\n\n",
    "an object of its own": event({"code": 500, "detail": SAID}),
    "a page": b"<html><body>502 over the context size</body></html>\n\n",
}


@pytest.mark.parametrize("failure", FAILED.values(), ids=FAILED)
@pytest.mark.parametrize("before", [b"", token()], ids=["at once", "after a token"])
def test_a_failure_told_inside_a_stream_fails_the_request_and_is_quoted(
    before: bytes, failure: bytes
) -> None:
    record = ask(stream(before + failure, end=DONE))
    assert record.outcome is Outcome.SERVER_ERROR
    assert SAID in (record.error or "")


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_a_finish_reason_may_tell_of_a_failure(reason: str) -> None:
    record = ask(stream(token(), token("", reason)))
    assert record.outcome is Outcome.SERVER_ERROR
    assert reason in (record.error or "")


def test_an_error_in_place_of_the_stream() -> None:
    record = ask(plain(b"200 OK", b'{"error":{"message":"over the context size"}}'))
    assert (record.outcome, record.error) == (Outcome.SERVER_ERROR, SAID)


def test_tokens_that_came_together_have_no_time_per_token() -> None:
    for script in (stream(TOKENS + COUNTED + DONE, end=b": bye\n\n"), stream(token("abc", "length"))):
        record = ask(script)
        assert (record.outcome, record.output_tokens) == (Outcome.COMPLETED, 3)
        assert record.tpot_seconds is None
    assert ask(stream(token(), 0.02, token() + token("c", "length"))).tpot_seconds is not None


def test_what_was_passed_over_is_quoted_once_and_short() -> None:
    record = ask(stream(event(b'{"status":"queued"}'), b"x" * 5000 + b"\n\n", TOKENS))
    assert (record.outcome, record.unread) == (Outcome.COMPLETED, '{"status":"queued"}')
    long = ask(stream(b"x" * 5000 + b"\n\n", TOKENS))
    assert len(long.unread or "") == 120


def test_a_failure_names_what_was_not_understood_before_it() -> None:
    record = ask(stream(event(b'{"status":"out of quota"}'), token("a", "stop"), end=usage(3, 1) + DONE))
    assert record.outcome is Outcome.SHORT_OUTPUT
    assert "1 of 3" in (record.error or "")
    assert "out of quota" in (record.error or "")
