"""Which requests met the latency limits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wattload.rundir.result import SloLimits


def met(
    limits: SloLimits,
    *,
    completed: npt.NDArray[np.bool_],
    ttft_seconds: npt.NDArray[np.float64],
    tpot_seconds: npt.NDArray[np.float64],
    e2e_seconds: npt.NDArray[np.float64],
    output_tokens: npt.NDArray[np.float64],
) -> npt.NDArray[np.bool_]:
    """Which requests met all limits, shape (N,).

    One that failed met none. One token has no TPOT to miss; more tokens whose TPOT is not known, because they
    came together or were not counted, did not meet a limit of it.
    """
    good = completed.copy()
    if limits.ttft_seconds is not None:
        good &= ttft_seconds <= limits.ttft_seconds
    if limits.tpot_seconds is not None:
        good &= (output_tokens == 1) | (tpot_seconds <= limits.tpot_seconds)
    if limits.e2e_seconds is not None:
        good &= e2e_seconds <= limits.e2e_seconds
    return good
