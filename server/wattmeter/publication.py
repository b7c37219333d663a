"""What settling found for each request, and how it reaches the requests without keeping anyone waiting.

Dividing a second of a thousand requests takes milliseconds, which a response must not wait for. So the
division is made while the books are open, collected here, and entered request by request: what is settled of
a request and what is still an estimate change together, so that every answer has each joule once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattmeter.faults import Fault
from wattmeter.recording import number_names
from wattmeter.requests import Estimate, RequestBook

F64 = npt.NDArray[np.float64]

# So many requests are entered while the books are closed: about 0.1 ms.
REQUESTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Division:
    """What one piece gave the requests of its steps: arrays of shape (R,), in the order of `request_ids`.

    None where the meter did not cover the piece: the requests' energy is then not known.
    """

    request_ids: tuple[str, ...]
    flags: frozenset[Fault]
    joules: tuple[F64, F64, F64] | None  # prefill joules, decode joules, variance


def publish(
    book: RequestBook,
    lock: threading.RLock,
    divisions: Sequence[Division],
    estimate: Estimate | None,
    generation: int,
) -> None:
    """Enter `divisions` into the requests and put `estimate` in the place of what was estimated before.

    What was estimated since `generation` began stays on top of it. `lock` guards the book; it is taken for
    REQUESTS_AT_ONCE requests at a time.
    """
    numbers: dict[str, int] = {}
    parts: list[Division | Estimate] = [*divisions] if estimate is None else [*divisions, estimate]
    rows = [number_names(part.request_ids, numbers) for part in parts]
    settled = np.zeros((3, len(numbers)))
    pending = np.zeros((2, len(numbers)))
    flags: list[frozenset[Fault]] = [frozenset()] * len(numbers)
    missing = np.zeros(len(numbers), dtype=bool)
    for division, row in zip(divisions, rows, strict=False):
        if division.joules is None:
            missing[row] = True
        else:
            for total, own in zip(settled, division.joules, strict=True):
                total[row] += own
        for number in row.tolist() if division.flags else ():
            flags[number] |= division.flags
    if estimate is not None:
        pending[:, rows[-1]] = estimate.prefill_joules, estimate.decode_joules
    entries = list(zip(numbers, flags, missing.tolist(), settled.T.tolist(), pending.T.tolist(), strict=True))
    for begin in range(0, len(entries), REQUESTS_AT_ONCE):
        with lock:
            for name, flagged, missed, (prefill, decode, variance), left in entries[
                begin : begin + REQUESTS_AT_ONCE
            ]:
                state = book.get(name)
                if state is None:
                    continue  # forgotten meanwhile
                state.prefill_joules += prefill
                state.decode_joules += decode
                state.variance += variance
                state.missing = state.missing or missed
                if flagged:
                    state.flags |= flagged
                state.estimate(left[0], left[1], generation)
        # Whoever waits for the lock or the interpreter gets it now: a lock taken again at once is not fair.
        time.sleep(0)
    with lock:
        for state in book.open_states():
            if state.id not in numbers:
                state.estimate(0.0, 0.0, generation)
