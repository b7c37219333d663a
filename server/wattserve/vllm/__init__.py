"""vLLM with a meter: the launcher, the step records out of the engine core, and the ASGI middleware.

`wattserve vllm MODEL ...` serves a model with its energy; the drop-in way without our launcher is
`vllm serve MODEL ... --middleware wattserve.vllm.EnergyMiddleware`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wattserve.vllm.middleware import EnergyMiddleware

__all__ = ["EnergyMiddleware"]


def __getattr__(name: str) -> object:
    # Lazy, because the engine core imports this package for its plugin alone and must not pay for the rest.
    if name == "EnergyMiddleware":
        from wattserve.vllm.middleware import EnergyMiddleware

        return EnergyMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
