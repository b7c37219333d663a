"""What a client may ask for, checked: from a JSON body to prompts as token ids and limits on the answer."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wattserve.sim.openai.errors import ApiError
from wattserve.sim.openai.vocabulary import Tokenizer

COMPLETION_DEFAULT_TOKENS = 16
MAX_CHOICES = 256
# Prompts times samples of one request. vLLM bounds the samples alone, at 16,384 (VLLM_MAX_N_SEQUENCES).
MAX_SEQUENCES = 1024
# No token stands for more characters than this in a text of ours, so that a longer text need not be counted.
LONGEST_TOKEN_CHARACTERS = 8
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
# Parameters of the endpoints beside OpenAI's first two, by the names that those have.
_RENAMED = {
    "responses": {"max_output_tokens": "max_tokens"},
    "messages": {"stop_sequences": "stop"},
}
# What vLLM does not read of a request to /v1/messages.
_UNREAD_OF_MESSAGES = ("ignore_eos", "min_tokens", "stream_options", "n")
# A side of the square of pixels that is one token, as in Qwen2-VL, and the longest side that is taken.
_IMAGE_TOKEN_PIXELS = 28
_LONGEST_SIDE = 1 << 14
_SURROGATE = re.compile("[\ud800-\udfff]")
_HARMLESS: tuple[Any, ...] = (None, False, [], {"type": "text"})


_P = TypeVar("_P", bound=BaseModel)


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


Kind = Literal["completion", "chat", "responses", "messages"]
_CONTENT = {"completion": "prompt", "chat": "messages", "responses": "input", "messages": "messages"}


@dataclass(frozen=True, slots=True)
class Job:
    """One request, checked. `prompts`: token ids, a list each; `max_tokens`: the most each prompt gets.

    `model`: which of the names that are served. `image_tokens`: those of the prompts that are images'.
    """

    kind: Kind
    parameters: Parameters
    prompts: list[list[int]]
    max_tokens: list[int]
    stops: list[str]
    model: str = ""
    image_tokens: int = 0

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


def validated(parameters: type[_P], data: dict[str, Any]) -> _P:
    """The parameters in a request's JSON. Raises ApiError naming the first that is wrong."""
    try:
        return parameters.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ApiError(f"{name}: {first['msg']}, not {first['input']!r}.", param=name) from None


def check_text(text: str, max_model_len: int, param: str) -> str:
    """The text where it can be a prompt. Raises ApiError, at once, where it is too long or no Unicode."""
    if len(text) > LONGEST_TOKEN_CHARACTERS * max_model_len:
        raise ApiError(
            f"This model's maximum context length is {max_model_len} tokens, and the prompt has"
            f" {len(text)} characters: make it shorter.",
            param=param,
        )
    if not text.isascii() and _SURROGATE.search(text):
        raise ApiError(f"{param} holds half of a surrogate pair, which is no text.", param=param)
    return text


def read_job(
    kind: Kind,
    data: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    models: Sequence[str],
    max_model_len: int,
) -> Job:
    """A job from a request's JSON. `models`: the names that are served, the usual one first.

    Raises ApiError with the status and the sentence for the client.
    """
    content = data.pop(_CONTENT[kind], None)
    if kind in ("responses", "messages"):
        content = _conversation(kind, content, data)
    parameters = validated(Parameters, data)
    served = model_of(parameters.model, models)
    for name, why in _REFUSED.items():
        if (parameters.model_extra or {}).get(name) not in _HARMLESS:
            raise ApiError(f"{name} cannot be served: the simulator {why}.", param=name)
    if parameters.stream_options is not None and not parameters.stream:
        raise ApiError("stream_options needs stream=true.", param="stream_options")
    images = 0
    if kind == "completion":
        prompts = read_prompts(content, tokenizer, max_model_len)
        asked = parameters.max_tokens or COMPLETION_DEFAULT_TOKENS
    else:
        prompt, images = _chat_prompt(content, tokenizer, max_model_len)
        prompts = [prompt]
        asked = parameters.max_completion_tokens or parameters.max_tokens or max_model_len
    if len(prompts) * parameters.n > MAX_SEQUENCES:
        raise ApiError(
            f"{len(prompts)} prompts of {parameters.n} samples are more than the {MAX_SEQUENCES} sequences of"
            " one request.",
            param="n",
        )
    limits = [_output_limit(len(p), asked, parameters, kind, max_model_len) for p in prompts]
    stop = parameters.stop
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    if "" in stops:
        raise ApiError("stop must not be an empty string.", param="stop")
    return Job(kind, parameters, prompts, limits, stops, served, images)


