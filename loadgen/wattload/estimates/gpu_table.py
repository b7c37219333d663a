"""What makers state of their GPUs:

power limit, peaks, memory bandwidth. A small table that users can extend.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wattload.errors import InputError

_OWN = Path(__file__).with_name("gpu_table.toml")
_NUMBERS = ("tdp_watts", "dense_tflops", "sparse_tflops", "memory_gb_per_s", "memory_gb")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its maker states it.

    `dense_flops`, `sparse_flops`: BF16 tensor cores, FLOP/s; bytes/s, bytes.
    """

    id: str
    names: tuple[str, ...]
    tdp_watts: float
    dense_flops: float
    sparse_flops: float
    memory_bytes_per_second: float
    memory_bytes: float
    source: str


@cache
def gpus(extra: Path | None = None) -> tuple[Gpu, ...]:
    """The table; the GPUs of `extra`, a file of the same form, come first.

    Raises InputError naming file and entry.
    """
    own = _read(_OWN)
    return (_read(extra) + own) if extra is not None else own


def _read(path: Path) -> tuple[Gpu, ...]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: does not exist") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not TOML: {error}") from error
    entries = raw.get("gpu")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: has no [[gpu]] entries")
    return tuple(_entry(path, number, entry) for number, entry in enumerate(entries, 1))


def _entry(path: Path, number: int, entry: dict[str, Any]) -> Gpu:
    where = f"{path}: [[gpu]] number {number}"
    for name in ("id", "source"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise InputError(f"{where}: needs {name}, a text")
    for name in _NUMBERS:
        value = entry.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise InputError(f"{where}: needs {name}, a number above 0")
    return Gpu(
        id=entry["id"],
        names=tuple(str(name).lower() for name in entry.get("names") or [entry["id"]]),
        tdp_watts=float(entry["tdp_watts"]),
        dense_flops=entry["dense_tflops"] * 1e12,
        sparse_flops=entry["sparse_tflops"] * 1e12,
        memory_bytes_per_second=entry["memory_gb_per_s"] * 1e9,
        memory_bytes=entry["memory_gb"] * 1e9,
        source=entry["source"],
    )


def find_gpu(name: str, extra: Path | None = None) -> Gpu | None:
    """The GPU whose id is `name`, or whose longest known name occurs in it; None where there is none."""
    text = name.lower()
    best: tuple[int, Gpu] | None = None
    for gpu in gpus(extra):
        if gpu.id == text:
            return gpu
        length = max((len(known) for known in gpu.names if known in text), default=0)
        if length and (best is None or length > best[0]):
            best = (length, gpu)
    return best[1] if best is not None else None


def require_gpu(name: str, extra: Path | None = None) -> Gpu:
    """As `find_gpu`, for a name that the user gave. Raises InputError listing the known ids."""
    found = find_gpu(name, extra)
    if found is None:
        known = ", ".join(gpu.id for gpu in gpus(extra))
        raise InputError("gpu", f"{name}: not in the table ({known}); `gpu_table` FILE adds to it")
    return found
