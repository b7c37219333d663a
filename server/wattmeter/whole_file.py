"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

# Of an OSError: a disk, or a share of one, that takes nothing more.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_atomically(path: Path, text: str) -> None:
    """Writes a whole file or leaves the old one: a reader never sees half of it. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
