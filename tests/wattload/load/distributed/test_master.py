"""The master's side of a distributed load: master_cases.py, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from own_process import not_passed


def test_the_masters_side_of_a_distributed_load(tmp_path: Path) -> None:
    assert not not_passed(Path(__file__).with_name("master_cases.py"), tmp_path)
