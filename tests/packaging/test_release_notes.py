"""The notes of a release are what the changelog says about its version, and nothing of its neighbours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = """# Changelog

## [Unreleased]

- Later.

## [0.10.0] - 2027-02-01

### Added
- A meter.

## [0.1.0] - 2027-01-01
"""


def _notes(version: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "CHANGELOG.md").write_text(CHANGELOG)
    script = ROOT / ".github" / "release_notes.py"
    return subprocess.run(
        [sys.executable, str(script), version], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_notes_of_a_version(tmp_path: Path) -> None:
    assert _notes("0.10.0", tmp_path).stdout == "### Added\n- A meter.\n"


@pytest.mark.parametrize(
    ("version", "problem"),
    [("0.1.0", "nothing is written"), ("0.2.0", "has no heading"), ("0.10", "has no heading")],
)
def test_a_version_without_notes_ends_the_release(version: str, problem: str, tmp_path: Path) -> None:
    done = _notes(version, tmp_path)
    assert done.returncode == 1
    assert problem in done.stderr
    assert done.stdout == ""
