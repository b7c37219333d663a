"""`wattload run` against a simulated GPU, as a user would: what it writes, refuses, and leaves at Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.e2e

# Other programs may share the machine: they make a client or a simulation late, which a run rightly says.
LATE = ("client saturated", "simulator ran late")


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("sim") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "wattserve.cli", "sim", "--port", "0"], stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 40
        while True:
            found = re.search(r"listening on (http://\S+)", log.read_text())
            if found:
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the simulated GPU did not start"
            time.sleep(0.1)
        yield found[1]
    finally:
        process.terminate()
        process.wait(10)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "wattload.cli", *map(str, arguments)]


def wattload(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WATTLOAD_", "OPENAI_"))}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )


def reasons(run: dict[str, Any]) -> list[str]:
    """Why a run is not valid, other than that the machine was busy."""
    return [text for text in run["reasons"] if not any(late in text for late in LATE)]


def loaded(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return json.loads((folder / "run.json").read_text()), pq.read_table(
        folder / "requests.parquet"
    ).to_pylist()


@pytest.fixture(scope="module")
def first(sim: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    flags = ("--trace", "conv", "--rate", "5", "--arrivals", "poisson", "--duration", "8s", "--warmup", "1s")
    done = wattload("run", sim, *flags, "--out", out, "--progress", "plain", "--slo", "ttft=2s,tpot=100ms")
    assert done.returncode == 0 or any(late in done.stderr for late in LATE), done.stderr
    assert str(out / "report.html") in done.stdout
    return out


def test_everything_is_written_and_adds_up(first: Path) -> None:
    run, rows = loaded(first)
    assert reasons(run) == []
    planned = pq.read_table(first / "schedule.parquet")
    assert sorted(row["index"] for row in rows) == planned["index"].to_pylist()
    assert {row["outcome"] for row in rows} == {"completed"}
    assert run["requests"]["planned"] == len(rows) == run["requests"]["completed"]
    by_index = {row["index"]: row for row in rows}
    for index, prompt, output in zip(
        *(planned[name].to_pylist() for name in ("index", "prompt_tokens", "output_tokens")), strict=True
    ):
        row = by_index[index]
        assert (row["prompt_tokens"], row["output_tokens"]) == (prompt, output), "token counts are exact"
        assert row["due_unix"] <= row["sent_unix"] <= row["first_token_unix"] <= row["last_token_unix"]
    assert run["tokens"]["mismatches"] == 0
    assert (first / "report.html").stat().st_size > 50_000


def test_the_servers_own_metrics_are_read_meanwhile(first: Path) -> None:
    run, rows = loaded(first)
    table = pq.read_table(first / "server_metrics.parquet").to_pydict()
    begin, end = run["window"]["start_unix"], run["window"]["end_unix"]
    running = [
        (unix, value)
        for unix, metric, value in zip(table["unix_seconds"], table["metric"], table["value"], strict=True)
        if metric == "vllm:num_requests_running"
    ]
    assert running[0][0] < begin
    assert running[-1][0] > end - 5
    assert 0 < run["server"]["requests_running"] <= len(rows)
    assert run["server"]["preemptions"] == 0
    assert "server.draft_acceptance_fraction" in run["absent"], "the simulator makes no drafts"
    assert "batch size" in (first / "report.html").read_text()


def test_the_energy_is_conserved_and_the_requests_own_agree_with_the_server(first: Path, sim: str) -> None:
    run, rows = loaded(first)
    energy = run["energy"]
    parts = sum(energy[f"{name}_joules"] for name in ("idle", "prefill", "decode", "unattributed"))
    assert parts == pytest.approx(energy["total_joules"], rel=1e-3)
    assert energy["source"] == "modelled"
    assert "modelled" in energy["flags"]
    assert {row["energy_status"] for row in rows} == {"settled"}
    for row in rows[:10]:
        said = httpx.get(f"{sim}/energy/requests/{row['request_id']}").json()
        assert said["joules"] == pytest.approx(row["energy_joules"], rel=1e-6)
        assert said["prefill_joules"] + said["decode_joules"] == pytest.approx(said["joules"], rel=1e-6)
    inside = [row for row in rows if row["in_window"]]
    assert energy["per_request_joules"]["attributed_mean"] == pytest.approx(
        float(np.mean([row["energy_joules"] for row in inside])), rel=1e-6
    )
    series = pq.read_table(first / "energy.parquet").to_pydict()
    assert np.all(np.diff(series["joules"]) >= 0)


def test_the_report_is_made_again_from_the_directory_alone(first: Path) -> None:
    before = (first / "run.json").read_text()
    done = wattload("report", first)
    assert done.returncode in (0, 1), done.stderr
    assert json.loads((first / "run.json").read_text()) == json.loads(before)


def test_assertions_decide_the_exit_status(first: Path) -> None:
    done = wattload("report", first, "--assert", "energy.per_request_joules.mean < 0.001")
    assert done.returncode == 1
    assert "energy.per_request_joules.mean" in done.stderr.strip().splitlines()[-1]


def test_two_processes_send_what_one_does(sim: str, tmp_path: Path, first: Path) -> None:
    out = tmp_path / "two"
    flags = ("--trace", "conv", "--rate", "5", "--arrivals", "poisson", "--duration", "8s", "--warmup", "1s")
    wattload("run", sim, *flags, "--out", out, "--progress", "none", "--processes", "2", "--no-report")
    run, rows = loaded(out)
    assert reasons(run) == []
    _, alone = loaded(first)

    def plan(of: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
        return sorted((r["index"], r["prompt_tokens"], r["output_tokens"]) for r in of)

    assert plan(rows) == plan(alone)
    assert {row["worker"] for row in rows} == {0, 1}
    workers = run["host"]["workers"]
    assert all(worker["clock_uncertainty_seconds"] < 0.1 for worker in workers)


def test_ctrl_c_writes_what_there_is(sim: str, tmp_path: Path) -> None:
    out = tmp_path / "interrupted"
    flags = ("--trace", "conv", "--rate", "5", "--duration", "60s", "--progress", "none", "--warmup", "0")
    process = subprocess.Popen(
        command("run", sim, *flags, "--out", out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not (out / "capture.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=40)
    assert process.returncode == 1
    assert "interrupted" in said.strip().splitlines()[-1]
    run, rows = loaded(out)
    assert run["valid"] is False
    assert "interrupted" in run["reasons"]
    planned = pq.read_table(out / "schedule.parquet").num_rows
    assert len(rows) == planned
    outcomes = {row["outcome"] for row in rows}
    assert {"completed", "unsent"} <= outcomes <= {"completed", "unsent", "aborted"}


def test_a_server_that_dies_loses_no_row(tmp_path: Path) -> None:
    mock = Path(__file__).parents[2] / "benchmarks" / "loadgen" / "mock_server.py"
    server = subprocess.Popen([sys.executable, str(mock)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = re.search(r"http://\S+", server.stdout.readline())
    assert address is not None
    trace = tmp_path / "trace.csv"
    lines = "".join(f"{i / 50},50,64\n" for i in range(250))
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + lines)
    out = tmp_path / "died"
    flags = ("--trace", trace, "--energy", "none", "--progress", "none", "--no-report", "--warmup", "0")
    process = subprocess.Popen(command("run", address[0], *flags, "--out", out), stdout=subprocess.DEVNULL)
    try:
        while not (out / "capture.json").exists():
            time.sleep(0.05)
        time.sleep(2.5)
        server.kill()
        process.wait(40)
    finally:
        server.kill()
        server.wait()
    run, rows = loaded(out)
    assert len(rows) == 250
    outcomes = {row["outcome"] for row in rows}
    assert {"completed", "disconnected", "connect_error"} <= outcomes
    assert run["requests"]["failed"]["connect_error"] > 0
    assert run["energy"]["total_joules"] is None


NONSENSE = [
    (("--rate", "0"), "--rate"),
    (("--rate", "nan"), "--rate"),
    (("--duration", "x"), "--duration x"),
    (("--trace", "no-such-trace"), "no-such-trace"),
    (("--arrivals", "sometimes"), "--arrivals"),
    (("--model", "gpt-9"), "--model gpt-9"),
    (("--warmup", "9"), "--warmup 9"),
    (("--slo", "fast"), "--slo"),
    (("--assert", "x"), "--assert"),
    (("--energy", "http://127.0.0.1:9"), "--energy none"),
    (("--speed", "3"), "--speed"),
]


@pytest.mark.parametrize(("flags", "said"), NONSENSE, ids=[" ".join(flags) for flags, _ in NONSENSE])
def test_nonsense_is_refused_before_any_load(sim: str, tmp_path: Path, flags: Any, said: str) -> None:
    sensible = ("--trace", "conv", "--rate", "1", "--duration", "5")
    done = wattload("run", sim, *sensible, *flags, "--out", tmp_path / "no")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "no" / "requests.parquet").exists()


def test_endpoints_that_cannot_be_measured(sim: str, tmp_path: Path) -> None:
    flags = ("--trace", "conv", "--rate", "1", "--duration", "5", "--out", tmp_path / "no")
    gone = wattload("run", "http://127.0.0.1:9", *flags)
    assert (gone.returncode, "is the server running" in gone.stderr) == (2, True)
    long = tmp_path / "long.csv"
    long.write_text("seconds,prompt_tokens,output_tokens\n0,10,10\n1,100000,10\n")
    done = wattload("run", sim, "--trace", long, "--out", tmp_path / "no")
    assert done.returncode == 2
    assert "long.csv" in done.stderr
    assert "line 3" in done.stderr


def test_doctor_says_what_works_and_what_to_run(sim: str) -> None:
    done = wattload("doctor", sim, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    states = {finding["check"]: finding["state"] for finding in told["findings"]}
    assert told["usable"]
    assert set(states.values()) == {"ok"}
    assert {"endpoint", "energy", "requests", "token counts", "energy per request"} <= set(states)
    assert told["run"].startswith("wattload run http://")
    nothing = wattload("doctor", "127.0.0.1:9")
    assert nothing.returncode == 1
    assert "is the server running" in nothing.stderr.splitlines()[-1]


def agents_trace(path: Path, sessions: int) -> None:
    """Spans of agents: a question, two sub-agents at once after a tool, their join, and the user's next."""
    spans = []

    def span(trace: str, name: str, start: float, end: float, parent: str, **more: Any) -> None:
        named = {
            "gen_ai.operation.name": more.pop("op", "chat"),
            **{f"gen_ai.{key}": value for key, value in more.items()},
        }
        spans.append(
            {
                "traceId": trace,
                "spanId": name,
                "parentSpanId": parent,
                "startTimeUnixNano": str(round((1.7e9 + start) * 1000) * 1_000_000),
                "endTimeUnixNano": str(round((1.7e9 + end) * 1000) * 1_000_000),
                "attributes": [
                    {"key": key, "value": {"intValue" if isinstance(v, int) else "stringValue": v}}
                    for key, v in named.items()
                ],
            }
        )

    def chat(trace: str, name: str, start: float, parent: str, prompt: int) -> None:
        tokens = {"usage.input_tokens": prompt, "usage.output_tokens": 10}
        span(trace, name, start, start + 0.1, parent, **tokens)

    for number in range(sessions):
        begin, one, two = number * 0.05, f"{number}a", f"{number}b"
        talk = {"conversation.id": f"c{number}", "agent.name": "lead"}
        span(one, "root", begin, begin + 2, "", op="invoke_agent", **talk)
        chat(one, "plan", begin, "root", 200)
        for agent, offset in (("left", 0.3), ("right", 0.4)):
            span(one, agent, begin + 0.1, begin + 1, "root", op="invoke_agent")
            chat(one, f"{agent}1", begin + offset, agent, 100)
        chat(one, "left2", begin + 0.6, "left", 150)
        chat(one, "join", begin + 1.2, "root", 400)
        span(two, "root", begin + 2, begin + 3, "", op="invoke_agent", **talk)
        chat(two, "next", begin + 2.0, "root", 500)
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))


