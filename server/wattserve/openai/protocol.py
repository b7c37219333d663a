"""What a client may ask for, checked: from a JSON body to prompts as token ids and limits on the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wattserve.openai.errors import ApiError
from wattserve.openai.tokenizer import Tokenizer

COMPLETION_DEFAULT_TOKENS = 16
MAX_CHOICES = 256
# Parameters that would change the answer in a way the virtual model cannot follow: refused, not ignored.
_REFUSED = {
    "logprobs": "gives no log probabilities",
    "prompt_logprobs": "gives no log probabilities",
    "top_logprobs": "gives no log probabilities",
    "echo": "does not echo prompts",
    "suffix": "does not fill in the middle",
    "tools": "calls no tools",
    "functions": "calls no functions",
    "response_format": "cannot keep to a response format",
    "guided_json": "cannot keep to a grammar",
    "guided_regex": "cannot keep to a grammar",
    "structured_outputs": "cannot keep to a grammar",
    "prompt_embeds": "takes no embeddings",
}
_HARMLESS: tuple[Any, ...] = (None, False, [], {"type": "text"})


class StreamOptions(BaseModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Parameters(BaseModel):
    """Parameters that both endpoints share. Sampling parameters are checked and have no effect."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    seed: int | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One request, checked. `prompts`: token ids, a list each; `max_tokens`: the most each prompt gets."""

    kind: Literal["completion", "chat"]
    parameters: Parameters
    prompts: list[list[int]]
    max_tokens: list[int]
    stops: list[str]

    @property
    def include_usage(self) -> bool:
        options = self.parameters.stream_options
        return options is not None and options.include_usage

    @property
    def continuous_usage(self) -> bool:
        options = self.parameters.stream_options
        return options is not None and options.include_usage and options.continuous_usage_stats


def parse_json(body: bytes) -> dict[str, Any]:
    """The object in a request's body. Raises ApiError."""
    try:
        data = pydantic_core.from_json(body)
    except ValueError as error:
        raise ApiError(f"The body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ApiError("The body must be a JSON object.")
    return data


def read_job(
    kind: Literal["completion", "chat"],
    data: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    model: str,
    max_model_len: int,
) -> Job:
    """A job from a request's JSON. Raises ApiError with the status and the sentence for the client."""
    content = data.pop("prompt" if kind == "completion" else "messages", None)
    try:
        parameters = Parameters.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ApiError(f"{name}: {first['msg']}, not {first['input']!r}.", param=name) from None
    if parameters.model is not None and parameters.model != model:
        raise ApiError(f"The model `{parameters.model}` does not exist.", status=404, param="model")
    for name, why in _REFUSED.items():
        if (parameters.model_extra or {}).get(name) not in _HARMLESS:
            raise ApiError(f"{name} cannot be served: the virtual GPU {why}.", param=name)
    if parameters.stream_options is not None and not parameters.stream:
        raise ApiError("stream_options needs stream=true.", param="stream_options")
    if kind == "completion":
        prompts = read_prompts(content, tokenizer)
        asked = parameters.max_tokens or COMPLETION_DEFAULT_TOKENS
    else:
        prompts = [tokenizer.encode(chat_text(content))]
        asked = parameters.max_completion_tokens or parameters.max_tokens or max_model_len
    limits = [_output_limit(len(p), asked, parameters, kind, max_model_len) for p in prompts]
    stop = parameters.stop
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if "" in stops:
        raise ApiError("stop must not be an empty string.", param="stop")
    return Job(kind, parameters, prompts, limits, stops)


def _output_limit(
    prompt_tokens: int, asked: int, parameters: Parameters, kind: str, max_model_len: int
) -> int:
    room = max_model_len - prompt_tokens
    given = parameters.max_tokens is not None or parameters.max_completion_tokens is not None
    if room < 1 or (given and asked > room):
        wanted = f" and asks for {asked} more" if given else ""
        param = "prompt" if kind == "completion" else "messages"
        raise ApiError(
            f"This model's maximum context length is {max_model_len} tokens, but the prompt has "
            f"{prompt_tokens}{wanted}: make the prompt shorter or ask for fewer tokens.",
            param=param if room < 1 else "max_tokens",
        )
    limit = min(asked, room)
    if parameters.min_tokens > limit:
        raise ApiError(
            f"min_tokens must be at most max_tokens {limit}, not {parameters.min_tokens}.", param="min_tokens"
        )
    return limit


def read_prompts(content: Any, tokenizer: Tokenizer) -> list[list[int]]:
    """Prompts as token ids from any of the four forms: a text, token ids, or a list of either."""
    if isinstance(content, str):
        prompts = [tokenizer.encode(content)]
    elif isinstance(content, list) and content:
        if isinstance(content[0], int):
            prompts = [_token_ids(content, tokenizer.vocab_size)]
        elif isinstance(content[0], str) and all(isinstance(item, str) for item in content):
            prompts = [tokenizer.encode(item) for item in content]
        elif isinstance(content[0], list) and all(isinstance(item, list) for item in content):
            prompts = [_token_ids(item, tokenizer.vocab_size) for item in content]
        else:
            raise ApiError("prompt must be a string, token ids, or a list of either.", param="prompt")
    else:
        raise ApiError("prompt must be a string, token ids, or a list of either.", param="prompt")
    if not all(prompts):
        raise ApiError("prompt must not be empty.", param="prompt")
    if len(prompts) > MAX_CHOICES:
        raise ApiError(
            f"{len(prompts)} prompts are more than the {MAX_CHOICES} of one request.", param="prompt"
        )
    return prompts


def _token_ids(content: list[Any], vocab_size: int) -> list[int]:
    if not content:
        return content
    try:
        ids = np.array(content)
    except ValueError:  # lists in lists
        ids = np.array(())
    if ids.ndim != 1 or ids.dtype.kind != "i" or bool in set(map(type, content)):
        raise ApiError("prompt holds something that is not a token id.", param="prompt")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ApiError(f"Token id {wrong} is out of the vocabulary of {vocab_size}.", param="prompt")
    return content


def chat_text(messages: Any) -> str:
    """The prompt of a conversation: roles in marks, as chat templates do. Raises ApiError."""
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a list with at least one message.", param="messages")
    parts = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise ApiError(f"messages.{number}: role is missing.", param="messages")
        parts.append(f"<|{role}|>{_content_text(message.get('content'), number)}\n")
    parts.append("<|assistant|>")
    return "".join(parts)


def _content_text(content: Any, number: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") not in ("text", None):
                raise ApiError(f"messages.{number}: the virtual GPU reads text only.", param="messages")
            texts.append(str(part.get("text", "")))
        return "".join(texts)
    raise ApiError(f"messages.{number}: content must be a text.", param="messages")
