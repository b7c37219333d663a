"""What is generated for the documentation is what the code gives now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_line_page_and_the_schemas_are_up_to_date() -> None:
    # In a process of its own: the commands import Locust, which patches sockets.
    script = ROOT / "docs" / "site" / "generated.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
