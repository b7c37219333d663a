"""Where recordings and real traces for tests lie on machines that have them; a clone elsewhere has none."""

from __future__ import annotations

from pathlib import Path

import pytest

_CANDIDATE = Path(__file__).resolve().parents[3] / "shared"
SHARED: Path | None = _CANDIDATE if _CANDIDATE.is_dir() else None


def shared_file(*parts: str) -> Path:
    """The path of a shared recording or trace; skips the test, with the reason, where it is absent."""
    if SHARED is None or not SHARED.joinpath(*parts).exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which this machine does not have")
    return SHARED.joinpath(*parts)
