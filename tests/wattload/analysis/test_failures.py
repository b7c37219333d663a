"""What failed is told by kind, with the likely fix; and too much of it makes a run invalid."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import compute, finish
from wattload.analysis.failures import failures, hint, told
from wattload.cli.app import load_command
from wattload.client.record import Outcome, RequestRecord
from wattload.rundir.directory import RequestWriter, RunDir


def failed(index: int, outcome: Outcome, error: str | None, status: int | None = None) -> RequestRecord:
    return RequestRecord(
        index, f"r{index}", -1, "", float(index), 1, 1, outcome=outcome, error=error, status_code=status
    )


def recorded(path: Path, *records: RequestRecord) -> RunDir:
    run = RunDir.create(path)
    with RequestWriter(run) as writer:
        writer.append(records)
    return run


def test_messages_that_differ_in_numbers_are_one_kind(tmp_path: Path) -> None:
    long = "400: maximum context length is 4096 tokens, you requested {} tokens (request {})"
    run = recorded(
        tmp_path / "r",
        failed(0, Outcome.HTTP_4XX, long.format(5000, "cmpl-0a1b2c3d4e5f"), 400),
        failed(1, Outcome.HTTP_4XX, long.format(6123, "cmpl-99ffe1234aaa"), 400),
        failed(2, Outcome.COMPLETED, None, 200),
        failed(3, Outcome.HTTP_429, "slow down (Retry-After: 3)", 429),
        failed(4, Outcome.UNSENT, None),
    )
    found = failures(run)
    assert [(kind.outcome, kind.count) for kind in found] == [("http_4xx", 2), ("http_429", 1), ("unsent", 1)]
    assert "5000" in found[0].message
    assert "--max-length" in (found[0].hint or "")
    assert told(found[1]) == (
        "1 × http_429: slow down (Retry-After: 3) (try: a lower --rate stays within the server's limit)"
    )


def test_the_counts_add_up_however_many_kinds_there_are(tmp_path: Path) -> None:
    words = [f"{chr(97 + i)}{chr(97 + i)} broke" for i in range(26)]
    run = recorded(tmp_path / "r", *(failed(i, Outcome.SERVER_ERROR, word) for i, word in enumerate(words)))
    found = failures(run)
    assert sum(kind.count for kind in found) == 26
    assert found[-1].outcome == "other"
    assert "18 further kinds" in found[-1].message


@pytest.mark.parametrize(
    ("outcome", "status", "message", "flag"),
    [
        ("http_4xx", 400, "400: unknown field ignore_eos", "--no-exact-output"),
        ("http_4xx", 422, "422: Extra inputs are not permitted: min_tokens", "--no-exact-output"),
        ("server_error", 200, "Token id 29130 is out of vocabulary", "--vocab-size"),
        ("http_4xx", 400, "400: Token id 5000 is out of the vocabulary", "--vocab-size"),
        ("short_output", 200, "5 of 100 tokens, finish reason stop", "--no-exact-output"),
        ("http_4xx", 404, "404: The model `gpt-4o` does not exist", "--model"),
        ("http_4xx", 404, "404: model 'x' not found, try pulling it first", "--model"),
        (
            "http_4xx",
            404,
            "404: This is a chat model and not supported in the v1/completions endpoint",
            "--api chat",
        ),
        ("http_4xx", 404, "404: Not Found", "--api chat"),
        ("http_4xx", 400, "400: 'prompt' must be a string", "--api chat"),
        ("http_4xx", 401, "401: Incorrect API key provided", "--api-key-env"),
        ("http_429", 429, "rate limit", "--rate"),
        (
            "connect_error",
            None,
            "the client ran out of file descriptors (Too many open files)",
            "--processes",
        ),
        ("connect_error", None, "SSLError: CERTIFICATE_VERIFY_FAILED", "--ca-file"),
        ("connect_error", None, "ConnectionRefusedError: Connection refused", "running"),
        ("first_token_timeout", None, "no token within 300 s", "--first-token-timeout"),
        ("aborted", None, "the run is over", "--drain"),
        ("malformed_response", 200, "a response of text/html", "stream"),
        ("http_5xx", 503, "503: overloaded", "log"),
    ],
)
def test_the_likely_fix(outcome: str, status: int | None, message: str, flag: str) -> None:
    assert flag in (hint(outcome, status, message) or "")


def test_every_flag_in_a_hint_exists() -> None:
    run = load_command("run")
    known = {flag for parameter in run.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for outcome in Outcome:
        for status in (None, 400, 401, 404, 429, 500):
            for said in ("ignore_eos", "too long", "unknown model", "chat", "prompt", "ssl", ""):
                text = hint(outcome.value, status, said) or ""
                assert {word.strip(",;.") for word in text.split() if word.startswith("--")} <= known


def test_over_5_percent_of_failures_are_not_a_valid_run(tmp_path: Path) -> None:
    few = finish(Synthetic(rate=20.0, failed=0.02).write(tmp_path / "few"))
    assert few.valid
    assert 0 < (few.requests.failed_fraction or 0) < 0.05
    many = finish(Synthetic(rate=20.0, failed=0.2).write(tmp_path / "many"))
    assert not many.valid
    (reason,) = many.reasons
    assert "requests scheduled in the window failed (--max-failures 0.05): " in reason
    assert "× http_5xx" in reason
    assert many.requests.failures[0].count == many.requests.failed["http_5xx"]


def test_the_limit_of_failures_may_be_another(tmp_path: Path) -> None:
    run = Synthetic(rate=20.0, failed=0.2, overrides={"max_failures": 0.5}).write(tmp_path / "r")
    assert compute(run)[0].valid


def test_a_run_of_which_nothing_completed_says_why(tmp_path: Path) -> None:
    result = finish(Synthetic(failed=1.0).write(tmp_path / "r"))
    assert any(reason.startswith("none of the ") and "http_5xx" in reason for reason in result.reasons)


def test_three_requests_are_too_few(tmp_path: Path) -> None:
    result = finish(Synthetic(requests=20, warmup=0.0).write(tmp_path / "r"))
    assert any(note.startswith("too few requests: ") for note in result.notes)
    per = result.energy.per_request_joules
    assert per is not None
    assert per.ci95 is None
    assert per.attributed_ci95 is None
    assert result.energy.per_output_token_ci95 is None
    assert "too few" in result.absent["energy.per_request_joules.ci95"]
