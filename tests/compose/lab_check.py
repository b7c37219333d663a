"""Run inside the compose lab, the whole file up: traffic, numbers, profiles, failures. Standard library only.

Prints one line a check and ends with status 1 where one failed.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

PROMETHEUS, GRAFANA, LOCUST, SERVER = 9090, 3000, 8089, 8000
WINDOW_LIMIT = 0.01
# How far the power at an end of the window may be from its mean, which Prometheus takes it to be there.
EDGE_POWER_FRACTION = 0.2
failed: list[str] = []


def sh(*command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def compose(*words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return sh("docker", "compose", *words, timeout=timeout)


def get(port: int, path: str, timeout: float = 5) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
        return str(answer.read().decode())


def query(expr: str, at: float | None = None) -> float | None:
    words = {"query": expr} | ({"time": str(at)} if at else {})
    result = json.loads(get(PROMETHEUS, f"/api/v1/query?{urllib.parse.urlencode(words)}"))["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def until(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except OSError:
            pass
        time.sleep(0.5)
    return False


def states(*words: str) -> dict[str, str]:
    """Service to "running healthy", "exited 1", ..."""
    lines = compose(*words, "ps", "-a", "--format", "json").stdout.splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return {r["Service"]: f"{r['State']} {r['Health'] or r['ExitCode']}" for r in rows}


def up(*services: str) -> bool:
    now = states()
    return all(now.get(name) == "running healthy" for name in services)


def check(name: str, passed: object, detail: object = "") -> None:
    print(f"{'ok  ' if passed else 'FAIL'} {name}{f': {detail}' if detail != '' else ''}", flush=True)
    if not passed:
        failed.append(name)


@contextmanager
def overridden(text: str) -> Any:
    """The words of a `docker compose` that reads `text` over the file."""
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(text)
        file.flush()
        yield ["-f", "docker-compose.yml", "-f", file.name, "--project-directory", "."]


def traffic() -> None:
    words = "run --rm -T loadgen wattload run http://sim:8000 --trace conv --rate 4 --arrivals constant"
    words += (
        " --duration 60 --warmup 12 --out /runs/lab --name lab --progress none --slo ttft=500ms,tpot=50ms"
    )
    done = compose(*words.split())
    told = compose("exec", "-T", "locust", "cat", "/runs/lab/run.json")
    check("the run is in the volume that other services see", told.returncode == 0, told.stderr[-200:])
    run = json.loads(told.stdout)
    start, end = run["window"]["start_unix"], run["window"]["end_unix"]
    over = f"[{round(end - start)}s]"
    until(15, lambda: query("wattserve_energy_joules_total", end))
    joules = query(f"sum(increase(wattserve_device_energy_joules_total{over}))", end) or 0.0
    asked = query(f'sum(increase(wattload_planned_requests_total{{run="lab"}}{over}))', end) or 0.0
    # Between an end of the window and the nearest scrape within it `increase` goes on at the mean power, and
    # a busy machine scrapes late.
    read = "timestamp(wattserve_device_energy_joules_total)"
    last = query(f"max({read})", end) or start
    first = query(f"min(min_over_time({read}[{round(end - start)}s:1s]))", end) or end
    unread = max(0.0, end - last) + max(0.0, first - start)
    limit = WINDOW_LIMIT + EDGE_POWER_FRACTION * unread / (end - start)
    for name, there, here in (
        ("joules of the window", joules, run["energy"]["total_joules"]),
        ("joules per request", joules / max(asked, 1e-9), run["energy"]["per_request_joules"]["mean"]),
    ):
        difference = abs(there - here) / here
        detail = f"Prometheus {there:.5g}, run.json {here:.5g}, {difference:.2%} (at most {limit:.2%})"
        check(f"{name} agree", difference <= limit, detail)
    # On two busy cores the simulated GPU may run late, and says so; nothing else may be wrong.
    reasons = [reason for reason in run["reasons"] if "ran late" not in reason]
    check("the run is valid", not reasons, run["reasons"])
    expected = 0 if run["valid"] else 1
    check("docker compose run gives wattload's status", done.returncode == expected, done.stderr[-300:])
    done_count = query('wattload_requests_total{run="lab",outcome="completed"}', end + 2)
    check("Prometheus found the one-off container", done_count, done_count)


def surface() -> None:
    check("four services are healthy", up("sim", "prometheus", "grafana", "locust"), states())
    health = json.loads(get(GRAFANA, "/api/health"))
    check("Grafana has the dashboards", health.get("dashboards", 3) == 3, health)
    check("Locust's page is there", "<html" in get(LOCUST, "/").lower())
    check("the server has its model", json.loads(get(SERVER, "/v1/models"))["data"])
    groups = json.loads(get(PROMETHEUS, "/api/v1/rules"))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    check("no rule fails", rules and all(r["health"] in {"ok", "unknown"} for r in rules), len(rules))
    published = sh("docker", "ps", "--format", "{{.Ports}}").stdout
    check("nothing is published beyond 127.0.0.1", "0.0.0.0" not in published and "[::]" not in published)
    for name in ("sim", "locust"):
        user = compose("exec", "-T", name, "id", "-u").stdout.strip()
        check(f"{name} is not root", user == "10001", user)


def scale() -> None:
    done = compose("--profile", "scale", "up", "-d", "--no-build", "--wait", "locust-master", "locust-worker")
    check("the scale profile comes up", done.returncode == 0, done.stderr[-300:])

    def workers() -> int:
        return len(json.loads(get(8090, "/stats/requests")).get("workers", []))

    check("the master has its two workers", until(40, lambda: workers() == 2), workers())
    compose("--profile", "scale", "rm", "-sf", "locust-master", "locust-worker")


def planted() -> None:
    """A service that crashes and a mount that is missing: `up --wait` must fail, and the log must say why."""
    with overridden('services: {sim: {command: ["sh", "-c", "echo no profile; exit 3"]}}') as words:
        done = compose(*words, "up", "-d", "--no-build", "--wait", "sim", timeout=60)
        check("planted: a crashing service fails `up --wait`", done.returncode != 0)
        check("the others stay up", up("prometheus", "grafana", "locust"), states())
    text = (
        "services: {grafana: {volumes: !override [./docker/http-healthcheck.sh:/opt/http-healthcheck.sh:ro]}}"
    )
    with overridden(text) as words:
        done = compose(*words, "up", "-d", "--no-build", "--wait", "grafana", timeout=90)
        check("planted: a missing mount fails `up --wait`", done.returncode != 0)
    compose("up", "-d", "--no-build", "--wait", timeout=90)
    check("and all is well again", up("sim", "prometheus", "grafana", "locust"), states())


def failures() -> None:
    compose("stop", "-t", "3", "prometheus")
    time.sleep(4)
    check("Prometheus down: the others stay up", up("sim", "grafana", "locust"), states())
    compose("stop", "-t", "3", "grafana")
    compose("up", "-d", "--no-build", "--no-deps", "grafana")
    check("Grafana comes up before Prometheus", until(30, lambda: up("grafana")), states())
    compose("up", "-d", "--no-build", "--wait", timeout=60)

    compose("rm", "-sf", "grafana")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", GRAFANA))
        taken.listen()
        done = compose("up", "-d", "--no-build", "grafana", timeout=60)
        last = done.stderr.strip().splitlines()[-1]
        said = "address already in use" in last and str(GRAFANA) in last
        check("a port taken: the last line says which", done.returncode != 0 and said, last[-160:])
        check("a port taken: the others stay up", up("sim", "prometheus", "locust"), states())
    compose("up", "-d", "--no-build", "--wait", timeout=60)

    # A flag of nonsense stands for any configuration that the server refuses.
    text = 'services: {sim: {environment: {WATTLOAD_SIM_PROFILE: "no-such-gpu"}}}'
    with overridden(text) as words:
        compose(*words, "up", "-d", "--no-build", "sim")
        until(15, lambda: states()["sim"].startswith("exited"))
        lines = compose("logs", "--no-log-prefix", "sim").stdout.strip().splitlines()
        last = lines[-1] if lines else ""
        check("a profile that is not there: the last log line says so", "no-such-gpu" in last, last)
    compose("up", "-d", "--no-build", "--wait", timeout=60)


def no_gpu() -> None:
    sh("docker", "tag", "wattload/server:local", "wattload/server-vllm:local")
    done = compose("--profile", "gpu", "up", "-d", "--no-build", timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    check(
        "no GPU with the gpu profile: it fails and says so", done.returncode and "gpu" in last.lower(), last
    )
    check("no GPU: the others stay up", up("prometheus", "grafana", "locust"), states())
    compose("--profile", "gpu", "rm", "-sf", "vllm")
    compose("down", "--timeout", "3")
    compose("--profile", "gpu", "up", "-d", "--no-build", timeout=60)
    fresh = until(60, lambda: up("prometheus", "grafana", "locust"))
    check("no GPU, from nothing: the others come up all the same", fresh, states())
    compose("--profile", "gpu", "rm", "-sf", "vllm")
    # Standing by: where vLLM serves, the simulated GPU must not be scraped beside it.
    text = """
services:
  vllm:
    deploy: !reset null
    entrypoint: []
    command: [sleep, "60"]
"""
    with overridden(text) as words:
        compose("rm", "-sf", "sim")
        compose(*words, "--profile", "gpu", "up", "-d", "--no-build", "vllm", "sim", timeout=60)
        log = compose("logs", "--no-log-prefix", "sim").stdout
        check(
            "the simulated GPU stands by for vLLM",
            until(20, lambda: "standing by" in compose("logs", "sim").stdout),
            log,
        )
        check("standing by is healthy", until(20, lambda: up("sim")), states())
        compose(*words, "--profile", "gpu", "rm", "-sf", "vllm", "sim")
    compose("up", "-d", "--no-build", "--wait", timeout=60)


def main() -> None:
    for part in (surface, traffic, scale, planted, failures, no_gpu):
        try:
            part()
        except Exception as error:
            check(part.__name__, False, f"{type(error).__name__}: {error}")
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'all checks passed'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
