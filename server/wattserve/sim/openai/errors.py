"""Errors in OpenAI's shape, and in Anthropic's."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from wattserve.http.errors import error_object


class ApiError(Exception):
    """A request that cannot be served; the message is one sentence for its sender."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.kind = kind or ("NotFoundError" if status == 404 else _kind(status))

    def body(self) -> dict[str, Any]:
        return error_object(self.status, self.kind, self.message, param=self.param)

    def encoded(self, *, anthropic: bool = False) -> bytes:
        """The JSON of it, in OpenAI's shape or in that of Anthropic's /v1/messages."""
        inner = {"type": self.kind, "message": self.message}
        body = {"type": "error", "error": inner} if anthropic else self.body()
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _kind(status: int) -> str:
    if status >= 500:
        return "InternalServerError"
    if status in (400, 413, 422):
        return "BadRequestError"
    return HTTPStatus(status).phrase.title().replace(" ", "") + "Error"
