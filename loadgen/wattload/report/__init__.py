"""The report of a run: `build` writes report.html from the run directory alone."""

from __future__ import annotations

from pathlib import Path

from wattload.errors import BadInput
from wattload.measure_columns import GapHistogram, gap_histogram, read_requests
from wattload.measure_energy import RunData
from wattload.report.page import render
from wattload.rundir import RunDir, write_atomically
from wattload.runjson_file import load_run_json

__all__ = ["build"]


def build(run: RunDir | Path | str, gaps: GapHistogram | None = None) -> Path:
    """Writes report.html beside run.json (which `measure.finish` has made) and gives back its path.

    `gaps` are those of `measure.compute`, where the caller has them already.
    """
    where = run if isinstance(run, RunDir) else RunDir.open(run)
    result, capture = load_run_json(where), where.load_capture()
    requests = read_requests(where)
    if result.window is None:
        raise BadInput(f"{where.run_json_path}: has no window")
    inside = requests.within(result.window.start_unix, result.window.end_unix)
    data = RunData(capture, result.window, requests, inside, where.read_energy(), where.read_split())
    gaps = gaps or gap_histogram(where, requests.index[data.done])
    write_atomically(where.report_path, render(result, data, gaps))
    return where.report_path
