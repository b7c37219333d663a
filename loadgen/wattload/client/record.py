"""The request record: one row per planned request, failed and unsent ones too. The columns are public."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Annotated, get_type_hints

# Tokens that came faster than this were not generated one after the other while they came: something on the
# way, as a gateway, held them back and passed them on together. No server generates 10,000 tokens per second
# for one request.
LEAST_SECONDS_PER_TOKEN = 1e-4


class Outcome(StrEnum):
    """How a planned request ended. Everything but COMPLETED counts as failed or unsent, never as absent."""

    COMPLETED = "completed"
    UNSENT = "unsent"
    ABORTED = "aborted"
    CONNECT_ERROR = "connect_error"
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"
    STALL_TIMEOUT = "stall_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    MALFORMED_RESPONSE = "malformed_response"
    DISCONNECTED = "disconnected"
    SERVER_ERROR = "server_error"
    SHORT_OUTPUT = "short_output"


@dataclass(frozen=True, slots=True)
class Column:
    """A field's column in requests.parquet: its Arrow type by name, and what it holds.

    `later`: runs of earlier versions lack it, and are read as if it were null.
    """

    arrow: str
    meaning: str
    later: bool = False


@dataclass(slots=True)
class RequestRecord:
    """What happened to one planned request: the one declaration of the columns of requests.parquet.

    Times are UNIX seconds of the client's clock. None: it did not happen, or is not known.
    """

    index: Annotated[int, Column("int64", "place in the schedule, from 0")]
    request_id: Annotated[str, Column("string", "the `x-request-id` that was sent")]
    session: Annotated[int, Column("int64", "session of the trace, -1 for none")]
    tag: Annotated[str, Column("string", "tenant")]
    due_unix: Annotated[
        float,
        Column(
            "float64",
            "scheduled time (fixed by the schedule; later turns of a session: when the previous response "
            "and the think time allowed; closed loop: when a slot was free)",
        ),
    ]
    prompt_tokens_planned: Annotated[int, Column("int32", "of the schedule")]
    output_tokens_planned: Annotated[int, Column("int32", "of the schedule")]
    outcome: Annotated[
        Outcome,
        Column(
            "string",
            "`completed`, or what went wrong (`unsent`, `connect_error`, `http_5xx`, `stall_timeout`, ...)",
        ),
    ] = Outcome.UNSENT
    sent_unix: Annotated[float | None, Column("float64", "when its bytes went out; null: never sent")] = None
    first_token_unix: Annotated[
        float | None, Column("float64", "arrival of the first chunk that carried a token")
    ] = None
    last_token_unix: Annotated[
        float | None,
        Column(
            "float64",
            "arrival of the last chunk that carried a token; where nothing is generated, of the"
            " response's end",
        ),
    ] = None
    status_code: Annotated[int | None, Column("int16", "of the HTTP response")] = None
    prompt_tokens: Annotated[int | None, Column("int32", "as the endpoint's `usage` counts them")] = None
    output_tokens: Annotated[
        int | None, Column("int32", "as the endpoint's `usage` counts them; never chunks")
    ] = None
    cached_tokens: Annotated[
        int | None, Column("int32", "prompt tokens from the prefix cache, as `usage` counts them")
    ] = None
    chunks: Annotated[int, Column("int32", "chunks that carried tokens (a chunk may carry several)")] = 0
    itl_seconds: Annotated[
        list[float], Column("list<float32>", "gaps between successive chunks that carried tokens")
    ] = field(default_factory=list)
    energy_joules: Annotated[float | None, Column("float64", "attributed to it, idle excluded")] = None
    prefill_joules: Annotated[float | None, Column("float64", "of them for its prompt")] = None
    decode_joules: Annotated[float | None, Column("float64", "of them for its output")] = None
    energy_status: Annotated[
        str | None,
        Column(
            "string",
            "`settled`: final, the meter has covered its last step; `provisional`; `unknown`: the"
            " endpoint does "
            "not know the id",
        ),
    ] = None
    in_window: Annotated[
        bool | None, Column("bool", "scheduled in the measurement window of the first computation")
    ] = None
    error: Annotated[
        str | None, Column("string", "what the server or the client said, 300 characters at most")
    ] = None
    worker: Annotated[int, Column("int16", "which load-generating process sent it")] = 0
    unread: Annotated[
        str | None,
        Column(
            "string",
            "the first thing in the response that was not understood and was passed over, 120 characters at "
            "most; null: all was understood",
            later=True,
        ),
    ] = None

    history_tokens: Annotated[
        int | None,
        Column(
            "int32",
            "tokens of earlier turns in the prompt, the server's own responses among them, as it counted"
            " them; "
            "null: what was planned was sent (`--history planned`), or a first turn",
            later=True,
        ),
    ] = None

    reasoning_tokens: Annotated[
        int | None,
        Column("int32", "output tokens of reasoning, as the endpoint's `usage` counts", later=True),
    ] = None
    reasoning_chunks: Annotated[
        int, Column("int32", "chunks that carried reasoning and nothing of the answer", later=True)
    ] = 0
    first_answer_unix: Annotated[
        float | None,
        Column(
            "float64",
            "arrival of the first chunk of the answer (text, or a tool call) after reasoning; null: none",
            later=True,
        ),
    ] = None
    replica: Annotated[
        int | None,
        Column("int16", "which of several endpoints it was sent to, from 0; null: there is one", later=True),
    ] = None
    tool_calls: Annotated[
        int | None, Column("int32", "calls of tools in the response; null: none", later=True)
    ] = None
    agent: Annotated[
        int, Column("int32", "agent of the session, 0 for the first, others for its sub-agents", later=True)
    ] = 0
    task: Annotated[
        int,
        Column(
            "int64",
            "task of an agent, from one turn of its user up to the next: equal for its turns; -1 for none",
            later=True,
        ),
    ] = -1

    inputs: Annotated[
        int | None,
        Column(
            "int32",
            "texts of a request for embeddings, documents of one for ranks or scores; null: another endpoint",
            later=True,
        ),
    ] = None
    model: Annotated[
        str,
        Column("string", "which of several models it asked for; empty: there is one", later=True),
    ] = ""
    image_tokens: Annotated[
        int | None,
        Column("int32", "prompt tokens of images, where the endpoint's `usage` counts them", later=True),
    ] = None
    images_planned: Annotated[
        int | None,
        Column(
            "int16",
            "images of the schedule: as many as the trace tells, else one where `--image` has a size; null:"
            " none was planned in the run",
            later=True,
        ),
    ] = None
    images: Annotated[
        int | None,
        Column(
            "int16",
            "images in the body that was sent (0 with `--image none`); null: not sent, or none was planned in"
            " the run",
            later=True,
        ),
    ] = None

    @property
    def tpot_seconds(self) -> float | None:
        """Seconds per token after the first; None for one token, and where tokens came together."""
        if self.first_token_unix is None or self.last_token_unix is None or (self.output_tokens or 0) < 2:
            return None
        taken = (self.last_token_unix - self.first_token_unix) / ((self.output_tokens or 0) - 1)
        return taken if taken >= LEAST_SECONDS_PER_TOKEN else None


def request_columns() -> dict[str, Column]:
    """The columns of requests.parquet by name, in their order."""
    hints = get_type_hints(RequestRecord, include_extras=True)
    return {entry.name: hints[entry.name].__metadata__[0] for entry in fields(RequestRecord)}
