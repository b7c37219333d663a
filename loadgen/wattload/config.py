"""What a run is asked to do: one list of settings for the flags, the TOML file, Locust's parser and the
saved copy.

A field's name is its flag's (`drain_seconds` is `--drain-seconds`) and its TOML key; its description is the
help text.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from wattload.errors import BadInput

_DURATION = re.compile(r"^([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(ms|s|m|min|h)?$")
_SCALE = {None: 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
SECRET_HEADERS = frozenset({"authorization", "x-api-key", "api-key", "proxy-authorization", "cookie"})

# What the client writes for each request itself.
OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "x-request-id"})


def _seconds(value: object) -> object:
    """`90`, `90s`, `500ms`, `2m`, `1h` as seconds."""
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if match is None:
            raise ValueError("is no time; write 90, 90s, 500ms, 2m or 1h")
        value = float(match[1]) * _SCALE[match[2]]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("is no time; write 90, 90s, 500ms, 2m or 1h")
    return float(value)


def _text(value: object) -> object:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
PositiveSeconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
Text = Annotated[str, BeforeValidator(_text)]


class RunConfig(BaseModel):
    """The settings of one run. `load` makes one from flags and a file, and raises BadInput naming what is
    wrong.
    """

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="The endpoint, as http://host:port.")
    trace: Text = Field(description="What to replay: a name of `wattload traces`, or a file.")
    rate: Text | None = Field(None, description="Requests a second; 3x: three times the trace's own rate.")
    arrivals: Text = Field(
        "trace", description="When requests come: trace, constant, poisson, gamma:cv=2, ..."
    )
    duration: PositiveSeconds | None = Field(None, description="How long requests arrive: 90, 90s, 2m, 1h.")
    requests: int | None = Field(None, ge=1, description="How many requests to send at most.")
    warmup: Seconds | None = Field(
        None, description="Time to leave out of the figures; detected if not given."
    )
    seed: int = Field(0, ge=0, description="The same seed gives the same schedule.")
    model: str | None = Field(None, description="The model to ask for; the endpoint's first if not given.")
    energy: str | None = Field(
        None, description="Where the energy is asked: a URL, or none. The target if not given."
    )
    out: Path | None = Field(
        None, description="The run directory to write; runs/<time>-<trace> if not given."
    )
    name: str | None = Field(None, description="The run's name; the directory's if not given.")
    progress: Literal["auto", "plain", "rich", "json", "none"] = Field(
        "auto", description="auto, plain, rich, json or none; auto is rich on a terminal, else plain."
    )
    tenant: list[str] = Field(
        default_factory=list,
        description="A further stream, as tag:trace=code,rate=2,arrivals=poisson; may be repeated.",
    )
    tag: str | None = Field(
        None, description="The tag of all requests: a column, and the server's x-energy-group."
    )
    repeat: bool = Field(False, description="Play a trace again from its start when it ends.")
    prefix_share: float = Field(
        0.0, ge=0, le=1, description="Share of each prompt that all prompts begin with."
    )
    sessions: str = Field(
        "after-answer", description="Later turns: after-answer (and think time), or trace-times."
    )
    max_length: str = Field("error", description="Requests over the model's limit: error or drop.")
    column_map: str | None = Field(
        None, description="Columns called otherwise: prompt_tokens=in,output_tokens=out,seconds=ts:ms."
    )
    sort: bool = Field(
        False, description="Put a trace file's rows in order of time instead of refusing them."
    )
    duplicate_times: Literal["error", "keep"] | None = Field(
        None, description="Rows of equal time: error or keep; what the format's clock demands if not given."
    )
    empty_requests: Literal["error", "drop"] | None = Field(
        None, description="Rows of 0 tokens: error or drop; as the format says if not given."
    )
    content_salt: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="Fixes what prompts say; if not given, no run repeats another's, for caches' sake.",
    )
    tokenizer: Text = Field(
        "server", description="Who counts prompts of text: server (its /tokenize), or a tokenizer.json."
    )
    vocab_size: int | None = Field(None, ge=16, description="Prompts are made of ids below this.")
    api: Literal["completions", "chat"] = Field("completions", description="completions or chat.")
    exact_output: bool = Field(
        True,
        description="Force the planned output length (ignore_eos, min_tokens); off for gateways that refuse.",
    )
    body: str | None = Field(
        None, description='JSON object merged into every request, as {"temperature": 1}.'
    )
    header: list[str] = Field(
        default_factory=list, description="A header of every request, as 'Name: value'."
    )
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the API key; OPENAI_API_KEY if that is set."
    )
    insecure: bool = Field(False, description="Do not verify the server's TLS certificate.")
    ca_file: str | None = Field(None, description="Certificates to trust, PEM.")
    cert_file: str | None = Field(None, description="Client certificate, PEM.")
    key_file: str | None = Field(None, description="Key of the client certificate, PEM.")
    connect_timeout: PositiveSeconds = Field(10.0, description="Time for a connection.")
    first_token_timeout: PositiveSeconds = Field(300.0, description="Time from sending to the first token.")
    between_tokens_timeout: PositiveSeconds = Field(120.0, description="Time without a token in mid-stream.")
    total_timeout: PositiveSeconds = Field(1800.0, description="Time for a whole request.")
    drain: PositiveSeconds = Field(
        300.0, description="How long answers are waited for after the last sending."
    )
    slo: str | None = Field(None, description="Latency limits, as ttft=500ms,tpot=50ms.")
    until: str | None = Field(None, description="Stop early, as ci95<2% (of joules a request).")
    assertions: list[str] = Field(
        default_factory=list,
        description="Exit 1 unless it holds, as 'energy.per_request_joules.mean < 120'; may be repeated.",
        json_schema_extra={"flag": "--assert"},
    )
    pue: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="Facility energy over the devices' energy."
    )
    price_per_kwh: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Price of a kilowatt-hour."
    )
    currency: str | None = Field(None, description="Of that price.")
    carbon_grams_per_kwh: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="Grams of CO2e a kilowatt-hour."
    )
    processes: int = Field(1, ge=1, le=256, description="Load-generating processes on this host.")
    master: bool = Field(
        False, description="Wait for workers on other hosts (`wattload worker`) and lead them."
    )
    expect_workers: int | None = Field(None, ge=1, description="How many workers the master waits for.")
    master_bind_host: str = Field("*", description="Address the master listens on.")
    master_port: int = Field(5557, ge=1, le=65535, description="Port of the master.")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Serve Prometheus metrics on this port."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics.")
    push_gateway: str | None = Field(
        None, description="Push the final metrics to this Prometheus Pushgateway."
    )
    report: bool = Field(True, description="Write report.html.")

    @field_validator("duration", "drain", "total_timeout")
    @classmethod
    def _not_endless(cls, value: float | None) -> float | None:
        if value is not None and value > 366 * 86400:
            raise ValueError("is longer than a year")
        return value

    @field_validator("header")
    @classmethod
    def _header_lines(cls, lines: list[str]) -> list[str]:
        for line in lines:
            name, colon, value = line.partition(":")
            token = re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name)
            if not colon or token is None or re.search(r"[\r\n\0]", value) or not value.isascii():
                raise ValueError(f"{line!r} is no header; write 'Name: value'")
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"{name} is set for each request")
        return lines

    @field_validator("body")
    @classmethod
    def _json_object(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                parsed = json.loads(text)
            except ValueError as error:
                raise ValueError("is no JSON object") from error
            if not isinstance(parsed, dict):
                raise ValueError("is no JSON object")
            taken = {
                "prompt",
                "messages",
                "stream",
                "stream_options",
                "max_tokens",
                "min_tokens",
            } & parsed.keys()
            if taken:
                raise ValueError(f"{', '.join(sorted(taken))} is set by the schedule")
        return text

    def headers(self) -> dict[str, str]:
        """The headers of every request, the API key among them. Raises BadInput where its variable is not
        set.
        """
        found = {name: value.strip() for name, _, value in (line.partition(":") for line in self.header)}
        key = os.environ.get(self.api_key_env or "OPENAI_API_KEY")
        if self.api_key_env is not None and not key:
            raise BadInput(f"--api-key-env {self.api_key_env}: this environment variable is not set")
        if key and not any(name.lower() == "authorization" for name in found):
            if not key.isascii() or re.search(r"[\s\0]", key):
                raise BadInput(f"--api-key-env {self.api_key_env or 'OPENAI_API_KEY'}: holds no API key")
            found["Authorization"] = f"Bearer {key}"
        return found

    def footprint(self) -> dict[str, Any]:
        names = ("pue", "price_per_kwh", "currency", "carbon_grams_per_kwh")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def saved(self) -> dict[str, Any]:
        """The effective settings for the run directory, without secrets."""
        values = self.model_dump(mode="json")
        values["header"] = [_masked(line) for line in self.header]
        if self.footprint():
            values["footprint"] = self.footprint()
        return values


def _masked(line: str) -> str:
    name, _, _ = line.partition(":")
    return f"{name}: (hidden)" if name.strip().lower() in SECRET_HEADERS else line


def flag_of(field: str) -> str:
    """The flag of a field of RunConfig."""
    extra = RunConfig.model_fields[field].json_schema_extra if field in RunConfig.model_fields else None
    if isinstance(extra, dict) and "flag" in extra:
        return str(extra["flag"])
    return "URL" if field == "url" else "--" + field.replace("_", "-")


def variable_of(field: str) -> str:
    """The environment variable of a field, for containers."""
    return f"WATTLOAD_{field.upper()}"


def load(given: Mapping[str, Any], file: Path | None = None) -> RunConfig:
    """The configuration of `given` (flags; None: not given) over the TOML `file`. Raises BadInput."""
    values: dict[str, Any] = {} if file is None else _read_file(file)
    sources = dict.fromkeys(values, str(file))
    for name, value in given.items():
        if value is not None and value != []:
            values[name] = value
            sources.pop(name, None)
    try:
        return RunConfig(**values)
    except ValidationError as error:
        raise BadInput(_sentence(error, sources)) from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--config {file}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"--config {file}: is no TOML ({error})") from error
    values = {("assertions" if name == "assert" else name.replace("-", "_")): v for name, v in values.items()}
    unknown = sorted(set(values) - set(RunConfig.model_fields))
    if unknown:
        raise BadInput(f"--config {file}: unknown setting {unknown[0]!r}")
    return values


def _sentence(error: ValidationError, sources: Mapping[str, str]) -> str:
    first = error.errors()[0]
    field = str(first["loc"][0])
    flag = flag_of(field)
    where = f"{sources[field]}: {field}" if field in sources else flag
    if first["type"] == "missing":
        return f"{flag} is missing"
    said = first["msg"].removeprefix("Value error, ")
    said = said[0].lower() + said[1:]
    shown = first["input"]
    return f"{where} {shown}: {said.replace('input should', 'must').replace('valid ', '')}"
