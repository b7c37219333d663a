"""The name of a run that no other run has, so that exporting it twice makes it once."""

from __future__ import annotations

import hashlib

from wattload.rundir.run import Run


def identity(run: Run) -> str:
    """16 hexadecimal digits that follow from when the run began and what was sent."""
    result = run.result
    text = f"{result.started_unix!r}:{result.workload.schedule_sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
