"""Whose process it is: descendants, strangers, and those of another namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wattmeter.meters.base import Device, DeviceState, Reading
from wattmeter.meters.processes import descends_from


def test_a_family_is_whoever_descends_from_its_root(tmp_path: Path) -> None:
    for pid, name, parent in ((10, "bash", 1), (11, "a (b) c", 10), (12, "worker", 11), (20, "other", 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0")
    is_own = descends_from(10, proc=tmp_path)
    assert [is_own(pid) for pid in (10, 11, 12, 20, 99)] == [True, True, True, False, None]
    assert descends_from(12, 20, proc=tmp_path)(11) is False


def test_children_are_family_and_parents_are_not() -> None:
    is_own = descends_from(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert is_own(child.pid) is True
        child.communicate(b"\n")
    assert is_own(os.getpid()) is True
    assert is_own(os.getppid()) is False


def tree(root: Path, parents: dict[int, str]) -> Path:
    for pid, stat in parents.items():
        (root / str(pid)).mkdir()
        if stat:
            (root / str(pid) / "stat").write_text(stat)
    return root


def test_a_family_ends_at_the_first_process_and_where_nothing_is_told(tmp_path: Path) -> None:
    proc = tree(
        tmp_path,
        {
            1: "1 (init) S 0 0",
            5: "5 (a) S 1 0",
            6: "",
            7: "7 (x",
            8: "8 (x) S y",
            9: "9 (x) S 6 0",
            10: "10 (x) S 0 0",
        },
    )
    assert [descends_from(99, proc=proc)(pid) for pid in (1, 5, 6, 7, 8, 9, 10)] == [False] * 7
    # The first process is everybody's ancestor, which says nothing; it itself is one of those asked for.
    assert descends_from(1, proc=proc)(5) is False
    assert descends_from(1, proc=proc)(1) is True
    assert descends_from(6, proc=proc)(9) is True


@pytest.mark.parametrize(("depth", "own"), [(63, True), (64, False)])
def test_a_family_is_looked_up_over_64_generations(tmp_path: Path, depth: int, own: bool) -> None:
    """As in a circle of processes, which none is: whoever reads while ids are used again may see one."""
    proc = tree(tmp_path, {100 + n: f"{100 + n} (x) S {99 + n} 0" for n in range(depth + 1)})
    assert descends_from(100, proc=proc)(100 + depth) is own
    (tmp_path / "50").mkdir()
    (tmp_path / "50" / "stat").write_text("50 (x) S 50 0")
    assert descends_from(100, proc=proc)(50) is False


def test_what_a_reading_and_a_state_leave_out_is_nothing() -> None:
    reading = Reading("g", 1, 2.0)
    assert (reading.energy_joules, reading.power_watts, reading.fault, reading.within_seconds) == (
        None,
        None,
        None,
        0.0,
    )
    state = DeviceState(None, None, None)
    assert (state.clock_event_reasons, state.utilization_ratio, state.other_processes, state.mig) == (
        None,
        None,
        None,
        False,
    )
    assert Device("g", "n", "nvml").power_limit_watts is None


def test_a_name_may_be_any_bytes_and_a_root_any_process_but_the_first(tmp_path: Path) -> None:
    proc = tree(tmp_path, {2: "2 (root) S 1 0", 3: ""})
    (tmp_path / "3" / "stat").write_bytes(b"3 (\xff\xfe) S 2 0")
    assert descends_from(2, proc=proc)(3) is True
