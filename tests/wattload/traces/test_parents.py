"""Which turns wait for which: taken, dropped, repeated, laid behind one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattload import traces
from wattload.schedule import content as prompts
from wattload.schedule.build import build_schedule
from wattload.schedule.parquet import load, save
from wattload.schedule.rows import repeated
from wattload.schedule.table import Schedule
from wattload.schedule.tenants import superposed
from wattload.traces.parents import Parents, chains, histories, joined, of_lists, tasks
from wattload.traces.trace import Trace

DIAMOND = [[], [0], [0], [1, 2], [3]]


def lists(parents: Parents | None) -> list[tuple[int, ...]]:
    assert parents is not None
    return [parents[i] for i in range(len(parents))]


def diamond(*, tool: bool = True) -> Trace:
    """Two sessions: a turn, two that branch from it, one that joins them, one more; the user's are the first
    and the last.
    """
    n = 10
    graph = joined([of_lists(DIAMOND)] * 2, [5, 5])
    return Trace(
        name="d",
        format="test",
        seconds=np.arange(n, dtype=np.float64),
        prompt_tokens=np.array([40, 70, 80, 120, 200] * 2, np.int32),
        output_tokens=np.full(n, 10, np.int32),
        session=np.repeat([4, 9], 5),
        turn=np.tile(np.arange(5, dtype=np.int32), 2),
        think_seconds=np.array([np.nan, 0.1, 0.2, 0.3, 9.0] * 2),
        tag=np.zeros(n, np.int16),
        parents=graph,
        tool=np.array([False, tool, tool, tool, False] * 2),
    )


def test_a_chain_is_the_plainest_graph() -> None:
    session = np.array([5, -1, 7, 5, 5, 7])
    assert lists(chains(session)) == [(), (), (), (0,), (3,), (2,)]
    assert chains(np.array([-1, 3, 4])) is None


def test_rows_are_taken_with_what_they_wait_for() -> None:
    graph = of_lists(DIAMOND)
    assert lists(graph.take(np.array([0, 2, 1, 3, 4]))) == [(), (0,), (0,), (2, 1), (3,)]
    assert lists(graph.head(3)) == [(), (0,), (0,)]


@pytest.mark.parametrize(
    ("kept", "waits"),
    [
        ([0, 3, 4], [(), (0,), (1,)]),
        ([0, 1, 3], [(), (0,), (1, 0)]),
        ([1, 2, 4], [(), (), (0, 1)]),
        ([4], [()]),
        ([], []),
    ],
)
def test_in_the_place_of_a_turn_that_is_left_out_stand_those_before_it(
    kept: list[int], waits: list[tuple[int, ...]]
) -> None:
    assert lists(of_lists(DIAMOND).take(np.array(kept, np.int64))) == waits


def test_a_trace_over_and_over_keeps_each_round_apart() -> None:
    again = repeated(diamond(), 23)
    assert lists(again.parents)[10:15] == [(), (10,), (10,), (11, 12), (13,)]
    assert lists(again.parents)[20:] == [(), (20,), (20,)]


def test_a_conversation_goes_on_from_its_own_agent() -> None:
    graph = of_lists([[], [0], [1], [0, 2], [2, 3]])
    agent = np.array([0, 1, 1, 0, 0], np.int32)
    assert histories(graph, agent).tolist() == [-1, -1, 1, 0, 3]


def test_a_task_lasts_from_one_turn_of_the_user_to_the_next() -> None:
    trace = diamond()
    found = tasks(trace.parents, trace.tool, trace.session)
    assert found.tolist() == [0, 0, 0, 0, 4, 5, 5, 5, 5, 9]
    alone = tasks(trace.parents, diamond(tool=False).tool, trace.session)
    assert alone.tolist() == list(range(10))


def planned(**settings: Any) -> Schedule:
    return build_schedule(diamond(), "constant", rate=1, **settings)


def test_a_schedule_knows_what_waits_and_how_long() -> None:
    made = planned()
    assert np.isnan(made.due_seconds).tolist() == [False, True, True, True, True] * 2
    assert made.think_seconds[1:5].tolist() == [0.1, 0.2, 0.3, 9.0]
    assert made.task.tolist() == [0, 0, 0, 0, 4, 5, 5, 5, 5, 9]
    closed = build_schedule(diamond(), "closed:concurrency=1", requests=10)
    assert np.nan_to_num(closed.think_seconds[:5], nan=-1).tolist() == [-1, 0.1, 0.2, 0.3, -1]
    assert not np.isnan(planned(sessions="trace-times").due_seconds).any()


def test_branches_begin_alike_and_part_where_they_leave() -> None:
    made = planned()
    ids = [prompts.prompt_token_ids(made, row) for row in range(5)]

    def common(a: int, b: int) -> int:
        n = min(len(ids[a]), len(ids[b]))
        same = ids[a][:n] == ids[b][:n]
        return n if same.all() else int(np.argmin(same))

    assert common(0, 1) == common(0, 2) == 40
    assert common(1, 2) == 50, "the turn before and its response, and nothing after it"
    assert common(1, 3) == 70
    assert common(2, 3) == 50, "the join goes on from the first that it waits for"
    assert common(3, 4) == 120


def test_a_graph_is_the_same_in_shards_on_disk_and_beside_other_tenants(tmp_path: Path) -> None:
    made = planned(tag="a")
    save(made, tmp_path / "s.parquet")
    back = load(tmp_path / "s.parquet")
    assert lists(back.parents) == lists(made.parents)
    assert back.task.tolist() == made.task.tolist()
    shard = made.shard(1, 2)
    assert lists(shard.parents) == DIAMOND_TUPLES
    for row, place in enumerate(shard.index.tolist()):
        np.testing.assert_array_equal(
            prompts.prompt_token_ids(shard, row), prompts.prompt_token_ids(made, place)
        )
    conv = build_schedule(traces.load("conv"), "constant", rate=2, requests=20, tag="b")
    both = superposed([made, conv])
    rows = np.flatnonzero(both.tag == 0)
    assert lists(both.take(rows).parents) == lists(made.parents)
    assert sorted(set(both.task[both.tag == 1].tolist())) == [-1]


DIAMOND_TUPLES = [tuple(each) for each in DIAMOND]
