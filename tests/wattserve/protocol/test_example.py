"""The example sender of the documentation, run as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx

from meter_node import serving_meter

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "step-record-protocol.md"


def example() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return str(found)


def test_the_example_gets_the_joules_of_its_request(tmp_path: Path) -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 60
    script = tmp_path / "sender.py"
    script.write_text(example())
    with serving_meter(tmp_path) as (_, url, address):
        ended = subprocess.run(
            [sys.executable, str(script), address], capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 0, ended.stderr
        energy = json.loads(ended.stdout)["energy"]
        state = httpx.get(f"{url}/energy").json()
        request = httpx.get(f"{url}/energy/requests/order-1").json()
    assert energy["source"] == "modelled"
    assert energy["joules"] > 0
    (engine,) = state["engines"]
    assert (engine["model"], engine["steps"], engine["lost_step_records"]) == ("example-8b", 20, 0)
    assert (request["prompt_tokens"], request["output_tokens"]) == (100, 20)
