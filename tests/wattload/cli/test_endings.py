"""How a command ends that a signal or a full disk ends: its status, and one sentence."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def ended(body: str) -> subprocess.CompletedProcess[str]:
    """The `wattload` command in a process of its own, with `body` in the place of every subcommand."""
    code = f"""
import errno, os, signal
from wattload.cli import app

def command(**_):
{textwrap.indent(textwrap.dedent(body), "    ")}

app.make_app = lambda: command
app.main([])
"""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_interrupts(number: str) -> None:
    done = ended(f"os.kill(os.getpid(), signal.{number})")
    assert (done.returncode, done.stderr) == (130, "wattload: interrupted\n")


def test_a_signal_that_a_destructor_swallowed_is_not_forgotten() -> None:
    done = ended(
        """
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            pass
        """
    )
    assert (done.returncode, done.stderr) == (130, "wattload: interrupted\n")


def test_a_full_disk_is_a_sentence() -> None:
    done = ended('raise OSError(errno.ENOSPC, "No space left on device", "run.json")')
    assert done.returncode == 1
    assert done.stderr == "wattload: run.json: No space left on device; what was written before is kept\n"
