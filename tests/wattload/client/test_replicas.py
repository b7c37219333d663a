"""Several endpoints of one model: who gets which request, and what is refused."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest

from clients import client_of
from scripted_server import Script, good, scripted
from wattload.cli.options import settings_of
from wattload.client.endpoint import EndpointOptions
from wattload.client.record import Outcome, RequestRecord
from wattload.config import RunConfig
from wattload.errors import InputError
from wattload.session import prepare


def slow(request: dict[str, Any]) -> Script:
    return [0.4, *good(request)]


def shared_out(balance: str, sessions: list[int], *, gap: float = 0.0) -> list[RequestRecord]:
    """One request a session number, to two fast endpoints and a slow one; the records in their order."""
    records: list[RequestRecord] = []
    with scripted(good) as (a, seen_a), scripted(slow) as (b, seen_b), scripted(good) as (c, seen_c):
        client = client_of(a, replica=[b, f"{c}/v1"], balance=balance)
        for index, session in enumerate(sessions):
            record = RequestRecord(index, f"r-{index}", session, "", time.time(), 3, 2)
            client.send(record, client.prepare(record, b"[1,2,3]"), records.append)
            gevent.sleep(gap)
        with gevent.Timeout(10):
            while client.calls:
                gevent.sleep(0.01)
        assert [target.in_flight for target in client.targets] == [0, 0, 0]
        client.close()
        got = [len(seen.requests) for seen in (seen_a, seen_b, seen_c)]
        hosts = [{h["host"] for h in seen.headers} for seen in (seen_a, seen_b, seen_c)]
    records.sort(key=lambda record: record.index)
    assert {r.outcome for r in records} == {Outcome.COMPLETED}
    assert got == [sum(r.replica == i for r in records) for i in range(3)]
    for url, names in zip((a, b, c), hosts, strict=True):
        assert names <= {url.removeprefix("http://")}, "each is called by its own name"
    return records


def test_round_robin() -> None:
    assert [r.replica for r in shared_out("round-robin", [-1] * 7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_turns_of_a_session_stay_where_they_began() -> None:
    records = shared_out("session", [4, 5, 4, 6, 5, 4, -1, -1])
    by_session = {s: {r.replica for r in records if r.session == s} for s in (4, 5, 6)}
    assert all(len(replicas) == 1 for replicas in by_session.values())
    assert len(set.union(*by_session.values())) == 3


def test_the_least_busy_gets_the_next() -> None:
    records = shared_out("least-busy", [-1] * 12, gap=0.03)
    counts = [sum(r.replica == i for r in records) for i in range(3)]
    assert counts[1] < min(counts[0], counts[2]), "the slow one is busy for longer"


def test_one_endpoint_is_not_numbered() -> None:
    with scripted(good) as (url, _):
        client = client_of(url)
        records: list[RequestRecord] = []
        record = RequestRecord(0, "r-0", -1, "", time.time(), 3, 2)
        client.send(record, client.prepare(record, b"[1,2,3]"), records.append)
        with gevent.Timeout(10):
            while client.calls:
                gevent.sleep(0.01)
        client.close()
    assert records[0].replica is None


def test_an_endpoint_that_is_gone_fails_its_share_and_no_other() -> None:
    records: list[RequestRecord] = []
    with scripted(good) as (gone, _):
        pass
    with scripted(good) as (url, _):
        client = client_of(url, replica=[gone])
        for index in range(4):
            record = RequestRecord(index, f"r-{index}", -1, "", time.time(), 3, 2)
            client.send(record, client.prepare(record, b"[1,2,3]"), records.append)
        with gevent.Timeout(10):
            while client.calls:
                gevent.sleep(0.01)
        client.close()
    outcomes = {r.index: r.outcome for r in records}
    assert [outcomes[i] for i in range(4)] == [Outcome.COMPLETED, Outcome.CONNECT_ERROR] * 2


def test_an_address_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match="given twice"):
        EndpointOptions.of({"url": "http://a", "replica": ["http://b", "b/v1/chat/completions"]}).endpoint()


def test_the_meter_of_one_does_not_count_the_others() -> None:
    config = RunConfig.of({"url": "http://a", "replica": ["http://b"], "trace": "conv", "duration": "1s"})
    with pytest.raises(InputError, match="does not count the other 1") as refused:
        prepare(config)
    assert refused.value.field == "replica"


@pytest.mark.parametrize(
    ("url", "options", "replicas"),
    [
        ("http://a", None, []),
        (None, ["http://a"], []),
        ("http://a", ["http://a"], []),
        ("http://a", ["http://b", "http://c"], ["http://b", "http://c"]),
        (None, ["http://a", "http://b"], ["http://b"]),
    ],
)
def test_url_may_be_given_for_each(url: str | None, options: list[str] | None, replicas: list[str]) -> None:
    config = settings_of("run", url, options, {"trace": "conv"}, None)
    assert config.endpoint.url == "http://a"
    assert config.endpoint.replica == replicas
