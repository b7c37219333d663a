"""Rows of a run directory that were damaged or copied give no wrong figure without a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthetic_run import Synthetic
from wattload import report
from wattload.analysis.compute import finish, load_run
from wattload.rundir.directory import RunDir
from wattload.rundir.result import RunJson


def computed(folder: Path, change: Callable[[pa.Table], pa.Table]) -> RunJson:
    """The result of a run of 200 requests whose rows were changed."""
    run = Synthetic(rate=20.0, duration=10.0, warmup=2.0).write(folder / "run")
    finish(run)
    pq.write_table(change(pq.read_table(run.requests_path)), run.requests_path)
    return finish(RunDir.open(folder / "run"))


def with_column(name: str, values: Callable[[int], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values(len(table)))


def test_rows_that_are_there_twice_are_told(tmp_path: Path) -> None:
    """Energy per request was half of what it is, and the run valid."""
    result = computed(tmp_path, lambda table: pa.concat_tables([table, table]))
    assert not result.valid
    assert any("repeat the index of another" in reason for reason in result.reasons)


@pytest.mark.parametrize("joules", [np.inf, -np.inf, np.nan, -5.0, 1e300])
def test_joules_that_no_request_can_have_are_none(tmp_path: Path, joules: float) -> None:
    result = computed(tmp_path, with_column("energy_joules", lambda n: pa.array(np.full(n, joules))))
    assert result.energy.per_request_joules is not None
    assert result.energy.per_request_joules.attributed_mean is None
    assert "energy.per_request_joules.attributed_mean" in result.absent


def test_an_outcome_that_is_not_there_is_unknown(tmp_path: Path) -> None:
    result = computed(tmp_path, with_column("outcome", lambda n: pa.array([None] * n, pa.string())))
    assert set(result.requests.failed) == {"unknown"}
    assert not result.valid


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    path.write_text("no Parquet file at all")


def other_columns(path: Path) -> None:
    pq.write_table(pa.table({"colour": ["green"]}), path)


@pytest.mark.parametrize("damage", [cut, emptied, replaced, other_columns])
@pytest.mark.parametrize("name", ["energy.parquet", "energy_split.parquet", "server_metrics.parquet"])
def test_a_damaged_table_beside_the_requests_costs_its_own_figures(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Before, nothing of the run could be looked at."""
    run = Synthetic(rate=20.0, duration=10.0, warmup=2.0).write(tmp_path / "run")
    before = finish(run)
    path = run.path / name
    if not path.exists():
        path.write_bytes(b"PAR1")
    damage(path)
    result = finish(RunDir.open(run.path))
    assert result.requests == before.requests
    assert result.latency == before.latency
    told = result.notes if name == "server_metrics.parquet" else result.reasons
    assert any(name in sentence for sentence in told)
    if name == "server_metrics.parquet":
        assert result.valid == before.valid
        assert result.energy == before.energy
    else:
        assert not result.valid
    assert load_run(run.path).data.done.sum() > 0
    assert report.build(run.path).exists()
