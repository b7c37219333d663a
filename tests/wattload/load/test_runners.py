"""Locust's runners: runners_cases.py, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from own_process import not_passed


def test_the_runners(tmp_path: Path) -> None:
    assert not not_passed(Path(__file__).with_name("runners_cases.py"), tmp_path)
