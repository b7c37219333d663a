"""The recorder: recorder_cases.py, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from own_process import not_passed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_recorder(tmp_path: Path) -> None:
    assert not not_passed(Path(__file__).with_name("recorder_cases.py"), tmp_path)
