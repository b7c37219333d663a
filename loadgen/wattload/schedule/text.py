"""Prompts of text for a schedule: the texts of its trace, counted, or words of a planned number of tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wattload.client.api import APIS
from wattload.client.control import control_client
from wattload.client.endpoint import Endpoint
from wattload.errors import InputError
from wattload.prompts.tokenizer import Tokenizer, WordPool, open_tokenizer, word_pool
from wattload.schedule.frame import TEXT_GLUE, WORDS_GLUE
from wattload.schedule.table import Schedule

# The endpoints whose inputs are text: of chats, and of queries with documents.
_TEXT_ONLY = ("rerank", "score")


def needs_text(schedule: Schedule, api: str, *, system: str = "", told_ids: bool = False) -> bool:
    """Whether prompts must be made of text, or counted, before they can be sent. `system`: a system prompt of
    text. `told_ids`: the endpoint tells the token ids of its responses, so that later turns can repeat those.
    """
    return (
        APIS[api].chat
        or api in _TEXT_ONLY
        or schedule.texts is not None
        or (schedule.own_answers and not told_ids)
        or bool(system)
    )


def with_text(
    schedule: Schedule,
    endpoint: Endpoint,
    *,
    tokenizer: str,
    max_model_len: int | None = None,
    system: tuple[int, str] = (0, ""),
) -> Schedule:
    """`schedule` with prompts of text: the trace's own, counted, or words to the planned number of tokens.

    `tokenizer`: "server", or the path of a tokenizer.json. `system`: the words, or the text, of a system
    prompt. Raises InputError where the tokenizer cannot be asked or makes no exact lengths, and where a text
    is longer than the model's limit.
    """
    client = None
    if tokenizer == "server":
        client = control_client(
            endpoint.url, headers=endpoint.headers, tls=endpoint.tls, timeout_seconds=30.0
        )
    counting = open_tokenizer(tokenizer, url=endpoint.url, model=endpoint.model, client=client)
    chat = endpoint.shape.chat
    made = schedule
    if schedule.texts is not None:
        made = with_counts(schedule, counting, chat=chat)
    if schedule.texts is None or system[0]:
        pool = word_pool(counting, chat=chat)
        made = with_words(made, pool) if schedule.texts is None else replace(made, words=pool.words)
    if any(system):
        made = _with_system(made, counting, *system, chat=chat)
    if max_model_len is not None and (schedule.texts is not None or any(system)):
        _check_lengths(made, max_model_len)
    return made


def _with_system(schedule: Schedule, counting: Tokenizer, words: int, text: str, *, chat: bool) -> Schedule:
    """`schedule` with a system prompt, its tokens counted as the difference that it makes."""
    said = text or " ".join(schedule.words[place % len(schedule.words)] for place in range(words))
    sample = schedule.texts[0] if schedule.texts is not None else schedule.words[0]
    if chat:
        whole = counting.counts([sample], chat=True, system=said)[0]
    else:
        glue = WORDS_GLUE if schedule.texts is None else TEXT_GLUE
        whole = counting.counts([said + glue + sample], chat=False)[0]
    tokens = whole - counting.counts([sample], chat=chat)[0]
    frame = replace(schedule.frame, system_tokens=max(1, tokens), system_text=text, system_words=words)
    return replace(schedule, frame=frame)


def _check_lengths(schedule: Schedule, max_model_len: int) -> None:
    system = schedule.frame.system_tokens
    total = schedule.prompt_tokens.astype("int64") + schedule.output_tokens + system
    if (total > max_model_len).any():
        at = int(total.argmax())
        before = f" behind the {system} of the system prompt" if system else ""
        raise InputError(
            f"request {at + 1} of the trace's texts is {schedule.prompt_tokens[at]} tokens{before} and asks"
            f" for {schedule.output_tokens[at]}, more than the model's limit of {max_model_len}"
        )


def with_words(schedule: Schedule, pool: WordPool) -> Schedule:
    """`schedule` with prompts of text of its planned lengths. Prompts shorter than what the template alone
    takes become one word long, which a note says.
    """
    least = pool.extra_tokens + 1
    short = int((schedule.prompt_tokens < least).sum())
    notes = schedule.notes
    if short:
        notes += (
            f"{short} prompts are shorter than the {least} tokens that a text has at least: sent so long",
        )
    return replace(
        schedule,
        prompt_tokens=np.maximum(schedule.prompt_tokens, least).astype(np.int32),
        words=pool.words,
        extra_tokens=pool.extra_tokens,
        notes=notes,
    )


def with_counts(schedule: Schedule, tokenizer: Tokenizer, *, chat: bool) -> Schedule:
    """`schedule`, whose trace holds text, with its prompts counted instead of estimated."""
    if schedule.texts is None:
        raise ValueError("the schedule has no texts")
    counts = tokenizer.counts(schedule.texts, chat=chat)
    notes = tuple(note for note in schedule.notes if "estimated" not in note)
    said = "output lengths are estimated at 4 characters a token; prompts were counted by the tokenizer"
    return replace(schedule, prompt_tokens=np.array(counts, np.int32), notes=(*notes, said))
