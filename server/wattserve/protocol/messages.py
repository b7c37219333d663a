"""The messages: a JSON header and, behind it, frames of raw little-endian columns.

A message is a list of frames (a multipart message of ZeroMQ). The first is a JSON object in UTF-8 with the
protocol's version `v`, the message's `type`, and the fields of one of the classes below. A message of step
records names its columns in the header; each is one further frame.

Within a version, keys, columns and types of messages may be added: a receiver ignores those that it does not
know, and a column that is absent is all zeros. What would be misunderstood gets another version, and a
receiver refuses a version that it does not speak, with a sentence.

A sender for whom each frame costs something sends a message as one frame: a zero byte, the length of the
header (4 bytes, little-endian), the header, and the other frames one behind the other; `frames` of the header
are their lengths.
"""

from __future__ import annotations

import json
import math
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeGuard

import numpy as np
import numpy.typing as npt

from wattmeter.steps.batch import ENTRY_COLUMNS, STEP_COLUMNS, StepBatch

VERSION = 3
# What one message may bring: a bound on what a faulty sender can do to the meter.
MAX_HEADER_BYTES = 32 << 20
MAX_STEPS = 1_000_000
MAX_NAME_CHARACTERS = 1024
MAX_TEXT_CHARACTERS = 64 * 1024
# Whole numbers that a double, and with it JSON elsewhere, holds exactly.
MAX_COUNT = 2**53
MAX_TOKENS = 2**31 - 1
MAX_NS = 2**63 - 1

Frames = list[bytes]

REQUIRED_COLUMNS = ("index", "launch_ns", "end_ns", "step", "request", "prefill_tokens", "decode_tokens")
DTYPES: dict[str, np.dtype[Any]] = {"<i4": np.dtype("<i4"), "<i8": np.dtype("<i8")}


class ProtocolError(ValueError):
    """Frames that are not a message of this protocol, or are cut short: one sentence."""


class VersionError(ProtocolError):
    """A message of a version that is not spoken here; `version` is the sender's, None where it has none."""

    def __init__(self, version: object) -> None:
        self.version = version
        super().__init__(f"the sender speaks protocol {_shown(version)}, and this side speaks {VERSION}")


@dataclass(frozen=True, slots=True)
class EngineHello:
    """An engine says who it is: first of all, and again about once a second, so that a meter which was
    started again knows it.

    `engine` is a name that no other engine ever has; `server` is the same for all engines and API processes
    of one server. `gpus` are indices in PCI bus order or UUIDs. Times are `time.monotonic_ns` of the host
    whose boot id (`/proc/sys/kernel/random/boot_id`) is `boot_id`: `sent_ns` of this message, `started_ns` of
    when the engine began to start. `next_step` is the index of the engine's next step. `rank` counts the
    `engines` of the server. `pid` is the process that the engine's work on the GPUs descends from, as
    `pid_namespace` numbers processes (the target of /proc/self/ns/pid): by it others' work on the same GPU is
    told from the engine's. `shape` are facts of the model's configuration (`experts`,
    `experts_per_token`, `layers`, ...), absent where they do not apply. `padding` is what the engine computes
    beyond the tokens asked for: `graph_sizes` and `tile_tokens`. `hosts` is how many hosts have GPUs of the
    engine, each with a meter that gets its steps. To the meter of a host with another clock `clock` says what
    it is against the sender's: `boot_id` of the meter's host, `offset_ns` (the meter's monotonic clock minus
    the sender's) and `error_ns`, which the true offset differs by at most.
    """

    TYPE: ClassVar[str] = "hello"
    engine: str
    server: str
    model: str
    boot_id: str
    sent_ns: int
    started_ns: int
    next_step: int = 0
    gpus: tuple[str, ...] = ()
    rank: int = 0
    engines: int = 1
    software: str = ""
    max_model_len: int | None = None
    shape: dict[str, Any] = field(default_factory=dict)
    padding: dict[str, Any] = field(default_factory=dict)
    pid: int | None = None
    pid_namespace: str = ""
    hosts: int = 1
    clock: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineGoodbye:
    """The engine ends in order; without it the meter finds out by its silence."""

    TYPE: ClassVar[str] = "goodbye"
    engine: str


