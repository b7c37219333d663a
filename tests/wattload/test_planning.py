"""--trace, --tag and --tenant become one schedule, or a sentence that names the flag."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wattload import planning, prompts
from wattload.config import RunConfig
from wattload.errors import BadInput
from wattload.execution import plan_schedule
from wattload.runjson import TargetInfo
from wattload.tenants import Tenant, parse_tenant


def test_tenants_have_their_rates_tags_and_arrivals() -> None:
    streams = planning.load_streams(
        "conv@5#chat", tenants=["ide:trace=code,rate=20,arrivals=onoff:on=2,off=3", "batch:trace=conv,rate=1"]
    )
    planned = planning.plan(streams, arrivals="poisson", duration=100)
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
    streams = planning.load_streams("conv@5#a", tenants=["b:trace=conv,rate=5"])
    planned = planning.plan(streams, arrivals="poisson", duration=20)
    first, second = (planned.prompt_tokens[planned.tag == i][:20] for i in (0, 1))
    assert not np.array_equal(first, second)


def test_one_stream_is_the_plain_schedule() -> None:
    plain = planning.plan(planning.load_streams("conv"), arrivals="trace", rate=5, duration=10)
    assert plain.tags == ("",)
    tagged = planning.plan(planning.load_streams("conv", tag="x"), arrivals="trace", rate=5, duration=10)
    assert tagged.tags == ("x",)
    np.testing.assert_array_equal(plain.content_seed, tagged.content_seed)


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":trace=conv", "a:rate=1", "a:pace=1,trace=conv", "a:trace=", "a:trace=x,trace=y"]
)
def test_nonsense_tenants(text: str) -> None:
    with pytest.raises(BadInput, match="--tenant"):
        parse_tenant(text)


def test_tenant_fields() -> None:
    assert parse_tenant("a:trace=x/y.csv,arrivals=ramp:from=1,to=9,rate=3x") == Tenant(
        "a", "x/y.csv", "3x", "ramp:from=1,to=9"
    )


def test_contradictions_name_their_flags() -> None:
    with pytest.raises(BadInput, match="disagree"):
        planning.load_streams("conv#a", tag="b")
    with pytest.raises(BadInput, match="both given"):
        planning.plan(planning.load_streams("conv@5"), arrivals="poisson", rate=3, duration=5)
    with pytest.raises(BadInput, match="not distinct"):
        planning.plan(
            planning.load_streams("conv", tenants=["a:trace=code", "a:trace=conv"]),
            arrivals="poisson",
            rate=1,
            duration=9,
        )


def test_text_is_made_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        def counts(self, texts: Sequence[str], *, chat: bool) -> list[int]:
            return [len(text.split()) + 3 * chat for text in texts]

    monkeypatch.setattr(planning, "open_tokenizer", lambda *_, **__: Words())
    asked = {"tokenizer": "server", "url": "http://127.0.0.1:9", "model": "m"}
    planned = planning.plan(planning.load_streams("conv"), arrivals="trace", rate=5, duration=10)
    assert not planning.needs_text(planned, "completions")
    assert planning.needs_text(planned, "chat")
    made = planning.with_text(planned, api="chat", **asked)
    assert len(prompts.prompt_text(made, 0).split()) + 3 == planned.prompt_tokens[0]
    path = tmp_path / "s.json"
    path.write_text(
        '[{"conversations":[{"from":"human","value":"one two three"},{"from":"gpt","value":"ho"}]}]'
    )
    talk = planning.plan(planning.load_streams(str(path)), arrivals="offline")
    assert planning.needs_text(talk, "completions")
    assert planning.with_text(talk, api="completions", **asked).prompt_tokens.tolist() == [3]
    with pytest.raises(BadInput, match="limit of 3"):
        planning.with_text(talk, api="completions", max_model_len=3, **asked)


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
        streams = planning.load_streams(str(path))

        def asked(**tls: Any) -> Any:
            url = f"https://127.0.0.1:{server.server_port}"
            config = RunConfig(url=url, trace=str(path), arrivals="offline", **tls)
            return plan_schedule(config, streams, TargetInfo(url=url, model="m"))

        assert asked(ca_file=str(certificate)).prompt_tokens.tolist() == [7]
        assert asked(insecure=True).prompt_tokens.tolist() == [7]
        with pytest.raises(BadInput, match="certificate"):
            asked()
    finally:
        server.shutdown()
        server.server_close()
