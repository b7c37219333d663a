"""Errors in OpenAI's shape."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any


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
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.status,
            }
        }

    def encoded(self) -> bytes:
        return json.dumps(self.body(), ensure_ascii=False).encode()


def _kind(status: int) -> str:
    if status >= 500:
        return "InternalServerError"
    if status in (400, 413, 422):
        return "BadRequestError"
    return HTTPStatus(status).phrase.title().replace(" ", "") + "Error"
