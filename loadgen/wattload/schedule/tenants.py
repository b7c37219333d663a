"""Several tenants on one server: what each asks for, and their schedules laid over each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wattload.client.model_mix import ModelMix, parse_models
from wattload.errors import InputError
from wattload.schedule.table import ARRAYS, Schedule
from wattload.traces.parents import joined
from wattload.traces.trace import PrefixBlocks

_FIELDS = ("trace", "rate", "arrivals", "model")
# A comma also parts the parameters of an arrival process, so only one before a field's name parts fields.
_COMMA = re.compile(rf",(?=(?:{'|'.join(_FIELDS)})=)")


@dataclass(frozen=True, slots=True)
class Tenant:
    """One stream of requests. `rate` and `arrivals` are None, and `models` empty, where the run's own are
    meant.
    """

    tag: str
    trace: str
    rate: str | None = None
    arrivals: str | None = None
    models: ModelMix = ()


def parse_tenant(text: str) -> Tenant:
    """`TAG:trace=NAME_OR_FILE[,rate=R][,arrivals=PROCESS][,model=NAME[=WEIGHT],...]`.

    Raises InputError naming --tenant.
    """
    tag, colon, rest = text.strip().partition(":")
    if not colon or not tag.strip():
        raise InputError("tenant", f"{text!r} is not TAG:trace=NAME[,rate=R][,arrivals=PROCESS]")
    values: dict[str, str] = {}
    for part in _COMMA.split(rest):
        key, equals, value = part.partition("=")
        if key not in _FIELDS or not equals or not value.strip():
            raise InputError(
                "tenant", f"{text!r}: {part!r} is not one of {', '.join(f'{f}=' for f in _FIELDS)}"
            )
        if key in values:
            raise InputError("tenant", f"{text!r}: {key} is given twice")
        values[key] = value.strip()
    if "trace" not in values:
        raise InputError("tenant", f"{text!r} names no trace")
    try:
        models = parse_models(values["model"]) if "model" in values else ()
    except ValueError as error:
        raise InputError("tenant", f"{text!r}: model: {error}") from error
    return Tenant(tag.strip(), values["trace"], values.get("rate"), values.get("arrivals"), models)


def superposed(schedules: Sequence[Schedule]) -> Schedule:
    """One schedule of all requests in order of nominal time; equal times in the order of `schedules`.

    Sessions and prefix blocks of different tenants stay different. Raises InputError where two tenants have
    the same tag, one has no times (a closed loop) or their prefix blocks differ in size.
    """
    if len(schedules) == 1:
        return schedules[0]
    tags = [tag for schedule in schedules for tag in schedule.tags]
    if len(set(tags)) < len(tags):
        raise InputError(
            "trace", f": tenants need a tag each, as NAME#TAG; these are not distinct: {', '.join(tags)}"
        )
    if any(schedule.closed_concurrency for schedule in schedules):
        raise InputError("arrivals", "closed takes one `trace`: a slot belongs to no tenant")
    sizes = {schedule.prefix_block_tokens for schedule in schedules if schedule.prefix_hashes is not None}
    if len(sizes) > 1:
        raise InputError(
            "trace", f": prefix blocks of {' and '.join(map(str, sorted(sizes)))} tokens cannot be mixed"
        )
    columns: dict[str, Any] = {name: [getattr(s, name) for s in schedules] for name in ARRAYS}
    columns["session"] = _apart([s.session for s in schedules])
    columns["tag"] = _apart([s.tag for s in schedules])
    columns["task"] = _apart([s.task for s in schedules])
    merged: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    whole = Schedule(
        **merged,
        parents=joined([s.parents for s in schedules], [len(s) for s in schedules]),
        tags=tuple(tags),
        prefix_hashes=_blocks(schedules),
        prefix_block_tokens=max(sizes, default=0),
        shared_tokens=_shared(schedules),
        texts=_texts(schedules),
        text_starts=_starts(schedules),
        own_answers=any(s.own_answers for s in schedules),
        notes=tuple(dict.fromkeys(note for s in schedules for note in s.notes)),
        horizon_seconds=max(s.horizon_seconds for s in schedules),
        content_base=schedules[0].content_base,
        images=_images(schedules),
    )
    whole = whole.take(np.argsort(whole.nominal_seconds, kind="stable"))
    return replace(whole, index=np.arange(len(whole)))


def _apart(parts: list[Any]) -> list[Any]:
    """Numbers from 0 of each part moved beyond those before; -1 stays."""
    moved, base = [], 0
    for part in parts:
        moved.append(np.where(part >= 0, part + base, part).astype(part.dtype))
        base += int(part.max(initial=-1)) + 1
    return moved


def _blocks(schedules: Sequence[Schedule]) -> PrefixBlocks | None:
    if all(s.prefix_hashes is None for s in schedules):
        return None
    ids, lengths, base, size = [], [], 0, 0
    for schedule in schedules:
        blocks = schedule.prefix_hashes
        if blocks is None:
            lengths.append(np.zeros(len(schedule), np.int64))
            continue
        ids.append(blocks.ids + base)
        lengths.append(np.diff(blocks.offsets))
        base += int(blocks.ids.max(initial=-1)) + 1
        size = blocks.block_tokens
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths))])
    return PrefixBlocks(np.concatenate(ids), offsets, size)


def _shared(schedules: Sequence[Schedule]) -> Any:
    if all(s.shared_tokens is None for s in schedules):
        return None
    return np.concatenate(
        [np.zeros(len(s), np.int32) if s.shared_tokens is None else s.shared_tokens for s in schedules]
    )


def _starts(schedules: Sequence[Schedule]) -> Any:
    if all(s.text_starts is None for s in schedules):
        return None
    return np.concatenate(
        [np.zeros(len(s), np.int32) if s.text_starts is None else s.text_starts for s in schedules]
    )


def _images(schedules: Sequence[Schedule]) -> Any:
    if all(s.images is None for s in schedules):
        return None
    return np.concatenate(
        [np.full(len(s), -1, np.int16) if s.images is None else s.images for s in schedules]
    )


def _texts(schedules: Sequence[Schedule]) -> list[str] | None:
    texts = [s.texts for s in schedules]
    if all(text is None for text in texts):
        return None
    if any(text is None for text in texts):
        raise InputError("trace", ": a trace of text and one of lengths cannot be mixed in one run")
    return [text for part in texts if part is not None for text in part]
