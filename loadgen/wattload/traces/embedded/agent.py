"""The embedded workload of agents: statistics of recorded sessions, and sessions drawn from them.

A session is a chain of its first agent's turns. A turn is asked by its user or by tools, after a time drawn
for either; it says so many tokens anew (a negative number cuts the conversation, as a compaction does) and is
answered with so many. After some turns sub-agents begin, all together, each with a conversation of its own,
and the next turn waits for all of them. Quantities are drawn independently of each other. No row of the
recorded sessions is kept.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wattload.traces.parents import of_lists, places
from wattload.traces.trace import Trace

F64 = npt.NDArray[np.float64]

# The quantities that are described, each by its quantile function.
QUANTITIES = (
    "turns", "first_prompt", "new_after_tool", "new_after_user", "output", "tool_seconds", "user_seconds",
    "subagent_turns", "subagent_first_prompt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentWorkload:
    """`quantiles` of QUANTITIES at `probabilities`, shape (Q,) each. `user_share`: of the turns after the
    first, how many a user asks. `subagent_share`: of all turns, after how many sub-agents begin, of which
    there were k + 1 `group_sizes[k]` times. `rows` and `sessions` were recorded; when sessions began was not,
    so `rate_rps` is nominal.
    """

    name: str
    title: str
    source: str
    licence: str
    citation: str
    rows: int
    sessions: int
    sha256: str
    probabilities: F64
    quantiles: Mapping[str, F64]
    user_share: float
    subagent_share: float
    group_sizes: F64
    rate_rps: float = 1.0

    @classmethod
    def from_json(cls, text: str, sha256: str) -> AgentWorkload:
        """Reads what benchmarks/fit_agent.py wrote."""
        data: dict[str, Any] = json.loads(text)
        return cls(
            **{name: data[name] for name in ("name", "title", "source", "licence", "citation")},
            rows=int(data["rows"]),
            sessions=int(data["sessions"]),
            sha256=sha256,
            probabilities=np.array(data["probabilities"], np.float64),
            quantiles={name: np.array(data["quantiles"][name], np.float64) for name in QUANTITIES},
            user_share=float(data["user_share"]),
            subagent_share=float(data["subagent_share"]),
            group_sizes=np.array(data["group_sizes"], np.float64),
        )

    def sample(self, count: int, seed: int = 0) -> Trace:
        """`count` requests of sessions that begin as a Poisson process; the same seed gives the same.

        A longer sample begins with the shorter one.
        """
        gap = self.rows / self.sessions / self.rate_rps
        begins = np.random.default_rng([seed, 1])
        table = _Rows()
        pending: list[float] = []
        start, number, before = 0.0, 0, 0
        while before < count or not number:
            first = len(table.seconds)
            self._session(table, start, number, np.random.default_rng([seed, 2, number]))
            for when in table.seconds[first:]:
                heapq.heappush(pending, when)
            start, number = start + float(begins.exponential(gap)), number + 1
            while pending and pending[0] < start:
                heapq.heappop(pending)
                before += 1
        seconds = np.array(table.seconds)
        order = np.argsort(seconds, kind="stable")
        chosen = order[:count]
        session = np.array(table.session, np.int64)[chosen]
        return Trace(
            name=self.name,
            format="embedded",
            seconds=seconds[chosen] - (seconds[chosen[0]] if count else 0.0),
            prompt_tokens=np.array(table.prompt, np.int32)[chosen],
            output_tokens=np.array(table.output, np.int32)[chosen],
            session=session,
            turn=places(session),
            think_seconds=np.array(table.wait)[chosen],
            tag=np.zeros(len(chosen), np.int16),
            parents=of_lists(table.parents).take(order).head(len(chosen)),
            agent=np.array(table.agent, np.int32)[chosen],
            tool=np.array(table.tool, np.bool_)[chosen],
            sha256=self.sha256,
            licence=self.licence,
            citation=self.citation,
            notes=(
                "sessions begin as a Poisson process, with 1 request per second in the long run, unless"
                " `rate` or another process is given: the recordings do not say when they began",
            ),
        )

    def _draw(self, name: str, rng: np.random.Generator, count: int) -> F64:
        found: F64 = np.interp(rng.random(count), self.probabilities, self.quantiles[name])
        return found

    def _turns(self, name: str, rng: np.random.Generator) -> int:
        return max(1, round(float(self._draw(name, rng, 1)[0])))

    def _session(self, table: _Rows, start: float, number: int, rng: np.random.Generator) -> None:
        turns = self._turns("turns", rng)
        by_user = rng.random(turns) < self.user_share
        begins = rng.random(turns) < self.subagent_share
        after = self._draw("new_after_tool", rng, turns), self._draw("new_after_user", rng, turns)
        waits = self._draw("tool_seconds", rng, turns), self._draw("user_seconds", rng, turns)
        output = self._draw("output", rng, turns)
        prompt = float(self._draw("first_prompt", rng, 1)[0])
        most = float(self.quantiles["first_prompt"][-1])
        seconds, agents, others = start, 1, list[int]()
        row = table.add(
            [], seconds, session=number, agent=0, lengths=(prompt, output[0]), wait=np.nan, tool=False
        )
        for turn in range(1, turns):
            user = bool(by_user[turn]) and not others
            prompt += float(output[turn - 1] + after[user][turn])
            if prompt > most:
                # Longer than any that was recorded: the conversation begins anew, as after a compaction.
                prompt = float(self._draw("first_prompt", rng, 1)[0])
            seconds = max([seconds, *(table.seconds[other] for other in others)]) + float(waits[user][turn])
            row = table.add(
                [row, *others],
                seconds,
                session=number,
                agent=0,
                lengths=(prompt, output[turn]),
                wait=waits[user][turn],
                tool=not user,
            )
            others = []
            if begins[turn] and turn < turns - 1:
                size = 1 + int(rng.choice(len(self.group_sizes), p=self.group_sizes / self.group_sizes.sum()))
                for _ in range(size):
                    others.append(self._subagent(table, rng, row, agent=agents))
                    agents += 1

    def _subagent(self, table: _Rows, rng: np.random.Generator, parent: int, *, agent: int) -> int:
        """Adds a sub-agent's turns after row `parent`; the row of its last."""
        turns = self._turns("subagent_turns", rng)
        new, waits = self._draw("new_after_tool", rng, turns), self._draw("tool_seconds", rng, turns)
        output = self._draw("output", rng, turns)
        prompt, seconds, row = (
            float(self._draw("subagent_first_prompt", rng, 1)[0]),
            table.seconds[parent],
            parent,
        )
        for turn in range(turns):
            if turn:
                prompt += float(output[turn - 1] + new[turn])
            seconds += float(waits[turn])
            row = table.add(
                [row],
                seconds,
                session=table.session[parent],
                agent=agent,
                lengths=(prompt, output[turn]),
                wait=waits[turn],
                tool=True,
            )
        return row


@dataclass(slots=True)
class _Rows:
    """Columns that grow by a row at a time."""

    seconds: list[float] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    agent: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    wait: list[float] = field(default_factory=list)
    tool: list[bool] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)

    def add(
        self,
        parents: list[int],
        seconds: float,
        *,
        session: int,
        agent: int,
        lengths: tuple[float, float],
        wait: float,
        tool: bool,
    ) -> int:
        """The number of the new row."""
        self.seconds.append(seconds)
        self.session.append(session)
        self.agent.append(agent)
        self.prompt.append(max(1, round(lengths[0])))
        self.output.append(max(1, round(lengths[1])))
        self.wait.append(float(wait))
        self.tool.append(tool)
        self.parents.append(parents)
        return len(self.seconds) - 1
