"""`--fail-if` by the interval of a change: it holds, it does not, or the data allow no verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from synthetic_run import Synthetic
from wattload.analysis.assertions import parse_assertion
from wattload.analysis.compare import Comparison, compare
from wattload.analysis.compute import finish, load_run
from wattload.analysis.repeats import Repeats, merged, write_json
from wattload.analysis.statistics import repeats_interval
from wattload.analysis.verdict import Verdicts, judge
from wattload.cli import compare as command
from wattload.errors import NoVerdict, RunInvalid
from wattload.rundir.run import Run

OWN = "energy.per_request_joules.attributed_mean"


def made(path: Path, **changes: Any) -> Run:
    given = {"rate": 20.0, "duration": 60.0, "warmup": 5.0, "gaps": False, **changes}
    finish(Synthetic(**given).write(path))
    return load_run(path)


def repeated(folder: Path, factor: float, *, seeds: range, spread: float = 0.02) -> Repeats:
    runs = []
    for seed in seeds:
        cost = 0.3 * factor * float(np.exp(spread * np.random.default_rng(seed).standard_normal()))
        each = {"prefill_token_joules": cost / 20, "decode_token_joules": cost, "duration": 20.0}
        runs.append(made(folder / f"repeat-{seed:02d}", seed=seed, schedule_sha256=f"s{seed}", **each))
    found = merged(folder, runs)
    write_json(found, folder)
    return found


def verdicts(comparison: Comparison, *texts: str) -> Verdicts:
    return judge([parse_assertion(text, field="fail_if", relative=True) for text in texts], comparison)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A run that costs about 10 % less, of the same schedule."""
    where = tmp_path_factory.mktemp("pair")
    cheaper = {"prefill_token_joules": 0.015 * 0.9, "decode_token_joules": 0.3 * 0.9, "noise": 0.2}
    return compare([made(where / "a"), made(where / "b", **cheaper)])


def test_what_the_whole_interval_says_is_sure(pair: Comparison) -> None:
    found = verdicts(pair, f"{OWN} < -5%", f"{OWN} > +5%", f"{OWN} <= 0%")
    assert len(found.met) == 2
    assert found.open == []
    assert "it changed by -" in found.met[0]
    assert "[-" in found.met[0]


def test_a_limit_within_the_interval_allows_no_verdict(pair: Comparison) -> None:
    change = next(c for c in pair.changes if c.path == OWN)
    assert change.fraction is not None
    limit = f"{change.fraction * 100:.6f}"
    for operator in ("<", ">", "<=", ">="):
        found = verdicts(pair, f"{OWN} {operator} {limit}%")
        assert found.met == []
        assert "no verdict" in found.open[0]
        assert "the limit lies within" in found.open[0]


def test_too_few_values_allow_no_verdict(tmp_path: Path) -> None:
    few: dict[str, Any] = {"duration": 10.0, "warmup": 0.0, "rate": 1.0, "requests": 10}
    comparison = compare([made(tmp_path / "a", **few), made(tmp_path / "b", **few)], force=True)
    found = verdicts(comparison, f"{OWN} > +5%")
    assert found.met == []
    assert "too few values" in found.open[0]


def test_a_count_is_judged_by_itself(pair: Comparison) -> None:
    assert verdicts(pair, "requests.completed > +1%") == Verdicts([], [])
    assert len(verdicts(pair, "requests.completed <= 0%").met) == 1
    assert len(verdicts(pair, "requests.completed == 0%").met) == 1


def test_a_number_that_is_not_there_meets_its_condition(pair: Comparison) -> None:
    assert "no such number" in verdicts(pair, "slo.met_fraction > +5%").met[0]


def test_repeats_of_one_schedule_are_pairs(tmp_path: Path) -> None:
    a = repeated(tmp_path / "a", 1.0, seeds=range(1, 6), spread=0.3)
    b = repeated(tmp_path / "b", 1.1, seeds=range(1, 6), spread=0.3)
    comparison = compare([a, b], force=True)
    assert comparison.against[0].paired
    assert any("5 and 5 valid repeats, in pairs" in note for note in comparison.against[0].notes)
    found = verdicts(comparison, f"{OWN} > +5%", f"{OWN} > +20%")
    assert len(found.met) == 1
    assert found.open == []


def test_repeats_of_different_schedules_are_independent(tmp_path: Path) -> None:
    a = repeated(tmp_path / "a", 1.0, seeds=range(1, 6), spread=0.3)
    b = repeated(tmp_path / "b", 1.1, seeds=range(11, 16), spread=0.3)
    comparison = compare([a, b], force=True)
    assert not comparison.against[0].paired
    assert verdicts(comparison, f"{OWN} > +5%").open, "a spread of 30 % hides 10 %"
    sure = repeated(tmp_path / "c", 3.0, seeds=range(21, 26), spread=0.3)
    assert len(verdicts(compare([a, sure], force=True), f"{OWN} > +5%").met) == 1


def test_a_number_without_an_interval_within_a_run_has_one_over_repeats(tmp_path: Path) -> None:
    a = repeated(tmp_path / "a", 1.0, seeds=range(1, 5))
    b = repeated(tmp_path / "b", 1.2, seeds=range(1, 5))
    found = verdicts(compare([a, b], force=True), "energy.decode_joules > +5%")
    assert "[+" in found.met[0]


def test_too_few_repeats_allow_no_verdict(tmp_path: Path) -> None:
    a = repeated(tmp_path / "a", 1.0, seeds=range(1, 3))
    b = repeated(tmp_path / "b", 1.2, seeds=range(1, 3))
    comparison = compare([a, b], force=True)
    assert any("fewer than 3 repeats" in note for note in comparison.against[0].notes)
    assert verdicts(comparison, f"{OWN} > +5%").open


def test_exit_statuses_of_the_command(tmp_path: Path) -> None:
    repeated(tmp_path / "a", 1.0, seeds=range(1, 6), spread=0.3)
    repeated(tmp_path / "b", 1.1, seeds=range(11, 16), spread=0.3)
    app = Typer()
    app.callback()(lambda: None)
    command.register(app)

    def call(*flags: str) -> Any:
        where = [str(tmp_path / "a"), str(tmp_path / "b")]
        return CliRunner().invoke(app, ["compare", *where, "--force", *flags])

    assert call("--fail-if", f"{OWN} > +900%").exit_code == 0
    undecided = call("--fail-if", f"{OWN} > +5%", "--json").exception
    assert isinstance(undecided, NoVerdict)
    assert undecided.status == 3
    failed = call("--fail-if", f"{OWN} > -90%").exception
    assert isinstance(failed, RunInvalid)
    assert failed.status == 1
    assert call("--html", str(tmp_path / "page.html")).exit_code == 0
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_the_interval_over_repeats_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    for count in (3, 5, 10):
        hits = 0
        for _ in range(1500):
            interval = repeats_interval(10.0 * np.exp(0.1 * rng.standard_normal(count)))
            assert interval is not None
            hits += interval.low <= 10.0 * np.exp(0.005) <= interval.high
        assert 0.93 < hits / 1500 < 0.97, count


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, 0.0, 2.0], [1.0, -1.0, 2.0]])
def test_no_interval_of_too_few_or_of_what_is_not_positive(values: list[float]) -> None:
    assert repeats_interval(values) is None
