"""The whole compose file brought up by a real Docker engine, traffic driven, profiles and failures tried."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shared import shared_file

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]


def test_the_whole_file_in_the_lab(tmp_path: Path) -> None:
    lab = shared_file("tools", "compose_lab.sh")
    if os.geteuid() != 0:
        pytest.skip("the lab needs root: it makes namespaces")
    if not shutil.which("iptables"):
        pytest.skip("the lab's Docker engine needs iptables (.ci/services installs it)")
    check = tmp_path / "check.sh"
    check.write_text(f"exec python3 {Path(__file__).with_name('lab_check.py')}\n", encoding="utf-8")
    environment = os.environ | {
        "BASES": "python:3.12-slim prom/prometheus:v3.5.0 grafana/grafana:11.6.0",
        "WAIT": "60",
    }
    done = subprocess.run(
        ["nice", "bash", str(lab), str(ROOT), str(check)],
        env=environment, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "all checks passed" in done.stdout
