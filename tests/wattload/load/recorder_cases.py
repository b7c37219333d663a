"""The recorder: a row is on disk soon after its request ended, and a disk that is full stops the load."""

from __future__ import annotations

import os
import time
from pathlib import Path

from wattload.client.record import Outcome, RequestRecord
from wattload.load.metrics import LoadMetrics
from wattload.load.recorder import Recorder
from wattload.rundir.directory import RunDir


def recorder(run: RunDir) -> Recorder:
    return Recorder(run, LoadMetrics("r", "m"), None, keep_joules=False)


def ended(index: int) -> RequestRecord:
    return RequestRecord(index, f"r-{index}", -1, "", 5.0, 3, 4, outcome=Outcome.COMPLETED, sent_unix=5.0)


def test_a_batch_that_is_not_full_is_written_when_it_is_old(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    record = recorder(run)
    record(ended(0))
    assert not record.write_step()
    time.sleep(0.5)
    while record.write_step():
        pass
    # As another process sees it, while this one goes on.
    assert run.read_requests(["index"]).column("index").to_pylist() == [0]
    record.close()


def test_a_full_disk_is_told_once_and_nothing_more_is_written(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.requests_partial_path.symlink_to("/dev/full")
    record = recorder(run)
    told: list[str] = []
    record.on_failure = told.append
    for index in range(64):
        record(ended(index))
    while record.write_step():
        pass
    for index in range(64, 200):
        record(ended(index))
        record.write_step()
    record.close()
    assert told == [f"{run.requests_partial_path}: rows cannot be written: {os.strerror(28)}"]
    assert record.failure == told[0]
    # The totals go on: the progress and the summary of the load stay right.
    assert record.totals.completed == record.rows == 200