@dataclass(frozen=True, slots=True)
class StepRecords:
    """Steps of one engine that have ended, in the order they ended.

    `next_step` is the index of the engine's next step when the message was sent, so that a message without
    steps shows the loss of the last ones too. `batch.request_ids` are the ids that clients know; several
    entries of a step may name the same one. `prompts` are (row in `request_ids`, part, tokens) of prompts
    that began to run in these steps; the samples of one prompt have the same part. `complete_ns`: every step
    that had ended by then is in this message or in one before it, so that joules up to then can be divided.
    """

    TYPE: ClassVar[str] = "steps"
    engine: str
    next_step: int
    batch: StepBatch
    prompts: tuple[tuple[int, str, int], ...] = ()
    complete_ns: int | None = None


@dataclass(slots=True)
class Scheduled:
    """Steps as a scheduler has them, made without an array library; `decode` makes StepRecords of them.

    Per step: `index`, `launch_ns`, `end_ns`, and how many `entries` it has. Per entry, those of a step one
    behind the other: `request` (row in `request_ids`), `context_tokens` before the step, `scheduled_tokens`
    computed in it. Per request: `prompt_tokens`. `from_cache` are the entries whose context came from the
    prefix cache, `drafts` are (entry, tokens drafted, tokens accepted). An entry computes its prompt where
    its context is shorter than that, or where it computes more than one token besides drafts; else it
    decodes.
    """

    TYPE: ClassVar[str] = "scheduled"
    request_ids: list[str] = field(default_factory=list)
    prompts: list[tuple[int, str, int]] = field(default_factory=list)
    from_cache: list[int] = field(default_factory=list)
    drafts: list[tuple[int, int, int]] = field(default_factory=list)
    index: array[int] = field(default_factory=lambda: array("q"))
    launch_ns: array[int] = field(default_factory=lambda: array("q"))
    end_ns: array[int] = field(default_factory=lambda: array("q"))
    entries: array[int] = field(default_factory=lambda: array("i"))
    request: array[int] = field(default_factory=lambda: array("i"))
    context_tokens: array[int] = field(default_factory=lambda: array("i"))
    scheduled_tokens: array[int] = field(default_factory=lambda: array("i"))
    prompt_tokens: array[int] = field(default_factory=lambda: array("i"))


SCHEDULED_COLUMNS = tuple(item.name for item in fields(Scheduled) if item.type == "array[int]")


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """An API process has taken a request; `group` is its tenant."""

    TYPE: ClassVar[str] = "request_started"
    server: str
    id: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request will run no more steps. Token counts are what its response told, None where it told none.

    A count that no request can have counts as not told. `refused`: the server did not take it; unless it has
    run a step all the same, there was no such request. `group` is then the tenant that its start named, since
    another request of this id may run in another API process.
    """

    TYPE: ClassVar[str] = "request_finished"
    server: str
    id: str
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    aborted: bool = False
    refused: bool = False
    group: str | None = None


@dataclass(frozen=True, slots=True)
class EnergyQuestion:
    """What did the request `id` cost? Answered once a step of it is known, or after `wait_seconds`.

    With `ended` it will run no more steps, and the token counts are those of `RequestFinished`, which need
    not be sent where the answer's content says `ended` too. The content has `energy`, and `energy_reason`
    where that is null. `lost` is how many messages the sender lost so far because nobody took them.
    """

    TYPE: ClassVar[str] = "energy_question"
    server: str
    number: int
    id: str
    wait_seconds: float = 0.0
    ended: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    lost: int = 0


@dataclass(frozen=True, slots=True)
class HttpQuestion:
    """A request to the meter's HTTP routes by way of an API process; `server` names whose engines it means.

    With a `tenant`, joules of its own requests alone are told. The answer's content has `status` and
    `content_type`; its body is the frame behind it.
    """

    TYPE: ClassVar[str] = "http_question"
    server: str
    number: int
    method: str
    path: str
    query: str = ""
    body: bytes = b""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class MeterQuestion:
    """Is a meter there? The answer's content has `meter` (its version), `pid`, `protocol`, and of its clock
    `monotonic_ns` now and the `boot_id` of its host."""

    TYPE: ClassVar[str] = "meter_question"
    number: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the meter answers to the question `number` of the same connection."""

    TYPE: ClassVar[str] = "answer"
    number: int
    content: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Refused:
    """The meter does not take what was sent, and why."""

    TYPE: ClassVar[str] = "refused"
    reason: str
    engine: str = ""


