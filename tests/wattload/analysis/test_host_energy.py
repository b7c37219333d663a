"""The host's joules by share of busy time: equal parts at each moment, and they add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic_run import BEGIN, Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.host_energy import busy_shares
from wattload.report import component_plots
from wattload.rundir.requests import read_requests
from wattload.rundir.result import RunJson

PACKAGE = {"source": "rapl", "joules": 1000.0, "devices": ["package-0"], "flags": []}
DRAM = {"source": "rapl", "joules": 200.0, "devices": ["dram"], "flags": []}
NODE = {
    "source": "ipmi",
    "joules": None,
    "reason": "ipmi: node was read for 1.0 of 4.0 s",
    "devices": ["node"],
}


def run_of(path: Path, components: dict[str, Any], **options: Any) -> RunJson:
    """Two requests: 20 to 30 s alone, and 30 to 40 s with a second one; 50 s of window."""
    lengths = (
        np.array([20.0, 30.0]), np.array([10, 10]), np.array([5, 5]),
        np.array([21.0, 31.0]), np.array([40.0, 40.0]),
    )  # fmt: skip
    synthetic = Synthetic(lengths=lengths, **options)
    run = synthetic.write(path)
    capture = run.load_capture()
    assert capture.energy_window is not None
    capture.energy_window["components"] = components
    run.save_capture(capture)
    return finish(run)


def test_shares_add_up_to_the_busy_time(tmp_path: Path) -> None:
    run = Synthetic(rate=3, failed=0.1).write(tmp_path / "run")
    finish(run)
    requests = read_requests(run)
    shares, busy = busy_shares(requests, BEGIN + 10, BEGIN + 60)
    assert np.nansum(shares) == pytest.approx(busy)
    assert 0 < busy < 50
    assert np.isnan(shares[np.isnan(requests.last)]).all()


def test_each_moment_is_shared_equally_and_idle_time_is_nobodys(tmp_path: Path) -> None:
    host = run_of(tmp_path / "run", {"cpu_package": PACKAGE, "dram": DRAM}).energy.host
    assert host is not None
    assert host.joules == 1200.0
    assert host.parts == ["cpu_package", "dram"]
    assert host.busy_fraction == pytest.approx(20 / 50, rel=1e-3)
    assert host.divided_joules == pytest.approx(480, rel=1e-3)
    assert host.undivided_joules == pytest.approx(1200 - 480, rel=1e-3)
    # 10 s alone and half of 10 s: 15 s and 5 s of 50.
    assert host.per_request_joules == pytest.approx(240, rel=1e-3)


def test_tenants_have_their_parts(tmp_path: Path) -> None:
    host = run_of(tmp_path / "run", {"cpu_package": PACKAGE}, tags=("shop", "chat")).energy.host
    assert host is not None
    assert host.by_tag == pytest.approx({"chat": 100.0, "shop": 300.0}, rel=1e-3)


def test_no_division_of_what_is_not_known_or_holds_the_accelerators(tmp_path: Path) -> None:
    gone = {**DRAM, "joules": None, "reason": "rapl: dram was read for 0.0 of 50.0 s"}
    run = run_of(tmp_path / "dram", {"cpu_package": PACKAGE, "dram": gone})
    assert run.energy.host is None
    run = run_of(tmp_path / "node", {"node": {**NODE, "joules": 5000.0}})
    assert run.energy.host is None
    assert run.absent["energy.host"] == "the source of energy does not meter CPU packages"


def test_the_plot_has_each_part_and_names_what_is_missing(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", {"node": NODE, "cpu_package": PACKAGE})
    rows = component_plots.rows(run)
    assert [(name, joules) for name, joules, _ in rows] == [
        ("accelerators", run.energy.total_joules),
        ("CPU packages", 1000.0),
        ("node", None),
    ]
    drawn = component_plots.parts(run)
    assert drawn is not None
    assert "not known: ipmi: node was read for" in drawn.still
    assert component_plots.parts(run_of(tmp_path / "plain", {})) is None
