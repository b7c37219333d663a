"""The messages between a master and its workers, over Locust's own connection between them.

The order of a run: a worker says HELLO, and both prove that they know the shared secret (CHALLENGE, PROOF;
`secret`). All that follows is sealed. The worker gets its share of the schedule in pieces (PLAN) and says
READY; its clock is compared with the master's (CLOCK, TIME); all get the same start (GO). Records come home
in small batches (ROWS), of which only a few may be on their way unacknowledged (ACK). STATUS once a second is
for the display. STOP ends the load early, END lets what is in flight be answered; DONE follows the
acknowledgement of the last batch.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Sequence
from typing import Any

from wattload.client.record import Outcome, RequestRecord

HELLO, CHALLENGE, PROOF = "wattload_hello", "wattload_challenge", "wattload_proof"
PLAN, READY = "wattload_plan", "wattload_ready"
CLOCK, TIME, GO = "wattload_clock", "wattload_time", "wattload_go"
ROWS, ACK, STATUS = "wattload_rows", "wattload_ack", "wattload_status"
STOP, END, DONE = "wattload_stop", "wattload_end", "wattload_done"

PIECE_BYTES = 512 * 1024
BATCH_ROWS = 16
UNACKNOWLEDGED = 32

_FIELDS = tuple(field.name for field in dataclasses.fields(RequestRecord))
_OUTCOME, _GAPS = _FIELDS.index("outcome"), _FIELDS.index("itl_seconds")


def pack(records: Sequence[RequestRecord]) -> list[list[Any]]:
    """Records as what msgpack can carry: fields in order, gaps as the bytes of float32."""
    rows = []
    for record in records:
        row = [getattr(record, name) for name in _FIELDS]
        row[_OUTCOME] = record.outcome.value
        row[_GAPS] = array.array("f", record.itl_seconds).tobytes()
        rows.append(row)
    return rows


def unpack(rows: Sequence[Sequence[Any]]) -> list[RequestRecord]:
    """What `pack` made, as records again."""
    records = []
    for row in rows:
        values = list(row)
        values[_OUTCOME] = Outcome(values[_OUTCOME])
        gaps = array.array("f")
        gaps.frombytes(values[_GAPS])
        values[_GAPS] = gaps.tolist()
        records.append(RequestRecord(*values))
    return records
