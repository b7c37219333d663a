"""Joules per request in four places, for one window: Prometheus, the Energy tab, run.json, the report."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from checker import web_ui
from checker.agreement import compare
from checker.prometheus import Prometheus
from checker.system import server

pytestmark = pytest.mark.services


def report_joules_per_request(report: Path) -> float:
    """The figure in the report's first sentences."""
    text = re.sub(r"<[^>]+>", " ", report.read_text(encoding="utf-8"))
    found = re.search(r"[Ee]nergy per request: ([\d.]+)\s*(m|k)?J", text)
    assert found, text[:2000]
    return float(found[1]) * {"m": 1e-3, None: 1.0, "k": 1e3}[found[2]]


def test_joules_per_request_agree(tmp_path: Path) -> None:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (.ci/services installs Debian's)")
    (tmp_path / "prometheus").mkdir()
    with server(tmp_path) as address, web_ui.locust(tmp_path, address) as ui:
        targets = {"wattserve": [address], "wattload": [ui]}
        with Prometheus(tmp_path / "prometheus", targets) as prometheus:
            prometheus.wait_for('up{job="wattserve"} == 1')
            settings = {
                "trace": "conv",
                "rate": "4",
                "arrivals": "constant",
                "duration": "60s",
                "warmup": "15",
            }
            web_ui.start(ui, **settings)
            directory, run = web_ui.finished_run(tmp_path, 150)
            time.sleep(8)
            tab = web_ui.rows(ui)
            told = {row.figure: row.prometheus for row in compare(prometheus, run, run["name"])}
    said = run["energy"]["per_request_joules"]["mean"]
    assert told["joules per request"] == pytest.approx(said, rel=0.01)
    assert tab["In the window: Total energy per request"] == pytest.approx(said, rel=0.01)
    assert report_joules_per_request(directory / "report.html") == pytest.approx(said, rel=0.01)
    assert told["mean power, W"] == pytest.approx(tab["In the window: Mean power"], rel=0.01)


def test_the_energy_tab_in_a_browser(tmp_path: Path) -> None:
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed (.ci/services installs Debian's)")
    with server(tmp_path) as address, web_ui.locust(tmp_path, address) as ui:
        web_ui.start(ui, trace="conv", rate="4", arrivals="constant", duration="40s", warmup="5")
        time.sleep(20)
        web_ui.screenshot(ui, tmp_path / "tab.png")
        page = web_ui.dom(ui)
    assert (tmp_path / "tab.png").stat().st_size > 30_000
    assert "Power:" in page
    assert "(simulated)" in page
    assert "not known yet" not in page
