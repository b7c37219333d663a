"""Comparisons: the truth lies in the interval, pairing narrows it, and what is not comparable is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import Synthetic
from typer import Typer
from typer.testing import CliRunner
from wattload.assertions import parse_assertion
from wattload.commands import compare as command
from wattload.compare import Change, Comparison, Loaded, check_fail_if, compare, load
from wattload.errors import BadInput, RunInvalid
from wattload.measure import finish
from wattload.rundir import RunDir


def made(path: Path, **changes: Any) -> Loaded:
    run = Synthetic(**{"rate": 20.0, "duration": 60.0, "warmup": 5.0, "gaps": False, **changes}).write(path)
    finish(run)
    return load(run)


def change(comparison: Comparison, path: str, run: int = 0) -> Change:
    return next(c for c in comparison.against[run].changes if c.path == path)


@pytest.fixture
def pair(tmp_path: Path) -> list[Loaded]:
    cheaper = {"prefill_token_joules": 0.015 * 0.9, "decode_token_joules": 0.3 * 0.9}
    return [made(tmp_path / "a"), made(tmp_path / "b", **cheaper)]


def test_finds_the_true_change_of_a_pair(pair: list[Loaded]) -> None:
    comparison = compare(pair)
    assert comparison.objections == []
    assert comparison.against[0].paired
    own = change(comparison, "energy.per_request_joules.attributed_mean")
    assert own.interval is not None
    low, high = (edge / own.before for edge in own.interval.pair)
    assert low <= -0.1 <= high
    assert high - low < 0.02
    assert own.sure


def test_nothing_changed_is_not_sure(tmp_path: Path) -> None:
    comparison = compare([made(tmp_path / "a"), made(tmp_path / "b")])
    assert all(c.sure is not True for c in comparison.against[0].changes)


def test_pairing_is_far_narrower_than_not(tmp_path: Path, pair: list[Loaded]) -> None:
    alone = compare([pair[0], made(tmp_path / "c", seed=2, schedule_sha256="s2")])
    assert not alone.against[0].paired
    path = "energy.per_request_joules.mean"
    wide, narrow = change(alone, path).interval, change(compare(pair), path).interval
    assert wide is not None
    assert narrow is not None
    assert narrow.half_width < wide.half_width / 4
    assert wide.low < 0 < wide.high


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"trace": "code"}, None),
        ({"rate": 10.0}, "different rates"),
        ({"warmup": 20.0}, "windows of different length"),
        ({"source": "modelled"}, "different sources"),
        ({"failed": 1.0}, "not a valid run"),
    ],
)
def test_what_differs_is_objected_to(tmp_path: Path, changes: dict[str, Any], word: str | None) -> None:
    comparison = compare([made(tmp_path / "a"), made(tmp_path / "b", **changes)])
    if word is None:
        # The same trace by its checksum, under another name, is the same trace.
        assert comparison.objections == []
    else:
        assert any(word in text for text in comparison.objections)


def test_conditions_to_fail_on(pair: list[Loaded]) -> None:
    comparison = compare(pair)

    def met(text: str) -> list[str]:
        return check_fail_if([parse_assertion(text, flag="--fail-if", relative=True)], comparison)

    assert met("energy.per_request_joules.attributed_mean > +5%") == []
    assert len(met("energy.per_request_joules.attributed_mean < -5%")) == 1
    assert "no such number" in met("energy.nothing > +5%")[0]


def test_the_command(tmp_path: Path, pair: list[Loaded]) -> None:
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


def test_an_older_schema_gets_a_sentence(tmp_path: Path) -> None:
    run = made(tmp_path / "a")
    assert run.json.valid
    path = tmp_path / "a" / "run.json"
    path.write_text(path.read_text().replace("wattload.run/1", "wattload.run/0"))
    with pytest.raises(BadInput, match=r"run\.json: has schema 'wattload.run/0'"):
        load(RunDir.open(tmp_path / "a"))
    path.write_text(path.read_text()[:200])
    with pytest.raises(BadInput, match="is not JSON"):
        load(RunDir.open(tmp_path / "a"))
