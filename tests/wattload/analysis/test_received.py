"""Tokens received in a window, against a count of every chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic_run import BEGIN, Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.received import received, received_until
from wattload.client.record import Outcome, RequestRecord
from wattload.rundir.directory import Capture, RequestWriter, RunDir
from wattload.rundir.result import ArrivalsInfo, TargetInfo, WindowInfo, WorkloadInfo
from wattload.rundir.run import RunData


def capture(process: str = "closed:concurrency=4") -> Capture:
    return Capture(
        name="r",
        started_unix=BEGIN,
        duration_seconds=10.0,
        target=TargetInfo(url="http://127.0.0.1:1"),
        workload=WorkloadInfo(trace="conv", arrivals=ArrivalsInfo(process=process)),
    )


def record(index: int, times: list[float], **changes: Any) -> RequestRecord:
    """A completed request whose chunks, of one token each, arrived at `times` (seconds of the run)."""
    made = RequestRecord(
        index,
        f"r{index}",
        -1,
        "",
        BEGIN + times[0] - 0.1,
        7,
        len(times),
        outcome=Outcome.COMPLETED,
        sent_unix=BEGIN + times[0] - 0.1,
        first_token_unix=BEGIN + times[0],
        last_token_unix=BEGIN + times[-1],
        prompt_tokens=7,
        output_tokens=len(times),
        chunks=len(times),
        itl_seconds=np.diff(times).tolist(),
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def aborted(index: int, times: list[float], **changes: Any) -> RequestRecord:
    """One that was cut off: it has no usage."""
    none: dict[str, Any] = {"outcome": Outcome.ABORTED, "prompt_tokens": None, "output_tokens": None}
    return record(index, times, **none, **changes)


def data_of(path: Path, records: list[RequestRecord], start: float, end: float) -> RunData:
    run = RunDir.create(path)
    with RequestWriter(run) as writer:
        writer.append(records)
    window = WindowInfo(
        start_unix=BEGIN + start, end_unix=BEGIN + end, warmup_seconds=start, method="warmup given"
    )
    return RunData.read(run, capture(), window)


@pytest.mark.parametrize(("start", "end"), [(2.0, 8.0), (0.0, 10.0), (4.9, 5.0)])
def test_every_chunk_in_the_window_counts_whoever_it_is_for(tmp_path: Path, start: float, end: float) -> None:
    rng = np.random.default_rng(3)
    times = [np.sort(rng.uniform(0, 10, rng.integers(1, 40))).tolist() for _ in range(200)]
    records = [(aborted if i % 5 == 4 else record)(i, each) for i, each in enumerate(times)]
    data = data_of(tmp_path / "r", records, start, end)
    found = received(data)
    assert found is not None
    inside = [sum(start <= t <= end for t in each) for each in times]
    order = np.argsort(data.requests.index)
    np.testing.assert_allclose(found.output[order], inside, atol=1e-3)
    assert found.output[found.estimated].sum() == pytest.approx(sum(inside[4::5]), abs=1e-3)
    assert found.prompt.sum() == 7 * sum(start <= each[0] <= end for each in times)


def test_chunks_of_several_tokens_and_requests_without_a_count(tmp_path: Path) -> None:
    steady = [1.0, 2.0, 3.0, 4.0]
    records = [record(0, steady, output_tokens=12), aborted(1, steady)]
    found = received(data_of(tmp_path / "r", records, 1.5, 3.5))
    assert found is not None
    assert found.tokens_per_chunk == 3.0
    assert found.output.tolist() == [6.0, 6.0]


def test_without_the_times_between_chunks_they_are_taken_to_be_equal(tmp_path: Path) -> None:
    uneven = [1.0, 1.1, 1.2, 1.3, 9.0]
    known = received(data_of(tmp_path / "known", [record(0, uneven)], 2.0, 10.0))
    unknown = received(data_of(tmp_path / "unknown", [record(0, uneven, itl_seconds=[])], 2.0, 10.0))
    assert known is not None
    assert unknown is not None
    assert known.output.tolist() == [1.0]
    assert unknown.output.tolist() == [4.0]  # at 1, 3, 5, 7, 9


def test_no_count_at_all_is_no_figure(tmp_path: Path) -> None:
    data = data_of(tmp_path / "r", [aborted(0, [1.0, 2.0]), aborted(1, [3.0])], 0.0, 10.0)
    assert received(data) is None
    assert received_until(data.requests, np.array([BEGIN])) == {}


def test_the_course_over_time_ends_in_all_tokens(tmp_path: Path) -> None:
    records = [record(0, [1.0, 2.0, 3.0]), aborted(1, [2.0]), record(2, [2.0, 8.0])]
    data = data_of(tmp_path / "r", records, 0.0, 10.0)
    until = received_until(data.requests, BEGIN + np.array([0.5, 1.5, 10.0]))
    assert until["output_token"].tolist() == pytest.approx([0.0, 1.5, 6.0])
    assert until["token"].tolist() == pytest.approx([0.0, 8.5, 6.0 + 3 * 7])


def test_a_closed_loop_cut_off_at_its_end_is_divided_by_what_it_received(tmp_path: Path) -> None:
    """64 slots, each a response of 10 s after the other, cut off at 40 s: half of the window's last tokens
    belong to requests that never completed, and nothing is late.
    """
    slots, seconds, gap = 64, 10.0, 0.1
    phase = np.arange(slots) / slots * seconds
    starts = np.concatenate([phase + seconds * k for k in range(-1, 5)])
    starts = np.sort(starts[(starts >= 0) & (starts < 40)])
    count = len(starts)
    tokens = np.full(count, int(seconds / gap) - 1)
    maker = Synthetic(rate=1.0, duration=40.0, warmup=10.0, gaps=False, noise=0.0)
    maker.lengths = (starts, np.full(count, 1), tokens, starts + gap, starts + (tokens[0]) * gap)
    run = maker.write(tmp_path / "r")
    run.requests_partial_path.unlink()
    with RequestWriter(run) as writer:
        for index, start in enumerate(starts.tolist()):
            times = (start + gap * np.arange(1, tokens[0] + 1)).tolist()
            seen = [t for t in times if t <= 40.0]
            if len(seen) == len(times):
                writer.append([record(index, times, energy_joules=30.0, energy_status="settled")])
            elif seen:
                writer.append([aborted(index, seen)])
    written = run.load_capture()
    written.workload.arrivals.process = f"closed:concurrency={slots}"
    run.save_capture(written)
    result = finish(run)
    total = result.energy.total_joules
    assert total is not None
    assert result.tokens.output_received == pytest.approx(slots * 30 / gap * 0.99, rel=0.01)
    assert result.energy.per_output_token_joules == total / (result.tokens.output_received or 0)
    # The completed requests due in the window have a third fewer tokens than were received in it.
    assert (result.tokens.output or 0) < 0.75 * (result.tokens.output_received or 0)
    assert result.tokens.output_estimated == pytest.approx(slots * 5 / gap, rel=0.05)
    assert result.load.send_lag_seconds is None
    assert "no scheduled time" in result.absent["load.send_lag_seconds"]
    assert any("were aborted, so energy per request" in note for note in result.notes)
    per = result.energy.per_request_joules
    assert per is not None
    assert per.headline == "attributed_mean"
