"""Certificates hold for a source of energy, also after Locust has patched the standard library."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

CHILD = """
import sys
from functools import partial
from wattload.client.transport.tls import tls_context
from wattload.energy.sources import open_source

def tls(**options):
    return lambda: tls_context(**options)

url, cert = sys.argv[1:]
for options in ({"ca_file": cert}, {"verify": False}):
    open_source(url, tls=tls(**options)).info()
    early = open_source(url, tls=tls(**options))
    import wattload.load.local
    print([device["id"] for device in early.info()["devices"]])
try:
    open_source(url).info()
except Exception as error:
    print("refused", "CERTIFICATE_VERIFY_FAILED" in str(error))
"""


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An exporter of one GPU behind TLS: its address, and its certificate."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = f"req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {cert}"
    named = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(["openssl", *made.split(), *named.split()], check=True, capture_output=True)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            body = b'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{UUID="GPU-1"} 5000\n'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield f"dcgm+https://127.0.0.1:{server.server_port}/metrics", cert
    server.shutdown()
    server.server_close()


def test_a_source_behind_tls(exporter: tuple[str, Path]) -> None:
    url, cert = exporter
    done = subprocess.run(
        [sys.executable, "-c", CHILD, url, str(cert)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == ["['GPU-1']", "['GPU-1']", "refused True"], done.stderr[-2000:]
