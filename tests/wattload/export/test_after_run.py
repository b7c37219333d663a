"""The export at the end of a run: whatever becomes of it, the run and its exit status stay as they are."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from otlp_collector import collecting
from sim_server import simulating
from synthetic_run import Synthetic
from wattload.cli import app as cli
from wattload.errors import InputError
from wattload.export import destinations
from wattload.export.after_run import export_after
from wattload.export.options import ExportOptions


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_directory(path: Path) -> Path:
    Synthetic(duration=40.0, rate=2.0, gaps=False).write(path)
    return path


def test_it_is_exported_by_a_process_of_its_own(tmp_path: Path) -> None:
    path, said = run_directory(tmp_path / "r"), list[str]()
    with collecting() as collector:
        assert export_after(path, ExportOptions(otel=collector.url, otel_sample=1), said.append)
    assert collector.metrics()
    assert collector.requests()
    (line,) = said
    assert line.startswith("OpenTelemetry: exported ")


def test_nothing_is_asked_for_and_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert export_after(tmp_path, ExportOptions(), print)


def test_a_collector_that_is_down_is_one_note_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    path, said = run_directory(tmp_path / "r"), list[str]()
    url = f"http://user:hunter2-password@127.0.0.1:{closed_port()}"
    assert not export_after(path, ExportOptions(otel=url), said.append)
    (note,) = said
    assert note.startswith("note: not all exported: OpenTelemetry: its metrics were not exported")
    assert "connection refused" in note
    assert f"wattload export {path} --otel http://127" in note
    assert "hunter2" not in note


def test_one_that_never_answers_is_ended(tmp_path: Path) -> None:
    path, said = run_directory(tmp_path / "r"), list[str]()
    with collecting(silent=True) as collector:
        # The process has begun to export when it is ended: its deadline counts from its start.
        assert not export_after(path, ExportOptions(otel=collector.url), said.append, limit_seconds=6)
    (note,) = said
    assert "not exported" in note or "took longer than 6 s" in note
    assert f"wattload export {path} --otel {collector.url}" in note


@pytest.mark.e2e
def test_the_exit_status_of_a_run_is_its_own(tmp_path: Path) -> None:
    """The same run with a collector that takes it, and with one that refuses."""

    def run(name: str, collector: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wattload.cli", "run", url, "--trace", "conv", "--rate", "8"]
        command += ["--requests", "8", "--arrivals", "constant", "--no-report", "--progress", "plain"]
        command += ["--warmup", "0", "--out", str(tmp_path / name)]
        command += ["--otel", collector, "--otel-sample", "1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    with simulating() as (url, _), collecting() as good, collecting(status=403, said=b"no") as bad:
        first, second = run("a", good.url), run("b", bad.url)
    for name, done in (("a", first), ("b", second)):
        made = json.loads((tmp_path / name / "run.json").read_text())
        assert made["requests"]["completed"] == 8
        # On a busy machine the simulator may be late, which a run says of itself.
        assert done.returncode == (0 if made["valid"] else 1), done.stderr
    assert len(good.requests()) == 8
    for _, about in good.requests().values():
        # Exported when the joules were final, and as what they are.
        assert about["wattload.energy.status"] == "settled"
        assert about["wattload.energy.simulated"] is True
    assert "OpenTelemetry: exported" in first.stdout + first.stderr
    notes = [line for line in (second.stdout + second.stderr).splitlines() if "not all exported" in line]
    assert len(notes) == 1
    assert "HTTP 403: no" in notes[0]
    assert (tmp_path / "b" / "requests.parquet").exists()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, (said.err.strip() or said.out.strip())


def test_the_command_exports_runs_that_exist_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(run_directory(tmp_path / name)) for name in ("a", "b")]
    with collecting() as collector:
        assert refused(capsys, "export", *paths, "--otel", collector.url)[0] == 0
        assert collector.paths.count("/v1/metrics") == 2
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        code, said = refused(capsys, "export", paths[0], "--otel", "--otel-sample", "0")
        assert (code, collector.url in said) == (0, True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    code, said = refused(capsys, "export", paths[0], "--otel", f"127.0.0.1:{closed_port()}")
    assert code == 1
    assert "connection refused" in said


def test_what_cannot_be_exported_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(run_directory(tmp_path / "r"))
    assert refused(capsys, "export", path) == (2, "wattload: say where to: --otel [URL], --mlflow or --wandb")
    assert refused(capsys, "export", str(tmp_path), "--otel")[0] == 2
    assert (
        "URL is missing: http://x was taken for the value of --otel"
        in refused(capsys, "run", "--otel", "http://x")[1]
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    code, said = refused(capsys, "export", path, "--otel")
    assert (code, "OTEL_EXPORTER_OTLP_PROTOCOL is grpc" in said) == (2, True)


@pytest.mark.parametrize("destination", destinations.DESTINATIONS, ids=lambda one: one.setting)
def test_a_client_that_is_not_installed_is_named_before_the_load(
    destination: destinations.Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = ExportOptions.of({destination.setting: True})
    with pytest.raises(InputError, match=f"pip install {destination.distributions}$") as caught:
        destinations.check(asked)
    assert f"extra '{destination.setting}'" in str(caught.value)
    destinations.check(ExportOptions())


@pytest.mark.parametrize(
    ("given", "collector"),
    [
        ("localhost:4318", "http://localhost:4318"),
        ("https://c/v1/traces", "https://c"),
        ("http://c:4318/", "http://c:4318"),
        (True, "env"),
        (False, None),
    ],
)
def test_an_address_is_read_generously(given: object, collector: str | None) -> None:
    assert ExportOptions.of({"otel": given}).otel == collector
