"""The scripts inside the images: who tells Prometheus, who is healthy, what is said if vLLM cannot start."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCKER = Path(__file__).resolve().parents[2] / "docker"


@pytest.fixture
def ready_port() -> Iterator[int]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/ready" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "healthy"), [("/ready", True), ("/broken", False)])
def test_shell_healthcheck(ready_port: int, path: str, healthy: bool) -> None:
    done = subprocess.run(["sh", str(DOCKER / "http-healthcheck.sh"), "127.0.0.1", str(ready_port), path],
                          capture_output=True, timeout=10, check=False)  # fmt: skip
    assert (done.returncode == 0) is healthy


def test_shell_healthcheck_without_wget(ready_port: int, tmp_path: Path) -> None:
    (tmp_path / "bash").symlink_to("/bin/bash")
    for path, healthy in (("/ready", True), ("/broken", False)):
        done = subprocess.run(
            ["/bin/sh", str(DOCKER / "http-healthcheck.sh"), "127.0.0.1", str(ready_port), path],
            env={"PATH": str(tmp_path)}, capture_output=True, timeout=10, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is healthy, done.stderr


@pytest.mark.parametrize(("path", "status"), [("/ready", 0), ("/broken", 1)])
def test_python_healthcheck(ready_port: int, path: str, status: int) -> None:
    script, environment = (
        DOCKER / "http_healthcheck.py",
        {"HEALTH_URL": f"http://127.0.0.1:{ready_port}{path}"},
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, timeout=10, check=False
    )
    assert done.returncode == status


def _announce(targets: Path, *command: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"WATTLOAD_TARGETS": str(targets)}
    return subprocess.Popen(
        [sys.executable, str(DOCKER / "announce.py"), "wattload", "9646", *command], env=environment
    )


def test_announced_while_the_command_runs(tmp_path: Path) -> None:
    process = _announce(tmp_path, "sleep", "30")
    for _ in range(100):
        if list(tmp_path.glob("*.json")):
            break
        time.sleep(0.05)
    (file,) = tmp_path.glob("wattload-*.json")
    ((target,),) = (entry["targets"] for entry in json.loads(file.read_text()))
    assert target.endswith(":9646")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_announce_gives_back_the_commands_status(tmp_path: Path) -> None:
    assert _announce(tmp_path, "sh", "-c", "exit 7").wait(10) == 7
    assert _announce(tmp_path / "missing", "sh", "-c", "exit 0").wait(10) == 0


def _vllm(tmp_path: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """serve-vllm.sh with stand-ins for the programs it calls."""
    for name, text in ({"python3": 'shift 3; exec "$@"'} | programs).items():
        path = tmp_path / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", str(DOCKER / "serve-vllm.sh")],
        env={"PATH": f"{tmp_path}", "VLLM_MODEL": "no/such-model"},
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip


def test_no_gpu_is_one_sentence(tmp_path: Path) -> None:
    for programs in ({}, {"nvidia_smi": "exit 9"}):
        done = _vllm(tmp_path, **programs)
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("no NVIDIA GPU in this container")


def test_a_model_that_does_not_download_is_named_in_the_last_line(tmp_path: Path) -> None:
    done = _vllm(tmp_path, nvidia_smi="exit 0", wattserve="echo Traceback; exit 3")
    assert done.returncode == 3
    assert "no/such-model" in done.stderr.strip().splitlines()[-1]