Message = (
    EngineHello
    | EngineGoodbye
    | StepRecords
    | RequestStarted
    | RequestFinished
    | EnergyQuestion
    | HttpQuestion
    | MeterQuestion
    | Answer
    | Refused
)
_PLAIN: dict[str, type[Any]] = {
    kind.TYPE: kind
    for kind in (
        EngineHello,
        EngineGoodbye,
        RequestStarted,
        RequestFinished,
        EnergyQuestion,
        HttpQuestion,
        MeterQuestion,
        Answer,
        Refused,
    )
}
_encode_header = json.JSONEncoder(separators=(",", ":")).encode
# The field of a message that travels as a frame of its own.
_BODY = "body"
_FIELDS = {kind: [item.name for item in fields(cls) if item.name != _BODY] for kind, cls in _PLAIN.items()}
_WITH_BODY = frozenset(cls for cls in _PLAIN.values() if _BODY in {item.name for item in fields(cls)})


def _is_text(value: object, most: int = MAX_TEXT_CHARACTERS) -> TypeGuard[str]:
    """Whether a value is a text that can be written anywhere: bounded, and without half a surrogate pair."""
    if not isinstance(value, str) or len(value) > most:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -MAX_NS <= value <= MAX_NS


def _is_float(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "str | None": lambda value: value is None or _is_text(value),
    "int": _is_int,
    "float": _is_float,
    "bool": lambda value: isinstance(value, bool),
    "int | None": lambda value: value is None or _is_int(value),
    "tuple[str, ...]": lambda value: isinstance(value, list | tuple) and all(map(_is_text, value)),
    "dict[str, Any]": lambda value: isinstance(value, dict),
}
# By type: each field with its type and how a value of it is checked.
_READING = {
    kind: [(item.name, str(item.type), _CHECKS[str(item.type)]) for item in fields(cls) if item.name != _BODY]
    for kind, cls in _PLAIN.items()
}
_SCHEDULED_KINDS = [[name, "<i8" if name in STEP_COLUMNS else "<i4"] for name in SCHEDULED_COLUMNS]
# Names by which things are found again, kept as long as they are known; and counts from 0.
_NAMES = frozenset({"id", "server", "engine", "boot_id"})
_COUNTS = frozenset({"number", "lost", "next_step", "rank", "engines", "hosts"})
_TOKENS = frozenset({"prompt_tokens", "output_tokens"})


def template(kind: str, **fixed: Any) -> str:
    """The header of messages of this type as a %-template: the fields in `fixed` are in it, the others' JSON
    texts are to be put in, in the order in which the class has them. For who sends thousands a second."""
    texts = {
        name: json.dumps(fixed[name]).replace("%", "%%") if name in fixed else "%s" for name in _FIELDS[kind]
    }
    fields = [f'"{name}":{text}' for name, text in texts.items()]
    return f'{{"v":{VERSION},"type":"{kind}",{",".join(fields)}}}'


def encode(message: Message) -> Frames:
    """The frames of a message."""
    if isinstance(message, StepRecords):
        return encode_steps(
            engine=message.engine,
            next_step=message.next_step,
            columns={name: getattr(message.batch, name) for name in (*STEP_COLUMNS, *ENTRY_COLUMNS)},
            request_ids=message.batch.request_ids,
            prompts=message.prompts,
            complete_ns=message.complete_ns,
        )
    kind = message.TYPE
    header = {"v": VERSION, "type": kind, **{name: getattr(message, name) for name in _FIELDS[kind]}}
    frames = [_encode_header(header).encode()]
    body: bytes = getattr(message, _BODY, b"")
    if body:
        frames.append(body)
    return frames


def encode_steps(
    *,
    engine: str,
    next_step: int,
    columns: dict[str, npt.NDArray[Any]],
    request_ids: Sequence[str],
    prompts: Sequence[tuple[int, str, int]] = (),
    complete_ns: int | None = None,
) -> Frames:
    """The frames of step records out of columns by name: int64 a step, int32 an entry."""
    kinds = {name: "<i8" if name in STEP_COLUMNS else "<i4" for name in columns}
    header = {
        "v": VERSION,
        "type": StepRecords.TYPE,
        "engine": engine,
        "next_step": next_step,
        "request_ids": list(request_ids),
        "prompts": list(prompts),
        "complete_ns": complete_ns,
        "columns": list(kinds.items()),
    }
    frames = [json.dumps(header, separators=(",", ":")).encode()]
    frames += [np.ascontiguousarray(columns[name], DTYPES[kind]).tobytes() for name, kind in kinds.items()]
    return frames


