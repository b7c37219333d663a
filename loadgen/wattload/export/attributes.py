"""Names of OpenTelemetry attributes, and those that every span and data point of a run has.

Names of `gen_ai.`, `server.`, `error.` and `http.` are OpenTelemetry's semantic conventions; those of
`wattload.` are specified in docs/reference/energy-fields.md. They are written out here because the package of
the conventions moves them between releases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from wattload.export.figures import simulated
from wattload.rundir.result import RunJson

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
CONVERSATION = "gen_ai.conversation.id"
TOKEN_TYPE = "gen_ai.token.type"
ADDRESS, PORT = "server.address", "server.port"
STATUS_CODE = "http.response.status_code"
ERROR = "error.type"

RUN = "wattload.run"
SOURCE = "wattload.energy.source"
SIMULATED = "wattload.energy.simulated"
FLAGS = "wattload.energy.flags"
BOUNDARY = "wattload.energy.boundary"

_OPERATIONS = {"chat": "chat", "completions": "text_completion"}
_PORTS = {"http": 80, "https": 443}
# The sensors that do not read GPU boards, and what they read.
_BOUNDARIES = {"rapl": "cpu"}


def present(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`attributes` without those that are not known: a null is an absent attribute, never 0."""
    return {name: value for name, value in attributes.items() if value is not None and value != []}


def of_run(result: RunJson) -> dict[str, Any]:
    """What all data points have in common: which run, which model, and whose joules."""
    source = result.energy.source
    return present(
        {
            RUN: result.name,
            REQUEST_MODEL: result.target.model,
            SOURCE: source,
            SIMULATED: simulated(result),
            BOUNDARY: None if source is None else _BOUNDARIES.get(source, "gpu"),
        }
    )


def of_operation(result: RunJson) -> dict[str, Any]:
    """What the conventions ask of a request of a generative model."""
    api = str(result.config.get("api") or "completions")
    address = urlsplit(result.target.url)
    return present(
        {
            OPERATION: _OPERATIONS.get(api, api),
            # The conventions take the provider for the form of the API where the server is not known.
            PROVIDER: (result.target.engine or "openai").split()[0].lower(),
            ADDRESS: address.hostname,
            PORT: address.port or _PORTS.get(address.scheme),
        }
    )
