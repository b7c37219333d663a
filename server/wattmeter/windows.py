"""The energy of any window of time out of ledgers and settled pieces."""

from __future__ import annotations

from collections.abc import Mapping

from wattmeter.answers import DeviceEnergy, WindowEnergy
from wattmeter.devicebook import DeviceBook
from wattmeter.faults import Fault
from wattmeter.idle import IdleTracker
from wattmeter.settlement import Piece, Settlement


def window_energy(
    start_unix: float,
    end_unix: float,
    *,
    start_ns: int,
    end_ns: int,
    books: Mapping[str, DeviceBook],
    settlement: Settlement,
    idle: IdleTracker,
    account_flags: frozenset[Fault],
) -> WindowEnergy:
    """Joules of [start, end) by device from the ledgers, by bucket from the pieces.

    A piece that the window cuts is divided at the cut: its idle part by time, what is above idle by the
    ledgers' energy above idle on either side (by time where that is not positive). What is not settled yet is
    in the total and unattributed, and the answer is not complete.
    """
    devices = []
    total: float | None = 0.0
    variance = 0.0
    flags: set[Fault] = set(account_flags)
    for book in books.values():
        part = book.ledger.energy(start_ns, end_ns)
        device = book.device
        part_flags = part.flags | book.flags
        devices.append(
            DeviceEnergy(
                device.id,
                device.name,
                device.source,
                part.joules,
                part.uncertainty_joules,
                part.covered_seconds,
                part_flags,
            )
        )
        flags |= part_flags
        if part.joules is None or part.uncertainty_joules is None:
            total = None
        elif total is not None:
            total += part.joules
            variance += part.uncertainty_joules**2
    if total is None:
        return WindowEnergy(
            start_unix,
            end_unix,
            False,
            None,
            None,
            None,
            None,
            None,
            None,
            tuple(devices),
            {},
            frozenset(flags),
        )
    prefill = decode = 0.0
    idle_joules: float | None = 0.0
    settled_seconds = 0.0
    groups: dict[str, float] = {}
    for piece in settlement.overlapping(start_ns, end_ns):
        seconds, share = _share(piece, start_ns, end_ns, books)
        flags |= piece.flags
        if piece.joules is None:
            continue
        settled_seconds += seconds
        prefill += piece.prefill_joules * share
        decode += piece.decode_joules * share
        for name, joules in piece.groups.items():
            groups[name] = groups.get(name, 0.0) + joules * share
        if piece.idle_joules is None:
            idle_joules = None
        elif idle_joules is not None:
            idle_joules += piece.idle_joules * seconds / piece.seconds
    missing = (end_ns - start_ns) * 1e-9 - settled_seconds
    complete = Fault.PARTIAL_COVERAGE not in flags and missing < 1e-6
    if missing >= 1e-6 and idle_joules is not None:
        if idle.watts is None:
            # What idling cost in the part that is not settled is not known: null, not what is settled of it.
            idle_joules = None
            flags.add(Fault.IDLE_NOT_MEASURED)
        else:
            covered = min((device.covered_seconds for device in devices), default=0.0)
            idle_joules += idle.watts * max(covered - settled_seconds, 0.0)
    rest = total - prefill - decode - (idle_joules or 0.0)
    return WindowEnergy(
        start_unix,
        end_unix,
        complete,
        total,
        variance**0.5,
        idle_joules,
        prefill,
        decode,
        rest,
        tuple(devices),
        groups,
        frozenset(flags),
    )


def _share(piece: Piece, start_ns: int, end_ns: int, books: Mapping[str, DeviceBook]) -> tuple[float, float]:
    """(seconds of a piece inside the window, fraction of its energy above idle inside the window)."""
    low, high = max(piece.start_ns, start_ns), min(piece.end_ns, end_ns)
    seconds = (high - low) * 1e-9
    if low == piece.start_ns and high == piece.end_ns:
        return seconds, 1.0
    fraction = seconds / piece.seconds
    if piece.joules is None:
        return seconds, fraction
    above = piece.joules - (piece.idle_joules or 0.0)
    inside = 0.0
    for book in books.values():
        part = book.ledger.energy(low, high)
        if part.joules is None:
            return seconds, fraction
        inside += part.joules
    inside -= (piece.idle_joules or 0.0) * fraction
    if above <= 0.0:
        return seconds, fraction
    # Where the part outside is idle, all energy above idle is inside, and idle power that is off by a little
    # makes the quotient a little more than one; the other side's is below zero by as much.
    return seconds, min(max(inside / above, 0.0), 1.0)
