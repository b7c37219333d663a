"""`wattload traces` as it is typed: output, exit status, files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from shared import shared_file
from wattload import traces
from wattload.cli.app import main
from wattload.errors import BadInput
from wattload.traces.catalog import CATALOG, PublicTrace
from wattload.traces.describe import dispersion, shared_fraction, statistics_of
from wattload.traces.fetch import fetch

CONTENT = b"seconds,prompt_tokens,output_tokens\n0,1,1\n1,2,2\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved.csv":
            self.send_response(302)
            self.send_header("Location", "/t.csv")
            self.end_headers()
            return
        self.send_response(200 if self.path in ("/t.csv", "/cut.csv") else 404)
        self.send_header("Content-Length", str(len(CONTENT) + (9 if self.path == "/cut.csv" else 0)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def public(url: str, sha256: str | None = None) -> PublicTrace:
    return PublicTrace("t", url, 2, "CC-BY 4.0", "Someone, 2025", sha256)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as status:
        main(["traces", *arguments])
    said = capsys.readouterr()
    return int(status.value.code or 0), said.out, said.err


def test_fetch_verifies_and_does_it_once(server: str, tmp_path: Path) -> None:
    got = fetch(public(f"{server}/t.csv", SHA256), tmp_path)
    assert (got.sha256, got.verified, got.downloaded) == (SHA256, "published", True)
    assert got.path.read_bytes() == CONTENT
    assert not fetch(public(f"{server}/t.csv", SHA256), tmp_path).downloaded
    got.path.write_bytes(b"something else")
    with pytest.raises(BadInput, match="remove the file"):
        fetch(public(f"{server}/t.csv", SHA256), tmp_path)


def test_fetch_of_another_file_than_expected_keeps_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"sha256 is {SHA256}, but 00 is expected"):
        fetch(public(f"{server}/t.csv", "00"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unpublished_checksum_is_written_down_at_the_first_fetch(server: str, tmp_path: Path) -> None:
    first = fetch(public(f"{server}/t.csv"), tmp_path)
    assert first.verified is None
    assert (tmp_path / "t.csv.sha256").read_text().startswith(SHA256)
    assert fetch(public(f"{server}/t.csv"), tmp_path).verified == "first fetch"
    first.path.unlink()
    (tmp_path / "t.csv.sha256").write_text("00  t.csv\n")
    with pytest.raises(BadInput, match="first fetch"):
        fetch(public(f"{server}/t.csv"), tmp_path)


def test_fetch_follows_redirects_and_names_what_fails(server: str, tmp_path: Path) -> None:
    assert fetch(public(f"{server}/moved.csv", SHA256), tmp_path).sha256 == SHA256
    for path, said in (("/none.csv", "answered 404"), ("/cut.csv", "cannot be fetched")):
        with pytest.raises(BadInput, match=said):
            fetch(public(server + path), tmp_path)
    with pytest.raises(BadInput, match="cannot be fetched"):
        fetch(public("http://127.0.0.1:9/x.csv"), tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="out"):
        fetch(public(f"{server}/t.csv"), tmp_path / "file")


def test_fetch_command_shows_checksum_licence_and_citation(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wattload.cli.traces.CATALOG", (public(f"{server}/t.csv", SHA256),))
    status, out, _ = run(capsys, "fetch", "t", "--out", str(tmp_path))
    assert status == 0
    for said in (SHA256, "CC-BY 4.0", "Someone, 2025"):
        assert said in out
    status, _, err = run(capsys, "fetch", "other")
    assert status == 2
    assert "no trace to fetch" in err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "list", "--json")
    listed = json.loads(out)
    assert status == 0
    assert [w["name"] for w in listed["embedded"]] == ["conv", "code", "agent"]
    assert {p["name"] for p in listed["fetchable"]} == {p.name for p in CATALOG}
    assert all(p["licence"] and p["citation"] for p in listed["fetchable"])
    status, out, _ = run(capsys)
    assert status == 0
    assert "azure-2023-conv" in out


def test_the_catalog_knows_the_checksums_of_the_files_at_hand() -> None:
    known = {p.name: p.sha256 for p in CATALOG}
    for name, file in (
        ("azure-2023-conv", "AzureLLMInferenceTrace_conv.csv"),
        ("azure-2023-code", "AzureLLMInferenceTrace_code.csv"),
        ("mooncake-conversation", "mooncake_conversation_trace.jsonl"),
    ):
        assert hashlib.sha256(shared_file("traces", file).read_bytes()).hexdigest() == known[name]


def test_check_is_valid_or_2_with_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(CONTENT)
    status, out, _ = run(capsys, "check", str(path))
    assert (status, "2 requests of format plain" in out) == (0, True)
    path.write_bytes(CONTENT + b"2,-1,1\n")
    status, _, err = run(capsys, "check", str(path))
    assert status == 2
    assert err.strip().splitlines()[-1] == f"wattload: {path}, line 4: prompt_tokens -1 is negative"
    path.write_bytes(CONTENT + b"2,5000,1\n")
    status, _, err = run(capsys, "check", str(path), "--max-model-len", "4096")
    assert status == 2
    assert "line 4" in err
    assert "4096" in err


def test_check_takes_the_options_its_sentences_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("t,p,o\n5,1,1\n4,1,1\n4,1,0\n")
    mapped = ["--column-map", "seconds=t,prompt_tokens=p,output_tokens=o"]
    for options, status in (
        (mapped, 2),
        ([*mapped, "--sort"], 2),
        ([*mapped, "--sort", "--empty-requests", "drop"], 0),
        ([*mapped, "--empty-requests", "maybe"], 2),
    ):
        assert run(capsys, "check", str(path), *options)[0] == status


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "show", "conv", "--plot", str(tmp_path / "p.png"))
    assert status == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert "19,366" in out
    status, out, _ = run(capsys, "show", "code", "--json")
    assert json.loads(out)["rows"] == 8819
    status, _, err = run(capsys, "show", "conv", "--plot", str(tmp_path / "p.unknown"))
    assert status == 2
    assert "--plot" in err


def test_statistics_are_those_of_known_processes() -> None:
    rng = np.random.default_rng(5)
    poisson = np.cumsum(rng.exponential(0.1, 20_000))
    assert dispersion(poisson, 1.0) == pytest.approx(1, abs=0.1)
    even = np.arange(20_000) / 10
    assert dispersion(even, 1.0) == pytest.approx(0, abs=0.02)
    assert dispersion(even, 500.0) is None
    statistics = statistics_of(traces.load("conv"))
    assert statistics.gap_cv is not None
    assert 0.9 < statistics.gap_cv < 1.4


def test_shared_fraction_is_what_an_endless_cache_would_hit(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [(1024, [1, 2]), (1024, [1, 3]), (1000, [1, 3]), (512, [3])]
    path.write_text(
        "".join(
            json.dumps({"timestamp": i, "input_length": n, "output_length": 1, "hash_ids": ids}) + "\n"
            for i, (n, ids) in enumerate(rows)
        )
    )
    # Nothing; one block; the whole prompt; nothing, since the known block stood behind another.
    assert shared_fraction(traces.load(path)) == pytest.approx((0 + 512 + 1000 + 0) / 3560)
