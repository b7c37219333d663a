"""The request record: one row a planned request, failed and unsent ones too. The columns are public."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


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


@dataclass(slots=True)
class RequestRecord:
    """What happened to one planned request. Times are UNIX seconds of the client's clock; None: it did not.

    `itl_seconds` holds the gaps between successive chunks that carried tokens. `chunks` counts such chunks;
    token counts come from `usage` and are exact, never from chunks. `error` is the first 300 characters of
    what the server or the client library said.
    """

    index: int
    request_id: str
    session: int
    tag: str
    due_unix: float
    prompt_tokens_planned: int
    output_tokens_planned: int
    outcome: Outcome = Outcome.UNSENT
    sent_unix: float | None = None
    first_token_unix: float | None = None
    last_token_unix: float | None = None
    status_code: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    chunks: int = 0
    itl_seconds: list[float] = field(default_factory=list)
    energy_joules: float | None = None
    energy_status: str | None = None
    error: str | None = None
    worker: int = 0
