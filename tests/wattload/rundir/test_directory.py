"""The run directory:

what is written can be read, also after a crash, and bad directories get a clear sentence.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wattload.client.record import Outcome, RequestRecord
from wattload.errors import BadInput, InputError
from wattload.rundir.directory import REQUEST_SCHEMA, RequestWriter, RunDir, request_batch

CONTRACT_COLUMNS = [
    "index",
    "session",
    "due_unix",
    "sent_unix",
    "first_token_unix",
    "last_token_unix",
    "outcome",
    "status_code",
    "prompt_tokens_planned",
    "output_tokens_planned",
    "prompt_tokens",
    "output_tokens",
    "chunks",
    "energy_joules",
    "energy_status",
    "request_id",
    "in_window",
]


def record(index: int, gaps: int = 3) -> RequestRecord:
    return RequestRecord(
        index=index,
        request_id=f"r{index}",
        session=-1,
        tag="t",
        due_unix=1000.0 + index,
        prompt_tokens_planned=5,
        output_tokens_planned=gaps + 1,
        outcome=Outcome.COMPLETED,
        sent_unix=1000.0 + index,
        first_token_unix=1000.5 + index,
        last_token_unix=1001.0 + index,
        status_code=200,
        prompt_tokens=5,
        output_tokens=gaps + 1,
        chunks=gaps + 1,
        itl_seconds=[0.01 * (k + 1) for k in range(gaps)],
        energy_joules=1.5,
        energy_status="provisional",
    )


def test_has_every_column_of_the_contract() -> None:
    assert set(CONTRACT_COLUMNS) <= set(REQUEST_SCHEMA.names)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with RequestWriter(run, batch_rows=7) as writer:
        for index in range(20):
            writer.append([record(index, gaps=index % 4)])
    run.write_requests(lambda rows: rows)
    table = pq.read_table(run.requests_path)
    assert table.schema.equals(REQUEST_SCHEMA)
    assert table.column("index").to_pylist() == list(range(20))
    assert [len(gaps) for gaps in table.column("itl_seconds").to_pylist()] == [i % 4 for i in range(20)]
    assert table.column("itl_seconds")[3].as_py() == pytest.approx([0.01, 0.02, 0.03])
    assert table.column("outcome").to_pylist() == ["completed"] * 20
    assert not run.requests_partial_path.exists()


def test_what_did_not_happen_is_null(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    unsent = RequestRecord(0, "r0", -1, "", 5.0, 3, 4)
    with RequestWriter(run) as writer:
        writer.append([unsent])
    row = run.read_requests([*REQUEST_SCHEMA.names]).to_pylist()[0]
    assert row["outcome"] == "unsent"
    for name in (
        "sent_unix",
        "first_token_unix",
        "energy_joules",
        "prompt_tokens",
        "in_window",
        "status_code",
    ):
        assert row[name] is None
    assert row["itl_seconds"] == []


def test_an_interrupted_writer_still_leaves_a_file(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with pytest.raises(KeyboardInterrupt), RequestWriter(run) as writer:  # noqa: PT012
        writer.append([record(0)])
        raise KeyboardInterrupt
    assert run.read_requests().num_rows == 1


def test_rows_flushed_before_a_kill_are_recovered(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_directory import record
        from wattload.rundir.directory import RequestWriter, RunDir
        writer = RequestWriter(RunDir.create({str(tmp_path)!r}), batch_rows=10)
        for index in range(95):
            writer.append([record(index)])
        print("ready", flush=True)
        import time; time.sleep(60)
        """
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    run = RunDir(tmp_path)
    assert not run.requests_path.exists()
    table = run.read_requests(["index"])
    assert table.column("index").to_pylist() == list(range(90))


def test_a_batch_cut_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    writer = RequestWriter(run, batch_rows=10)
    for index in range(30):
        writer.append([record(index)])
    writer.flush()
    size = run.requests_partial_path.stat().st_size
    with run.requests_partial_path.open("r+b") as file:
        file.truncate(size - 100)
    assert run.read_requests(["index"]).column("index").to_pylist() == list(range(20))


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with RequestWriter(run) as writer:
        writer.append([record(0)])
    run.write_requests(lambda rows: rows)
    run.requests_path.write_bytes(run.requests_path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"requests\.parquet: is not a whole Parquet file"):
        run.read_requests()