def encode_scheduled(told: Scheduled, *, engine: str, next_step: int, complete_ns: int | None) -> bytes:
    """The one frame of steps as a scheduler has them."""
    names = "\n".join(told.request_ids)
    columns = [getattr(told, name) for name in SCHEDULED_COLUMNS]
    parts = [column.tobytes() for column in columns]
    header: dict[str, Any] = {
        "v": VERSION,
        "type": Scheduled.TYPE,
        "engine": engine,
        "next_step": next_step,
        "prompts": told.prompts,
        "from_cache": told.from_cache,
        "drafts": told.drafts,
        "complete_ns": complete_ns,
        "columns": _SCHEDULED_KINDS,
    }
    if names.count("\n") == max(0, len(told.request_ids) - 1):
        parts.append(names.encode("utf-8", "surrogatepass"))
        header["names"] = True
    else:  # a name with a line break in it
        header["request_ids"] = told.request_ids
    header["frames"] = [len(part) for part in parts]
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([b"\0", struct.pack("<I", len(text)), text, *parts])


def _unpacked(frames: Sequence[bytes]) -> Sequence[bytes]:
    """The frames of a message; several out of one that holds them all."""
    if len(frames) != 1 or frames[0][:1] != b"\0":
        return frames
    packed = frames[0]
    if len(packed) < 5:
        raise ProtocolError("a message in one frame that is cut short")
    at = 5 + struct.unpack("<I", packed[1:5])[0]
    header = packed[5:at]
    lengths = _header([header]).get("frames")
    if not isinstance(lengths, list) or not all(_is_int(n) and n >= 0 for n in lengths):
        raise ProtocolError("a message in one frame needs frames, a list of lengths")
    if at + sum(lengths) != len(packed):
        raise ProtocolError("a message in one frame whose frames are not as long as it says")
    found = [header]
    for length in lengths:
        found.append(packed[at : at + length])
        at += length
    return found


def decode(frames: Sequence[bytes]) -> Message:
    """The message in `frames`.

    Raises VersionError for another version, and ProtocolError where the frames are not a message, name a
    type that is not known, or contradict themselves.
    """
    frames = _unpacked(frames)
    header = _header(frames)
    kind = header.get("type")
    if kind == StepRecords.TYPE:
        return _decode_steps(header, frames[1:])
    if kind == Scheduled.TYPE:
        return _decode_steps(*_as_steps(header, frames[1:]))
    cls = _PLAIN.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ProtocolError(f"a message of the type {_shown(kind)}, which is not known here")
    values: dict[str, Any] = {}
    for name, type_name, check in _READING[cls.TYPE]:
        if name not in header:
            continue
        value = header[name]
        if name in _TOKENS and value is not None and not _is_tokens(value):
            value = None
        if not check(value):
            raise ProtocolError(f"{name} of a {kind} message is not {type_name}: {_shown(value)}")
        if name in _NAMES and len(value) > MAX_NAME_CHARACTERS:
            raise ProtocolError(f"{name} of a {kind} message is longer than {MAX_NAME_CHARACTERS} characters")
        if name in _COUNTS and not 0 <= value <= MAX_COUNT:
            raise ProtocolError(f"{name} of a {kind} message is no count: {_shown(value)}")
        values[name] = tuple(value) if type_name.startswith("tuple") else value
    if cls in _WITH_BODY:
        values[_BODY] = frames[1] if len(frames) > 1 else b""
    try:
        message: Message = cls(**values)
    except TypeError:
        missing = ", ".join(sorted(_needed(cls) - set(values)))
        raise ProtocolError(f"a {kind} message lacks {missing}") from None
    return message


def _is_tokens(value: object) -> bool:
    return _is_int(value) and 0 <= value <= MAX_TOKENS


def _shown(value: object) -> str:
    """A value for a sentence."""
    return ascii(value)[:80]


def _needed(cls: type[Any]) -> set[str]:
    from dataclasses import MISSING

    return {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}


def _header(frames: Sequence[bytes]) -> dict[str, Any]:
    if not frames or len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError("a message without a header, or with one that is too long")
    try:
        header = json.loads(frames[0])
    except (ValueError, RecursionError):
        raise ProtocolError("a message whose first frame is not JSON") from None
    if not isinstance(header, dict):
        raise ProtocolError("a message whose header is not a JSON object")
    if header.get("v") != VERSION:
        raise VersionError(header.get("v"))
    return header


