"""Which tools a finished run is exported to, as options."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field

from wattload.options import Options, share

# In the place of an address: OpenTelemetry's own environment variables name the collector.
FROM_ENVIRONMENT = "env"
_SIGNAL_PATHS = ("/v1/traces", "/v1/metrics", "/v1/logs")


def _collector(value: Any) -> Any:
    """The base URL of a collector with the http:// that may be left out; `True` stands for `env`."""
    if isinstance(value, bool):
        return FROM_ENVIRONMENT if value else None
    if not isinstance(value, str) or value.strip() == FROM_ENVIRONMENT:
        return value
    url = value.strip() if "://" in value else f"http://{value.strip()}"
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            "not the address of a collector (examples: http://localhost:4318, or env for OTEL_* variables)"
        )
    url = url.rstrip("/")
    return next((url.removesuffix(path) for path in _SIGNAL_PATHS if url.endswith(path)), url)


class ExportOptions(Options):
    """Tools that get the finished run."""

    title: ClassVar[str] = "Export"

    otel: Annotated[str | None, BeforeValidator(_collector)] = Field(
        default=None,
        description="Export the finished run to the OpenTelemetry collector at this address (OTLP over HTTP)."
        " Without an address: OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4318.",
        json_schema_extra={"metavar": "[URL]"},
    )
    otel_sample: Annotated[float, BeforeValidator(share)] = Field(
        default=0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Export this share of the requests as spans, as 10% or 0.1; 0: metrics alone.",
        json_schema_extra={"metavar": "SHARE"},
    )
    mlflow: bool = Field(default=False, description="Log the finished run to MLflow (MLFLOW_TRACKING_URI).")
    wandb: bool = Field(default=False, description="Log the finished run to Weights & Biases.")

    @property
    def wanted(self) -> bool:
        """Whether the run is exported at all."""
        return self.otel is not None or self.mlflow or self.wandb
