"""run.json from a directory whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthetic_run import BEGIN, Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.options import parse_slo
from wattload.analysis.settle import write_requests
from wattload.energy.settled import table_of
from wattload.errors import BadInput
from wattload.report import build
from wattload.report.summary import cards, sentences
from wattload.rundir.directory import ENERGY_SCHEMA, REQUEST_SCHEMA, RunDir
from wattload.rundir.numbers import number_of
from wattload.rundir.requests import GapHistogram, gap_histogram
from wattload.rundir.result import ClockInfo, RunJson, WindowInfo
from wattmeter.schema import RequestEnergy


def small(**changes: Any) -> Synthetic:
    return Synthetic(**{"rate": 20.0, "duration": 30.0, "warmup": 5.0, **changes})


@pytest.fixture
def ran(tmp_path: Path) -> tuple[Synthetic, RunDir, RunJson]:
    maker = small(failed=0.05, slo=parse_slo("ttft=60ms"), tags=("a", "b"))
    run = maker.write(tmp_path / "run")
    return maker, run, finish(run)


def test_the_window_excludes_the_warmup_and_says_so(ran: tuple[Synthetic, RunDir, RunJson]) -> None:
    _, run, result = ran
    assert result.window is not None
    assert result.window.start_unix == BEGIN + 5
    assert result.window.end_unix == BEGIN + 30
    assert result.window.method == "warmup given"
    table = pq.read_table(run.requests_path, columns=["due_unix", "in_window"])
    due = table.column("due_unix").to_numpy()
    assert table.column("in_window").to_pylist() == ((due >= BEGIN + 5) & (due < BEGIN + 30)).tolist()


def test_joules_are_those_of_the_window(ran: tuple[Synthetic, RunDir, RunJson]) -> None:
    maker, _, result = ran
    truth = maker.answer(BEGIN + 5, BEGIN + 30)
    energy = result.energy
    assert energy.total_joules == pytest.approx(truth["total_joules"])
    assert energy.idle_joules == pytest.approx(25 * 120)
    assert energy.mean_watts == pytest.approx(truth["total_joules"] / 25)
    assert energy.accounting is not None
    assert abs(energy.accounting["conservation_error_fraction"]) < 1e-9
    per = energy.per_request_joules
    assert per is not None
    assert per.mean == pytest.approx(truth["total_joules"] / (result.requests.completed_in_window or 0))
    assert per.mean is not None
    assert per.ci95 is not None
    assert per.ci95[0] < per.mean < per.ci95[1]


@pytest.mark.parametrize("offset", [-7.25, 0.0, 3600.5])
def test_the_meters_clock_may_differ(tmp_path: Path, offset: float) -> None:
    same = finish(small(with_answer=False).write(tmp_path / "a"))
    other = finish(small(with_answer=False, meter_offset_seconds=offset).write(tmp_path / "b"))
    assert other.energy.total_joules == pytest.approx(same.energy.total_joules, rel=1e-6)


def test_split_series_and_counter_agree_with_the_answer(tmp_path: Path) -> None:
    asked = finish(small(warmup=5.0).write(tmp_path / "asked"))
    summed = finish(small(warmup=5.0, with_answer=False).write(tmp_path / "summed"))
    assert summed.energy.total_joules == pytest.approx(asked.energy.total_joules, rel=1e-6)
    run = small(with_answer=False).write(tmp_path / "counter")
    run.split_path.unlink()
    counter = finish(run)
    assert counter.energy.total_joules == pytest.approx(asked.energy.total_joules, rel=1e-4)
    assert counter.energy.idle_joules is None
    assert "energy.idle_joules" in counter.absent


def test_counts_failures_and_keeps_them(ran: tuple[Synthetic, RunDir, RunJson]) -> None:
    _, run, result = ran
    outcomes = pq.read_table(run.requests_path).column("outcome").to_pylist()
    assert result.requests.planned == len(outcomes)
    assert result.requests.failed == {"http_5xx": outcomes.count("http_5xx")}
    assert result.requests.completed == outcomes.count("completed")
    assert result.slo is not None
    assert result.slo.met_fraction is not None
    table = pq.read_table(run.requests_path)
    rows = [r for r in table.to_pylist() if r["in_window"]]
    good = [r for r in rows if r["outcome"] == "completed" and r["first_token_unix"] - r["due_unix"] <= 0.06]
    assert result.slo.met_fraction == pytest.approx(len(good) / len(rows))
    assert result.slo.joules_per_good_request == pytest.approx((result.energy.total_joules or 0) / len(good))


def test_ttft_counts_from_the_due_time(ran: tuple[Synthetic, RunDir, RunJson]) -> None:
    _, run, result = ran
    rows = [r for r in pq.read_table(run.requests_path).to_pylist() if r["in_window"]]
    ttft = [r["first_token_unix"] - r["due_unix"] for r in rows if r["outcome"] == "completed"]
    assert result.latency.ttft_seconds is not None
    assert result.latency.ttft_seconds.p50 == pytest.approx(float(np.median(ttft)))
    assert result.latency.ttft_seconds.max == pytest.approx(max(ttft))


def test_no_null_is_without_a_reason(ran: tuple[Synthetic, RunDir, RunJson], tmp_path: Path) -> None:
    for result in (ran[2], finish(small(failed=1.0).write(tmp_path / "none"))):
        dumped = result.model_dump(mode="json", by_alias=True)

        def nulls(value: Any, path: str) -> list[str]:
            if value is None:
                return [path]
            if isinstance(value, dict):
                return [n for k, v in value.items() for n in nulls(v, f"{path}.{k}".lstrip("."))]
            return []

        for section in ("window", "requests", "load", "latency", "tokens", "energy", "slo", "footprint"):
            for path in nulls(dumped[section], section):
                parts = path.split(".")
                assert any(".".join(parts[:n]) in result.absent for n in range(1, len(parts) + 1)), path


def test_zero_completed_requests_invent_nothing(tmp_path: Path) -> None:
    result = finish(small(failed=1.0).write(tmp_path / "run"))
    assert not result.valid
    assert any("completed" in reason for reason in result.reasons)
    assert result.energy.total_joules is not None
    assert result.energy.per_request_joules is None
    assert result.latency.ttft_seconds is None
    assert result.tokens.output is None


def test_two_energy_sources_are_not_added(tmp_path: Path) -> None:
    run = small().write(tmp_path / "run")
    table = pq.read_table(run.energy_path)
    other = table.set_column(4, "source", pa.array(["rapl"] * table.num_rows))
    other = other.set_column(0, "device", pa.array(["package-0"] * table.num_rows))
    pq.write_table(pa.concat_tables([table, other.cast(ENERGY_SCHEMA)]), run.energy_path)
    result = finish(run)
    assert not result.valid
    assert result.energy.total_joules is None
    assert "nvml and rapl" in result.absent["energy.total_joules"]


@pytest.mark.parametrize("flag", ["counter_reset", "gpu_lost", "stale_sensor", "late_simulation"])
def test_a_fault_makes_the_run_invalid(tmp_path: Path, flag: str) -> None:
    run = small().write(tmp_path / "run")
    capture = run.load_capture()
    assert capture.energy_window is not None
    capture.energy_window["devices"][0]["flags"] = [flag]
    run.save_capture(capture)
    result = finish(run)
    assert flag in result.energy.flags
    assert not result.valid


def test_incomplete_coverage_is_said(tmp_path: Path) -> None:
    run = small().write(tmp_path / "run")
    capture = run.load_capture()
    assert capture.energy_window is not None
    capture.energy_window["complete"] = False
    run.save_capture(capture)
    result = finish(run)
    assert "partial_coverage" in result.energy.flags
    assert not result.valid


def test_a_counter_that_goes_backwards_is_no_energy(tmp_path: Path) -> None:
    run = small(with_answer=False).write(tmp_path / "run")
    run.split_path.unlink()
    table = pq.read_table(run.energy_path)
    joules = table.column("joules").to_numpy().copy()
    joules[len(joules) // 3 :] -= joules[len(joules) // 3]
    pq.write_table(table.set_column(2, "joules", pa.array(joules)).cast(ENERGY_SCHEMA), run.energy_path)
    result = finish(run)
    assert result.energy.total_joules is None
    assert "counter_reset" in result.energy.flags
    assert not result.valid


def test_a_series_that_ends_early_is_no_energy(tmp_path: Path) -> None:
    run = small(with_answer=False).write(tmp_path / "run")
    run.split_path.unlink()
    pq.write_table(pq.read_table(run.energy_path).slice(0, 200), run.energy_path)
    result = finish(run)
    assert result.energy.total_joules is None
    assert "does not cover the window" in result.absent["energy.total_joules"]


def test_without_a_meter_latency_stands_alone(tmp_path: Path) -> None:
    run = small(overrides={"no_energy_reason": "not asked for (--energy none)"}).write(tmp_path / "run")
    result = finish(run)
    assert result.valid
    assert result.energy.total_joules is None
    assert result.absent["energy"] == "not asked for (--energy none)"
    assert result.latency.ttft_seconds is not None


def test_an_interrupted_run_is_partial(tmp_path: Path) -> None:
    changes = {"interrupted": "interrupted", "finished_unix": BEGIN + 15}
    result = finish(small(with_answer=False, overrides=changes).write(tmp_path / "run"))
    assert not result.valid
    assert "interrupted" in result.reasons
    assert result.window is not None
    assert result.window.end_unix == BEGIN + 15


def test_rows_that_are_missing_are_counted(tmp_path: Path) -> None:
    run = small(overrides={"planned_requests": 10_000}).write(tmp_path / "run")
    result = finish(run)
    assert not result.valid
    assert any("have no row" in reason for reason in result.reasons)


def test_the_same_directory_gives_the_same_numbers(ran: tuple[Synthetic, RunDir, RunJson]) -> None:
    _, run, result = ran
    assert finish(run) == result
    assert json.loads(run.run_json_path.read_text())["schema"] == "wattload.run/1"


def test_settled_energy_replaces_provisional(tmp_path: Path) -> None:
    run = small().write(tmp_path / "run")
    before = run.read_requests()
    write_requests(
        run,
        WindowInfo(start_unix=BEGIN, end_unix=BEGIN + 30, warmup_seconds=0.0, method="warmup given"),
        table_of(
            {
                "r3": RequestEnergy("r3", "settled", 7.0, 3.0, 4.0),
                "r4": RequestEnergy("r4", "unknown"),
            }
        ),
    )
    rows = pq.read_table(run.requests_path).to_pylist()
    assert (rows[3]["energy_joules"], rows[3]["prefill_joules"], rows[3]["energy_status"]) == (
        7.0,
        3.0,
        "settled",
    )
    assert rows[4]["energy_joules"] == before.to_pylist()[4]["energy_joules"]
    assert rows[4]["energy_status"] == "unknown"
    assert pq.read_table(run.requests_path).schema == REQUEST_SCHEMA


def test_the_rows_are_written_once_and_another_window_leaves_them_alone(tmp_path: Path) -> None:
    run = small().write(tmp_path / "run")
    assert not run.requests_path.exists()
    finish(run)
    assert not run.requests_partial_path.exists()
    written = run.requests_path.read_bytes()
    first = pq.read_table(run.requests_path, columns=["due_unix", "in_window"])
    capture = run.load_capture()
    capture.warmup_seconds = 12.0
    other = finish(run, capture)
    assert run.requests_path.read_bytes() == written
    # run.json names the window in force; the column keeps that of the first computation.
    assert other.window is not None
    assert other.window.start_unix == BEGIN + 12
    due = first.column("due_unix").to_numpy()
    assert other.requests.in_window == int(((due >= BEGIN + 12) & (due < BEGIN + 30)).sum())
    assert first.column("in_window").to_pylist() == ((due >= BEGIN + 5) & (due < BEGIN + 30)).tolist()


def test_a_run_cut_short_before_its_rows_were_settled_is_computed(tmp_path: Path) -> None:
    run = small(overrides={"finished_unix": None}).write(tmp_path / "run")
    size = run.requests_partial_path.stat().st_size
    with run.requests_partial_path.open("r+b") as file:
        file.truncate(size - 8)  # without the end of the stream, as a killed process leaves it
    result = finish(run)
    assert "the run was cut short: it has no end" in result.reasons
    assert result.requests.planned == pq.read_metadata(run.requests_path).num_rows


def test_gap_quantiles_are_within_a_thousandth() -> None:
    gaps = np.random.default_rng(1).lognormal(-4.5, 1.0, 200_000).astype(np.float32)
    histogram = GapHistogram()
    for part in np.array_split(gaps, 7):
        histogram.add(part)
    assert histogram.n == len(gaps)
    for q in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert histogram.quantile(q) == pytest.approx(float(np.quantile(gaps, q)), rel=1.2e-3)
    assert histogram.maximum == pytest.approx(float(gaps.max()))
    assert histogram.total == pytest.approx(float(gaps.sum(dtype=np.float64)))


def test_gaps_of_other_requests_are_left_out(tmp_path: Path) -> None:
    run = small().write(tmp_path / "run")
    table = run.read_requests(["index", "itl_seconds"]).to_pylist()
    chosen = [row for row in table if row["index"] % 3 == 1]
    histogram = gap_histogram(run, [row["index"] for row in chosen])
    assert histogram.n == sum(len(row["itl_seconds"]) for row in chosen)


def test_footprint_assumes_nothing(tmp_path: Path) -> None:
    result = finish(small().write(tmp_path / "a"))
    assert result.footprint is not None
    assert result.footprint.boundary.startswith("GPU boards only")
    assert result.footprint.carbon_grams is None
    given = {"config": {"footprint": {"pue": 1.5, "price_per_kwh": 0.2, "carbon_grams_per_kwh": 300.0}}}
    with_flags = finish(small(overrides=given).write(tmp_path / "b")).footprint
    assert with_flags is not None
    assert with_flags.cost is not None
    per = result.footprint.energy_kwh_per_1000_requests
    assert with_flags.facility_kwh_per_1000_requests == pytest.approx(1.5 * per)
    assert with_flags.cost.per_1000_requests == pytest.approx(0.3 * per)
    assert with_flags.carbon_grams == pytest.approx(450 * per)


def test_a_footprint_that_cannot_be_is_refused(tmp_path: Path) -> None:
    run = small(overrides={"config": {"footprint": {"pue": 0.5}}}).write(tmp_path / "a")
    with pytest.raises(BadInput, match=r"pue 0\.5: must be greater than or equal to 1"):
        finish(run)


def test_a_queue_that_grows_is_noted(tmp_path: Path) -> None:
    maker = small(duration=60.0, warmup=0.0)
    rng = np.random.default_rng(1)
    due = np.sort(rng.uniform(0, 60, 1200))
    first = due * 1.5 + 0.1
    maker.lengths = (due, np.full(1200, 100), np.full(1200, 20), first, first + 0.5)
    result = finish(maker.write(tmp_path / "run"))
    assert any(note.startswith("not steady: requests in flight") for note in result.notes)
    assert any(note.startswith("the server fell behind: 1,2") for note in result.notes)
    per = result.energy.per_request_joules
    assert per is not None
    assert per.headline == "attributed_mean"
    said = sentences(result)[0]
    assert said.startswith("Attributed energy per request, idle excluded: ")
    assert "kWh" not in said
    assert cards(result)[0].title == "Attributed energy per request"
    window_ratio = number_of("energy.per_request_joules.mean")
    assert window_ratio.title_in(result) == "Total energy per request (window not steady)"
    calm = finish(small().write(tmp_path / "calm"))
    assert calm.notes == []
    assert sentences(calm)[0].startswith("Total energy per request: ")
    assert window_ratio.title_in(calm) == "Total energy per request"


def test_a_run_without_any_row_is_read(tmp_path: Path) -> None:
    run = small(overrides={"interrupted": "interrupted", "finished_unix": BEGIN + 1}).write(tmp_path / "run")
    run.requests_partial_path.write_bytes(b"")
    result = finish(run)
    assert not result.valid
    assert result.requests.sent == 0
    assert result.energy.per_request_joules is None
    assert build(run).read_text().count("Not valid: do not use these results") == 1


def all_at_once(tmp_path: Path) -> RunDir:
    maker = small(duration=0.5, warmup=None)
    maker.lengths = (np.zeros(50), np.full(50, 100), np.full(50, 20), np.full(50, 0.4), np.linspace(1, 9, 50))
    run = maker.write(tmp_path / "run")
    capture = run.load_capture()
    capture.workload.arrivals.process = "offline"
    capture.duration_seconds = 0.0
    capture.energy_window = None
    run.save_capture(capture)
    return run


def test_everything_at_once_is_measured_whole(tmp_path: Path) -> None:
    run = all_at_once(tmp_path)
    result = finish(run)
    assert result.valid
    assert result.window is not None
    assert result.window.end_unix == pytest.approx(BEGIN + 9, abs=0.01)
    assert result.requests.completed_in_window == 50
    assert result.energy.total_joules is not None
    build(run)


@pytest.mark.parametrize("process", ["offline", "closed:concurrency=50"])
def test_everything_at_once_is_not_valid_where_the_longest_responses_were_cut(
    tmp_path: Path, process: str
) -> None:
    run = all_at_once(tmp_path)
    capture = run.load_capture()
    capture.workload.arrivals.process = process
    run.save_capture(capture)
    finish(run)  # writes the rows
    rows = pq.read_table(run.requests_path)
    outcomes = pa.array([*rows["outcome"].to_pylist()[:-3], *["aborted"] * 3])
    place = rows.schema.get_field_index("outcome")
    pq.write_table(rows.set_column(place, rows.schema.field(place), outcomes), run.requests_path)
    result = finish(run)
    said = [reason for reason in result.reasons if "3 of 50 requests, all sent at once" in reason]
    # A closed loop leaves something under way whenever it ends.
    assert bool(said) == (process == "offline")
    assert result.valid == (not said)


@pytest.mark.parametrize(("seconds", "noted"), [(0.2, True), (-0.2, True), (0.001, False)])
def test_clocks_that_move_apart_are_noted(tmp_path: Path, seconds: float, noted: bool) -> None:
    after = ClockInfo(offset_seconds=seconds, uncertainty_seconds=0.001)
    result = finish(small(overrides={"clock_after": after}).write(tmp_path / "run"))
    assert any("moved" in note for note in result.notes) is noted


def test_the_interval_of_a_run_covers_what_its_workload_costs(tmp_path: Path) -> None:
    """Forty runs of one workload:

    nearly all of their intervals hold its true energy per request and per output token, idle included.
    """
    rng = np.random.default_rng(0)
    prompt, output = (rng.lognormal(m, 0.8, 1_000_000) for m in (6.5, 4.5))
    own = np.clip(prompt, 1, 8000).astype(int) * 0.015 + np.clip(output, 1, 1000).astype(int) * 0.3
    truth = float(own.mean()) + 120.0 / 20.0
    truth_per_token = truth / float(np.clip(output, 1, 1000).astype(int).mean())
    hits = token_hits = 0
    for seed in range(40):
        energy = finish(small(seed=seed, gaps=False).write(tmp_path / str(seed))).energy
        per, per_token = energy.per_request_joules, energy.per_output_token_ci95
        assert per is not None
        assert per.ci95 is not None
        assert per_token is not None
        hits += per.ci95[0] <= truth <= per.ci95[1]
        token_hits += per_token[0] <= truth_per_token <= per_token[1]
    assert hits >= 35
    assert token_hits >= 35
