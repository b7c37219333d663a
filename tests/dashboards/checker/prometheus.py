"""A real Prometheus for tests: the committed configuration with its targets replaced, and questions to it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

CONFIG = Path(__file__).resolve().parents[3] / "dashboards" / "prometheus"


class QueryError(Exception):
    """Prometheus refused a query; the message is its own."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels and its (time, value) samples, NaN left out."""

    labels: dict[str, str]
    samples: tuple[tuple[float, float], ...]


def _series(result: Sequence[dict[str, Any]]) -> list[Series]:
    answer = []
    for one in result:
        values = one["values"] if "values" in one else [one["value"]]
        kept = tuple((float(t), float(v)) for t, v in values if v not in {"NaN", "+Inf", "-Inf"})
        if kept:
            answer.append(Series(one["metric"], kept))
    return answer


class Prometheus:
    """The process. `targets` gives the addresses that replace each job's own."""

    def __init__(self, directory: Path, targets: Mapping[str, Sequence[str]]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(base_url=self.url, timeout=20)
        config = yaml.safe_load((CONFIG / "prometheus.yml").read_text(encoding="utf-8"))
        for job in config["scrape_configs"]:
            job.pop("file_sd_configs", None)
            addresses = [self.url.removeprefix("http://")]
            # A namespace, as Kubernetes' service discovery adds it.
            addresses = list(targets.get(job["job_name"], addresses))
            job["static_configs"] = [{"targets": addresses, "labels": {"namespace": "test"}}]
        shutil.copytree(CONFIG / "rules", directory / "rules")
        shutil.copytree(CONFIG / "alerts", directory / "alerts")
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def __enter__(self) -> Self:
        log = (self._directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self._directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._directory / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=log,
        )
        for _ in range(200):
            try:
                if self._http.get("/-/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError((self._directory / "prometheus.log").read_text())

    def __exit__(self, *_: object) -> None:
        self._http.close()
        if self._process:
            self._process.terminate()
            self._process.wait(10)

    def _ask(self, path: str, **params: Any) -> Any:
        body = self._http.get(f"/api/v1/{path}", params=params).json()
        if body["status"] != "success":
            raise QueryError(body.get("error", "no reason given"))
        return body["data"]

    def instant(self, expr: str, at: float | None = None) -> list[Series]:
        data = self._ask("query", query=expr, **({"time": at} if at else {}))
        if data["resultType"] == "scalar":
            return [Series({}, ((data["result"][0], float(data["result"][1])),))]
        return _series(data["result"])

    def raw(self, selector: str, at: float) -> list[Series]:
        """The samples themselves of a range selector like x[60s]."""
        return _series(self._ask("query", query=selector, time=at)["result"])

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        return _series(self._ask("query_range", query=expr, start=start, end=end, step=step)["result"])

    def label_values(self, metric: str, label: str) -> list[str]:
        found: list[str] = self._ask(f"label/{label}/values", **{"match[]": metric})
        return found

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def wait_for(self, expr: str, seconds: float = 30) -> None:
        """Until `expr` has a value; RuntimeError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.instant(expr):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus had nothing for {expr} in {seconds:g} s")
            time.sleep(0.25)
