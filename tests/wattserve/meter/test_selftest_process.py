"""The self-test of a server that starts: its outcome is found however late the test ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wattserve.meter import selftest_process as selftest


class Waiting:
    """What `follow` waits with: the file grows while it does."""

    def __init__(self, path: Path, contents: list[str]) -> None:
        self.path, self.contents = path, contents

    def __call__(self, _seconds: float) -> bool:
        self.path.write_text(self.contents.pop(0))
        return False


@pytest.mark.parametrize(
    ("contents", "outcome"),
    [
        (["", '{"flags": ["sen', '{"flags": ["sensor_disagreement"]}'], {"flags": ["sensor_disagreement"]}),
        (["", json.dumps({"failed": "exit status 1"})], {"failed": "exit status 1"}),
    ],
)
def test_a_test_that_ends_late_is_not_lost(
    tmp_path: Path, contents: list[str], outcome: dict[str, Any]
) -> None:
    path = tmp_path / "found.json"
    path.write_text("")
    told: list[Any] = []
    selftest.follow(path, told.append, wait=Waiting(path, contents))
    assert told == [{"status": "running"}, {"status": "failed" if "failed" in outcome else "done", **outcome}]
    assert not path.exists()


def test_a_test_that_never_ends_is_told_as_failed(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text("")
    told: list[Any] = []
    selftest.follow(path, told.append, wait=lambda _seconds: False)
    assert [found["status"] for found in told] == ["running", "failed"]
