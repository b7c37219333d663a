"""Why requests failed: what the server or the client said, by kind, with counts and the likely fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow.compute as pc

from wattload.client.record import Outcome
from wattload.client.transport.descriptors import OUT_OF_DESCRIPTORS
from wattload.rundir.directory import RunDir
from wattload.rundir.result import FailureInfo

# Kinds of messages that are told one by one.
_SHOWN = 8
# What differs from one request to the next in a message of one kind: ids and numbers.
_VARYING = re.compile(r"\b(?=\w*\d)[\w-]{8,}|\d+(?:\.\d+)?")


def failures(run: RunDir) -> list[FailureInfo]:
    """Every way in which requests of the run did not complete, the most frequent first.

    Messages that differ in numbers and ids only are one kind, told by the first of them. The counts add up to
    the requests that did not complete: the kinds beyond the eighth are one entry.
    """
    rows = run.read_requests(["outcome", "status_code", "error"])
    rows = rows.filter(pc.not_equal(rows.column("outcome"), Outcome.COMPLETED.value))
    grouped = rows.group_by(["outcome", "status_code", "error"], use_threads=False).aggregate(
        [([], "count_all")]
    )
    kinds: dict[tuple[str, int | None, str], FailureInfo] = {}
    for row in grouped.to_pylist():
        message = row["error"] or ""
        key = (row["outcome"], row["status_code"], _VARYING.sub("#", message))
        if key in kinds:
            kinds[key].count += row["count_all"]
        else:
            kinds[key] = FailureInfo(
                outcome=row["outcome"],
                status_code=row["status_code"],
                message=message,
                count=row["count_all"],
                hint=hint(row["outcome"], row["status_code"], message),
            )
    found = sorted(kinds.values(), key=lambda kind: -kind.count)
    shown, rest = found[:_SHOWN], found[_SHOWN:]
    if rest:
        shown.append(
            FailureInfo(
                outcome="other",
                message=f"{len(rest)} further kinds of messages (column `error` of requests.parquet)",
                count=sum(kind.count for kind in rest),
            )
        )
    return shown


@dataclass(frozen=True, slots=True)
class _Said:
    """A failure as the rules look at it; `text` is in lower case."""

    outcome: str
    status: int | None
    text: str

    def says(self, pattern: str) -> bool:
        return re.search(pattern, self.text) is not None


# The first rule that applies gives the hint. Every flag in a hint is one of `wattload run`.
_RULES: tuple[tuple[Callable[[_Said], bool], str], ...] = (
    (
        lambda f: f.says("ignore_eos|min_tokens"),
        "--no-exact-output leaves out ignore_eos and min_tokens, which this server refuses",
    ),
    (
        lambda f: f.says("out of (the )?vocab"),
        "--vocab-size N, the vocab_size of the model's config.json: its vocabulary is smaller than 32,000",
    ),
    (
        lambda f: f.outcome == Outcome.SHORT_OUTPUT,
        "--no-exact-output accepts outputs of any length; this server ends them before the planned one",
    ),
    (
        lambda f: f.says(r"context (length|window)|max_model_len|maximum (model|context|input)|too long"),
        "--max-length drop leaves out requests over the model's limit, where the server states it;"
        " --trace code"
        " has short outputs",
    ),
    (
        lambda f: (
            f.status in (400, 404, 405, 422) and f.says("chat (model|completion|endpoint)|/chat/|messages")
        ),
        "--api chat sends requests to /v1/chat/completions",
    ),
    (
        lambda f: (
            f.says(r"model\b.*(not found|not exist|unknown|not available|no access)")
            or f.says("(no such|unknown|invalid) model")
        ),
        "--model NAME chooses the model; GET /v1/models lists the names",
    ),
    (
        lambda f: f.status in (400, 422) and f.says("prompt"),
        "--api chat sends prompts as text instead of token ids",
    ),
    (
        lambda f: f.status in (404, 405),
        "--api chat sends requests to /v1/chat/completions, --api completions to /v1/completions; is the"
        " URL right?",
    ),
    (
        lambda f: f.status in (401, 403),
        "--api-key-env NAME names the environment variable that holds the API key",
    ),
    (
        lambda f: f.outcome == Outcome.HTTP_429,
        "a lower --rate stays within the server's limit",
    ),
    (
        lambda f: f.text.startswith(OUT_OF_DESCRIPTORS.lower()),
        "raise `ulimit -n`, or send with --processes 2",
    ),
    (
        lambda f: f.says("certificate|ssl"),
        "--ca-file FILE trusts the server's certificate, --insecure does not verify it",
    ),
    (
        lambda f: f.outcome in (Outcome.CONNECT_ERROR, Outcome.CONNECT_TIMEOUT),
        "is the server running, and does it take this many connections?",
    ),
    (
        lambda f: f.outcome in (Outcome.FIRST_TOKEN_TIMEOUT, Outcome.STALL_TIMEOUT, Outcome.TOTAL_TIMEOUT),
        "a lower --rate, or a longer --first-token-timeout, --between-tokens-timeout or --total-timeout",
    ),
    (
        lambda f: f.outcome == Outcome.ABORTED,
        "a longer --drain waits for responses that are still under way at the end",
    ),
    (
        lambda f: f.outcome == Outcome.MALFORMED_RESPONSE,
        "the endpoint must stream (server-sent events) as OpenAI's API does; --api chat, or another URL?",
    ),
    (
        lambda f: f.outcome in (Outcome.HTTP_5XX, Outcome.SERVER_ERROR, Outcome.DISCONNECTED),
        "the server's log has the cause; a lower --rate shows whether it is overload",
    ),
)


def hint(outcome: str, status_code: int | None, message: str) -> str | None:
    """The likely fix for a failure, None where none is known."""
    failure = _Said(outcome, status_code, message.lower())
    return next((text for applies, text in _RULES if applies(failure)), None)


def told(failure: FailureInfo) -> str:
    """A kind of failure as one sentence: how many, of which outcome, what was said, and the likely fix."""
    text = f"{failure.count:,} × {failure.outcome}"
    if failure.message:
        text += f": {failure.message}"
    return f"{text} (try: {failure.hint})" if failure.hint else text
