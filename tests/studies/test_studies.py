"""The studies that ship: each can be made as it stands, and has the paper's figure beside it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from wattload.cli.app import main
from wattload.study.design import blocks
from wattload.study.spec import Study, load_study

FOLDER = Path(__file__).resolve().parents[2] / "studies"
FILES = sorted(FOLDER.glob("*.toml"))
NAMES = {
    "batching", "software", "decoding", "caching", "precision", "parallelism", "experts", "gpus", "workloads",
    "power-limit", "online",
}  # fmt: skip
# Those that the simulator has the means for.
SIMULATED = {"batching", "caching", "workloads", "power-limit", "online"}


def study(name: str, *, simulated: bool = False) -> Study:
    return load_study(FOLDER / f"{name}.toml", simulated=simulated)


def test_every_study_is_there() -> None:
    assert {path.stem for path in FILES} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_its_plan_is_printed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", str(FOLDER / f"{name}.toml"), "--dry-run", "--json", "--out", str(tmp_path / "out")])
    assert ended.value.code in (0, None)
    plan = json.loads(capsys.readouterr().out)
    assert plan["study"] == name
    assert plan["cells"] == plan["left"] > 0


@pytest.mark.parametrize("name", sorted(NAMES))
def test_it_asks_and_has_the_papers_figure_beside_it(name: str) -> None:
    asked = study(name).file.questions
    assert asked
    assert any(question.paper and question.source for question in asked)
    assert study(name).head.repeats >= 3


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_block_fits_into_ten_minutes(name: str) -> None:
    """GPUs are lent for so long: a server's start of two minutes and its cells of a minute."""
    made = study(name)
    assert max(len(block.cells) for block in blocks(made)) * 60 + 120 <= 600


@pytest.mark.parametrize("name", sorted(NAMES))
def test_arms_differ_in_what_they_launch_alone(name: str) -> None:
    commands = [made.words(arm.command or ()) for made in [study(name)] for arm in made.file.arms]
    settings = [(command, tuple(arm.setup), arm.requires) for command, arm in zip(
        commands, study(name).file.arms, strict=True)]  # fmt: skip
    assert len(set(settings)) == len(settings)
    for command in commands:
        assert shlex.split(shlex.join(command)) == list(command)
        for word in command:
            if word.startswith("{") and word != "{port}":
                json.loads(word)


def test_some_can_be_rehearsed_on_the_simulator() -> None:
    found = set()
    for path in FILES:
        if any(arm.simulated is not None for arm in study(path.stem).file.arms):
            found.add(path.stem)
            rehearsal = study(path.stem, simulated=True)
            assert all(arm.command is not None for arm in rehearsal.arms.values())
            assert all(
                arm.command[:2] == ("wattserve", "sim") for arm in rehearsal.arms.values() if arm.command
            )
            assert rehearsal.file.questions
    assert found == SIMULATED
