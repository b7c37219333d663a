"""What `import wattload` and `import wattmeter` offer, and what they must not do."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PUBLIC = {
    "wattload": [
        "InputError",
        "Run",
        "RunConfig",
        "RunInvalid",
        "build_schedule",
        "compare",
        "load_run",
        "load_trace",
        "run",
    ],
    "wattmeter": [
        "EnergyMonitor",
        "Fault",
        "RequestEnergy",
        "StepBatch",
        "StepModel",
        "WindowEnergy",
        "attribute",
        "open_meter",
    ],
}
# In a process of its own: here everything may be imported already.
LIGHT = """
import os, sys
before = dict(os.environ)
import {package}
heavy = {{"locust", "gevent", "scipy", "pyarrow", "numpy", "pydantic", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
assert dict(os.environ) == before
for name in {package}.__all__:
    getattr({package}, name)
assert not {{"locust", "gevent"}} & set(sys.modules)
assert dict(os.environ) == before
"""


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_the_public_names_are_sorted_and_there(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == PUBLIC[package] == sorted(PUBLIC[package])
    for name in PUBLIC[package]:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_importing_is_light_and_changes_nothing(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(package=package)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