def _decode_steps(header: dict[str, Any], frames: Sequence[bytes]) -> StepRecords:
    engine, next_step = header.get("engine"), header.get("next_step")
    complete_ns = header.get("complete_ns")
    ids, named = header.get("request_ids"), header.get("columns")
    if not _is_text(engine, MAX_NAME_CHARACTERS) or not _is_int(next_step) or not 0 <= next_step <= MAX_COUNT:
        raise ProtocolError("step records need engine (text) and next_step (a whole number from 0)")
    if complete_ns is not None and not _is_int(complete_ns):
        raise ProtocolError(f"complete_ns of step records must be a whole number, not {_shown(complete_ns)}")
    if not isinstance(ids, list) or not all(_is_text(item, MAX_NAME_CHARACTERS) for item in ids):
        raise ProtocolError(
            f"request_ids of step records must be a list of texts of at most {MAX_NAME_CHARACTERS} characters"
        )
    columns = _columns(named, frames)
    n_steps, n_entries = len(columns["index"]), len(columns["request"])
    for name in (*STEP_COLUMNS, *ENTRY_COLUMNS):
        length, dtype = (n_steps, np.int64) if name in STEP_COLUMNS else (n_entries, np.int32)
        if name not in columns:
            columns[name] = np.zeros(length, dtype)
        elif len(columns[name]) != length:
            raise ProtocolError(f"the column {name} has {len(columns[name])} rows and should have {length}")
    _check_times(columns)
    if n_entries:
        step, request = columns["step"], columns["request"]
        if step.min() < 0 or step.max() >= n_steps or (np.diff(step) < 0).any():
            raise ProtocolError("the column step must count the rows of the steps, from 0, in order")
        if request.min() < 0 or request.max() >= len(ids):
            raise ProtocolError("the column request must be positions in request_ids")
        below = next((name for name in ENTRY_COLUMNS if columns[name].min() < 0), None)
        if below is not None:
            raise ProtocolError(f"the column {below} holds a value below 0")
    known = {name: columns[name] for name in (*STEP_COLUMNS, *ENTRY_COLUMNS)}
    batch = StepBatch(**known, request_ids=tuple(ids))  # type: ignore[arg-type]
    prompts = _prompts(header.get("prompts", []), len(ids))
    return StepRecords(engine, next_step, batch, prompts, complete_ns)


def _check_times(columns: dict[str, npt.NDArray[Any]]) -> None:
    """Steps are told in the order in which they ended, none ends before it was launched."""
    launched, ended = columns["launch_ns"], columns["end_ns"]
    if len(ended) and (launched.min() < 0 or (ended < launched).any() or (np.diff(ended) < 0).any()):
        raise ProtocolError(
            "launch_ns and end_ns must be times from 0 on, no end before its launch, the ends in order"
        )


