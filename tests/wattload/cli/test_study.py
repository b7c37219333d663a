"""`wattload study`: its plan, its refusals, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study_files import study_text
from wattload.cli.app import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["study", *map(str, arguments)])
    out, err = capsys.readouterr()
    code = ended.value.code
    return code if isinstance(code, int) else 0, out, err


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(study_text())
    return path


def test_a_dry_run_prints_the_plan_and_starts_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, said, _ = run(capsys, file, "--dry-run", "--out", out)
    assert status == 0
    assert "2 arms, 4 blocks, 8 cells; baseline free; 2 repeats" in said
    assert "conv at 2/s" in said
    assert "0 of 8 cells are made; 8 left, about" in said
    assert not out.exists()
    status, said, _ = run(capsys, file, "--dry-run", "--json", "--out", out)
    plan = json.loads(said)
    assert (plan["cells"], plan["left"], len(plan["blocks"])) == (8, 8, 4)
    assert plan["left_seconds"] == pytest.approx(sum(block["seconds"] for block in plan["blocks"]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no.toml"], "no.toml: cannot be read"),
        (["{file}", "--set", "colour"], "--set colour: write NAME=VALUE"),
        (["{file}", "--set", "colour=red"], "--set colour: [variables] has no such name"),
        (["{file}", "--simulated"], "no arm has 'simulated'"),
        (["{file}", "--until-seconds", "0"], "--until-seconds"),
        (["{folder}"], "holds no study"),
        (["{folder}", "--dry-run"], "a directory is only looked at"),
    ],
)
def test_what_is_refused(
    arguments: list[str], sentence: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"file": str(file), "folder": str(tmp_path)}
    status, _, said = run(capsys, *(text.format(**places) for text in arguments))
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said


def test_the_demonstration_is_a_study_that_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    status, said, _ = run(capsys, "demo", "--dry-run", "--out", "nowhere")
    assert status == 0
    assert "simulated" in said
