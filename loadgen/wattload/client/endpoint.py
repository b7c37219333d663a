"""The endpoint: its address, model, headers and TLS as one value; and what every request to it carries."""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from wattload import redaction
from wattload.client.api import APIS, OWN_KEYS, Api, ApiName, api_of_url
from wattload.client.model_mix import ModelMix, parse_models
from wattload.client.transport.tls import tls_context
from wattload.errors import InputError
from wattload.options import Options, PositiveSeconds

# What the client writes for each request itself.
OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "x-request-id"})
Balance = Literal["round-robin", "least-busy", "session"]
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def address(text: object) -> object:
    """An address as users type it: http:// is assumed, and the path of an endpoint at its end is left out."""
    if not isinstance(text, str):
        return text
    url = text.strip()
    if url and "://" not in url:
        url = f"http://{url}"
    found = api_of_url(url)
    path = found.route.path.removeprefix("/v1") if found is not None else "/models"
    return url.rstrip("/").removesuffix(path)


def _addresses(values: object) -> object:
    return [address(value) for value in values] if isinstance(values, (list, tuple)) else values


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and how it is spoken to, for the load and for questions alike.

    `model` is empty where the server has not been asked yet. `headers` hold the API key. `tls` makes the TLS
    context when it is needed, since Locust patches what contexts are made of; None: the certificates that are
    trusted by default. `replicas`: further addresses that serve the same, among which `balance` shares
    requests out. `models`: where requests are for several, their names and how often each is asked for.
    """

    url: str
    model: str = ""
    api: ApiName = "completions"
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Callable[[], ssl.SSLContext | None] = lambda: None
    replicas: tuple[str, ...] = ()
    balance: Balance = "round-robin"
    models: ModelMix = ()

    @property
    def shape(self) -> Api:
        """How its requests are written and its responses read."""
        return APIS[self.api]

    @property
    def targets(self) -> tuple[Endpoint, ...]:
        """The endpoint and its replicas, each alone."""
        return tuple(replace(self, url=url, replicas=()) for url in (self.url, *self.replicas))

    @property
    def address(self) -> str:
        """Where requests are sent. `url` may end in /v1, or not."""
        return self.url.rstrip("/").removesuffix("/v1") + self.shape.route.path


class EndpointOptions(Options):
    """Where requests go, and with which credentials."""

    title: ClassVar[str] = "Target"

    url: Annotated[str, BeforeValidator(address)] = Field(
        description="Address of the endpoint, as http://host:port; http:// may be left out."
    )
    replica: Annotated[list[str], BeforeValidator(_addresses)] = Field(
        default_factory=list,
        description="A further address that serves the same model; requests are shared out. May be repeated.",
        json_schema_extra={"metavar": "URL"},
    )
    balance: Balance = Field(
        default="round-robin",
        description="Share requests out among replicas: round-robin, to the least-busy, or a session's turns"
        " to one (session).",
    )
    model: str | None = Field(
        default=None,
        description="Name of the model to request, or several (LoRA adapters too) with weights, as a=3,b=1."
        " Default: the first that the endpoint lists.",
        json_schema_extra={"flags": ["-m"], "metavar": "NAME"},
    )
    api: ApiName = Field(
        default="completions",
        description="Endpoint to send requests to: /v1/completions, /v1/chat/completions, /v1/responses,"
        " Anthropic's /v1/messages, /v1/embeddings, /v1/rerank or /v1/score.",
    )
    header: list[str] = Field(
        default_factory=list,
        description="Add a header to every request, as 'Name: value'. May be repeated.",
        json_schema_extra={"flags": ["-H"]},
    )
    api_key_env: str | None = Field(
        default=None,
        description="Environment variable that holds the API key. Default: OPENAI_API_KEY, if it is set.",
        json_schema_extra={"metavar": "NAME"},
    )
    insecure: bool = Field(default=False, description="Do not verify the server's TLS certificate.")
    ca_file: str | None = Field(
        default=None,
        description="Trust the certificates in this PEM file.",
        json_schema_extra={"metavar": "PATH"},
    )
    cert_file: str | None = Field(
        default=None, description="Client certificate, a PEM file.", json_schema_extra={"metavar": "PATH"}
    )
    key_file: str | None = Field(
        default=None,
        description="Private key of the client certificate, a PEM file.",
        json_schema_extra={"metavar": "PATH"},
    )

    @model_validator(mode="before")
    @classmethod
    def _api_of_the_url(cls, values: Any) -> Any:
        """An address that ends with the path of an endpoint asks for that one."""
        url = values.get("url") if isinstance(values, dict) else None
        found = api_of_url(url) if isinstance(url, str) else None
        if found is not None and values.get("api") is None:
            return {**values, "api": found.route.name}
        return values

    @field_validator("model")
    @classmethod
    def _models(cls, text: str | None) -> str | None:
        if text is not None:
            parse_models(text)
        return text

    @property
    def models(self) -> ModelMix:
        """The models to ask for with their weights; empty where none was named."""
        return parse_models(self.model) if self.model is not None else ()

    @property
    def first_model(self) -> str | None:
        """The first of the models that were named; None where none was."""
        return next((name for name, _ in self.models), None)

    @field_validator("header")
    @classmethod
    def _header_lines(cls, lines: list[str]) -> list[str]:
        for line in lines:
            name, colon, value = line.partition(":")
            if (
                not colon
                or _TOKEN.fullmatch(name) is None
                or re.search(r"[\r\n\0]", value)
                or not value.isascii()
            ):
                raise ValueError(f"{redaction.header_line(line)!r} is not a header; write 'Name: value'")
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"{name} is set for each request")
        return lines

    def endpoint(self) -> Endpoint:
        """The endpoint, its API key and certificates read. Raises InputError where one cannot be used."""
        self.tls()
        models = self.models
        if len({url.removesuffix("/v1") for url in (self.url, *self.replica)}) <= len(self.replica):
            raise InputError("replica", ": an address is given twice")
        return Endpoint(
            self.url,
            self.first_model or "",
            self.api,
            self.all_headers(),
            self.tls,
            tuple(self.replica),
            self.balance,
            models if len(models) > 1 else (),
        )

    def typed_headers(self) -> dict[str, str]:
        """The headers of `header` alone."""
        return {name: value.strip() for name, _, value in (line.partition(":") for line in self.header)}

    def all_headers(self) -> dict[str, str]:
        """The headers of every request, the API key among them. Raises InputError where it is not set."""
        headers = self.typed_headers()
        key = os.environ.get(self.api_key_env or "OPENAI_API_KEY")
        if self.api_key_env is not None and not key:
            raise InputError("api_key_env", f"{self.api_key_env}: this environment variable is not set")
        if key and not any(name.lower() == "authorization" for name in headers):
            if not key.isascii() or re.search(r"[\s\0]", key):
                raise InputError("api_key_env", f"{self.api_key_env or 'OPENAI_API_KEY'}: holds no API key")
            headers["Authorization"] = f"Bearer {key}"
        redaction.learn(redaction.secrets_of(headers))
        return headers

    def tls(self) -> ssl.SSLContext | None:
        """None: the usual certificates. Raises InputError naming the file that cannot be used."""
        files = self.tls_files()
        return None if files is None else tls_context(**files)

    def tls_files(self) -> dict[str, Any] | None:
        """What `tls_context` is called with; None: the usual certificates."""
        if not (self.insecure or self.ca_file or self.cert_file or self.key_file):
            return None
        return {
            "verify": not self.insecure,
            "ca_file": self.ca_file,
            "cert_file": self.cert_file,
            "key_file": self.key_file,
        }

    def without_secrets(self) -> dict[str, Any]:
        """As `saved`, with the values of headers left out that are not known to be harmless."""
        return {**self.saved(), "header": [redaction.header_line(line) for line in self.header]}

    def harmless(self) -> list[str]:
        """The header lines that may be told to another host."""
        return [line for line in self.header if redaction.is_harmless(line.partition(":")[0])]


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.startswith("@"):
        try:
            value = Path(value[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not a JSON object") from error
    if not isinstance(parsed, dict):
        raise ValueError("is not a JSON object")
    taken = OWN_KEYS & parsed.keys()
    if taken:
        named = "; `output_limit` names the field of the output's length" if "max_" in str(taken) else ""
        raise ValueError(f"{', '.join(sorted(taken))} is set by the schedule{named}")
    return parsed


# What in a request's JSON makes a response end where its content is complete.
_ENDS_RESPONSES = ("stop", "stop_token_ids", "response_format", "tools", "guided_json", "structured_outputs")


class RequestOptions(Options):
    """What every request carries, and how long each of its phases may take.

    Each time limit counts from the end of the phase before, `total_timeout` from the sending.
    """

    title: ClassVar[str] = "Requests and time limits"

    body: Annotated[dict[str, Any] | None, BeforeValidator(_json_object)] = Field(
        default=None,
        description='Merge a JSON object, or that of @FILE, into every request, as {"temperature": 1}: tools,'
        " stop, response_format and what else the endpoint takes.",
        json_schema_extra={"metavar": "JSON", "flags": ["--extra-body"]},
    )
    exact_output: bool = Field(
        default=True,
        description="Force the planned output length (ignore_eos, min_tokens). Turn off for servers that"
        " refuse it.",
    )
    natural_lengths: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Let responses end by themselves, after this many tokens at most, instead of forcing the"
        " planned lengths.",
    )
    output_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        default="auto",
        description="Field that limits the output: max_tokens, max_completion_tokens, or auto: max_tokens; "
        "with no-exact-output, one request of one token before the load asks which.",
    )
    connect_timeout_seconds: PositiveSeconds = Field(
        default=10.0,
        alias="connect_timeout",
        description="Give up when no connection is made within this time.",
    )
    first_token_timeout_seconds: PositiveSeconds = Field(
        default=300.0,
        alias="first_token_timeout",
        description="Give up when no token has come within this time of sending.",
    )
    between_tokens_timeout_seconds: PositiveSeconds = Field(
        default=120.0,
        alias="between_tokens_timeout",
        description="Give up when no token has come for this time within a response.",
    )
    total_timeout_seconds: PositiveSeconds = Field(
        default=1800.0,
        alias="total_timeout",
        le=366 * 86400,
        description="Give up when a response is not complete within this time of sending.",
    )

    @property
    def forced(self) -> bool:
        """Whether responses are made as long as planned, whatever the model would say."""
        return self.exact_output and self.natural_lengths is None

    @property
    def notes(self) -> list[str]:
        """Sentences for the user on what the settings do to each other."""
        ends = [name for name in _ENDS_RESPONSES if (self.body or {}).get(name)]
        if not ends or not self.forced:
            return []
        return [
            f"lengths are forced (ignore_eos, min_tokens), so {', '.join(ends)} of --body cannot end a"
            " response; --natural-lengths N lets responses end by themselves"
        ]
