"""`wattload plan`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.cli.app import main


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    for rate in (2.0, 8.0):
        run = Synthetic(rate=rate, duration=30.0, warmup=5.0, gaps=False, source="modelled")
        run = replace(run, overrides={"config": {"rate": f"{rate:g}"}})
        finish(run.write(folder / f"rate-{rate:g}"))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *map(str, arguments)])
    out, err = capsys.readouterr()
    code = ended.value.code
    return code if isinstance(code, int) else 0, out, err


ASKED = ("--rate", "100", "--slo", "ttft=2s,tpot=100ms")


def test_the_table_says_what_was_modelled_and_what_was_not_given(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = run(capsys, sweep, *ASKED)
    assert status == 0
    assert "modelled" in said
    assert "Not given, and not assumed: a price, carbon" in said
    assert "CO2" not in said
    status, said, _ = run(capsys, sweep, *ASKED, "--grid", "world", "--price-per-kwh", "0.2")
    assert "Carbon: world 2023, 481 g/kWh" in said
    assert "Not given" not in said


def test_json_and_a_simulated_fleet(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--fleet", "1000", "--sleep-watts", "30", "--json")
    status, said, _ = run(capsys, sweep, *ASKED, *flags)
    assert status == 0
    plan = json.loads(said)
    (only,) = plan["plans"]
    assert only["gpus"] >= 10
    assert only["carbon_kg_per_day"] is None
    (day,) = plan["fleet"]
    assert day["simulated"] is True
    assert 0 < day["saving_fraction"] < 1


@pytest.mark.parametrize(
    ("flags", "status", "sentence"),
    [
        (("--rate", "0", "--slo", "ttft=1s"), 2, "--rate 0: must be above 0"),
        (("--rate", "1", "--slo", "ttft=1"), 2, "--slo"),
        ((*ASKED, "--quantile", "p42"), 2, "--quantile 'p42': known are p50"),
        ((*ASKED, "--grid", "moon"), 2, "--grid 'moon': the table has"),
        ((*ASKED, "--grid", "world", "--carbon-grams-per-kwh", "1"), 2, "--grid world: and --carbon-grams"),
        ((*ASKED, "--fleet", "10"), 2, "--fleet 10: needs --sleep-watts"),
        ((*ASKED, "--fleet", "2", "--sleep-watts", "1"), 2, "--fleet 2: "),
        ((*ASKED, "--workload", "code"), 2, "--workload code: none of the directories has it"),
        (("--rate", "1", "--slo", "ttft=1us"), 1, "no measured rate has its p95 within ttft=1us"),
    ],
)
def test_what_is_refused(
    flags: tuple[str, ...], status: int, sentence: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, _, said = run(capsys, sweep, *flags)
    assert ended == status
    assert sentence in said
