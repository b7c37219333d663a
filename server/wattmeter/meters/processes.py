"""Which processes of this host belong together: an engine's on a GPU, told from those of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")
MOST_GENERATIONS = 64


def descends_from(*roots: int, proc: Path = PROC) -> Callable[[int], bool | None]:
    """Whether a process is one of `roots` or was started, directly or not, by one of them.

    None for a process that this namespace does not know: NVML gives a container the ids of its host.
    """

    def is_own(pid: int) -> bool | None:
        if not (proc / str(pid)).exists():
            return None
        for _ in range(MOST_GENERATIONS):
            if pid in roots:
                return True
            parent = _parent(pid, proc)
            if parent is None or parent <= 1:
                return False
            pid = parent
        return False

    return is_own


def _parent(pid: int, proc: Path) -> int | None:
    try:
        # The name of the program, in brackets, may hold anything.
        return int((proc / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
