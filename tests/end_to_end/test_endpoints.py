"""Each family of endpoints, measured by the command on a simulated GPU: what run.json has and what it has
not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sim_server import simulating

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def sim() -> Iterator[str]:
    with simulating(adapters=["french", "german"]) as (url, _):
        yield url


def measured(
    url: str,
    out: Path,
    *flags: str,
    trace: str = "random:prompt=60..200,output=12",
    rate: str | None = "15",
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """run.json and the columns of requests.parquet of a run of a few seconds."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WATTLOAD_", "OPENAI_"))}
    command = [sys.executable, "-m", "wattload.cli", "run", url, "--out", str(out), "--progress", "none"]
    load = ["--trace", trace, "--duration", "3", "--warmup", "1s"]
    if rate is not None:
        load += ["--rate", rate]
    done = subprocess.run(
        [*command, *load, *flags], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert (out / "run.json").exists(), done.stderr
    run: dict[str, Any] = json.loads((out / "run.json").read_text())
    late = ("client saturated", "simulator ran late")
    # Other programs may share the machine: they make a client or a simulation late, which a run rightly says.
    assert all(any(word in reason for word in late) for reason in run["reasons"]), run["reasons"]
    assert (out / "report.html").exists()
    table = pq.read_table(out / "requests.parquet").to_pydict()
    return run, {name: np.array(values, object) for name, values in table.items()}


def check_conserved(run: dict[str, Any]) -> None:
    energy = run["energy"]
    parts = [energy[f"{part}_joules"] for part in ("idle", "prefill", "decode", "unattributed")]
    assert sum(parts) == pytest.approx(energy["total_joules"], rel=1e-3)


def test_what_generates_nothing_has_joules_per_input_token_and_no_zeros(sim: str, tmp_path: Path) -> None:
    run, rows = measured(sim, tmp_path / "run", "--api", "rerank", "--inputs", "3")
    check_conserved(run)
    energy, latency, tokens = run["energy"], run["latency"], run["tokens"]
    assert energy["per_input_token_joules"] > 0
    assert energy["per_request_joules"]["mean"] > 0
    assert energy["decode_joules"] == 0
    assert energy["per_output_token_joules"] is None
    assert (latency["ttft_seconds"], latency["tpot_seconds"], latency["itl_seconds"]) == (None, None, None)
    assert latency["e2e_seconds"]["p50"] > 0
    assert (tokens["output"], tokens["output_per_second"], tokens["mismatches"]) == (None, None, 0)
    assert tokens["prompt_per_second"] > 0
    for path in ("energy.per_output_token_joules", "latency.tpot_seconds", "tokens.output"):
        assert "generates nothing" in run["absent"][path]
    assert run["workload"]["inputs"] == 3
    assert set(rows["inputs"]) == {3}
    assert set(rows["output_tokens"]) == {None}
    assert (rows["prompt_tokens"] == rows["prompt_tokens_planned"]).all()
    assert all(joules > 0 for joules in rows["energy_joules"])


def test_responses_with_a_system_prompt(sim: str, tmp_path: Path) -> None:
    system = tmp_path / "system.txt"
    system.write_text("Answer in one sentence, and name your sources.")
    run, rows = measured(sim, tmp_path / "run", "--api", "responses", "--system-prompt", f"@{system}")
    check_conserved(run)
    assert run["tokens"]["mismatches"] == 0
    assert run["workload"]["system_prompt"]["tokens"] > 5
    assert len(run["workload"]["system_prompt"]["sha256"]) == 64
    assert set(rows["output_tokens"]) == {12}
    assert (rows["prompt_tokens"] == rows["prompt_tokens_planned"]).all()
    assert run["latency"]["ttft_seconds"]["p50"] > 0


def test_chats_with_as_many_images_as_the_trace_tells(sim: str, tmp_path: Path) -> None:
    trace = tmp_path / "m.csv"
    lines = [f"2024-10-15 00:00:{row // 10:02d}.{row % 10},{row % 3},80,12" for row in range(30)]
    trace.write_text("\n".join(["TIMESTAMP,NumImages,ContextTokens,GeneratedTokens", *lines]))
    run, rows = measured(
        sim, tmp_path / "run", "--api", "chat", "--image", "56x84", trace=str(trace), rate=None
    )
    check_conserved(run)
    assert rows["images_planned"].tolist() == rows["images"].tolist() == [row % 3 for row in range(30)]
    assert (rows["prompt_tokens"] - rows["prompt_tokens_planned"] == 6 * rows["images"]).all()
    assert (run["workload"]["images"], run["requests"]["images_sent"]) == (30, 30)
    assert run["tokens"]["mismatches"] == 0
    alone, rows = measured(sim, tmp_path / "text", "--image", "none", trace=str(trace), rate=None)
    assert rows["images_planned"].tolist() == [row % 3 for row in range(30)]
    assert set(rows["images"]) == {0}
    assert (rows["prompt_tokens"] == rows["prompt_tokens_planned"]).all()
    assert (alone["workload"]["images"], alone["requests"]["images_sent"]) == (30, 0)
    assert any("20 of 30 requests have images in the trace (30 in all)" in note for note in alone["notes"])


def test_messages_of_two_adapters_with_images(sim: str, tmp_path: Path) -> None:
    flags = ["--api", "messages", "--model", "french=3,german=1", "--image", "56x84"]
    run, rows = measured(sim, tmp_path / "run", *flags)
    check_conserved(run)
    # Nothing forces lengths there, but each response reached its limit.
    assert (rows["output_tokens"] == 12).all()
    assert not any("by themselves" in note for note in run["notes"])
    assert set(run["by_model"]) == {"french", "german"}
    for name, part in run["by_model"].items():
        mine = (rows["model"] == name) & (rows["in_window"] == True)  # noqa: E712 - an array of objects
        assert part["requests"] == mine.sum()
        assert part["ttft_p50_seconds"] > 0
    known = [part["attributed_joules"] for part in run["by_model"].values()]
    inside = rows["in_window"].astype(bool) & (rows["outcome"] == "completed")
    assert sum(known) == pytest.approx(rows["energy_joules"][inside].astype(float).sum(), rel=1e-6)
    # Two by three squares of 28 pixels are six tokens, which only the server knows.
    assert set(rows["prompt_tokens"] - rows["prompt_tokens_planned"]) == {6}
    assert run["tokens"]["mismatches"] == 0
    html = (tmp_path / "run" / "report.html").read_text()
    assert 'id="models"' in html
