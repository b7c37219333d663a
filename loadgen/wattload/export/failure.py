"""Why a run was not exported."""

from __future__ import annotations


class ExportFailed(RuntimeError):  # noqa: N818
    """A tool did not take the run, or not all of it. The message is one sentence, the tool's name first."""
