"""A real vLLM server on this machine's CPU, metered by a model of a GPU."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

MODEL_NAME = "tiny"
START_SECONDS = 600  # two servers that compile at once on two cores take minutes
# So long that no request runs to its end before a client's hanging up is seen, however late that is.
MAX_MODEL_LEN = 32768


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    quiet = {
        name: value for name, value in os.environ.items() if not name.startswith(("WATTSERVE_", "VLLM_"))
    }
    return quiet | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def start_meter(
    profile: str, folder: Path, *flags: str, script: Path | None = None, **more: str
) -> subprocess.Popen[bytes]:
    """A meter at `folder`/meter.sock with modelled devices; `flags` as of `wattserve meter`. Returns once its
    socket is there. `script` is run in place of the meter's own module."""
    socket_path = folder / "meter.sock"
    options = {
        "meter": f"modelled:{profile}",
        "socket": str(socket_path),
        "port": 0,
        **{flags[at].removeprefix("--"): flags[at + 1] for at in range(0, len(flags), 2)},
    }
    program = ["-m", "wattserve.meter.process"] if script is None else [str(script)]
    with (folder / "meter.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *program, json.dumps(options)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(**more),
        )
    deadline = time.monotonic() + 60
    while not socket_path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the meter did not start:\n{(folder / 'meter.log').read_text()}")
        time.sleep(0.1)
    return process


class Server:
    """One metered vLLM in a process group of its own.

    `command`: `launcher`, `drop-in` (vLLM's own command) or `failing-meter` (the launcher, attached to a
    meter that fails while the file `meter_fails` exists; see failing_meter.py). `meter_at`: the launcher
    attaches to the meter at this socket. `more` are environment variables.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        profile: str,
        *flags: str,
        command: str = "launcher",
        eager: bool = True,
        meter_at: str | None = None,
        **more: str,
    ) -> None:
        self.folder = folder
        self.recording = folder / "recording"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        vllm = [
            str(model),
            *("--load-format", "dummy", "--served-model-name", MODEL_NAME),
            *(("--enforce-eager",) if eager else ()),
            *("--host", "127.0.0.1", "--port", str(self.port), "--max-model-len", str(MAX_MODEL_LEN)),
            *flags,
        ]
        ours = ["--energy-meter", f"modelled:{profile}", "--energy-record", str(self.recording)]
        self.meter: subprocess.Popen[bytes] | None = None
        self.meter_fails = folder / "meter-fails"
        if command == "failing-meter":
            meter_at = str(folder / "meter.sock")
            self.meter = start_meter(
                profile,
                folder,
                "--record",
                str(self.recording),
                script=Path(__file__).with_name("failing_meter.py"),
                FAILING_METER=str(self.meter_fails),
            )
        if meter_at is not None:
            ours = ["--energy-meter-at", meter_at]
        arguments = [sys.executable, "-m", "wattserve.vllm", *vllm, *ours]
        variables = environment(**more)
        if command == "drop-in":
            # vLLM's own command line; only its name for the installed distribution is helped along.
            arguments = [sys.executable, str(Path(__file__).with_name("vllm_cli.py")), "serve", *vllm]
            arguments += ["--middleware", "wattserve.vllm.EnergyMiddleware"]
            variables = environment(
                WATTSERVE_METER=f"modelled:{profile}", WATTSERVE_RECORD=str(self.recording)
            )
        self.log_path = folder / "server.log"
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                arguments, stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
            )
        self._await_health()

    def _await_health(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                pytest.fail(f"the server ended with {self.process.returncode}:\n{self.log()[-4000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.5)
        self.stop()
        pytest.fail(f"no answer after {START_SECONDS} s:\n{self.log()[-4000:]}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                # The meter is late where vLLM computes on all cores, and gone for a moment once killed.
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def settled(self, *request_ids: str, seconds: float = 20.0) -> dict[str, dict[str, Any]]:
        """The energy of the requests once all are settled; fails the test where that does not happen."""
        deadline = time.monotonic() + seconds
        while True:
            answers = self.get("/energy/requests", {"ids": list(request_ids)})["requests"]
            if all(answer["status"] == "settled" for answer in answers):
                return {answer["id"]: answer for answer in answers}
            if time.monotonic() > deadline:
                pytest.fail(
                    f"not settled after {seconds} s: {[a for a in answers if a['status'] != 'settled']}"
                )
            time.sleep(0.2)

    def stop(self) -> int:
        """Ends the server as an operator would and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        if self.meter is not None:
            self.meter.terminate()
            self.meter.wait(timeout=30)
        return self.process.returncode
