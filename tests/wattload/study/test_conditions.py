"""An arm's conditions are set, undone, and seen to be undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattload.study.conditions import ConditionsFailed, holds, perform, undo

SHELL = ("sh", "-c")


def test_the_output_of_a_command(tmp_path: Path) -> None:
    (tmp_path / "watts").write_text("700\n")
    assert perform("a", "check", ("cat", "watts"), tmp_path) == "700"
    assert holds(("test", "-f", "watts"), tmp_path)
    assert not holds(("test", "-f", "volts"), tmp_path)
    assert not holds(("no-such-program",), tmp_path)


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path: Path) -> None:
    command = (*SHELL, "echo out; echo 'no permission' >&2; exit 4")
    with pytest.raises(ConditionsFailed, match=r"a: setup `sh -c .*` ended with 4: no permission"):
        perform("a", "setup", command, tmp_path)
    with pytest.raises(ConditionsFailed, match="no-such-program`: No such file"):
        perform("a", "setup", ("no-such-program",), tmp_path)


def test_what_is_undone(tmp_path: Path) -> None:
    check = ("cat", "watts")
    (tmp_path / "watts").write_text("500")
    undo("a", [(*SHELL, "printf 700 > watts")], check, "700", tmp_path)
    with pytest.raises(
        ConditionsFailed, match=r"a: its conditions were not undone: `cat watts` says '500', before '700'"
    ):
        undo("a", [(*SHELL, "printf 500 > watts")], check, "700", tmp_path)


def test_every_teardown_is_run_though_one_fails(tmp_path: Path) -> None:
    (tmp_path / "watts").write_text("500")
    commands = [("false",), (*SHELL, "printf 700 > watts")]
    with pytest.raises(ConditionsFailed, match="teardown `false`"):
        undo("a", commands, ("cat", "watts"), "700", tmp_path)
    assert (tmp_path / "watts").read_text() == "700"
