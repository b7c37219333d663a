"""The export at the end of a run: by a process of its own, for a bounded time, whatever came of the run."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from wattload.export.options import FROM_ENVIRONMENT, ExportOptions
from wattload.redaction import shown

# How long a tool may take, and then how long all of it may.
TOOL_SECONDS = 30.0
ALL_SECONDS = 60.0


def export_after(
    path: Path, options: ExportOptions, say: Callable[[str], None], *, limit_seconds: float = ALL_SECONDS
) -> bool:
    """Exports the run in the directory `path` and says what came of it; whether every tool took it.

    Raises nothing: the run is made, and `wattload export` does again what failed here.
    """
    if not options.wanted:
        return True
    given = {**options.saved(), "path": str(path), "seconds": min(TOOL_SECONDS, limit_seconds)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "wattload.export"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # What a client starts ends with it.
            start_new_session=True,
        )
    except OSError as error:
        say(f"note: not all exported: {error.strerror}; {_again(path, options)}")
        return False
    problem = ""
    try:
        out, _ = process.communicate(json.dumps(given), timeout=limit_seconds)
        if process.returncode:
            problem = "the exporting process ended unexpectedly"
    except subprocess.TimeoutExpired:
        out, problem = _ended(process), f"it took longer than {limit_seconds:g} s"
    except KeyboardInterrupt:
        out, problem = _ended(process), "interrupted"
    outcomes = [json.loads(line) for line in out.splitlines()]
    for taken, sentence in outcomes:
        if taken:
            say(sentence)
    failures = [sentence for taken, sentence in outcomes if not taken] + ([problem] if problem else [])
    if failures:
        say(f"note: not all exported: {'; '.join(failures)}; {_again(path, options)}")
    return not failures


def _ended(process: subprocess.Popen[str]) -> str:
    """Ends the process with all that it started; the whole lines that it had said."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    out, _ = process.communicate()
    return (out or "").rpartition("\n")[0]


def _again(path: Path, options: ExportOptions) -> str:
    words = ["wattload", "export", str(path)]
    if options.otel is not None:
        words += ["--otel", *([] if options.otel == FROM_ENVIRONMENT else [shown(options.otel)])]
    words += [flag for flag, wanted in (("--mlflow", options.mlflow), ("--wandb", options.wandb)) if wanted]
    return f"the run itself is complete, and `{shlex.join(words)}` exports it again"
