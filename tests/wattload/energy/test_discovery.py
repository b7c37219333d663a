"""Meters found by a Kubernetes label selector or in a Prometheus, and one that goes missing afterwards."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from host_meters import Meter, meters
from wattload.energy import kubernetes
from wattload.energy.discovery import Found, found_sources
from wattload.energy.kubernetes import Access, PodSelector, pods
from wattload.energy.options import EnergyOptions
from wattload.energy.probe import probe
from wattload.energy.several import SeveralMeters
from wattload.errors import InputError


@dataclass
class Api:
    """A stand-in for an API server or a Prometheus: `answer(path, query)` gives (status, body)."""

    answer: Callable[[str, dict[str, str]], tuple[int, Any]]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def serving(api: Api, certificate: tuple[Path, Path] | None = None) -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            api.asked.append(self.path)
            api.keys.append(self.headers.get("authorization"))
            status, body = api.answer(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()})
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    api.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()


def pod(name: str, address: str | None, phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {"name": f"meter-{name}"},
        "spec": {"nodeName": name},
        "status": {"phase": phase, **({"podIP": address} if address else {})},
    }


def listing(*items: dict[str, Any]) -> Api:
    return Api(lambda _path, _query: (200, {"kind": "PodList", "metadata": {}, "items": list(items)}))


def plain(api: Api) -> Access:
    return Access(api.url, "default", {"Authorization": "Bearer t"}, None)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("k8s:app=wattserve-meter", PodSelector("app=wattserve-meter")),
        ("k8s:app=m,namespace=energy,port=9", PodSelector("app=m", "energy", 9)),
        ("k8s:app.kubernetes.io/component=meter,tier!=old,namespace=*",
         PodSelector("app.kubernetes.io/component=meter,tier!=old", "*")),
    ],
)  # fmt: skip
def test_selectors(text: str, selector: PodSelector) -> None:
    assert PodSelector.parse(text) == selector
    assert EnergyOptions.of({"energy": text}).energy == text


@pytest.mark.parametrize(
    "text",
    ["k8s:", "k8s:namespace=x", "k8s:app in (a,b)", "k8s:app=m,port=x", "k8s:app=m,port=70000", "targets+http://p:9090",
     "targets+http://", "targets+ftp://p?job=x", "targets+http://u:p@p:9090?job=x"],
)  # fmt: skip
def test_what_finds_nothing_is_refused_before_anything_is_asked(text: str) -> None:
    with pytest.raises(InputError) as error:
        EnergyOptions.of({"energy": text})
    assert error.value.field == "energy"


def test_pods_become_addresses_named_by_their_nodes() -> None:
    items = [pod("node-b", "10.0.0.2"), pod("node-a", "fd00::7"), pod("old", None, "Succeeded")]
    with serving(listing(*items)) as api:
        assert pods(PodSelector("app=m", "energy"), plain(api)) == [
            ("node-a", "http://[fd00::7]:8790"),
            ("node-b", "http://10.0.0.2:8790"),
        ]
    assert api.asked == ["/api/v1/namespaces/energy/pods?labelSelector=app%3Dm&limit=500"]
    assert api.keys == ["Bearer t"]


def test_long_lists_come_in_pages_and_all_namespaces_are_one_question() -> None:
    def answer(_path: str, query: dict[str, str]) -> tuple[int, Any]:
        if "continue" in query:
            return 200, {"metadata": {}, "items": [pod("b", "10.0.0.2")]}
        return 200, {"metadata": {"continue": "more"}, "items": [pod("a", "10.0.0.1")]}

    with serving(Api(answer)) as api:
        assert len(pods(PodSelector("app=m", "*"), plain(api))) == 2
    assert [urlsplit(path).path for path in api.asked] == ["/api/v1/pods"] * 2


@pytest.mark.parametrize(
    ("api", "said"),
    [
        (listing(), "no pods with app=m in default"),
        (listing(pod("a", "10.0.0.1"), pod("b", None, "Pending")), "pod meter-b is Pending"),
        (Api(lambda *_: (403, {"message": "pods is forbidden"})), "403: pods is forbidden"),
        (Api(lambda *_: (200, {"items": None})), "does not list"),
        (Api(lambda *_: (200, [])), "does not list"),
    ],
)
def test_what_the_api_does_not_give_is_said(api: Api, said: str) -> None:
    with serving(api), pytest.raises(InputError, match=said):
        pods(PodSelector("app=m"), plain(api))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    made = f"req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {folder}/key.pem -out {folder}/cert.pem"
    named = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(["openssl", *made.split(), *named.split()], check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_in_a_pod_the_service_account_asks_over_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    (tmp_path / "token").write_text("account-token\n")
    (tmp_path / "namespace").write_text("energy")
    (tmp_path / "ca.crt").write_bytes(certificate[0].read_bytes())
    with serving(listing(pod("a", "10.0.0.1")), certificate) as api:
        port = str(urlsplit(api.url).port)
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
        found = pods(PodSelector("app=m"), kubernetes.access(environment, tmp_path))
        assert found == [("a", "http://10.0.0.1:8790")]
        assert api.asked[0].startswith("/api/v1/namespaces/energy/pods")
        assert api.keys == ["Bearer account-token"]
        stranger = Access(api.url, "energy", {}, None)
        with pytest.raises(InputError, match="certificate is not trusted"):
            pods(PodSelector("app=m"), stranger)


def kubectl(folder: Path, monkeypatch: pytest.MonkeyPatch, config: object, status: int = 0) -> None:
    """A kubectl that prints `config`, alone on the path with a program that gives a token."""
    (folder / "config.json").write_text(json.dumps(config))
    script = folder / "kubectl"
    script.write_text(f"#!/bin/sh\n/bin/cat {folder}/config.json\nexit {status}\n")
    script.chmod(0o755)
    plugin = folder / "cloud-login"
    plugin.write_text('#!/bin/sh\necho "{\\"status\\": {\\"token\\": \\"$REGION-token\\"}}"\n')
    plugin.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def config_of(server: str, user: dict[str, Any], authority: Path | None = None) -> dict[str, Any]:
    cluster: dict[str, Any] = {"server": server}
    if authority is not None:
        cluster["certificate-authority-data"] = base64.b64encode(authority.read_bytes()).decode()
    return {
        "contexts": [{"context": {"namespace": "team"}}], "clusters": [{"cluster": cluster}],
        "users": [{"user": user}],
    }  # fmt: skip


def test_elsewhere_the_context_of_kubectl_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path]
) -> None:
    login = {"exec": {"command": "cloud-login", "args": ["x"], "env": [{"name": "REGION", "value": "eu"}]}}
    own = {
        "client-certificate-data": base64.b64encode(certificate[0].read_bytes()).decode(),
        "client-key-data": base64.b64encode(certificate[1].read_bytes()).decode(),
    }
    with serving(listing(pod("a", "10.0.0.1")), certificate) as api:
        for user, key in (({"token": "written"}, "Bearer written"), (login, "Bearer eu-token"), (own, None)):
            kubectl(tmp_path, monkeypatch, config_of(api.url, user, certificate[0]))
            assert found_sources("k8s:app=m", {}, None) == [Found("http://10.0.0.1:8790", "a")]
            assert api.keys[-1] == key
            assert api.asked[-1].startswith("/api/v1/namespaces/team/pods")


@pytest.mark.parametrize(
    ("config", "status", "said"),
    [({}, 0, "no current context"), ([], 0, "did not print a JSON object"), ({}, 1, "ended with status 1")],
)
def test_a_kubectl_that_does_not_help_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: object, status: int, said: str
) -> None:
    kubectl(tmp_path, monkeypatch, config, status)
    with pytest.raises(InputError, match=said):
        found_sources("k8s:app=m", {}, None)
    (tmp_path / "kubectl").unlink()
    with pytest.raises(InputError, match="kubectl is not installed; give the meters' addresses"):
        found_sources("k8s:app=m", {}, None)


def targets(*rows: tuple[str, dict[str, str]]) -> Api:
    active = [{"scrapeUrl": url, "labels": labels, "health": "up"} for url, labels in rows]
    return Api(lambda _path, _query: (200, {"status": "success", "data": {"activeTargets": active}}))


def test_targets_of_a_prometheus_by_their_labels() -> None:
    rows = (
        ("http://10.0.0.2:8790/metrics", {"job": "wattserve", "node": "b"}),
        ("http://10.0.0.1:8790/metrics", {"job": "wattserve", "node": "a"}),
        ("http://10.0.0.9:9100/metrics", {"job": "node"}),
    )
    with serving(targets(*rows)) as api:
        assert found_sources(f"targets+{api.url}?job=wattserve", {"X-Scope": "t"}, None) == [
            Found("http://10.0.0.1:8790", "a"),
            Found("http://10.0.0.2:8790", "b"),
        ]
        with pytest.raises(InputError, match=r"no target with job=other \(3 others\)"):
            found_sources(f"targets+{api.url}?job=other", {}, None)
    assert api.asked[0] == "/api/v1/targets?state=active"
    with (
        serving(Api(lambda *_: (200, {}))) as wrong,
        pytest.raises(InputError, match="does not list its targets"),
    ):
        found_sources(f"targets+{wrong.url}?job=x", {}, None)


def test_meters_that_were_found_add_up_and_a_missing_one_leaves_no_total() -> None:
    first = Meter([400.0], 0.0)
    second = Meter([100.0], 0.0, place=("127.0.0.2", first.port))
    with meters(first, second) as (a, b):
        rows = (
            (f"{a.url}/metrics", {"job": "m", "node": "node-a"}),
            (f"{b.url}/metrics", {"job": "m", "node": "node-b"}),
        )
        with serving(targets(*rows)) as api:
            answer = probe(a.url, energy_url=f"targets+{api.url}?job=m")
        several = answer.open_source()
        assert isinstance(several, SeveralMeters)
        assert [host.name for host in several.hosts] == ["node-a", "node-b"]
        start = time.time() - 10
        assert several.window(start, start + 4).total_joules == pytest.approx(2000.0)
        b.down = True
        window = several.window(start, start + 4)
        assert window.total_joules is None
        assert window.reason is not None
        assert window.reason.startswith("the total lacks 1 of 2 hosts: node-b")
        with serving(targets(*rows)) as api, pytest.raises(InputError, match="every host"):
            probe(a.url, energy_url=f"targets+{api.url}?job=m")
