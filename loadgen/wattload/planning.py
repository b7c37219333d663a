"""From what a run was asked for to its schedule: traces loaded, tenants laid over each other, text made."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from wattload import schedule as schedules
from wattload import traces
from wattload.errors import BadInput
from wattload.schedule import Schedule
from wattload.tenants import Tenant, parse_tenant, superposed
from wattload.tokenizer import open_tokenizer, with_counts, with_words, word_pool
from wattload.traces import ReadOptions, Trace
from wattload.traces.specification import parse_spec


@dataclass(frozen=True, slots=True)
class Streams:
    """The tenants of a run with their traces, read before anything is asked of the endpoint."""

    tenants: tuple[Tenant, ...]
    traces: tuple[Trace, ...]

    @property
    def first(self) -> Trace:
        """The trace of --trace."""
        return self.traces[0]


def load_streams(
    trace: str, *, tag: str | None = None, tenants: Sequence[str] = (), options: ReadOptions | None = None
) -> Streams:
    """--trace (`NAME_OR_FILE[@RATE][#TAG]`), --tag and every --tenant, with the traces they name.

    `options` are for --trace; a tenant's file is read as it is. Raises BadInput.
    """
    spec = parse_spec(trace)
    if tag is not None and spec.tag is not None and tag != spec.tag:
        raise BadInput(f"--tag {tag} and --trace {trace} disagree about the tag")
    own = Tenant(spec.tag or tag or "", spec.source, spec.rate)
    asked = (own, *(parse_tenant(text) for text in tenants))
    loaded = [traces.load(own.trace, options)]
    for tenant in asked[1:]:
        with _naming(tenant):
            loaded.append(traces.load(tenant.trace))
    return Streams(asked, tuple(loaded))


def plan(
    streams: Streams, *, arrivals: str, rate: float | str | None = None, seed: int = 0, **options: Any
) -> Schedule:
    """The schedule of all streams; `options` go to `schedule.build`. Each tenant has a seed of its own.

    Raises BadInput naming the flag, or the trace's file and line.
    """
    if rate is not None and streams.tenants[0].rate is not None:
        raise BadInput("--rate and the rate after @ of --trace are both given")
    parts = []
    for number, (tenant, trace) in enumerate(zip(streams.tenants, streams.traces, strict=True)):
        with _naming(tenant) if number else nullcontext():
            part = schedules.build(
                trace,
                tenant.arrivals or arrivals,
                rate=tenant.rate if tenant.rate is not None else rate,
                seed=seed + number * 1_000_003,
                tag=tenant.tag or None,
                **options,
            )
        parts.append(part)
    base = parts[0].content_base
    schedule = superposed([replace(part, content_base=base) for part in parts])
    for tag in schedule.tags:
        if not (tag.isascii() and tag.isprintable()):
            raise BadInput(
                f"tag {tag!r}: is sent as the header x-energy-group, so it must be printable ASCII"
            )
    return schedule


@contextmanager
def _naming(tenant: Tenant) -> Iterator[None]:
    """Sentences about a tenant's stream begin with its --tenant."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"--tenant {tenant.tag}: {error}") from error


def needs_text(schedule: Schedule, api: str) -> bool:
    """Whether prompts of `api` must be made of text, or counted, before they can be sent."""
    return api == "chat" or schedule.texts is not None


def with_text(
    schedule: Schedule,
    *,
    api: str,
    tokenizer: str,
    url: str,
    model: str,
    headers: dict[str, str] | None = None,
    max_model_len: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> Schedule:
    """`schedule` with prompts of text: the trace's own, counted, or words to the planned number of tokens.

    `tokenizer`: "server", or the path of a tokenizer.json. `tls`: how the server is spoken to, None the usual
    way. Raises BadInput where the tokenizer cannot be
    asked or makes no exact lengths, and where a text turns out longer than the model's limit.
    """
    counting = open_tokenizer(tokenizer, url=url, model=model, headers=headers, tls=tls)
    chat = api == "chat"
    if schedule.texts is None:
        return with_words(schedule, word_pool(counting, chat=chat))
    counted = with_counts(schedule, counting, chat=chat)
    if max_model_len is not None:
        total = counted.prompt_tokens.astype("int64") + counted.output_tokens
        if (total > max_model_len).any():
            at = int(total.argmax())
            raise BadInput(
                f"request {at + 1} of the trace's texts is {counted.prompt_tokens[at]} tokens and asks for "
                f"{counted.output_tokens[at]}, more than the model's limit of {max_model_len}"
            )
    return counted
