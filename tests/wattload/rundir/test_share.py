"""A run that may be published: the same numbers, and no name of who, where or on what data."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import recompute
from synthetic_run import Synthetic
from wattload.analysis.compute import compute, finish
from wattload.cli import app as cli
from wattload.errors import InputError
from wattload.rundir.directory import RunDir, load_run_json
from wattload.rundir.share import check, names_left, share

NAMES = (
    *("gpu-box-7.corp.example", "laptop-of-somebody", "shop-of-a-customer", "bank-of-another"),
    *("GPU-0a1b2c3d", "/home/somebody/private.csv", "K3y-of-somebody"),
)


@pytest.fixture
def made(tmp_path: Path) -> RunDir:
    """A run with every kind of name in it."""
    run = Synthetic(tags=("shop-of-a-customer", "bank-of-another"), failed=0.1).write(tmp_path / "run")
    capture = run.load_capture()
    capture.target.url = "http://gpu-box-7.corp.example:8000"
    capture.energy_url = "http://gpu-box-7.corp.example:8000"
    device = str(capture.target.devices[0]["id"])
    text = capture.model_dump_json(by_alias=True).replace(f'"{device}"', '"GPU-0a1b2c3d"')
    capture = capture.model_validate_json(text)
    capture.host |= {"name": "laptop-of-somebody", "command": ["wattload", "--header", "X: K3y-of-somebody"]}
    capture.host["outcome_examples"] = {"http_5xx": ["gpu-box-7.corp.example said K3y-of-somebody"]}
    capture.workload.trace = "/home/somebody/private.csv"
    capture.config |= {"url": "http://gpu-box-7.corp.example:8000", "trace": "/home/somebody/private.csv",
                       "header": ["X: (hidden)"], "rate": "5", "tag": "shop-of-a-customer"}  # fmt: skip
    capture.reasons = []
    run.save_capture(capture)
    finish(run)
    table = pq.read_table(run.energy_path).to_pydict()
    table["device"] = ["GPU-0a1b2c3d"] * len(table["device"])
    import pyarrow as pa

    from wattload.rundir.directory import ENERGY_SCHEMA

    pq.write_table(pa.table(table, schema=ENERGY_SCHEMA), run.energy_path)
    return run


def everything(run: RunDir) -> str:
    tables = [str(pq.read_table(path).to_pylist()) for path in run.path.glob("*.parquet")]
    return "\n".join([*tables, *(path.read_text() for path in run.path.glob("*.[jh]*"))])


def test_the_numbers_are_the_same_and_the_names_are_gone(made: RunDir, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.make_app(), ["report", str(made.path), "--share", str(tmp_path / "public")])
    copy = RunDir.open(tmp_path / "public")
    assert done.exception is None or "not" not in str(done.exception), done.output
    told = everything(copy)
    assert [name for name in NAMES if name in told] == []
    assert "tenant-1" in told
    assert "device-0" in told
    before, after = (load_run_json(run).model_dump(mode="json", by_alias=True) for run in (made, copy))
    for part in ("requests", "load", "latency", "tokens", "window", "slo"):
        assert (
            {**after[part], "failures": []} == {**before[part], "failures": []}
            if part == "requests"
            else (after[part] == before[part])
        )
    assert after["energy"]["total_joules"] == before["energy"]["total_joules"]
    assert after["energy"]["per_request_joules"] == before["energy"]["per_request_joules"]
    assert set(after["energy"]["by_tag"]) == {"tenant-1", "tenant-2"}
    assert after["config"]["rate"] == "5"
    assert recompute.mismatches(copy.path) == []


def test_a_name_that_is_left_is_found(made: RunDir, tmp_path: Path) -> None:
    copy = share(made, tmp_path / "public")
    compute(copy)
    check(made, copy)
    told = json.loads(copy.run_json_path.read_text())
    told["notes"].append("measured on laptop-of-somebody")
    copy.run_json_path.write_text(json.dumps(told))
    assert names_left(made, copy) == ["laptop-of-somebody"]
    with pytest.raises(InputError, match="not to be published"):
        check(made, copy)


def test_a_directory_that_is_there_is_left_alone(made: RunDir) -> None:
    with pytest.raises(InputError):
        share(made, made.path)


def test_a_run_of_an_earlier_version_can_be_shared(made: RunDir, tmp_path: Path) -> None:
    """Its rows lack the columns that came since."""
    table = pq.read_table(made.requests_path)
    pq.write_table(table.drop(["unread", "tool_calls", "replica"]), made.requests_path)
    finish(made)
    shared = share(made, tmp_path / "public")
    assert pq.read_table(shared.requests_path).column("tool_calls").null_count == table.num_rows
