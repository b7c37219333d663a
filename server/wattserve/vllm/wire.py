"""The bytes in which step records travel from the engine core to the API process: one message a flush.

A message stands alone (it names every request it speaks of), so that losing one loses its own steps and no
others. Layout: a header of eight little-endian int64, the request ids in UTF-8 separated by newlines, then
the prompt lengths of the requests (int32), then the columns of `StepBatch` one after the other (int64 a step,
int32 an entry).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from wattmeter.steps import StepBatch

MAGIC = 0x57415454_53544550  # "WATTSTEP"
VERSION = 2
_HEADER = struct.Struct("<8q")
NOT_NEW = -1
ENTRY_COLUMNS = (
    "step",
    "request",
    "prefill_tokens",
    "decode_tokens",
    "context_tokens",
    "cached_tokens",
    "draft_tokens",
    "accepted_tokens",
)


class WireError(ValueError):
    """A message that is not one of ours, or is cut short."""


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded message of the engine process `engine`. `steps_so_far` is the index of the engine's next
    step when the message was sent, so that a message without steps shows the loss of the last ones too.
    `batch.request_ids` are still engine ids; `prompt_tokens` has, for each, the length of its prompt where it
    began to run in one of these steps, and NOT_NEW for the others.
    """

    engine: int
    steps_so_far: int
    batch: StepBatch
    prompt_tokens: npt.NDArray[np.int32]


def encode(
    *,
    engine: int,
    steps_so_far: int,
    steps: npt.NDArray[np.int64],
    entries: npt.NDArray[np.int32],
    request_ids: list[str],
    prompt_tokens: npt.NDArray[np.int32],
) -> bytes:
    """Message bytes. `steps`: int64 (3, S): index, launch_ns, end_ns. `entries`: int32 (8, E) in the order of
    `ENTRY_COLUMNS`. `prompt_tokens`: int32, one a request."""
    ids = "\n".join(request_ids).encode()
    counts = (len(request_ids), len(ids), steps.shape[1], entries.shape[1])
    header = _HEADER.pack(MAGIC, VERSION, engine, steps_so_far, *counts)
    return header + ids + prompt_tokens.tobytes() + steps.tobytes() + entries.tobytes()


def decode(data: bytes) -> Message:
    """The message in `data`.

    Raises WireError where the bytes are not a message of this version or have another length than it says.
    """
    if len(data) < _HEADER.size:
        raise WireError(f"a step message of {len(data)} bytes is shorter than its header")
    magic, version, engine, steps_so_far, n_requests, n_ids, n_steps, n_entries = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise WireError(f"not a step message of version {VERSION}")
    expected = _HEADER.size + n_ids + 4 * n_requests + 8 * 3 * n_steps + 4 * len(ENTRY_COLUMNS) * n_entries
    if min(n_steps, n_entries, n_ids, n_requests) < 0 or len(data) != expected:
        raise WireError(f"a step message of {len(data)} bytes should have {expected}")
    at = _HEADER.size
    request_ids = tuple(data[at : at + n_ids].decode().split("\n")) if n_ids else ()
    if len(request_ids) != n_requests:
        raise WireError(f"a step message names {len(request_ids)} requests and says {n_requests}")
    at += n_ids
    prompt_tokens = np.frombuffer(data, np.int32, n_requests, at)
    at += 4 * n_requests
    index, launch_ns, end_ns = np.frombuffer(data, np.int64, 3 * n_steps, at).reshape(3, n_steps)
    at += 8 * 3 * n_steps
    n_columns = len(ENTRY_COLUMNS)
    entries = np.frombuffer(data, np.int32, n_columns * n_entries, at).reshape(n_columns, n_entries)
    column = dict(zip(ENTRY_COLUMNS, entries, strict=True))
    batch = StepBatch(
        index=index,
        launch_ns=launch_ns,
        end_ns=end_ns,
        step=column["step"],
        request=column["request"],
        prefill_tokens=column["prefill_tokens"],
        decode_tokens=column["decode_tokens"],
        context_tokens=column["context_tokens"],
        cached_tokens=column["cached_tokens"],
        draft_tokens=column["draft_tokens"],
        accepted_tokens=column["accepted_tokens"],
        request_ids=request_ids,
    )
    return Message(engine, steps_so_far, batch, prompt_tokens)
