"""The H200 experiments take the server's energy when it is final, the end of the last window included."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

H200 = Path(__file__).parents[2] / "benchmarks" / "h200"
WINDOWS: list[dict[str, Any]] = [
    {"name": "idle", "start_unix": 100.0, "end_unix": 110.0, "requests": []},
    {"name": "last", "start_unix": 110.0, "end_unix": 120.0, "requests": [{"request_id": "a"}]},
]


class Books:
    """A server whose requests settle at the first asking and whose last window some askings later."""

    def __init__(self, askings: int) -> None:
        self.askings = askings
        self.asked: list[str] = []

    def post(self, path: str, body: Any) -> Any:
        return {"requests": [{"id": name, "status": "settled"} for name in body["ids"]]}

    def get(self, path: str) -> Any:
        self.asked.append(path)
        if "end=120.000000" not in path:
            return {"complete": True, "flags": [], "path": path}
        self.askings -= 1
        late = self.askings < 0
        return {"complete": late, "flags": [] if late else ["partial_coverage"], "path": path}


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(H200), *sys.path])
    import experiments as module

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return module


def test_the_last_windows_answer_is_taken_once_it_is_complete(experiments: Any) -> None:
    books = Books(askings=3)
    found = experiments.settled(books, WINDOWS)
    assert found["windows"][-1]["complete"]
    assert [window["path"].split("&")[0] for window in found["windows"]] == [
        "/energy?start=100.000000",
        "/energy?start=110.000000",
    ]
    assert books.asked[-1] == "/energy"


def test_what_never_completes_is_taken_as_it_is_and_said(
    experiments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = experiments.settled(Books(askings=1 << 40), WINDOWS, limit_seconds=0.05)
    assert not found["windows"][-1]["complete"]
    assert "partial_coverage" in capsys.readouterr().out
