"""Runs a file of tests in a process of its own: Locust patches the standard library when it is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree


def not_passed(cases: Path, folder: Path) -> set[str]:
    """The tests that are written in `cases` and did not pass; raises AssertionError where one failed.

    `folder` gets the report of the run.
    """
    kept = folder / f"{cases.stem}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += [str(cases), f"--junit-xml={kept}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = {
        case.attrib["name"].partition("[")[0]
        for case in ElementTree.parse(kept).iter("testcase")
        if case.find("skipped") is None
    }
    written = ast.parse(cases.read_text("utf-8")).body
    names = {node.name for node in written if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")} - passed
