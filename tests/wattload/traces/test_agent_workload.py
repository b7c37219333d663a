"""The embedded workload `agent` is near the sessions that it describes, and holds none of them."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from wattload import traces
from wattload.schedule.build import build_schedule
from wattload.traces import embedded as workloads
from wattload.traces.embedded.agent import QUANTITIES, AgentWorkload
from wattload.traces.trace import Trace

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))
from fit_agent import quantities

# Sub-agents are rare, so that a sample has few of them.
MOST = {"subagent_turns": 0.35, "subagent_first_prompt": 0.35}


def workload() -> AgentWorkload:
    found = workloads.load("agent")
    assert isinstance(found, AgentWorkload)
    return found


def whole_sessions(trace: Trace) -> Trace:
    """The sessions that began in the first half of the trace: nearly none of these is cut by its end."""
    begins = np.full(int(trace.session.max()) + 1, np.inf)
    np.minimum.at(begins, trace.session, trace.seconds)
    return trace.take(np.flatnonzero(begins[trace.session] < trace.seconds[-1] / 2))


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_drawn_is_near_what_is_described(seed: int) -> None:
    described = workload()
    drawn = quantities(whole_sessions(described.sample(60_000, seed)))
    for name in QUANTITIES:
        values = np.sort(drawn[name])
        shares = np.interp(values, described.quantiles[name], described.probabilities)
        distance = float(np.abs(shares - (np.arange(len(values)) + 0.5) / len(values)).max())
        assert distance <= MOST.get(name, 0.13), (name, distance)
    for name in ("output", "first_prompt"):
        theirs = float(np.interp(0.5, described.probabilities, described.quantiles[name]))
        assert float(np.median(drawn[name])) == pytest.approx(theirs, rel=0.1)


def test_users_and_sub_agents_come_as_often_as_recorded() -> None:
    described = workload()
    trace = described.sample(60_000, 3)
    parents = trace.parents
    assert parents is not None
    main = (trace.agent == 0) & parents.waits
    assert float((~trace.tool[main]).mean()) == pytest.approx(described.user_share, abs=0.01)
    first = np.flatnonzero((trace.agent > 0) & parents.waits)
    begins = parents.rows[parents.offsets[first]]
    begins = begins[trace.agent[begins] == 0]
    assert len(set(begins.tolist())) / main.sum() == pytest.approx(described.subagent_share, rel=0.5)


def test_a_join_waits_for_its_own_turn_and_all_sub_agents() -> None:
    trace = workload().sample(60_000, 1)
    parents = trace.parents
    assert parents is not None
    joins = np.flatnonzero(parents.counts > 1)
    assert len(joins)
    for row in joins.tolist():
        own, *others = parents[row]
        assert trace.agent[own] == trace.agent[row] == 0
        assert all(trace.agent[other] > 0 for other in others)
        assert all(trace.session[other] == trace.session[row] for other in others)
        assert trace.tool[row]
    assert (parents.rows < parents.children).all()
    assert (np.diff(trace.seconds) >= 0).all()


def test_a_longer_sample_begins_with_the_shorter_one() -> None:
    short, long = workload().sample(500, 4), workload().sample(5000, 4)
    for column in ("seconds", "prompt_tokens", "output_tokens", "session", "agent", "tool", "turn"):
        np.testing.assert_array_equal(getattr(short, column), getattr(long, column)[:500])
    assert short.parents is not None
    assert long.parents is not None
    np.testing.assert_array_equal(short.parents.rows, long.parents.head(500).rows)


def test_it_is_replayed_like_the_others_and_says_what_it_assumes() -> None:
    made = build_schedule(
        traces.load("agent"), "poisson", rate=2, duration="60s", max_model_len=131_072, max_length="drop"
    )
    assert 60 < len(made) < 180
    assert any("Poisson" in note for note in made.notes)
    assert (made.task[made.session >= 0] >= 0).all()


def test_the_file_cites_its_source_and_holds_no_rows() -> None:
    text = (resources.files("wattload.traces.embedded") / "agent.json").read_text()
    data = json.loads(text)
    assert data["licence"] == "Apache-2.0"
    assert "kv-cache-tester" in data["citation"]
    assert len(text) < 8_000
    assert all(len(values) == len(data["probabilities"]) < 80 for values in data["quantiles"].values())
    assert all(np.all(np.diff(values) >= 0) for values in data["quantiles"].values())