def _as_steps(header: dict[str, Any], frames: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the columns of `steps` out of those of `scheduled`."""
    ids = header.get("request_ids")
    if header.get("names"):
        if not frames:
            raise ProtocolError("scheduled steps without the frame of their names")
        try:
            ids = frames[-1].decode("utf-8", "surrogatepass").split("\n") if frames[-1] else []
        except UnicodeDecodeError:
            raise ProtocolError("the names of scheduled steps are not UTF-8") from None
        frames = frames[:-1]
    columns = _columns(header.get("columns"), frames, required=SCHEDULED_COLUMNS, long=STEP_COLUMNS)
    steps, request = len(columns["index"]), columns["request"]
    entries, prompt = columns["entries"], columns["prompt_tokens"]
    if len(entries) != steps or (steps and entries.min() < 0) or entries.sum(dtype=np.int64) != len(request):
        raise ProtocolError("the column entries must count the entries of each step")
    if not isinstance(ids, list) or len(prompt) != len(ids):
        raise ProtocolError("the column prompt_tokens needs a row for each of request_ids")
    if len(request) and not 0 <= request.min() <= request.max() < len(ids):
        raise ProtocolError("the column request must be positions in request_ids")
    context, tokens = columns["context_tokens"], columns["scheduled_tokens"]
    if not len(context) == len(tokens) == len(request):
        raise ProtocolError("the columns of scheduled steps are not of one length")
    drafted, accepted, cached = (np.zeros(len(request), np.int32) for _ in range(3))
    drafts = _rows(header.get("drafts", []), 3, len(request))
    drafted[drafts[:, 0]], accepted[drafts[:, 0]] = drafts[:, 1], drafts[:, 2]
    from_cache = _rows(header.get("from_cache", []), 0, len(request))
    cached[from_cache] = context[from_cache]
    # One token at a time past the prompt is decoding; everything else fills the KV cache, also the tokens a
    # preempted request computes again.
    prefill = (context < prompt[request]) | (tokens - drafted > 1)
    as_steps = {
        "index": columns["index"],
        "launch_ns": columns["launch_ns"],
        "end_ns": columns["end_ns"],
        "step": np.repeat(np.arange(steps, dtype=np.int32), entries),
        "request": request,
        "prefill_tokens": tokens * prefill,
        "decode_tokens": tokens * ~prefill,
        "context_tokens": context,
        "cached_tokens": cached,
        "draft_tokens": drafted,
        "accepted_tokens": accepted,
    }
    kinds = [[name, "<i8" if name in STEP_COLUMNS else "<i4"] for name in as_steps]
    return {**header, "request_ids": ids, "columns": kinds}, [a.tobytes() for a in as_steps.values()]


def _rows(given: object, width: int, entries: int) -> npt.NDArray[np.int64]:
    """Entries, (N,), or with a `width` lists whose first number is one, (N, width), as an array."""
    rows = given if isinstance(given, list) else [None]
    if width:
        good = all(isinstance(row, list) and len(row) == width and all(map(_is_tokens, row)) for row in rows)
    else:
        good = all(map(_is_tokens, rows))
    if not good:
        raise ProtocolError("drafts and from_cache of scheduled steps must be lists of whole numbers")
    found = np.array(rows, np.int64).reshape((-1, width) if width else -1)
    named = found[:, 0] if width else found
    if len(named) and named.max() >= entries:
        raise ProtocolError(f"drafts or from_cache name an entry of {entries} that is none")
    return found


def _columns(
    named: object,
    frames: Sequence[bytes],
    *,
    required: Sequence[str] = REQUIRED_COLUMNS,
    long: Sequence[str] = STEP_COLUMNS,
) -> dict[str, npt.NDArray[Any]]:
    """Each column by its name; those in `long` are int64, the others int32."""
    if not isinstance(named, list) or len(named) != len(frames):
        raise ProtocolError("columns of step records must name each frame behind the header")
    columns: dict[str, npt.NDArray[Any]] = {}
    for item, frame in zip(named, frames, strict=True):
        if not isinstance(item, list) or len(item) != 2 or item[1] not in DTYPES:
            raise ProtocolError(f"a column is [name, '<i4' or '<i8'], not {_shown(item)}")
        dtype = DTYPES[item[1]]
        if len(frame) % dtype.itemsize or len(frame) // dtype.itemsize > 64 * MAX_STEPS:
            raise ProtocolError(f"the column {item[0]} has {len(frame)} bytes, which is no whole column")
        column = np.frombuffer(frame, dtype)
        wanted = np.dtype(np.int64 if item[0] in long else np.int32)
        narrowed = wanted.itemsize < dtype.itemsize and len(column) > 0
        if narrowed and not -MAX_TOKENS <= column.min() <= column.max() <= MAX_TOKENS:
            raise ProtocolError(f"the column {str(item[0])[:40]} holds a value that no 32 bits hold")
        columns[str(item[0])] = column if column.dtype == wanted else column.astype(wanted)
    missing = [name for name in required if name not in columns]
    if missing:
        raise ProtocolError(f"step records lack the columns {', '.join(missing)}")
    return columns


def _prompts(given: object, n_requests: int) -> tuple[tuple[int, str, int], ...]:
    if not isinstance(given, list):
        raise ProtocolError("prompts of step records must be a list")
    for item in given:
        good = isinstance(item, list) and len(item) == 3 and _is_int(item[0])
        if not good or not _is_text(item[1], MAX_NAME_CHARACTERS) or not _is_tokens(item[2]):
            raise ProtocolError(f"a prompt is [row, part, tokens], not {_shown(item)}")
        if not 0 <= item[0] < n_requests:
            raise ProtocolError(f"a prompt names row {item[0]} of {n_requests} requests")
    return tuple((item[0], item[1], item[2]) for item in given)