def model_of(asked: object, models: Sequence[str]) -> str:
    """Which of the names that are served a request is for. Raises ApiError where it is none of them."""
    if asked is None:
        return models[0]
    if asked not in models:
        raise ApiError(f"The model `{asked}` does not exist.", status=404, param="model")
    return str(asked)


def _conversation(kind: Kind, content: Any, data: dict[str, Any]) -> Any:
    """The messages of a request to /v1/responses or /v1/messages; `data` gets the names of chat."""
    for theirs, ours in _RENAMED[kind].items():
        if theirs in data:
            data[ours] = data.pop(theirs)
    if kind == "messages":
        for name in _UNREAD_OF_MESSAGES:
            data.pop(name, None)
        if data.get("max_tokens") is None:
            raise ApiError("max_tokens is missing.", param="max_tokens")
        first = data.pop("system", None)
    else:
        if data.get("n") not in (None, 1):
            raise ApiError("n: /v1/responses gives one answer.", param="n")
        for name in ("previous_response_id", "conversation", "background"):
            if data.get(name):
                raise ApiError(f"{name} cannot be served: the simulator keeps no responses.", param=name)
        first = data.pop("instructions", None)
        content = [{"role": "user", "content": content}] if isinstance(content, str) else content
    if first is None or not isinstance(content, list):
        return content
    return [{"role": "system", "content": first}, *content]


def _output_limit(
    prompt_tokens: int, asked: int, parameters: Parameters, kind: str, max_model_len: int
) -> int:
    room = max_model_len - prompt_tokens
    given = parameters.max_tokens is not None or parameters.max_completion_tokens is not None
    if room < 1 or (given and asked > room):
        wanted = f" and asks for {asked} more" if given else ""
        param = _CONTENT.get(kind, "messages")
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


def read_prompts(
    content: Any, tokenizer: Tokenizer, max_model_len: int, param: str = "prompt"
) -> list[list[int]]:
    """Prompts as token ids from any of the four forms: a text, token ids, or a list of either.

    How many there are and how long is looked at before any of them is converted. `param`: what the request
    calls them.
    """

    def encoded(text: str) -> list[int]:
        return tokenizer.encode(check_text(text, max_model_len, param))

    def checked(ids: list[Any]) -> list[int]:
        if len(ids) > max_model_len:
            raise ApiError(
                f"This model's maximum context length is {max_model_len} tokens, but the prompt has"
                f" {len(ids)}: make the prompt shorter.",
                param=param,
            )
        return _token_ids(ids, tokenizer.vocab_size, param)

    if isinstance(content, str):
        prompts = [encoded(content)]
    elif isinstance(content, list) and content:
        if not isinstance(content[0], int) and len(content) > MAX_CHOICES:
            raise ApiError(
                f"{len(content)} prompts are more than the {MAX_CHOICES} of one request.", param=param
            )
        if isinstance(content[0], int):
            prompts = [checked(content)]
        elif isinstance(content[0], str) and all(isinstance(item, str) for item in content):
            prompts = [encoded(item) for item in content]
        elif isinstance(content[0], list) and all(isinstance(item, list) for item in content):
            prompts = [checked(item) for item in content]
        else:
            raise ApiError(f"{param} must be a string, token ids, or a list of either.", param=param)
    else:
        raise ApiError(f"{param} must be a string, token ids, or a list of either.", param=param)
    if not all(prompts):
        raise ApiError(f"{param} must not be empty.", param=param)
    return prompts


