"""`python tests/dashboards/pictures.py DIR`: load tests, a picture of each dashboard, the agreement.

Writes DIR/<dashboard>.png, DIR/energy-tab.png and DIR/agreement.md in about six minutes; needs Prometheus and
Chromium.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from checker import web_ui  # noqa: E402
from checker.agreement import Row, compare  # noqa: E402
from checker.system import RUNS, server, system  # noqa: E402
from picture.page import draw  # noqa: E402

DASHBOARDS = HERE.parents[1] / "dashboards" / "grafana" / "dashboards"
NOTE = (
    "Rendered by tests/dashboards/pictures.py from this dashboard's own queries on a real Prometheus; "
    "not a screenshot "
    "of Grafana. Energy: simulated (wattserve sim, h200-llama-3.1-8b)."
)


def agreement(rows: dict[str, list[Row]]) -> str:
    """The comparison of Prometheus with run.json, as a Markdown table."""
    lines = [
        "| run | figure | Prometheus | by `increase()` | run.json | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, compared in rows.items():
        for r in compared:
            numbers = f"{r.prometheus:.5g} | {r.increase:.5g} | {r.run_json:.5g} | {r.difference:.2%}"
            lines.append(f"| {name} | {r.figure} | {numbers} |")
    return "\n".join(lines) + "\n"


def main(target: Path, seconds: float, warmup: float) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, system(Path(folder), seconds=seconds, warmup=warmup) as now:
        for path in sorted(DASHBOARDS.glob("*.json")):
            draw(path, now.prometheus, now.span, target / f"{path.stem}.png", NOTE)
        rows = {name: compare(now.prometheus, now.runs[name], name) for name in RUNS}
    (target / "agreement.md").write_text(agreement(rows), encoding="utf-8")
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder)) as address,
        web_ui.locust(Path(folder), address) as ui,
    ):
        web_ui.start(ui, trace="conv", rate="4", duration=f"{seconds}s", warmup=str(warmup))
        time.sleep(0.8 * seconds)
        web_ui.screenshot(ui, target / "energy-tab.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(float(word) for word in (sys.argv[2:4] or ("90", "20"))))
