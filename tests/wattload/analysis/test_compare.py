"""Comparisons: the truth lies in the interval, pairing narrows it, and what is not comparable is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from synthetic_run import Synthetic
from wattload.analysis.assertions import parse_assertion
from wattload.analysis.compare import COMPARED, Change, Comparison, compare
from wattload.analysis.compute import finish, load_run
from wattload.analysis.verdict import judge
from wattload.cli import compare as command
from wattload.errors import BadInput, RunInvalid
from wattload.report.compare_page import print_table, write_page
from wattload.rundir.run import Run


def made(path: Path, **changes: Any) -> Run:
    run = Synthetic(**{"rate": 20.0, "duration": 60.0, "warmup": 5.0, "gaps": False, **changes}).write(path)
    finish(run)
    return load_run(run.path)


def change(comparison: Comparison, path: str, run: int = 0) -> Change:
    return next(c for c in comparison.against[run].changes if c.path == path)


@pytest.fixture
def pair(tmp_path: Path) -> list[Run]:
    cheaper = {"prefill_token_joules": 0.015 * 0.9, "decode_token_joules": 0.3 * 0.9}
    return [made(tmp_path / "a"), made(tmp_path / "b", **cheaper)]


def test_finds_the_true_change_of_a_pair(pair: list[Run]) -> None:
    comparison = compare(pair)
    assert comparison.objections == []
    assert comparison.against[0].paired
    own = change(comparison, "energy.per_request_joules.attributed_mean")
    assert own.relative_ci95 is not None
    low, high = own.relative_ci95
    assert low - 1e-9 <= -0.1 <= high + 1e-9
    assert high - low < 0.02
    assert own.significant


def test_nothing_changed_is_not_sure(tmp_path: Path) -> None:
    comparison = compare([made(tmp_path / "a"), made(tmp_path / "b")])
    assert all(c.significant is not True for c in comparison.against[0].changes)


def test_pairing_is_far_narrower_than_not(tmp_path: Path, pair: list[Run]) -> None:
    alone = compare([pair[0], made(tmp_path / "c", seed=2, schedule_sha256="s2")])
    assert not alone.against[0].paired
    path = "energy.per_request_joules.mean"
    wide, narrow = change(alone, path).ratio, change(compare(pair), path).ratio
    assert wide is not None
    assert narrow is not None
    assert narrow.half_width < wide.half_width / 4
    assert wide.low < 1 < wide.high


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"trace": "code"}, None),
        ({"rate": 10.0}, "different scheduled rates (20 and 10 requests/s)"),
        ({"warmup": 20.0}, "windows of different length"),
        ({"source": "modelled"}, "different sources"),
        ({"failed": 1.0}, "not a valid run"),
    ],
)
def test_what_differs_is_objected_to(tmp_path: Path, changes: dict[str, Any], word: str | None) -> None:
    comparison = compare([made(tmp_path / "a"), made(tmp_path / "b", **changes)], force=True)
    if word is None:
        # The same trace by its checksum, under another name, is the same trace.
        assert comparison.objections == []
    else:
        assert any(word in text for text in comparison.objections)


def test_conditions_to_fail_on(pair: list[Run]) -> None:
    comparison = compare(pair)

    def met(text: str) -> list[str]:
        return judge([parse_assertion(text, field="fail_if", relative=True)], comparison).met

    assert met("energy.per_request_joules.attributed_mean > +5%") == []
    assert len(met("energy.per_request_joules.attributed_mean < -5%")) == 1
    assert "no such number" in met("slo.met_fraction > +5%")[0]
    with pytest.raises(BadInput, match=r"no number energy\.nothing"):
        met("energy.nothing > +5%")


def test_two_draws_of_one_target_rate_are_comparable(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"{seed}", seed=seed, schedule_sha256=f"s{seed}") for seed in (1, 2)]
    for run, (scheduled, target) in zip(runs, ((19.6, 20.0), (20.3, 20.0)), strict=True):
        run.result.workload.arrivals.rate_rps, run.result.workload.arrivals.target_rps = scheduled, target
    assert compare(runs).objections == []
    runs[1].result.workload.arrivals.target_rps = 8.0
    with pytest.raises(BadInput, match=r"different target rates \(20 and 8 requests/s\)"):
        compare(runs)


def test_what_cannot_be_negative_cannot_fall_by_more_than_all_of_it(tmp_path: Path) -> None:
    few = [
        made(tmp_path / f"{seed}", seed=seed, duration=8.0, warmup=0.0, schedule_sha256=f"s{seed}", rate=rate)
        for seed, rate in ((1, 6.0), (2, 30.0))
    ]
    for found in compare(few, force=True).changes:
        if found.relative_ci95 is not None:
            assert -1 < found.relative_ci95[0] < found.relative_ci95[1], found.path


def test_the_command(tmp_path: Path, pair: list[Run]) -> None:
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)
    where = [str(tmp_path / "a"), str(tmp_path / "b")]
    page = tmp_path / "c.html"
    done = CliRunner().invoke(app, ["compare", *where, "--json", "--html", str(page)])
    assert done.exit_code == 0
    assert json.loads(done.output)["runs"][0]["paired"] is True
    text = page.read_text()
    assert "<svg" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")
    fails = ["--fail-if", "energy.per_request_joules.mean < 0%"]
    assert isinstance(CliRunner().invoke(app, ["compare", *where, *fails]).exception, RunInvalid)
    made(tmp_path / "d", rate=10.0)
    refused = CliRunner().invoke(app, ["compare", where[0], str(tmp_path / "d")])
    assert isinstance(refused.exception, BadInput)
    assert CliRunner().invoke(app, ["compare", where[0], str(tmp_path / "d"), "--force"]).exit_code == 0
    assert isinstance(CliRunner().invoke(app, ["compare", where[0], where[0]]).exception, BadInput)


PER_UNIT = [path for path in COMPARED if path.startswith("sessions.")]


def test_sessions_and_tasks_of_a_pair(tmp_path: Path) -> None:
    cheaper = {"prefill_token_joules": 0.015 * 0.9, "decode_token_joules": 0.3 * 0.9}
    runs = [made(tmp_path / "a", turns=4), made(tmp_path / "b", turns=4, **cheaper)]
    for unit in ("session", "task"):
        own = change(compare(runs), f"sessions.per_{unit}.attributed_joules")
        assert own.relative_ci95 is not None
        low, high = own.relative_ci95
        assert low - 1e-9 <= -0.1 <= high + 1e-9
        assert high - low < 0.02
        assert own.paired
        assert own.significant
        # Its turns lasted as long and idle power is the same.
        for name in ("waiting_idle_joules", "duration_seconds.mean"):
            assert change(compare(runs), f"sessions.per_{unit}.{name}").significant is False
    assert {c.path for c in compare(runs).changes} >= set(PER_UNIT)
    assert compare(runs).against[0].not_compared == []


def test_sessions_of_other_schedules_are_compared_as_independent(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"{n}", turns=4, seed=n, schedule_sha256=f"s{n}") for n in (1, 2)]
    pair = [runs[0], made(tmp_path / "c", turns=4)]
    for path in PER_UNIT:
        alone, together = (change(compare(both), path).ratio for both in (runs, pair))
        assert alone is not None
        assert together is not None
        assert together.half_width < alone.half_width
        assert alone.low < 1.1
        assert alone.high > 0.9


def test_sessions_of_one_run_alone_are_shown_and_not_compared(tmp_path: Path) -> None:
    runs = [made(tmp_path / "a", turns=4), made(tmp_path / "b")]
    for first, second in (runs, runs[::-1]):
        comparison = compare([first, second])
        against = comparison.against[0]
        assert {each.path for each in against.not_compared} == set(PER_UNIT)
        assert not {c.path for c in against.changes} & set(PER_UNIT)
        for each in against.not_compared:
            assert (each.before is None) == (first is runs[1])
            assert (each.after is None) == (second is runs[1])
            assert each.reason == "b has none: no request belongs to a session"
        console = Console(width=200, record=True, file=io.StringIO())
        print_table(comparison, console)
        text = console.export_text()
        assert "Session energy mean" in text
        assert text.count("b has none: no request belongs to a session") == 1
        write_page(comparison, tmp_path / "c.html", [])
        assert "b has none: no request belongs to a session" in (tmp_path / "c.html").read_text()
        told = json.loads(json.dumps(comparison.as_dict()))["runs"][0]["not_compared"]
        assert [each["path"] for each in told] == PER_UNIT
    assert compare([runs[1], made(tmp_path / "c")]).against[0].not_compared == []


def test_energy_of_one_run_alone_is_not_compared_either(tmp_path: Path) -> None:
    measured, bare = made(tmp_path / "a"), made(tmp_path / "b", with_answer=False)
    found = {each.path: each for each in compare([measured, bare], force=True).against[0].not_compared}
    for path, each in found.items():
        assert each.before is not None
        assert bare.result.absent[path] in each.reason or "b has none: " in each.reason
    assert compare([measured, made(tmp_path / "c")]).against[0].not_compared == []


def test_an_older_schema_gets_a_sentence(tmp_path: Path) -> None:
    run = made(tmp_path / "a")
    assert run.valid
    path = tmp_path / "a" / "run.json"
    path.write_text(path.read_text().replace("wattload.run/1", "wattload.run/0"))
    with pytest.raises(BadInput, match=r"run\.json: has schema 'wattload.run/0'"):
        load_run(tmp_path / "a")
    path.write_text(path.read_text()[:200])
    with pytest.raises(BadInput, match="is not JSON"):
        load_run(tmp_path / "a")
