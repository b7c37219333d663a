"""The panels and alerts that a simulated GPU cannot show, with a device that has the sensors, one failing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checker import dashboard as boards
from checker import live
from checker.prometheus import Prometheus
from checker.sensors import FAILING, GOOD, WATTS, exporter

pytestmark = pytest.mark.services
BOARD = Path(__file__).resolve().parents[2] / "dashboards/grafana/dashboards/gpu-and-meter.json"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, live.Span]]:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (.ci/services installs Debian's)")
    directory = tmp_path_factory.mktemp("sensors")
    with (
        exporter(15) as address,
        Prometheus(directory, {"wattserve": [address], "wattload": []}) as prometheus,
    ):
        start = time.time()
        prometheus.wait_for("wattserve_device_power_watts", 20)
        prometheus.wait_for("wattserve_meter_faults_total", 60)
        time.sleep(12)
        yield prometheus, live.Span(start, time.time())


@pytest.mark.parametrize(
    "title",
    [
        "Temperature",
        "Maximum temperature",
        "SM clock",
        "Counter against power, relative difference",
        "Meter faults (5 min)",
    ],
)
def test_panel_of_a_real_sensor_answers(watched: tuple[Prometheus, live.Span], title: str) -> None:
    prometheus, span = watched
    board = boards.read(BOARD)
    values, _ = live.variables(board, prometheus)
    (query,) = [q for q in boards.queries(board) if q.panel == title]
    assert not live.query_faults(query, prometheus, span, values)


def test_a_fault_has_its_name_and_its_alert(watched: tuple[Prometheus, live.Span]) -> None:
    prometheus, span = watched
    (fault,) = prometheus.instant(f'wattserve_meter_faults_total{{device="{FAILING}",reason="gpu_lost"}}')
    assert fault.samples[0][1] >= 1
    firing = prometheus.range('ALERTS{alertname="MeterFault",alertstate="firing"}', span.start, span.end, 1)
    assert {s.labels["device"] for s in firing} == {FAILING}


def test_the_failing_device_takes_no_joules_from_the_good_one(watched: tuple[Prometheus, live.Span]) -> None:
    prometheus, span = watched
    query = f'rate(wattserve_device_energy_joules_total{{device="{GOOD}"}}[20s])'
    (power,) = prometheus.instant(query, span.end)
    assert power.samples[0][1] == pytest.approx(WATTS, rel=0.02)
