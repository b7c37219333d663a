"""--trace, --tag and --tenant become one schedule, or a sentence that names the flag."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattload import traces
from wattload.client.endpoint import Endpoint
from wattload.config import load
from wattload.errors import BadInput, InputError
from wattload.schedule import build as planning
from wattload.schedule import content as prompts
from wattload.schedule import text
from wattload.schedule.options import ScheduleOptions, WorkloadOptions
from wattload.schedule.table import Schedule
from wattload.schedule.tenants import Tenant, parse_tenant
from wattload.session import plan_schedule


def load_streams(trace: str, **settings: Any) -> planning.Streams:
    return planning.load_streams(WorkloadOptions(trace=trace, **settings))


def plan(streams: planning.Streams, **settings: Any) -> Schedule:
    return planning.plan(streams, ScheduleOptions(**settings))


def test_tenants_have_their_rates_tags_and_arrivals() -> None:
    streams = load_streams(
        "conv@5#chat", tenant=["ide:trace=code,rate=20,arrivals=onoff:on=2,off=3", "batch:trace=conv,rate=1"]
    )
    planned = plan(streams, arrivals="poisson", duration=100)
    counts = {tag: int((planned.tag == i).sum()) for i, tag in enumerate(planned.tags)}
    assert set(counts) == {"chat", "ide", "batch"}
    assert counts["chat"] == pytest.approx(500, rel=0.2)
    assert counts["ide"] == pytest.approx(2000, rel=0.1)
    assert counts["batch"] == pytest.approx(100, rel=0.4)
    ide = planned.nominal_seconds[planned.tag == planned.tags.index("ide")]
    assert (np.mod(ide, 5) <= 2).all()
    assert (np.diff(planned.nominal_seconds) >= 0).all()
    assert len(set(planned.content_seed.tolist())) == len(planned)


def test_two_tenants_of_one_workload_do_not_send_the_same_requests() -> None:
    streams = load_streams("conv@5#a", tenant=["b:trace=conv,rate=5"])
    planned = plan(streams, arrivals="poisson", duration=20)
    first, second = (planned.prompt_tokens[planned.tag == i][:20] for i in (0, 1))
    assert not np.array_equal(first, second)


def test_one_stream_is_the_plain_schedule() -> None:
    plain = plan(load_streams("conv"), arrivals="trace", rate=5, duration=10)
    assert plain.tags == ("",)
    tagged = plan(load_streams("conv", tag="x"), arrivals="trace", rate=5, duration=10)
    assert tagged.tags == ("x",)
    np.testing.assert_array_equal(plain.content_seed, tagged.content_seed)


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":trace=conv", "a:rate=1", "a:pace=1,trace=conv", "a:trace=", "a:trace=x,trace=y"]
)
def test_nonsense_tenants(text: str) -> None:
    with pytest.raises(BadInput, match="tenant"):
        parse_tenant(text)


def test_tenant_fields() -> None:
    assert parse_tenant("a:trace=x/y.csv,arrivals=ramp:from=1,to=9,rate=3x") == Tenant(
        "a", "x/y.csv", "3x", "ramp:from=1,to=9"
    )


def test_contradictions_name_their_flags() -> None:
    with pytest.raises(BadInput, match="disagree"):
        load_streams("conv#a", tag="b")
    with pytest.raises(BadInput, match="both given"):
        plan(load_streams("conv@5"), arrivals="poisson", rate=3, duration=5)
    with pytest.raises(BadInput, match="not distinct"):
        plan(
            load_streams("conv", tenant=["a:trace=code", "a:trace=conv"]),
            arrivals="poisson",
            rate=1,
            duration=9,
        )


def test_text_is_made_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        def counts(self, texts: Sequence[str], *, chat: bool) -> list[int]:
            return [len(text.split()) + 3 * chat for text in texts]

    monkeypatch.setattr(text, "open_tokenizer", lambda *_, **__: Words())
    completions = Endpoint("http://127.0.0.1:9", "m")
    chat = replace(completions, api="chat")
    planned = plan(load_streams("conv"), arrivals="trace", rate=5, duration=10)
    assert not text.needs_text(planned, "completions")
    assert text.needs_text(planned, "chat")
    made = text.with_text(planned, chat, tokenizer="server")
    assert len(prompts.prompt_text(made, 0).split()) + 3 == planned.prompt_tokens[0]
    path = tmp_path / "s.json"
    path.write_text(
        '[{"conversations":[{"from":"human","value":"one two three"},{"from":"gpt","value":"ho"}]}]'
    )
    talk = plan(load_streams(str(path)), arrivals="offline")
    assert text.needs_text(talk, "completions")
    assert text.with_text(talk, completions, tokenizer="server").prompt_tokens.tolist() == [3]
    with pytest.raises(BadInput, match="limit of 3"):
        text.with_text(talk, completions, tokenizer="server", max_model_len=3)


def test_the_tls_settings_reach_the_servers_tokenizer(tmp_path: Path) -> None:
    class Counts(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"count": 7}).encode()
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *made.split(), *files], check=True, capture_output=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counts)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = tmp_path / "s.json"
    path.write_text('[{"conversations":[{"from":"human","value":"one"},{"from":"gpt","value":"two"}]}]')
    try:
        streams = load_streams(str(path))

        def asked(**tls: Any) -> Any:
            url = f"https://127.0.0.1:{server.server_port}"
            config = load({"url": url, "model": "m", "trace": str(path), "arrivals": "offline", **tls})
            return plan_schedule(config, streams, config.endpoint.endpoint(), None)

        assert asked(ca_file=str(certificate)).prompt_tokens.tolist() == [7]
        assert asked(insecure=True).prompt_tokens.tolist() == [7]
        with pytest.raises(BadInput, match="certificate"):
            asked()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("rate", ["inf", "Infinity", float("inf")])
def test_a_rate_without_limit_sends_everything_at_once(rate: Any) -> None:
    options = ScheduleOptions.of({"rate": rate, "requests": 5})
    assert options.process().text == "offline"
    assert planning.build(traces.load("conv"), options).due_seconds.tolist() == [0.0] * 5


def test_concurrency_is_a_closed_loop() -> None:
    options = ScheduleOptions.of({"concurrency": "4", "requests": 9})
    assert (options.process().text, options.concurrency) == ("closed:concurrency=4", 4)
    assert planning.build(traces.load("conv"), options).closed_concurrency == 4
    assert ScheduleOptions.of(options.saved()).arrivals == options.arrivals, "as it is saved, it is read"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"concurrency": 4, "rate": "2"}, "`rate` are both given"),
        ({"concurrency": 4, "rate": "inf"}, "`rate` are both given"),
        ({"concurrency": 4, "arrivals": "poisson"}, "short for `arrivals` closed:concurrency=4"),
        ({"concurrency": 4, "arrivals": "closed:concurrency=5"}, "short for"),
        ({"rate": "inf", "arrivals": "poisson"}, "short for `arrivals` offline"),
        ({"concurrency": "0"}, "concurrency"),
        ({"concurrency": "many"}, "concurrency"),
        ({"concurrency": "1.5"}, "concurrency"),
    ],
)
def test_short_forms_that_contradict_what_is_given(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        ScheduleOptions.of(settings)
