"""Settled joules that are asked for while a long load goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pyarrow.parquet as pq
import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import collect
from wattload.analysis.settle import write_requests
from wattload.client.record import RequestRecord
from wattload.energy import settled
from wattload.energy.client import EnergyClient
from wattload.energy.settled import IDS_AT_ONCE, TRIES, Follower, SettledProcess, follow, table_of
from wattload.energy.several import Host, SeveralMeters
from wattload.rundir.directory import REQUEST_SCHEMA, SETTLED_SCHEMA, RequestWriter, RunDir
from wattload.rundir.result import WindowInfo
from wattload.rundir.tables import StreamFollower, StreamWriter
from wattmeter.schema import RequestEnergy


def figure(key: str, status: str = "settled", joules: float | None = 5.0) -> RequestEnergy:
    return RequestEnergy(key, status, joules, 1.0, 4.0, source="modelled")


class Meter:
    """Answers with `status` and `joules` of an id; raises `error` where there is one."""

    url = "http://meter"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.status: dict[str, str] = {}
        self.joules: dict[str, float] = {}
        self.error: Exception | None = None

    def settle(self, ids: Sequence[str], *, timeout_seconds: float) -> dict[str, RequestEnergy]:
        assert timeout_seconds == 0.0
        self.asked.append(list(ids))
        if self.error is not None:
            raise self.error
        return {key: figure(key, self.status.get(key, "settled"), self.joules.get(key, 5.0)) for key in ids}


class Bench:
    """A run's stream, a follower of it, and a clock of its own."""

    def __init__(self, folder: Path, meters: int = 1) -> None:
        self.run = RunDir.create(folder / "run")
        self.writer = RequestWriter(self.run)
        self.meters = [Meter() for _ in range(meters)]
        self.now = 100.0
        hosts = [Host(str(number), meter) for number, meter in enumerate(self.meters)]  # type: ignore[arg-type]
        source = hosts[0].source if meters == 1 else SeveralMeters(hosts)
        self.out = StreamWriter(self.run.settled_partial_path, SETTLED_SCHEMA)
        self.follower = Follower(
            source,
            StreamFollower(self.run.requests_partial_path),
            self.out,
            clock=lambda: self.now,
        )
        self.rows = 0

    def write(self, *ids: str, sent: bool = True) -> None:
        records = []
        for key in ids:
            record = RequestRecord(self.rows, key, -1, "", 0.0, 1, 1)
            record.sent_unix = 1.0 if sent else None
            records.append(record)
            self.rows += 1
        self.writer.append(records)
        self.writer.flush()

    def ask_all(self) -> None:
        while self.follower.ask():
            pass

    def known(self) -> dict[str, float]:
        table = self.run.read_settled()
        return dict(zip(table["request_id"].to_pylist(), table["energy_joules"].to_pylist(), strict=True))


def test_requests_are_asked_for_once_when_their_figure_is_final(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.follower.read()  # nothing is there yet
    bench.write("a", "b")
    bench.write("never-sent", sent=False)
    bench.follower.read()
    assert not bench.follower.ask()
    bench.now += 19.0
    bench.write("c")
    bench.follower.read()
    bench.now += 2.0
    bench.ask_all()
    assert bench.meters[0].asked == [["a", "b"]]
    bench.now += 20.0
    bench.ask_all()
    assert bench.meters[0].asked == [["a", "b"], ["c"]]
    assert bench.known() == {"a": 5.0, "b": 5.0, "c": 5.0}


def test_few_are_asked_for_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(*(f"r{number}" for number in range(2 * IDS_AT_ONCE + 1)))
    bench.follower.read()
    bench.now += 30.0
    bench.ask_all()
    assert [len(asked) for asked in bench.meters[0].asked] == [IDS_AT_ONCE, IDS_AT_ONCE, 1]
    assert len(bench.known()) == 2 * IDS_AT_ONCE + 1


def test_what_is_provisional_is_asked_for_again_and_what_is_unknown_is_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.meters[0].status = {"slow": "provisional", "stuck": "provisional", "gone": "unknown"}
    bench.write("slow", "stuck", "gone", "good")
    bench.follower.read()
    for _ in range(TRIES + 3):
        bench.now += 30.0
        bench.ask_all()
        bench.meters[0].status["slow"] = "settled"
    asked = [key for ids in bench.meters[0].asked for key in ids]
    assert {key: asked.count(key) for key in asked} == {"slow": 2, "stuck": TRIES + 1, "gone": 1, "good": 1}
    assert bench.known() == {"good": 5.0, "slow": 5.0}


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), ValueError("no JSON")])
def test_a_meter_that_fails_costs_no_request(tmp_path: Path, error: Exception) -> None:
    bench = Bench(tmp_path)
    bench.meters[0].error = error
    bench.write("a", "b")
    bench.follower.read()
    bench.now += 30.0
    with pytest.raises(type(error)):
        bench.follower.ask()
    bench.meters[0].error = None
    bench.ask_all()
    assert bench.known() == {"a": 5.0, "b": 5.0}


