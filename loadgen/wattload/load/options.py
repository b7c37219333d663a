"""How a schedule is sent, as options: by which processes, until when, and what is shown meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from wattload.errors import InputError
from wattload.load.stop_rule import StopRule, parse_until
from wattload.options import Options, PositiveSeconds


def _rule(value: Any) -> Any:
    return parse_until(value) if isinstance(value, str) else value


class LoadOptions(Options):
    """Who sends, and when it ends."""

    title: ClassVar[str] = "Distributed"

    drain_seconds: PositiveSeconds = Field(
        default=300.0,
        alias="drain",
        le=366 * 86400,
        description="Wait this long for responses after the last request.",
        json_schema_extra={"panel": "Load shape"},
    )
    until: Annotated[StopRule | None, BeforeValidator(_rule)] = Field(
        default=None,
        description="Stop early when energy per request is known this well, as 'ci95<2%'.",
        json_schema_extra={"panel": "Load shape", "metavar": "RULE"},
    )
    progress: Literal["auto", "plain", "rich", "json", "none"] = Field(
        default="auto",
        description="How to show progress; auto is rich on a terminal, else plain.",
        json_schema_extra={"panel": "Output"},
    )
    processes: int = Field(default=1, ge=1, le=256, description="Send with this many processes on this host.")
    master: bool = Field(default=False, description="Lead workers on other hosts (`wattload worker`).")
    expect_workers: int | None = Field(
        default=None, ge=1, description="Wait for this many workers. Default: 1."
    )
    master_bind_host: str = Field(default="*", description="Address on which the master listens.")
    master_port: int = Field(default=5557, ge=1, le=65535, description="Port on which the master listens.")
    secret_file: Path | None = Field(
        default=None,
        description="File with the secret that master and workers share. Default: WATTLOAD_SECRET.",
    )

    @model_validator(mode="after")
    def _one_kind_of_workers(self) -> Self:
        if self.master and self.processes > 1:
            raise InputError(
                "processes", ": are of this host; with `master`, workers are started with wattload worker"
            )
        if self.expect_workers is not None and not self.master:
            raise InputError("expect_workers", ": needs `master`")
        return self


class MetricsOptions(Options):
    """Where the load's Prometheus metrics go."""

    title: ClassVar[str] = "Output"

    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Serve Prometheus metrics on this port during the run.",
    )
    metrics_host: str = Field(default="127.0.0.1", description="Address on which the metrics are served.")
    push_gateway: str | None = Field(
        default=None, description="Push the final metrics to the Prometheus Pushgateway at this URL."
    )
