"""The checklist of an endpoint: the first way of asking that works, and the flags that a run then needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine_metrics import VLLM, showing
from wattload.cli import doctor
from wattload.cli.doctor import Finding, examine
from wattload.config import RunConfig
from wattload.energy.probe import Probe
from wattload.errors import InputError
from wattload.rundir.result import FailureInfo, RunJson, TargetInfo
from wattload.session import Execution

TARGET = TargetInfo(url="http://h:1", model="m", max_model_len=4096)


def probed(_url: str, *, energy_url: str | None, **_: Any) -> Probe:
    if energy_url != "none":
        raise InputError("no meter answers")
    return Probe(TARGET, ["m"], None, None, None, "not asked for")


def answered(config: RunConfig, **_: Any) -> Execution:
    """A gateway that has the chat route alone, and refuses ignore_eos."""
    failed = None
    if config.endpoint.api == "completions":
        failed = FailureInfo(outcome="http_4xx", status_code=404, message="404: Not Found", count=4)
    elif config.requests.exact_output:
        failed = FailureInfo(
            outcome="http_4xx", status_code=400, message="400: ignore_eos", count=4, hint="x"
        )
    requests = {
        "planned": 4, "sent": 4, "in_window": 4, "failed": {}, "completed": 0 if failed else 4,
        "failures": [failed] if failed else [],
    }  # fmt: skip
    result = RunJson.model_validate(
        {
            "name": "r", "started_unix": 0.0, "valid": True, "reasons": [], "versions": {}, "host": {},
            "target": TARGET, "workload": {"trace": "t", "arrivals": {"process": "trace"}}, "window": None,
            "requests": requests, "load": {}, "latency": {}, "tokens": {}, "energy": {},
        }
    )  # fmt: skip
    return Execution(None, result, [])  # type: ignore[arg-type]


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Finding], list[str]]:
    monkeypatch.setattr(doctor, "probe", probed)
    monkeypatch.setattr(doctor, "execute", answered)
    found = list(examine(RunConfig.of({"url": "http://h:1"})))
    return [finding for finding, _ in found], [flag for _, flags in found for flag in flags]


def test_each_way_is_tried_until_one_works(findings: tuple[list[Finding], list[str]]) -> None:
    found, flags = findings
    told = [finding.check for finding in found if finding.state == "warning"]
    ways = ["completions", "completions --no-exact-output", "chat"]
    assert told[:5] == ["energy", "server metrics", *ways]
    assert found[0] == Finding("ok", "endpoint", "serves m, at most 4,096 tokens")
    assert flags == ["--energy none", "--api chat", "--no-exact-output"]


def test_a_server_that_nothing_works_with_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> Execution:
        raise InputError("prompts of text need /tokenize")

    monkeypatch.setattr(doctor, "probe", probed)
    monkeypatch.setattr(doctor, "execute", refused)
    *_, (last, _flags) = examine(RunConfig.of({"url": "http://h:1"}))
    assert last.state == "failed"
    assert "/tokenize" in last.found


def test_the_servers_metrics_are_listed_by_common_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe", probed)
    monkeypatch.setattr(doctor, "execute", answered)
    with showing(lambda: (200, VLLM)) as url:
        found = [each for each, _ in examine(RunConfig.of({"url": url})) if each.check == "server metrics"]
    (finding,) = found
    assert finding.state == "ok"
    assert finding.found.startswith("vLLM: Batch size, Queue, KV cache use, ")
    assert finding.found.endswith(f"series under their own names, at {url}/metrics")


def test_a_named_meter_that_does_not_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "probe", probed)
    monkeypatch.setattr(doctor, "execute", answered)
    found = [each for each, _ in examine(RunConfig.of({"url": "http://h:1", "energy": "http://h:2"}))]
    assert [each.state for each in found if each.check == "energy"] == ["failed"]
