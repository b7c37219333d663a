"""Programs that a study starts: how they come up, how they fail, and that nothing is left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from study_files import SERVER
from wattload.study.program import (
    Identity,
    ProgramFailed,
    Running,
    await_health,
    end_sentence,
    free_port,
    own_command,
    start,
)


def tiny(folder: Path, *more: str, port: int | None = None) -> Running:
    port = port or free_port()
    command = (sys.executable, str(SERVER), "--port", str(port), *more)
    return start("the server of x", command, environment={}, port=port, log=folder / "log", folder=folder)


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_comes_up_and_is_stopped(tmp_path: Path) -> None:
    program = tiny(tmp_path)
    try:
        await_health(program, "/health", timeout_seconds=60)
        assert not program.ended
        assert program.start_seconds > 0
    finally:
        program.stop()
    assert program.ended
    assert "signal 15" in program.how_it_ended()


def test_a_port_that_is_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ProgramFailed, match=f"port {port} is in use by another program"):
            tiny(tmp_path, port=port)
    assert not (tmp_path / "log").exists()


def test_one_that_ends_while_it_starts(tmp_path: Path) -> None:
    program = tiny(tmp_path, "--say", "no such model: llama-9", "--exit", "7")
    with pytest.raises(ProgramFailed, match=r"the server of x ended with 7: no such model.*while it started"):
        await_health(program, "/health", timeout_seconds=60)


def test_one_that_runs_out_of_memory_while_it_starts(tmp_path: Path) -> None:
    said = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    program = tiny(tmp_path, "--say", said, "--exit", "1")
    with pytest.raises(ProgramFailed, match=r"the server of x ran out of memory: torch\.OutOfMemoryError"):
        await_health(program, "/health", timeout_seconds=60)


def test_one_that_never_answers_is_ended(tmp_path: Path) -> None:
    program = tiny(tmp_path, "--deaf")
    with pytest.raises(ProgramFailed, match=r"did not come up within 1 s \(`start_timeout`\)"):
        await_health(program, "/health", timeout_seconds=1)
    assert program.ended


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="no-such-program: No such file"):
        start("the server", ("no-such-program",), environment={}, port=free_port(), log=tmp_path / "log",
              folder=tmp_path)  # fmt: skip


def test_how_an_end_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "killed (SIGKILL), as happens when the host's memory" in end_sentence("s", -9, "", log)
    assert "ended by signal 11: what" in end_sentence("s", -11, "what\n\n", log)
    framed = "╭─ Error ───╮\n│ No such option: --fast    │\n╰───────╯\n"
    assert "ended with 2: No such option: --fast (log" in end_sentence("s", 2, framed, log)
    assert "ended with 0: it printed nothing" in end_sentence("s", 0, "", log)
    assert len(end_sentence("s", 1, "x" * 5000, log)) < 400 + len(str(log))


def test_our_own_commands_are_those_of_this_interpreter() -> None:
    assert own_command(("wattserve", "sim"))[:3] == [sys.executable, "-m", "wattserve.cli"]
    assert own_command(("vllm", "serve")) == ["vllm", "serve"]


def test_what_an_interrupted_process_left_is_found_and_ended(tmp_path: Path) -> None:
    """Its child too, which outlives it."""
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"  # noqa: E501
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    identity = Identity.of(process.pid)

    def members() -> int:
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-g", str(process.pid)], capture_output=True, text=True, check=False
        )
        return sum(not line.startswith("Z") for line in listed.stdout.split())

    try:
        eventually(lambda: members() == 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert identity.end()
        eventually(lambda: members() == 0)
        assert not identity.end()
    finally:
        process.kill()
        process.wait()


def test_a_process_that_took_over_the_id_is_left_alone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        other = Identity(process.pid, Identity.of(process.pid).started_ticks - 1)
        assert not other.end()
        os.kill(process.pid, 0)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
