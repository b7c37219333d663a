"""A long schedule kept on disk: the same to whoever reads it, and not in the process's memory."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import pytest

from clients import client_of
from scripted_server import good, scripted
from wattload.client.record import Outcome, RequestRecord
from wattload.load.dispatcher import Dispatcher
from wattload.schedule.content import prompt_token_ids
from wattload.schedule.mapped import mapped
from wattload.schedule.table import ARRAYS, Schedule
from wattload.traces.trace import PrefixBlocks


def schedule(count: int, **more: Any) -> Schedule:
    random = np.random.default_rng(1)
    return Schedule(
        due_seconds=np.sort(random.uniform(0, 0.2, count)),
        prompt_tokens=random.integers(1, 60, count).astype(np.int32),
        output_tokens=np.full(count, 2, np.int32),
        session=np.full(count, -1),
        turn=np.zeros(count, np.int32),
        think_seconds=np.full(count, np.nan),
        tag=np.zeros(count, np.int16),
        content_seed=random.integers(0, 2**63, count).astype(np.uint64),
        tags=("house",),
        **more,
    )


def file_megabytes() -> float:
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def test_it_is_the_same_schedule(tmp_path: Path) -> None:
    count = 40
    blocks = PrefixBlocks(np.arange(2 * count), 2 * np.arange(count + 1), 16)
    plan = schedule(count, prefix_hashes=blocks, shared_tokens=np.arange(count, dtype=np.int32))
    kept = mapped(plan, tmp_path, least_rows=1)
    assert kept.pages is not None
    for name in (*ARRAYS, "shared_tokens"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(plan, name), err_msg=name)
        assert getattr(kept, name).dtype == getattr(plan, name).dtype, name
    assert kept.prefix_hashes is not None
    assert [kept.prefix_hashes[i] for i in range(count)] == [blocks[i] for i in range(count)]
    for row in range(count):
        np.testing.assert_array_equal(prompt_token_ids(kept, row), prompt_token_ids(plan, row))
    assert (kept.tags, kept.horizon_seconds) == (plan.tags, plan.horizon_seconds)
    assert list(tmp_path.iterdir()) == [], "the file has no name, so nothing can be left behind"
    part = kept.shard(1, 3)
    assert part.pages is None
    np.testing.assert_array_equal(part.index, plan.shard(1, 3).index)


def test_pages_that_were_read_are_given_back(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    kept = mapped(schedule(400_000), tmp_path)
    assert kept.pages is not None
    size = sum(getattr(kept, name).nbytes for name in ARRAYS) / 2**20
    before = file_megabytes()
    total = sum(float(np.nansum(getattr(kept, name))) for name in ARRAYS)
    read = file_megabytes()
    assert read - before > 0.8 * size
    kept.pages.release()
    assert file_megabytes() - before < 0.2 * size
    assert sum(float(np.nansum(getattr(kept, name))) for name in ARRAYS) == total


@pytest.mark.parametrize("why", ["short", "no room"])
def test_it_stays_in_memory_where_a_file_is_of_no_use(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = schedule(100)

    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    if why == "no room":
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert mapped(plan, tmp_path, least_rows=101 if why == "short" else 1) is plan


def test_a_mapped_schedule_is_sent_whole(tmp_path: Path) -> None:
    kept = mapped(schedule(50), tmp_path, least_rows=1)
    records: list[RequestRecord] = []
    with scripted(good) as (url, seen):
        client = client_of(url)
        dispatcher = Dispatcher(kept, client, run_id="r", on_record=records.append)
        with gevent.Timeout(20):
            dispatcher.run(time.perf_counter() + 0.05)
        client.close()
    assert [r.outcome for r in records] == [Outcome.COMPLETED] * 50
    assert sorted(len(asked["prompt"]) for asked in seen.requests) == sorted(kept.prompt_tokens.tolist())
