"""What is sent and when, as options: the workload, its schedule, the content of its prompts."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, model_validator

from wattload import arrivals as processes
from wattload.arrivals import Arrivals
from wattload.arrivals.demand import parse_rate
from wattload.errors import InputError
from wattload.options import Options, PositiveSeconds, Text
from wattload.schedule.frame import check_system, parse_image
from wattload.schedule.tenants import Tenant, parse_tenant


def _process(value: Any) -> Any:
    if isinstance(value, str):
        return processes.parse(value)
    if value is not None and not hasattr(value, "due_seconds"):
        raise ValueError("is not an arrival process")
    return value


def _policy(value: Any) -> Any:
    if str(value).isdigit():
        raise ValueError(
            "error or drop says what becomes of requests over the model's limit; it is no length"
        )
    return value


def _image(text: str) -> str:
    parse_image(text)
    return text


def _tenants(values: Any) -> Any:
    return tuple(parse_tenant(value) if isinstance(value, str) else value for value in values)


class WorkloadOptions(Options):
    """Which requests there are: one trace or workload, and further tenants beside it."""

    title: ClassVar[str] = "Workload"

    trace: Text = Field(
        default="conv",
        description="Workload to replay: conv, code, agent, random:prompt=512,output=128, or a file"
        " (`wattload traces` lists more).",
        json_schema_extra={"flags": ["--workload"], "metavar": "NAME|FILE"},
    )
    tag: str | None = Field(
        default=None,
        description="Tenant of all requests, sent as the header x-energy-group.",
        json_schema_extra={"metavar": "NAME"},
    )
    tenant: Annotated[tuple[Tenant, ...], BeforeValidator(_tenants)] = Field(
        default=(),
        description="Add a tenant, as NAME:trace=code,rate=2,arrivals=poisson,model=NAME. May be repeated.",
    )


class ScheduleOptions(Options):
    """When requests are sent, and which of the workload's."""

    title: ClassVar[str] = "Load shape"

    rate: Text | None = Field(
        default=None,
        description="Target rate in requests per second, as 5; 3x: three times the trace's own; inf: all at"
        " once. Default: the trace's own.",
        json_schema_extra={"flags": ["-r", "--request-rate", "--qps"], "metavar": "RATE"},
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Closed loop: keep this many requests in flight.",
        json_schema_extra={"flags": ["-c", "--max-concurrency"]},
    )
    arrivals: Annotated[Arrivals | None, PlainValidator(_process)] = Field(
        default=None,
        description="Arrival process: trace, constant, poisson, gamma:cv=2, closed:concurrency=8, ..."
        " Default:"
        " poisson with a rate, else trace.",
        json_schema_extra={"metavar": "PROCESS"},
    )
    duration_seconds: PositiveSeconds | None = Field(
        default=None,
        alias="duration",
        le=366 * 86400,
        description="Send requests for this time, as 90s or 1m30s. Default: to the end of a trace file,"
        " and 60s"
        " of workloads that have no end.",
        json_schema_extra={"flags": ["-d"]},
    )
    requests: int | None = Field(
        default=None,
        ge=1,
        description="Send at most this many requests.",
        json_schema_extra={"flags": ["-n", "--num-prompts", "--request-count"]},
    )
    seed: int = Field(default=0, ge=0, description="Seed of the schedule: the same seed gives the same one.")
    repeat: bool = Field(default=False, description="Replay a trace from its start when it ends.")
    prefix_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of each prompt that is the same in all prompts, as 0.5."
    )
    sessions: Literal["after-answer", "trace-times"] = Field(
        default="after-answer",
        description="Send later turns of a session after the previous response and the think time, or at the"
        " trace's times.",
    )
    history: Literal["planned", "server"] = Field(
        default="planned",
        description="Repeat earlier responses in a prompt as invented text of their length (planned) or as"
        " the server's own (server): by their token ids where completions tell those, else by their text.",
    )
    max_length: Annotated[Literal["error", "drop"], BeforeValidator(_policy)] = Field(
        default="error", description="Refuse or drop requests that are longer than the model's limit."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`concurrency` and the rate `inf` are arrival processes by a shorter name."""
        values = dict(values)
        concurrency, rate = values.get("concurrency"), values.get("rate")
        at_once = str(rate).strip().lower() in ("inf", "infinity")
        if concurrency is None and not at_once:
            return values
        name = "concurrency" if concurrency is not None else "rate"
        if concurrency is not None and rate is not None:
            raise InputError("concurrency", f"{concurrency}: and `rate` are both given")
        meant = "offline" if at_once else f"closed:concurrency={concurrency}"
        given = values.get("arrivals")
        if given is not None and getattr(given, "text", given) not in (meant, "trace" if at_once else meant):
            raise InputError(name, f"{values[name]}: is short for `arrivals` {meant}, and others are given")
        if at_once:
            del values["rate"]
        with contextlib.suppress(InputError):  # what is no number is refused where the field is read
            values["arrivals"] = processes.parse(meant)
        return values

    def process(self) -> Arrivals:
        """The arrival process in force."""
        if self.arrivals is not None:
            return self.arrivals
        return processes.parse("trace" if parse_rate(self.rate)[0] is None else "poisson")


class PromptOptions(Options):
    """What prompts are made of."""

    title: ClassVar[str] = "Workload"

    content_salt: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Seed of the prompts' content. Default: random, so that no run hits the prefix cache"
        " of another.",
    )
    tokenizer: Text | None = Field(
        default=None,
        description="Count the tokens of text prompts with the server's /tokenize, or with a tokenizer.json."
        " Default: server. Where it is given, history server repeats text and not token ids.",
        json_schema_extra={"metavar": "server|PATH"},
    )
    system_prompt: Annotated[Text, AfterValidator(check_system)] | None = Field(
        default=None,
        description="Begin every prompt with this text, with that of @FILE, or with N tokens, which are among"
        " the input tokens.",
        json_schema_extra={"metavar": "TEXT|@FILE|N"},
    )
    image: Annotated[str, AfterValidator(_image)] | None = Field(
        default=None,
        description="Put synthetic PNGs of this size, as 512x512, into the last message of every chat: as"
        " many as a trace with images tells, else one. none: send the text of such a trace alone.",
        json_schema_extra={"metavar": "WIDTHxHEIGHT|none"},
    )
    inputs: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Share each prompt out to this many texts of an embeddings request (1), or documents of a"
        " rerank or score request (8).",
    )
    vocab_size: int | None = Field(
        default=None,
        ge=16,
        description="Draw the token ids of prompts below this. Default: the model's vocabulary.",
    )