def test_agents_branch_join_and_wait_for_their_tools(sim: str, tmp_path: Path) -> None:
    agents_trace(tmp_path / "spans.json", 40)
    out = tmp_path / "run"
    done = wattload(
        "run", sim, "--trace", tmp_path / "spans.json", "--out", out, "--warmup", "0s", "--no-report"
    )
    run, rows = loaded(out)
    assert not reasons(run), done.stderr
    by_index = {row["index"]: row for row in rows}
    plan = pq.read_table(out / "schedule.parquet").to_pylist()
    assert len(plan) == 240
    waits = [row for row in plan if row["parents"]]
    assert sorted(len(row["parents"]) for row in waits) == [1] * 160 + [3] * 40
    for planned in waits:
        row = by_index[planned["index"]]
        ended = [by_index[parent]["last_token_unix"] for parent in planned["parents"]]
        if row["outcome"] == "completed":
            # When all it waits for has come, and its tools have taken their time; never before.
            assert row["due_unix"] >= max(ended) + planned["think_seconds"] - 1e-3
            assert row["sent_unix"] >= row["due_unix"] - 1e-3
    for table, key in (("sessions", "session"), ("tasks", "task")):
        units = pq.read_table(out / f"{table}.parquet").to_pylist()
        for unit in units:
            mine = [row["energy_joules"] for row in rows if row[key] == unit[key] and row["sent_unix"]]
            if unit["attributed_joules"] is not None:
                assert unit["attributed_joules"] == pytest.approx(sum(mine), rel=1e-9)
            assert unit["agents"] == (3 if unit["turns"] > 1 else 1)
    info = run["sessions"]["per_task"]
    assert info["completed"] > 40
    assert info["waiting_idle_joules"] > 0
    assert info["energy_joules"]["mean"] == pytest.approx(
        info["attributed_joules"] + info["idle_joules"] + info["waiting_idle_joules"], rel=1e-9
    )
    assert "Task energy" in done.stdout
    assert "simulated" in done.stdout
