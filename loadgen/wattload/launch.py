"""A test made from Python: in a child process, since Locust patches the standard library of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wattload import config as configuration
from wattload.analysis.compute import load_run
from wattload.errors import InputError, RunInvalid
from wattload.rundir.directory import default_directory
from wattload.rundir.run import Run
from wattmeter.standard_streams import say

# How often it is asked whether a test is over before its time.
_OVER_SECONDS = 0.5


def run(url: str, trace: str | Path, **settings: Any) -> Run:
    """Replays a workload against an endpoint as `wattload run` does, and gives the run back.

    The test is made in a child process, so nothing is patched in this one; Ctrl-C ends the load early and is
    raised again when the child has written what there is.

    Args:
        url: the endpoint, as http://host:port.
        trace: a name of `wattload traces`, or a file.
        settings: those of `wattload run`, by their names in TOML: `rate=5`, `duration="60s"`, `out="runs/a"`.
            `body` may be a dict. Nothing is shown unless `progress` is given.

    Returns:
        The run; whether its figures may be used is its `valid`, and why not its `reasons`.

    Raises:
        InputError: a setting is wrong or the endpoint cannot be used; no load was sent.
        RunInvalid: an assertion failed, or the run ended without numbers.
    """
    given: dict[str, Any] = {"progress": "none", **settings, "url": url, "trace": str(trace)}
    if isinstance(given.get("body"), Mapping):
        given["body"] = json.dumps(given["body"])
    return run_settings(given)


def run_settings(settings: Mapping[str, Any], *, over: Callable[[], bool] | None = None) -> Run:
    """`run` with its settings as one mapping.

    `over` is asked now and then while the test is made: True ends the load early, as Ctrl-C does, and the run
    is given back with what there is.
    """
    given = {name: _plain(value) for name, value in settings.items() if value is not None}
    configuration.load(given)
    directory = Path(given.setdefault("out", str(default_directory(str(given["trace"])))))
    status, last = _child(given, shown=given["progress"] != "none", over=over)
    if status == 2:
        raise InputError(last.removeprefix("wattload: "))
    if not (directory / "run.json").exists():
        raise RunInvalid(last.removeprefix("wattload: ") or f"wattload ended with status {status}")
    made = load_run(directory)
    if status and made.valid:
        raise RunInvalid(last.removeprefix("wattload: "))
    return made


def _plain(value: Any) -> Any:
    """A setting as JSON, and so TOML, can say it."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return [str(part) for part in value] if isinstance(value, (list, tuple)) else str(value)


def _child(settings: Mapping[str, Any], *, shown: bool, over: Callable[[], bool] | None) -> tuple[int, str]:
    """Runs the command with these settings: its exit status and the last line of its standard error."""
    # A file, which only this user may read: settings may hold keys, and command lines are seen by everybody.
    descriptor, name = tempfile.mkstemp(prefix="wattload-", suffix=".toml")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # What JSON writes of strings, numbers, booleans and lists of strings is TOML as well.
            file.writelines(f"{key} = {json.dumps(v, ensure_ascii=False)}\n" for key, v in settings.items())
        command = [sys.executable, "-m", "wattload.cli", "run", "--config", name]
        return _followed(command, shown=shown, over=over)
    finally:
        Path(name).unlink(missing_ok=True)


def _followed(command: list[str], *, shown: bool, over: Callable[[], bool] | None) -> tuple[int, str]:
    # In a session of its own, the child hears of Ctrl-C once, from here, in a notebook as on a terminal: by
    # SIGTERM, because a child of a shell's background job ignores SIGINT.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=None if shown else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    if over is not None:
        threading.Thread(target=_end_when, args=(over, process), daemon=True).start()
    last, interrupted = "", False
    while True:
        try:
            for line in process.stderr:
                last = line.strip() or last
                if shown:
                    say(line.rstrip("\n"), error=True)
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            interrupted = True
            continue
        if interrupted:
            raise KeyboardInterrupt
        return status, last


def _end_when(over: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Interrupts the child once `over` says so."""
    while process.poll() is None:
        if over():
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(_OVER_SECONDS)