def test_missing_columns_are_named(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with RequestWriter(run) as writer:
        writer.append([record(0)])
    run.write_requests(lambda rows: rows)
    pq.write_table(pq.read_table(run.requests_path).drop_columns(["due_unix", "outcome"]), run.requests_path)
    with pytest.raises(BadInput, match="lacks column due_unix, outcome"):
        run.read_requests()


def test_rows_that_are_written_stay_as_they_are(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with RequestWriter(run) as writer:
        writer.append([record(0)])
    run.write_requests(lambda rows: rows)
    run.write_requests(lambda rows: rows.slice(0, 0))
    assert run.read_requests().num_rows == 1


def test_a_stream_that_cannot_become_a_file_is_kept(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    with RequestWriter(run) as writer:
        writer.append([record(0)])

    def full(rows: pa.Table) -> pa.Table:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run.write_requests(full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["requests.partial.arrow"]
    assert run.read_requests().num_rows == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_for_every_later_batch_too(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.requests_partial_path.symlink_to("/dev/full")
    writer = RequestWriter(run, batch_rows=1)
    with pytest.raises(OSError, match="No space left") as first:
        writer.append([record(0)])
    assert first.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="earlier batch"):
        writer.append([record(1)])


@pytest.mark.parametrize("name", ["requests.parquet", "requests.partial.arrow", "energy.parquet"])
def test_tables_of_another_run_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("another run's")
    with pytest.raises(BadInput, match=rf"is not empty \(it holds {name}\)"):
        RunDir.create(tmp_path)
    assert (tmp_path / name).read_text() == "another run's"


@pytest.mark.parametrize("kind", [Path.touch, Path.mkdir])
def test_no_run_is_scattered_over_a_directory_in_use(tmp_path: Path, kind: Callable[[Path], None]) -> None:
    kind(tmp_path / "notes")
    with pytest.raises(BadInput, match="is not empty"):
        RunDir.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_directory_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "capture.json").write_text("{}")
    with pytest.raises(BadInput, match="holds a run already"):
        RunDir.create(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        ('{"schema": "wattload.capture/0"}', "has schema 'wattload.capture/0'"),
        ('{"schema": "wattload.capture/1", "name": "x"}', "field started_unix"),
    ],
)
def test_a_bad_capture_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "capture.json").write_text(text)
    with pytest.raises(BadInput, match=sentence):
        RunDir.open(tmp_path).load_capture()


def test_no_run_directory_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such run directory"):
        RunDir.open(tmp_path / "none")
    with pytest.raises(BadInput, match="neither"):
        RunDir.open(tmp_path)


def test_the_stream_of_an_earlier_version_is_read_and_becomes_a_file(tmp_path: Path) -> None:
    """A load that was killed, reported after an upgrade: its rows lack the columns that came since."""
    run = RunDir.create(tmp_path / "run")
    record = RequestRecord(7, "r-7", -1, "", 1.0, 3, 3)
    older = pa.schema([field for field in REQUEST_SCHEMA if field.name not in ("unread", "tool_calls")])
    with pa.OSFile(str(run.requests_partial_path), "wb") as sink, pa.ipc.new_stream(sink, older) as stream:
        stream.write_batch(request_batch([record]).select(older.names))
    assert run.read_requests(["tool_calls", "index"]).to_pylist() == [{"tool_calls": None, "index": 7}]
    assert [table.column_names for table in run.itl_batches(["unread"])] == [["unread", "itl_seconds"]]
    run.write_requests(lambda rows: rows)
    (row,) = pq.read_table(run.requests_path).to_pylist()
    assert (row["request_id"], row["unread"], row["tool_calls"]) == ("r-7", None, None)


def test_an_address_is_no_run_directory() -> None:
    with pytest.raises(InputError, match="is the address of a server") as error:
        RunDir.open(Path("http://user:hunter2@host:8000"))
    assert "hunter2" not in str(error.value)
