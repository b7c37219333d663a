"""The client against servers that answer well, badly, late or never: always one record, rightly named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import gevent
import gevent.ssl
import pytest

from clients import ask, client_of, one, plain
from scripted_server import DONE, END, HEAD, Script, chunk, event, good, scripted, token, usage
from wattload.client.record import Outcome, RequestRecord
from wattload.errors import BadInput


def test_a_good_answer() -> None:
    record = ask(lambda request: good(request, gap=0.01))
    assert record.outcome is Outcome.COMPLETED
    assert (record.chunks, record.prompt_tokens, record.output_tokens) == (3, 3, 3)
    assert record.status_code == 200
    assert record.sent_unix is not None
    assert record.first_token_unix is not None
    assert record.last_token_unix is not None
    assert record.due_unix <= record.sent_unix < record.first_token_unix < record.last_token_unix
    assert len(record.itl_seconds) == 2
    assert record.last_token_unix - record.first_token_unix == pytest.approx(
        sum(record.itl_seconds), abs=1e-5
    )
    assert all(0.005 < gap < 0.2 for gap in record.itl_seconds)


def test_what_is_sent() -> None:
    with scripted(good) as (url, seen):
        given: dict[str, Any] = {"headers": {"Authorization": "Bearer k"}, "body": {"temperature": 1.0}}
        client = client_of(f"{url}/v1", **given)
        one(client, tag="tenant-a")
        one(client)
        client.close()
    body, headers = seen.requests[0], seen.headers[0]
    assert body["prompt"] == [1, 2, 3]
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (3, 3, True)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert (body["model"], body["temperature"]) == ("m", 1.0)
    assert headers["x-request-id"] == "run-0"
    assert headers["x-energy-group"] == "tenant-a"
    assert "x-energy-group" not in seen.headers[1]
    assert headers["authorization"] == "Bearer k"
    assert seen.connections == 1, "the connection is used again"


def test_a_header_of_the_users_takes_the_place_of_ours_whatever_its_case() -> None:
    with scripted(good) as (url, seen):
        client = client_of(url, headers={"host": "gateway", "USER-AGENT": "mine"})
        one(client)
        client.close()
    (names,) = seen.header_names
    assert names.count("host") == names.count("user-agent") == 1
    assert seen.headers[0]["host"] == "gateway"
    assert seen.headers[0]["user-agent"] == "mine"


def test_chat() -> None:
    def answer(request: dict[str, Any]) -> Script:
        assert request["messages"] == [{"role": "user", "content": "hi"}]
        opening = event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        words = [
            chunk(event({"choices": [{"delta": {"content": "a"}, "finish_reason": None}]})),
            chunk(event({"choices": [{"delta": {}, "finish_reason": "length"}]})),
        ]
        return [HEAD, chunk(opening), 0.03, *words, chunk(usage(1, 3)), chunk(DONE) + END]

    with scripted(answer) as (url, _):
        client = client_of(url, api="chat")
        record = one(client, prompt=b'[{"role":"user","content":"hi"}]')
        client.close()
    assert (record.outcome, record.chunks, record.output_tokens) == (Outcome.COMPLETED, 1, 3)
    assert record.first_token_unix is not None
    assert record.sent_unix is not None
    assert record.first_token_unix - record.sent_unix > 0.025, "the opening without text is no token"


def test_energy_and_cached_tokens_come_from_usage() -> None:
    extra = {"energy": {"joules": 1.5, "status": "settled"}, "prompt_tokens_details": {"cached_tokens": 2}}
    script: Script = [
        HEAD,
        *(chunk(token()) for _ in range(3)),
        chunk(usage(3, 3, **extra)),
        chunk(DONE) + END,
    ]
    record = ask(script)
    assert (record.energy_joules, record.energy_status, record.cached_tokens) == (1.5, "settled", 2)
    failed_meter = {"energy": None, "energy_reason": "gpu_lost"}
    script[-2] = chunk(usage(3, 3, **failed_meter))
    assert ask(script).energy_joules is None


def test_tokens_are_not_chunks() -> None:
    script: Script = [HEAD, chunk(token("ab") + token("c")), chunk(usage(3, 3)), chunk(DONE) + END]
    record = ask(script)
    assert (record.outcome, record.chunks, record.output_tokens) == (Outcome.COMPLETED, 2, 3)


def test_every_byte_on_its_own() -> None:
    def answer(request: dict[str, Any]) -> Script:
        whole = b"".join(part for part in good(request) if isinstance(part, bytes))
        steps: Script = []
        for i in range(len(whole)):
            steps += [whole[i : i + 1], 0.0]
        return steps

    record = ask(answer)
    assert (record.outcome, record.chunks, record.output_tokens) == (Outcome.COMPLETED, 3, 3)


def test_length_delimited_and_close_delimited_streams() -> None:
    body = token() + token() + token("c", "length") + usage(3, 3) + DONE
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    assert ask([head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)]).outcome is Outcome.COMPLETED
    assert ask([head + b"\r\n" + body, None]).outcome is Outcome.COMPLETED


MALFORMED, CUT = Outcome.MALFORMED_RESPONSE, Outcome.DISCONNECTED
FAILURES: dict[str, tuple[Script, Outcome, str]] = {
    "400": (plain(b"400 Bad", b'{"error":{"message":"too long"}}'), Outcome.HTTP_4XX, "400: too long"),
    "429": (plain(b"429 No", b"{}", b"Retry-After: 7\r\n"), Outcome.HTTP_429, "Retry-After: 7"),
    "503": (plain(b"503 Busy", b"<html>busy</html>"), Outcome.HTTP_5XX, "503: <html>busy"),
    "html": (plain(b"200 OK", b"<html>login</html>"), MALFORMED, "instead of an event stream"),
    "json": (plain(b"200 OK", b'{"choices":[]}'), MALFORMED, "instead of an event stream"),
    "redirect": (plain(b"307 T", b"", b"Location: /x\r\n"), MALFORMED, "redirected to /x"),
    "garbage": ([b"\x00\x01\x02garbage" * 10], MALFORMED, "not HTTP/1"),
    "empty": ([None], CUT, "before it had responded"),
    "half headers": ([b"HTTP/1.1 200 OK\r\nConte", None], CUT, "middle of the headers"),
    "cut short": ([HEAD, chunk(token()), None], CUT, "middle of the body"),
    "no end": ([HEAD, chunk(token()) + END], CUT, "without a finish reason"),
    "half an event": ([HEAD, chunk(token("a", "length") + b"data: {") + END], MALFORMED, "middle"),
    "no json": ([HEAD, chunk(event(b"{oops")) + END], MALFORMED, "not JSON"),
    "half utf-8": ([HEAD, chunk(event(b'{"choices":[{"text":"\xc3"}]}')) + END], MALFORMED, "not JSON"),
    "mid-stream": (
        [HEAD, chunk(token()), chunk(event({"error": {"message": "OOM"}}))],
        Outcome.SERVER_ERROR,
        "OOM",
    ),
    "early stop": (
        [HEAD, chunk(token("a", "stop") + usage(3, 1) + DONE) + END],
        Outcome.SHORT_OUTPUT,
        "1 of 3",
    ),
    "nothing": ([HEAD, chunk(usage(3, 0) + DONE) + END], Outcome.SHORT_OUTPUT, "0 of 3"),
    "bad chunk": ([HEAD, b"zz\r\n"], MALFORMED, "no size"),
}


@pytest.mark.parametrize(("script", "outcome", "said"), FAILURES.values(), ids=FAILURES)
def test_failures_are_named(script: Script, outcome: Outcome, said: str) -> None:
    record = ask(script)
    assert record.outcome is outcome
    assert record.error is not None
    assert said in record.error
    assert len(record.error) <= 300


def test_the_partial_answer_is_kept() -> None:
    record = ask([HEAD, chunk(token()), 0.01, chunk(token()), None])
    assert (record.chunks, len(record.itl_seconds)) == (2, 1)
    assert record.last_token_unix is not None


def test_endless_headers_and_an_endless_error_end() -> None:
    assert ask([b"HTTP/1.1 200 OK\r\n", *[b"x: " + b"y" * 8000 + b"\r\n"] * 200]).outcome is (
        Outcome.MALFORMED_RESPONSE
    )
    endless: Script = [b"HTTP/1.1 500 Oops\r\n\r\n", *[b"<html>" * 5000] * 200]
    assert ask(endless).outcome is Outcome.HTTP_5XX


def test_no_server() -> None:
    with scripted(good) as (url, _):
        pass
    record = one(client_of(url))
    assert record.outcome is Outcome.CONNECT_ERROR
    assert record.sent_unix is None
    assert "refused" in (record.error or "")


@pytest.mark.parametrize(
    ("script", "limits", "outcome"),
    [
        ([1.0], {"first_token_timeout": 0.1}, Outcome.FIRST_TOKEN_TIMEOUT),
        ([HEAD, 1.0], {"first_token_timeout": 0.1}, Outcome.FIRST_TOKEN_TIMEOUT),
        ([HEAD, chunk(token()), 1.0], {"between_tokens_timeout": 0.1}, Outcome.STALL_TIMEOUT),
        ([HEAD, *[chunk(token()), 0.02] * 30], {"total_timeout": 0.2}, Outcome.TOTAL_TIMEOUT),
    ],
)
def test_timeouts_by_phase(script: Script, limits: dict[str, float], outcome: Outcome) -> None:
    assert ask(script, **limits).outcome is outcome


def test_a_connection_that_is_never_accepted_times_out() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): packets to it go nowhere, or the system refuses at once.
    client = client_of("http://192.0.2.1:9", connect_timeout=0.2)
    assert one(client).outcome in (Outcome.CONNECT_TIMEOUT, Outcome.CONNECT_ERROR)


def test_no_second_connection_where_the_first_is_free_and_none_where_it_is_closed() -> None:
    def answer(request: dict[str, Any]) -> Script:
        return [*good(request), None]

    with scripted(answer) as (url, seen):
        client = client_of(url)
        for _ in range(3):
            assert one(client).outcome is Outcome.COMPLETED
            gevent.sleep(0.02)
        client.close()
    assert seen.connections == 3


def test_a_storm_of_429_loses_no_row() -> None:
    with scripted(lambda _request: plain(b"429 No", b"{}")) as (url, _):
        client = client_of(url)
        got: list[RequestRecord] = []
        for i in range(200):
            record = RequestRecord(i, f"r-{i}", -1, "", 0.0, 3, 3)
            client.send(record, client.prepare(record, b"[1]"), got.append)
        with gevent.Timeout(5):
            while len(got) < 200:
                gevent.sleep(0.01)
        client.close()
    assert sorted(record.index for record in got) == list(range(200))
    assert {record.outcome for record in got} == {Outcome.HTTP_429}


def test_a_prompt_larger_than_any_buffer() -> None:
    with scripted(good) as (url, seen):
        client = client_of(url)
        big = b"[" + b",".join([b"12345"] * 500_000) + b"]"
        assert one(client, prompt=big).outcome is Outcome.COMPLETED
        client.close()
    assert len(seen.requests[0]["prompt"]) == 500_000


def test_abort() -> None:
    with scripted(lambda _request: [HEAD, chunk(token()), 5.0]) as (url, _):
        client = client_of(url)
        record = RequestRecord(0, "r", -1, "", 0.0, 3, 3)
        got: list[RequestRecord] = []
        client.send(record, client.prepare(record, b"[1]"), got.append)
        gevent.sleep(0.1)
        client.abort_all("interrupted")
        assert [(r.outcome, r.error, r.chunks) for r in got] == [(Outcome.ABORTED, "interrupted", 1)]
        client.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the openssl command")
    return cert, key


def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with scripted(lambda request: good(request, gap=0.005), ssl_context=context) as (url, seen):
        client = client_of(url, ca_file=str(cert))
        assert one(client).outcome is Outcome.COMPLETED
        big = b"[" + b",".join([b"12345"] * 200_000) + b"]"
        assert one(client, prompt=big).outcome is Outcome.COMPLETED
        client.close()
        assert seen.connections == 1
        untrusting = client_of(url)
        record = one(untrusting)
        assert record.outcome is Outcome.CONNECT_ERROR
        assert "certificate" in (record.error or "").lower()
        careless = client_of(url, insecure=True)
        assert one(careless).outcome is Outcome.COMPLETED


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "http://"}, "not the address"),
        ({"url": "ftp://x"}, "not the address"),
        ({"url": "http://127.0.0.1:99999"}, "port"),
        ({"url": "http://no-such-host.invalid"}, "no address is known"),
        ({"url": "https://127.0.0.1", "ca_file": "/nonexistent"}, "ca_file /nonexistent"),
    ],
)
def test_addresses_that_cannot_be_used(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        client_of(**options)