def _token_ids(content: list[Any], vocab_size: int, param: str) -> list[int]:
    if not content:
        return content
    try:
        ids = np.array(content)
    except ValueError:  # lists in lists
        ids = np.array(())
    if ids.ndim != 1 or ids.dtype.kind != "i" or bool in set(map(type, content)):
        raise ApiError(f"{param} holds something that is not a token id.", param=param)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ApiError(f"Token id {wrong} is out of the vocabulary of {vocab_size}.", param=param)
    return content


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a conversation: its address, a data URL, and how many tokens it is."""

    url: str
    tokens: int

    def token_ids(self, vocab_size: int) -> list[int]:
        """Ids that no other image has, so that a prefix cache takes only the same image for the same."""
        first = zlib.crc32(self.url.encode())
        return [(first + 2_654_435_761 * place) % vocab_size for place in range(self.tokens)]


def chat_text(messages: Any) -> str:
    """The prompt of a conversation: roles in marks, as chat templates do. Raises ApiError."""
    return "".join(part for part in chat_parts(messages) if isinstance(part, str))


def chat_parts(messages: Any) -> Iterator[str | Image]:
    """The prompt of a conversation in its order: text, and images between. Raises ApiError."""
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a list with at least one message.", param="messages")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise ApiError(f"messages.{number}: role is missing.", param="messages")
        yield f"<|{role}|>"
        yield from _content_parts(message.get("content"), number)
        yield "\n"
    yield "<|assistant|>"


def _chat_prompt(messages: Any, tokenizer: Tokenizer, max_model_len: int) -> tuple[list[int], int]:
    """The token ids of a conversation, and how many of them are images'. Raises ApiError."""
    parts = list(chat_parts(messages))
    check_text("".join(part for part in parts if isinstance(part, str)), max_model_len, "messages")
    ids: list[int] = []
    images, text = 0, ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        ids += tokenizer.encode(text)
        text = ""
        images += part.tokens
        if len(ids) + part.tokens <= max_model_len:
            ids += part.token_ids(tokenizer.vocab_size)
        else:
            raise ApiError(
                f"This model's maximum context length is {max_model_len} tokens, and the prompt has an image"
                f" of {part.tokens} behind {len(ids)}: make it smaller.",
                param="messages",
            )
    return ids + tokenizer.encode(text), images


def _content_parts(content: Any, number: int) -> Iterator[str | Image]:
    if content is None:
        return
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list):
        raise ApiError(f"messages.{number}: content must be a text.", param="messages")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else "nothing"
        if kind in ("text", "input_text", "output_text", None):
            yield str(part.get("text", ""))
        elif kind in ("image_url", "input_image", "image"):
            yield _image(part, number)
        else:
            raise ApiError(f"messages.{number}: the simulator reads text and images only.", param="messages")


def _image(part: dict[str, Any], number: int) -> Image:
    """The image of a part in any of the three forms (chat, /v1/responses, /v1/messages). Raises ApiError."""
    place = part.get("image_url", part.get("source"))
    if isinstance(place, dict) and place.get("type") == "base64":
        place = f"data:{place.get('media_type')};base64,{place.get('data')}"
    url = place.get("url") if isinstance(place, dict) else place
    try:
        if not isinstance(url, str) or not url.startswith("data:image/png;base64,"):
            raise ValueError
        head = base64.b64decode(url.partition(",")[2][:64], validate=True)
        if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
            raise ValueError
    except (ValueError, binascii.Error):
        raise ApiError(
            f"messages.{number}: the simulator reads images that are PNG in a data URL.", param="messages"
        ) from None
    sides = [int.from_bytes(head[at : at + 4], "big") for at in (16, 20)]
    if not all(1 <= side <= _LONGEST_SIDE for side in sides):
        raise ApiError(
            f"messages.{number}: an image of {sides[0]}x{sides[1]} pixels; a side has 1 to {_LONGEST_SIDE}.",
            param="messages",
        )
    across, down = (-(-side // _IMAGE_TOKEN_PIXELS) for side in sides)
    return Image(url, across * down)
