"""What holds for tests of every folder."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

# A shell's background job and nohup ignore these, and so would every process that a test starts and signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_recomputed: dict[str, float] = {}


def _is_patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


@pytest.fixture(autouse=True)
def _no_test_imports_locust(request: pytest.FixtureRequest) -> Iterator[None]:
    """Locust patches the standard library when it is imported, and what runs the tests comes to a halt then.

    A test that needs it runs a program of its own.
    """
    before = _is_patched()
    yield
    if _is_patched() and not before:
        # What is reported at the end may not be reached any more.
        print(f"{request.node.nodeid} imports Locust", file=sys.__stderr__, flush=True)
        pytest.fail("it imports Locust, which patches the standard library of all tests after it")


@pytest.fixture(autouse=True)
def _every_run_is_recomputed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The headlines of each run directory that an end-to-end test made come out of its tables again."""
    yield
    if request.node.get_closest_marker("e2e") is None:
        return
    from recompute import mismatches

    for path in tmp_path_factory.getbasetemp().rglob("run.json"):
        changed = path.stat().st_mtime
        if (path.parent / "requests.parquet").exists() and _recomputed.get(str(path)) != changed:
            _recomputed[str(path)] = changed
            assert mismatches(path.parent) == []