def test_a_request_on_several_hosts_is_the_sum_and_waits_for_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, meters=2)
    bench.meters[0].joules, bench.meters[1].joules = {"a": 3.0, "b": 3.0}, {"a": 4.0}
    bench.meters[1].status = {"b": "unknown"}
    bench.write("a", "b")
    bench.follower.read()
    bench.now += 30.0
    bench.ask_all()
    assert bench.known() == {"a": 7.0, "b": 3.0}


def test_a_batch_that_is_being_written_is_read_once_it_is_whole(tmp_path: Path) -> None:
    whole = tmp_path / "whole.arrow"
    bench = Bench(tmp_path)
    for number in range(3):
        bench.write(f"r{number}")
    bench.writer.close()
    content = bench.run.requests_partial_path.read_bytes()
    follower = StreamFollower(whole)
    assert list(follower.new(["request_id"])) == []
    found: list[str] = []
    with whole.open("wb") as file:
        for begin in range(0, len(content), 97):
            file.write(content[begin : begin + 97])
            file.flush()
            for batch in follower.new(["request_id"]):
                found += batch.column(0).to_pylist()
    assert found == ["r0", "r1", "r2"]
    assert list(follower.new(["request_id"])) == []


def test_following_survives_a_meter_that_fails_and_ends_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settled, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(settled, "RETRY_SECONDS", 0.01)
    bench = Bench(tmp_path)
    bench.follower.final_after_seconds = 0.0
    bench.meters[0].error = httpx.ReadTimeout("late")
    stopped = threading.Event()
    thread = threading.Thread(target=follow, args=(bench.follower, stopped))
    thread.start()
    bench.write("a")
    deadline = time.monotonic() + 30.0
    while not bench.meters[0].asked and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.meters[0].error = None
    while "a" not in bench.known() and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.set()
    thread.join(30.0)
    assert not thread.is_alive()
    assert bench.known() == {"a": 5.0}


@pytest.mark.parametrize(
    ("requests", "seconds", "needed"), [(20_000, 1200.0, False), (20_001, 1.0, True), (1, 1201.0, True)]
)
def test_only_a_long_load_is_followed(requests: int, seconds: float, needed: bool) -> None:
    assert SettledProcess.is_needed(requests, seconds) is needed


class Server(BaseHTTPRequestHandler):
    """Every request cost 7 J; `seen` has the ids and the keys that it was asked with."""

    seen: ClassVar[list[tuple[list[str], str | None]]] = []

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        ids = json.loads(self.rfile.read(int(self.headers["content-length"])))["ids"]
        self.seen.append((ids, self.headers.get("x-key")))
        body = json.dumps({"requests": [figure(key, joules=7.0).to_json() for key in ids]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url() -> Iterator[str]:
    Server.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_process_begins_reads_and_ends_with_its_input(url: str, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run")
    process = SettledProcess(run, EnergyClient(url, {"x-key": "secret"}), None)
    process.begin()
    assert "secret" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    deadline = time.monotonic() + 60.0
    while not run.settled_partial_path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.stop() == 0
    assert (process.pid, process.stop()) == (None, None)
    assert run.read_settled().num_rows == 0


def test_what_was_asked_during_the_load_is_not_asked_again_and_is_in_the_rows(
    url: str, tmp_path: Path
) -> None:
    run = Synthetic(rate=20.0, duration=5.0, warmup=1.0, with_answer=False).write(tmp_path / "run")
    rows = run.read_requests(["request_id", "sent_unix", "energy_joules"])
    ids = rows["request_id"].to_pylist()
    writer = StreamWriter(run.settled_partial_path, SETTLED_SCHEMA)
    for batch in table_of({key: figure(key, joules=9.0) for key in ids[::2]}).to_batches():
        writer.write(batch)
    writer.close()
    collect(run, EnergyClient(url), settle_seconds=0.0)
    asked = {key for keys, _ in Server.seen for key in keys}
    assert asked == set(ids[1::2])
    table = pq.read_table(run.requests_path, schema=REQUEST_SCHEMA)
    found = dict(zip(table["request_id"].to_pylist(), table["energy_joules"].to_pylist(), strict=True))
    assert found == {key: 9.0 if number % 2 == 0 else 7.0 for number, key in enumerate(ids)}
    assert set(table["energy_status"].to_pylist()) == {"settled"}
    assert not run.settled_partial_path.exists()


def test_a_run_that_was_cut_short_has_what_was_asked_until_then(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write("a", "b", "c")
    bench.follower.read()
    bench.now += 30.0
    bench.ask_all()
    bench.write("d")
    bench.writer.close()
    window = WindowInfo(start_unix=0.0, end_unix=1.0, warmup_seconds=0.0, method="warmup given")
    write_requests(bench.run, window)
    table = pq.read_table(bench.run.requests_path)
    assert table["energy_joules"].to_pylist() == [5.0, 5.0, 5.0, None]
    assert not bench.run.settled_partial_path.exists()
