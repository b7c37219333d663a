"""Energy from a DCGM exporter and from Prometheus, in the form of wattserve's own routes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from wattload.energy_series import SeriesPoller
from wattload.energy_sources import DcgmSource, PrometheusSource, is_foreign, open_source
from wattload.errors import BadInput
from wattload.measure_joules import window_joules
from wattload.rundir import RunDir

WATTS = 300.0
MIG = 'GPU_I_ID="3",'


class Exporter(BaseHTTPRequestHandler):
    """Two GPUs at 300 W as dcgm-exporter shows them, and as a Prometheus has scraped them."""

    mig: ClassVar[str] = ""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        now = time.time()
        if url.path == "/metrics":
            lines = [
                "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter",
                "# TYPE DCGM_FI_DEV_POWER_USAGE gauge",
            ]
            for gpu in ("a", "b"):
                labels = f'{{{self.mig}gpu="{gpu}",UUID="GPU-{gpu}",modelName="NVIDIA H100"}}'
                lines.append(f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{labels} {now * WATTS * 1000:.0f}")
                lines.append(f"DCGM_FI_DEV_POWER_USAGE{labels} {WATTS}")
            self.answer("\n".join(lines) + "\n")
        elif query.get("query") == "time()":
            self.answer(json.dumps({"status": "success", "data": {"result": [now, str(now)]}}))
        elif "[" in query["query"]:
            end, length = float(query["time"]), float(query["query"].split("[")[1].rstrip("s]"))
            ticks = np.arange(np.ceil(end - length), end)
            values = [[t, str(t * WATTS)] for t in ticks.tolist()]
            self.answer(self.result([{"metric": {"device": "a", "source": "nvml"}, "values": values}]))
        elif query["query"] == "empty":
            self.answer(self.result([]))
        elif query["query"] in ("hosts", "twice"):
            many = [{"device": "nvidia0", "instance": f"h{i}"} for i in range(2)]
            if query["query"] == "twice":
                many = [{"device": "nvidia0", "kind": kind} for kind in ("idle", "busy")]
            self.answer(self.result([{"metric": labels, "value": [now, "1"]} for labels in many]))
        else:
            self.answer(self.result([{"metric": {"device": "a", "source": "nvml"}, "value": [now, "1"]}]))

    @staticmethod
    def result(found: list[object]) -> str:
        return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": found}})

    def answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def url() -> Iterator[str]:
    Exporter.mig = ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_dcgm_is_read_in_joules(url: str, tmp_path: Path) -> None:
    source = open_source(f"dcgm+{url}/metrics")
    assert isinstance(source, DcgmSource)
    devices = source.info()["devices"]
    assert [d["id"] for d in devices] == ["GPU-a", "GPU-b"]
    assert {d["source"] for d in devices} == {"dcgm"}
    run = RunDir.create(tmp_path)
    poller = SeriesPoller(source, run, clock=source.clock(), interval_seconds=0.05)
    poller.start()
    time.sleep(0.7)
    poller.stop()
    assert poller.errors == []
    assert poller.latest_watts == 2 * WATTS
    series = run.read_energy()
    assert series is not None
    seconds = series.column("unix_seconds").to_numpy()
    start, end = seconds.min() + 0.1, seconds.max() - 0.1
    measured = window_joules(_no_answer(run), float(start), float(end), series, None)
    assert measured.joules["total"] == pytest.approx(2 * WATTS * (end - start), rel=0.05)
    assert measured.uncertainty_joules is not None
    assert measured.uncertainty_joules < WATTS * 0.2


def _no_answer(run: RunDir) -> object:
    class Nothing:
        energy_window = None

    return Nothing()


def test_mig_instances_are_refused(url: str) -> None:
    Exporter.mig = MIG
    with pytest.raises(ValueError, match="MIG"):
        open_source(f"dcgm+{url}/metrics").info()


def test_prometheus_gives_samples_as_scraped(url: str) -> None:
    source = open_source(f"prometheus+{url}?query=wattserve_device_energy_joules_total")
    assert isinstance(source, PrometheusSource)
    assert source.info()["devices"] == [{"id": "a", "name": "a", "source": "nvml"}]
    assert abs(source.clock().offset_seconds) < 0.5
    series = source.series(1000.0, 1010.0)[0]
    assert len(series["unix_seconds"]) == 10
    assert np.allclose(np.diff(series["joules"]), WATTS)
    with pytest.raises(ValueError, match="has no result"):
        open_source(f"prometheus+{url}?query=empty").info()


def test_devices_called_alike_are_told_apart_or_refused(url: str) -> None:
    found = open_source(f"prometheus+{url}?query=hosts").info()["devices"]
    assert [device["id"] for device in found] == ["h0/nvidia0", "h1/nvidia0"]
    with pytest.raises(ValueError, match="several series for /nvidia0: sum them"):
        open_source(f"prometheus+{url}?query=twice").info()


def test_a_source_without_a_split_is_read_before_the_load_and_past_its_end(url: str, tmp_path: Path) -> None:
    source = open_source(f"dcgm+{url}/metrics")
    run = RunDir.create(tmp_path)
    poller = SeriesPoller(source, run, clock=source.clock(), interval_seconds=0.5)
    begin = time.time() + 0.3
    poller.start()
    poller.stop(begin + 0.6)
    series = run.read_energy()
    assert series is not None
    seconds = series.column("unix_seconds").to_numpy()
    assert seconds.min() < begin
    assert seconds.max() >= begin + 0.6


@pytest.mark.parametrize(
    "address", ["dcgm+host:9400", "prometheus+http://h:9090", "prometheus+http://h?query=5"]
)
def test_addresses_that_are_none_are_refused(address: str) -> None:
    assert is_foreign(address)
    with pytest.raises(BadInput, match="--energy"):
        open_source(address)
