"""The report of a run: `build` writes report.html from the run directory alone."""

from __future__ import annotations

from pathlib import Path

from wattload.errors import InputError
from wattload.report.page import render
from wattload.rundir.directory import RunDir, load_run_json
from wattload.rundir.requests import GapHistogram, gap_histogram
from wattload.rundir.run import Run
from wattmeter.whole_file import write_atomically

__all__ = ["build"]


def build(run: Run | RunDir | Path | str, gaps: GapHistogram | None = None) -> Path:
    """Writes report.html beside run.json, which `analysis.compute.finish` has made, and gives back its path.

    `gaps` are those of `analysis.compute.compute`, where the caller has them already. Raises InputError where
    a file cannot be used.
    """
    if not isinstance(run, Run):
        directory = run if isinstance(run, RunDir) else RunDir.open(run)
        run = Run(directory, load_run_json(directory))
    if run.result.window is None:
        raise InputError(f"{run.directory.run_json_path}: has no window")
    data = run.data
    gaps = gaps or gap_histogram(run.directory, data.requests.index[data.done])
    write_atomically(run.directory.report_path, render(run.result, data, gaps))
    return run.directory.report_path
