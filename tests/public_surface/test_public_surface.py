"""What users, scripts and dashboards hold on to, against kept files: a change shows in the diff."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KEPT = Path(__file__).parent / "kept"
UPDATE = "WATTLOAD_UPDATE_KEPT"
FILES = (
    "run.schema.json",
    "wattload.help.txt",
    "wattload.metrics.txt",
    "wattserve.help.txt",
    "wattserve.metrics.txt",
)


@pytest.fixture(scope="module")
def surface() -> dict[str, str]:
    script = Path(__file__).with_name("surface.py")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("WATT", "FORCE_"))}
    environment = {**plain, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    texts: dict[str, str] = json.loads(done.stdout)
    if os.environ.get(UPDATE) == "1":
        KEPT.mkdir(exist_ok=True)
        for name, text in texts.items():
            (KEPT / name).write_text(text, encoding="utf-8")
    return texts


def test_every_kept_file_is_compared(surface: dict[str, str]) -> None:
    assert sorted(surface) == sorted(FILES) == sorted(file.name for file in KEPT.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_the_public_surface_is_as_kept(name: str, surface: dict[str, str]) -> None:
    kept = (KEPT / name).read_text(encoding="utf-8")
    lines = difflib.unified_diff(
        kept.splitlines(), surface[name].splitlines(), f"kept/{name}", "now", lineterm="", n=1
    )
    assert surface[name] == kept, (
        "the public surface has changed. If that is meant, say it in CHANGELOG.md and keep the new one:\n"
        f"  {UPDATE}=1 pytest tests/public_surface\n" + "\n".join(lines)
    )
