"""The control plane against a server of our own that answers as the contract says, or does not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import collect
from wattload.client.client import Client
from wattload.client.endpoint import EndpointOptions
from wattload.energy.client import EnergyClient, base_url
from wattload.energy.poller import SeriesPoller
from wattload.energy.probe import probe
from wattload.errors import BadInput, InputError
from wattload.rundir.directory import RunDir
from wattload.rundir.result import ClockInfo

CLOCK_AHEAD = 12.5
IDLE_WATTS, WATTS = 100.0, 400.0


class Meter(BaseHTTPRequestHandler):
    """A device at 400 W whose clock is ahead of ours; `broken` routes answer 500, every other time if
    "flaky".
    """

    broken: ClassVar[dict[str, str]] = {}
    calls: ClassVar[dict[str, int]] = {}
    body: Any = None
    polls = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {name: float(values[0]) for name, values in parse_qs(url.query).items()}
        self.calls[url.path] = self.calls.get(url.path, 0) + 1
        how = self.broken.get(url.path)
        if how == "down" or (how == "flaky" and self.calls[url.path] % 2):
            self.answer({"error": "no"}, 500)
        elif url.path == "/v1/models":
            self.answer({"data": [{"id": "m", "max_model_len": 4096}, {"id": "n"}]})
        elif url.path == "/energy/clock":
            self.answer({"unix_seconds": time.time() + CLOCK_AHEAD})
        elif url.path == "/energy/series":
            ticks = np.arange(np.ceil(query["start"] * 10), query["end"] * 10) / 10
            device = {"id": "g", "name": "G", "source": "nvml", "unix_seconds": ticks.tolist()}
            device |= {"joules": (WATTS * ticks).tolist(), "watts": [WATTS] * len(ticks)}
            self.answer({"devices": [device]})
        elif url.path == "/energy" and query:
            length = query["end"] - query["start"]
            settled = query["end"] <= time.time() + CLOCK_AHEAD - 0.3
            parts = {"prefill": 50 * length, "decode": 250 * length}
            self.answer(
                {
                    **query,
                    "complete": settled,
                    "devices": [],
                    "total_joules": WATTS * length,
                    "idle_joules": IDLE_WATTS * length,
                    "attributed_joules": parts,
                    "unattributed_joules": 0.0,
                    "flags": [],
                }
            )
        elif url.path == "/energy":
            devices = [{"id": "g", "name": "G", "source": "nvml"}]
            self.answer({"devices": devices, "engine": "e", "idle": {"watts": IDLE_WATTS}})
        else:
            self.answer({}, 404)

    def do_POST(self) -> None:
        ids = json.loads(self.rfile.read(int(self.headers["content-length"])))["ids"]
        type(self).polls += 1
        state = "settled" if self.polls > 1 else "provisional"
        known = [
            {"id": i, "status": state, "joules": 2.0, "prefill_joules": 0.5, "decode_joules": 1.5}
            for i in ids
            if i != "a"
        ]
        unknown = [{"id": "a", "status": "unknown"}] if "a" in ids else []
        self.answer({"requests": [*unknown, *known]})

    def answer(self, body: Any, status: int = 200) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def url() -> Iterator[str]:
    Meter.broken, Meter.calls, Meter.polls = {}, {}, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Meter)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_probe_finds_model_meter_and_clock(url: str) -> None:
    found = probe(url + "/v1/")
    assert found.target.model == "m"
    assert found.target.max_model_len == 4096
    assert found.target.energy_source == "nvml"
    assert found.energy_url == url
    assert found.clock is not None
    assert found.clock.offset_seconds == pytest.approx(
        CLOCK_AHEAD, abs=found.clock.uncertainty_seconds + 0.001
    )
    assert found.clock.uncertainty_seconds < 0.5


def test_without_energy_only_the_model_is_asked(url: str) -> None:
    found = probe(url, energy_url="none", model="n")
    assert found.no_energy_reason == "not asked for (--energy none)"
    assert set(Meter.calls) == {"/v1/models"}


def test_what_cannot_be_used_gets_a_sentence(url: str) -> None:
    with pytest.raises(BadInput, match=r"model x: .* serves m, n"):
        probe(url, model="x")
    Meter.broken = {"/energy": "down"}
    with pytest.raises(BadInput, match=r"/energy answered 500: name the meter with `energy` URL"):
        probe(url)
    with pytest.raises(
        BadInput, match=r"cannot list the models of .*connection refused; is the server running"
    ):
        probe("http://127.0.0.1:9")
    for wrong in ("", "ftp://x", "http://"):
        with pytest.raises(BadInput, match="not the address of a server"):
            base_url(wrong)
    for wrong in ("http://user:pass@host/", "http://host/v1?api-version=1"):
        with pytest.raises(BadInput, match="in an address is not sent"):
            base_url(wrong)


@pytest.mark.parametrize("broken", [{}, {"/energy/series": "flaky", "/energy": "flaky"}])
def test_the_poller_loses_nothing(url: str, tmp_path: Path, broken: dict[str, str]) -> None:
    run = RunDir.create(tmp_path)
    clock = ClockInfo(offset_seconds=CLOCK_AHEAD, uncertainty_seconds=0.001)
    Meter.broken = broken
    poller = SeriesPoller(EnergyClient(url), run, clock=clock, interval_seconds=0.1, split_seconds=0.5)
    poller.start()
    time.sleep(1.6)
    poller.stop()
    series, split = run.read_energy(), run.read_split()
    assert series is not None
    assert split is not None
    seconds = series.column("unix_seconds").to_numpy()
    assert np.allclose(np.diff(seconds), 0.1)
    assert np.allclose(np.diff(series.column("joules").to_numpy()), WATTS * 0.1)
    assert series.column("joules")[0].as_py() == 0.0
    left, right = (split.column(name).to_numpy() for name in ("start_unix", "end_unix"))
    assert np.array_equal(left[1:], right[:-1])
    assert right[-1] - left[0] >= 1.5
    assert all(split.column("complete").to_pylist())
    assert poller.latest_watts == WATTS
    assert bool(poller.errors) is bool(broken)


def test_settling_asks_until_nothing_is_provisional(url: str) -> None:
    found = EnergyClient(url).settle(["a", "b", "c"])
    assert found["a"].status == "unknown"
    assert found["a"].joules is None
    assert found["b"].status == "settled"
    assert found["b"].prefill_joules == 0.5
    assert Meter.polls == 2


def test_a_window_that_is_not_over_is_waited_for(url: str, tmp_path: Path) -> None:
    """All answers may be in before the planned arrivals end; the meter is asked when the window has ended."""
    now = time.time()
    run = Synthetic(rate=20.0, duration=5.0, warmup=1.0, with_answer=False).write(tmp_path / "run")
    capture = run.load_capture()
    capture.started_unix, capture.duration_seconds = now - 4.0, 5.0
    capture.clock = ClockInfo(offset_seconds=CLOCK_AHEAD, uncertainty_seconds=0.001)
    run.save_capture(capture)
    assert collect(run, EnergyClient(url)) == []
    said = run.load_capture().energy_window
    assert said is not None
    assert said["complete"] is True
    assert said["total_joules"] == pytest.approx(4 * WATTS)
    assert time.time() >= now + 1.0


def test_the_wait_for_the_windows_end_does_not_follow_the_wall_clock(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wall clock that was put back an hour after the load would make it wait for that hour."""
    run = Synthetic(rate=20.0, duration=5.0, warmup=1.0, with_answer=False).write(tmp_path / "run")
    capture = run.load_capture()
    capture.started_unix = time.time() - 5.0
    run.save_capture(capture)
    put_back = time.time() - 3600.0
    monkeypatch.setattr(time, "time", lambda: put_back)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    collect(run, EnergyClient(url), settle_seconds=0.0)
    assert max(slept, default=0.0) < 10.0


@pytest.mark.parametrize(
    "url",
    ["http://host:x", "http://[::1", "http://\0h/", "http://h/\r\nX: y", "http://h:80:90", "ftp://h", "h"],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(InputError, match="not the address of a server"):
        base_url(url)
    with pytest.raises(InputError) as error:
        base_url(url.replace("//", "//user:hunter2@"))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a..b/", "http://" + "a" * 300, "http://.", "http://h:x"]
)
def test_the_load_refuses_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match=r"not the address|no address is known|port is not"):
        Client(EndpointOptions.of({"url": url, "model": "m"}).endpoint())
