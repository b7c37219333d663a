"""Where the endpoint's own metrics are read during a run, as options."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from wattload.client.endpoint import address
from wattload.errors import InputError
from wattload.options import Options


def _addresses(values: object) -> object:
    return [address(value) for value in values] if isinstance(values, (list, tuple)) else values


class ServerMetricsOptions(Options):
    """Whether, and where, the metrics of the server are read."""

    title: ClassVar[str] = "Server metrics"

    server_metrics: bool = Field(
        default=True,
        description="Read the endpoint's /metrics (batch, queue, KV cache, ...) each second of the run.",
    )
    server_metrics_url: Annotated[list[str], BeforeValidator(_addresses)] = Field(
        default_factory=list,
        description="Read the metrics of a server here, where its endpoint has none: Triton's :8002/metrics,"
        " Dynamo's workers. May be repeated. Default: /metrics of the endpoint, its replicas and its meter.",
        json_schema_extra={"metavar": "URL"},
    )

    @model_validator(mode="after")
    def _wanted(self) -> Self:
        if self.server_metrics_url and not self.server_metrics:
            raise InputError("server_metrics_url", ": contradicts `server_metrics` off")
        if len(set(self.server_metrics_url)) < len(self.server_metrics_url):
            raise InputError("server_metrics_url", ": an address is given twice")
        for url in self.server_metrics_url:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InputError("server_metrics_url", f"{url!r}: not an address (http://HOST:PORT/metrics)")
            if parts.username or parts.password:
                raise InputError(
                    "server_metrics_url", ": a user name or password in an address is not sent; use `header`"
                )
        return self
