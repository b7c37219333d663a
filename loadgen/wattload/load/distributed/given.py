"""What a worker is given on its own host, and never by the network: the secret, headers, a body."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from wattload.client.endpoint import EndpointOptions, RequestOptions
from wattload.errors import InputError

_FLAGS = {"body": "--body"}


@dataclass(frozen=True, slots=True)
class Given:
    """`headers` are lines, as of `--header`; `body` the JSON that is merged into every request."""

    secret: str = ""
    headers: tuple[str, ...] = ()
    body: dict[str, Any] | None = None

    def line(self) -> bytes:
        """As one line of JSON, which a master writes to the standard input of its own processes."""
        value = {"secret": self.secret, "headers": self.headers, "body": self.body}
        return json.dumps(value).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Given:
        """What `line` made. Raises ValueError where the line is none."""
        value = json.loads(line)
        return cls(value["secret"], tuple(value["headers"]), value["body"])

    def options(
        self, endpoint: dict[str, Any], requests: dict[str, Any], withheld: list[str]
    ) -> tuple[EndpointOptions, RequestOptions]:
        """The master's settings, completed with these. Raises InputError naming what this worker lacks."""
        names = {line.partition(":")[0].strip().lower() for line in self.headers}
        for name in withheld:
            if name == "body" and self.body is None:
                raise InputError("this worker lacks the JSON of every request: start it with --body")
            if name != "body" and name.lower() not in names:
                raise InputError(f"this worker lacks the header {name}: start it with --header '{name}: ...'")
        told = {line.partition(":")[0].strip().lower() for line in endpoint.get("header") or []}
        own = [line for line in self.headers if line.partition(":")[0].strip().lower() not in told]
        body = self.body if "body" in withheld else requests.get("body")
        return (
            EndpointOptions.of({**endpoint, "header": [*(endpoint.get("header") or []), *own]}),
            RequestOptions.of({**requests, "body": body}),
        )
