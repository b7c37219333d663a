"""Why the server of this process ended: the middleware sees it, the launcher tells it."""

from __future__ import annotations

_engine_death: str | None = None


def engine_died(sentence: str) -> None:
    """Notes that vLLM's engine died while it served; the first note stays."""
    global _engine_death  # noqa: PLW0603 - one server a process, and vLLM's main() returns nothing
    _engine_death = _engine_death or sentence


def engine_death() -> str | None:
    """The sentence about the engine's death, or None."""
    return _engine_death
