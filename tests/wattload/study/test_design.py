"""The order of a study: balanced, the same again, and as long as it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from study_files import study_of, study_text
from wattload.study.design import Pace, blocks, spoken

THIRD = '[[arm]]\nname = "third"\nurl = "http://127.0.0.1:1"'


@pytest.mark.parametrize("most", [None, 1, 2, 3])
def test_every_cell_is_there_once_and_rows_are_whole(most: int | None, tmp_path: Path) -> None:
    text = study_text(study=f"block_cells = {most}" if most else "", more=THIRD)
    study = study_of(tmp_path, text.replace("[2, 8]", "[1, 2, 4, 8, 16]"))
    plan = blocks(study)
    cells = [cell for block in plan for cell in block.cells]
    assert len(cells) == len(set(cells)) == 3 * 5 * 2
    assert [block.number for block in plan] == list(range(1, len(plan) + 1))
    for row in {block.row for block in plan}:
        mine = [block for block in plan if block.row == row]
        assert sorted(block.arm for block in mine) == ["free", "third", "tight"]
        assert len({tuple((c.point, c.repeat) for c in block.cells) for block in mine}) == 1
        assert all(len(block.cells) <= (most or 99) for block in mine)
    assert plan == blocks(study)


def test_each_arm_goes_first_as_often_as_last(tmp_path: Path) -> None:
    study = study_of(tmp_path, study_text(more=THIRD).replace("repeats = 2", "repeats = 6"))
    plan = blocks(study)
    order = [block.arm for block in plan]
    rows = [order[i : i + 3] for i in range(0, len(order), 3)]
    for place in range(3):
        assert Counter(row[place] for row in rows) == {"free": 2, "tight": 2, "third": 2}


def test_a_linear_drift_falls_on_all_arms_alike(tmp_path: Path) -> None:
    """Places in time of two arms have the same mean after every two rows."""
    study = study_of(tmp_path, study_text().replace("repeats = 2", "repeats = 4"))
    plan = blocks(study)
    for upto in (4, 8):
        times: dict[str, list[int]] = {}
        for place, block in enumerate(plan[:upto]):
            times.setdefault(block.arm, []).append(place)
        assert sum(times["free"]) == sum(times["tight"])


def test_more_repeats_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    short = blocks(study_of(tmp_path))
    long = blocks(study_of(tmp_path, study_text().replace("repeats = 2", "repeats = 5")))
    assert long[: len(short)] == short


def test_arms_share_the_seed_of_a_repeat_and_repeats_do_not(tmp_path: Path) -> None:
    cells = [cell for block in blocks(study_of(tmp_path)) for cell in block.cells]
    by_repeat = {repeat: {c.seed for c in cells if c.repeat == repeat} for repeat in (1, 2)}
    assert all(len(seeds) == 1 for seeds in by_repeat.values())
    assert by_repeat[1] != by_repeat[2]


def test_what_was_measured_replaces_what_was_guessed(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    block = blocks(study)[0]
    guessed = Pace.of(study)
    known = Pace.of(study, [3.0] * 10, {block.arm: [20.0, 25.0]})
    assert known.cell(study, block.cells[0]) == pytest.approx(4.0 + 3.0)
    assert known.start(study, block.arm) == pytest.approx(25.0)
    assert known.block(study, block.arm, block.cells) < guessed.block(study, block.arm, block.cells)


def test_times_in_words() -> None:
    assert [spoken(s) for s in (8, 89, 90, 600, 5400, 9000)] == [
        "8 s", "89 s", "2 min", "10 min", "1 h 30 min", "2 h 30 min",
    ]  # fmt: skip
