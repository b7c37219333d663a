"""The published JSON Schemas: what a run and a server really write is valid by them, a mistake is not."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from documented import fields_of
from sim_server import simulating
from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.rundir.result import RunJson

ROOT = Path(__file__).resolve().parents[2]
RUN = json.loads((ROOT / "loadgen" / "wattload" / "rundir" / "run.schema.json").read_text("utf-8"))
ENERGY = json.loads((ROOT / "server" / "wattmeter" / "energy.schema.json").read_text("utf-8"))


def problems(value: object, kind: str) -> list[str]:
    """What speaks against a value as one of the definitions of `/energy`."""
    schema = {**ENERGY, "$ref": f"#/$defs/{kind}"}
    return [error.message for error in Draft202012Validator(schema).iter_errors(value)]


def test_both_are_schemas() -> None:
    for schema in (RUN, ENERGY):
        Draft202012Validator.check_schema(schema)


def test_a_run_is_valid_and_a_number_as_text_is_not(tmp_path: Path) -> None:
    finish(Synthetic(rate=20.0, duration=30.0, warmup=5.0).write(tmp_path / "r"))
    written = json.loads((tmp_path / "r" / "run.json").read_text("utf-8"))
    check = Draft202012Validator(RUN)
    assert [error.message for error in check.iter_errors(written)] == []
    wrong = copy.deepcopy(written)
    wrong["energy"]["total_joules"] = "12 J"
    assert not check.is_valid(wrong)
    assert not check.is_valid({**written, "schema": "wattload.run/2"})


def test_every_field_of_a_run_has_a_meaning() -> None:
    fields = dict(fields_of(RunJson))
    assert len(fields) > 100
    # The mean and quantiles of a distribution share that of the distribution.
    assert {path for path, meaning in fields.items() if not meaning} == {
        f"latency.*.{name}" for name in ("mean", "p50", "p90", "p95", "p99", "max")
    }


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Any]]:
    """What a simulator says of one request, of its window and of itself."""
    with simulating() as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        start = time.time()
        body = {
            "model": client.get("/v1/models").json()["data"][0]["id"],
            "prompt": "one two",
            "max_tokens": 8,
        }
        made = client.post(
            "/v1/completions", json=body, headers={"x-request-id": "a", "x-energy-group": "shop"}
        )
        deadline = time.monotonic() + 60
        while True:
            one = client.get("/energy/requests/a").json()
            if one.get("status") == "settled":
                break
            assert time.monotonic() < deadline, one
            time.sleep(0.1)
        span = {"start": start, "end": time.time()}
        yield {
            "UsageEnergy": made.json()["usage"]["energy"],
            "RequestEnergy": one,
            "WindowEnergy": client.get("/energy", params={**span, "group_by": "tag"}).json(),
            "DeviceSeries": client.get("/energy/series", params=span).json()["devices"][0],
            "DeviceStatus": client.get("/energy").json()["devices"][0],
            "IdleState": client.get("/energy").json()["idle"],
        }


def test_what_a_server_writes_is_valid(answers: dict[str, Any]) -> None:
    for kind, value in answers.items():
        assert problems(value, kind) == [], kind
    assert problems(answers["WindowEnergy"]["devices"][0], "DeviceEnergy") == []
    assert set(answers) | {"DeviceEnergy", "Flag"} == set(ENERGY["$defs"])


def test_every_field_that_a_server_writes_is_described(answers: dict[str, Any]) -> None:
    # Fields that only a simulator has are not of the schema.
    for kind, value in answers.items():
        assert set(value) - set(ENERGY["$defs"][kind]["properties"]) <= {"simulation"}, kind


def test_a_missing_or_misspelt_field_is_refused(answers: dict[str, Any]) -> None:
    for kind, value in answers.items():
        for key in ENERGY["$defs"][kind]["required"]:
            assert problems({name: each for name, each in value.items() if name != key}, kind), (kind, key)
    assert problems({**answers["RequestEnergy"], "joules": "89.7"}, "RequestEnergy")
    assert problems({**answers["RequestEnergy"], "status": "done"}, "RequestEnergy")
