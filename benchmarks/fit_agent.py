"""Derives the embedded workload `agent` from recorded sessions: python benchmarks/fit_agent.py TRACES_DIR

TRACES_DIR holds the sessions of callanjfox/kv-cache-tester (traces/*.json, Apache-2.0; reading them takes
minutes). Writes loadgen/wattload/traces/embedded/agent.json: quantiles, shares and sizes, which
wattload/traces/embedded/agent.py explains, and says how near sessions drawn from them are. With --check
nothing is written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from wattload import traces
from wattload.traces import Trace
from wattload.traces import embedded as workloads
from wattload.traces.embedded.agent import QUANTITIES
from wattload.traces.parents import histories

F64 = npt.NDArray[np.float64]
OUT = Path(__file__).resolve().parents[1] / "loadgen/wattload/traces/embedded/agent.json"
PROBABILITIES = np.unique(
    np.round(np.concatenate([np.linspace(0, 1, 51), [0.002, 0.005, 0.99, 0.995, 0.998, 0.999]]), 6)
)
SEEDS = range(8)


def quantities(trace: Trace) -> dict[str, F64]:
    """What is described of a trace of sessions: the values of each quantity."""
    parents = trace.parents
    assert parents is not None
    before = histories(parents, trace.agent)
    goes_on, waits, main = before >= 0, parents.waits, trace.agent == 0
    new = trace.prompt_tokens - trace.prompt_tokens[before] - trace.output_tokens[before]
    own = np.stack([trace.session, trace.agent])
    _, first, count = np.unique(own, axis=1, return_index=True, return_counts=True)
    found = {
        "turns": count[trace.agent[first] == 0],
        "first_prompt": trace.prompt_tokens[~waits & main],
        "new_after_tool": new[goes_on & trace.tool],
        "new_after_user": new[goes_on & ~trace.tool],
        "output": trace.output_tokens,
        "tool_seconds": trace.think_seconds[waits & trace.tool],
        "user_seconds": trace.think_seconds[waits & ~trace.tool],
        "subagent_turns": count[trace.agent[first] > 0],
        "subagent_first_prompt": trace.prompt_tokens[~goes_on & ~main],
    }
    return {name: values.astype(np.float64) for name, values in found.items()}


def described(trace: Trace, source: str) -> dict[str, Any]:
    """The content of agent.json."""
    parents = trace.parents
    assert parents is not None
    values, main = quantities(trace), trace.agent == 0
    before = histories(parents, trace.agent)
    begins = parents.rows[parents.offsets[:-1][(before < 0) & ~main]]
    sizes = np.bincount(np.unique(begins, return_counts=True)[1])[1:]
    return {
        "name": "agent",
        "title": "sessions of a coding agent with its sub-agents",
        "source": source,
        "licence": "Apache-2.0",
        "citation": (
            "Fox, kv-cache-tester: agentic coding traces recorded at WEKA, 2026 (callanjfox/kv-cache-tester)"
        ),
        "rows": len(trace),
        "sessions": len(values["turns"]),
        "user_share": round(float((~trace.tool[main & parents.waits]).mean()), 4),
        "subagent_share": round(float(sizes.sum() / main.sum()), 6),
        "group_sizes": sizes.tolist(),
        "probabilities": PROBABILITIES.tolist(),
        "quantiles": {
            name: [float(f"{v:.5g}") for v in np.quantile(values[name], PROBABILITIES)] for name in QUANTITIES
        },
    }


def distances(trace: Trace) -> list[str]:
    """Rows of a table: the two-sample KS distance of each quantity, and its median, drawn and recorded."""
    workload = workloads.load("agent")
    drawn = [quantities(workload.sample(len(trace), seed)) for seed in SEEDS]
    recorded = quantities(trace)
    lines = ["| quantity | KS distance: mean (worst seed) | median drawn | recorded |", "|---|---|---|---|"]
    for name in QUANTITIES:
        ks = [float(stats.ks_2samp(one[name], recorded[name]).statistic) for one in drawn]
        median = float(np.mean([np.median(one[name]) for one in drawn]))
        real = float(np.median(recorded[name]))
        lines.append(f"| {name} | {np.mean(ks):.3f} ({max(ks):.3f}) | {median:,.4g} | {real:,.4g} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds the sessions, one JSON file each")
    parser.add_argument("--source", default="callanjfox/kv-cache-tester, traces/*.json")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    trace = traces.load(given.directory)
    if not given.check:
        text = json.dumps(described(trace, given.source), separators=(",", ":"))
        OUT.write_text(text.replace('],"', '],\n"') + "\n")
    print("\n".join(distances(trace)))


if __name__ == "__main__":
    main()
