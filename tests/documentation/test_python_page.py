"""docs/how-to/python.md: every example is executed, against a simulated GPU and runs whose truth is known."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

import wattmeter
from sim_server import simulating
from synthetic_run import Synthetic
from wattload.rundir.run import Run
from wattmeter.meters.modelled import ModelledMeter

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "python.md"
WATTS = 100.0


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Steady load; 10 % cheaper after the change.
    for name, factor in (("before", 1.0), ("after", 0.9)):
        made = Synthetic(
            rate=20.0,
            duration=30.0,
            warmup=5.0,
            prefill_token_joules=0.015 * factor,
            decode_token_joules=0.3 * factor,
        )
        made.write(Path("runs") / name)
    began = time.monotonic_ns()
    meter = ModelledMeter(lambda now_ns: max(now_ns - began, 0) * 1e-9 * WATTS)
    monkeypatch.setattr(wattmeter, "open_meter", lambda name: meter)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 6
    seen: dict[str, Any] = {}
    with simulating() as (url, _):
        for number, block in enumerate(blocks):
            source = block.replace("http://127.0.0.1:8000", url)
            exec(compile(source, f"{PAGE.name}, example {number + 1}", "exec"), seen)
    assert seen["run"].valid
    assert 0 < seen["completed"] < len(seen["joules"])
    change = seen["comparison"].changes[0]
    assert change.path == "energy.per_request_joules.mean"
    assert change.after < change.before
    made = seen["made"]
    assert isinstance(made, Run)
    assert made.path == Path("runs/made")
    assert made.energy.source == "modelled"
    assert made.requests.num_rows == made.result.requests.planned > 0
    assert len(seen["schedule"]) > 0
    # The window's edges fall between two steps of 0.1 s of the counter.
    assert seen["energy"].total_joules == pytest.approx(2.0 * WATTS, abs=0.25 * WATTS)
