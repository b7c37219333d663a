"""`python tests/dashboards/pictures.py DIR`: load tests, a picture of each dashboard, the agreement.

Writes DIR/<dashboard>.png and DIR/agreement.md. Takes about eight minutes; needs Prometheus.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from checker.agreement import compare  # noqa: E402
from checker.system import RUNS, System, system  # noqa: E402
from picture.page import draw  # noqa: E402

DASHBOARDS = HERE.parents[1] / "dashboards" / "grafana" / "dashboards"
NOTE = (
    "Rendered by tests/dashboards/pictures.py from this dashboard's own queries on a real Prometheus; "
    "not a screenshot "
    "of Grafana. Energy: modelled (virtual GPU h200-llama-3.1-8b)."
)


def agreement(running: System) -> str:
    """The comparison of Prometheus with run.json, as a Markdown table."""
    lines = ["| run | figure | PromQL over the window | run.json | difference |", "|---|---|---|---|---|"]
    for name in RUNS:
        for row in compare(running.prometheus, running.runs[name], name):
            lines.append(
                f"| {name} | {row.figure} | {row.prometheus:.5g} | {row.run_json:.5g} | "
                f"{row.difference:.2%} |"
            )
    return "\n".join(lines) + "\n"


def main(target: Path, seconds: float, warmup: float) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        system(Path(directory), seconds=seconds, warmup=warmup) as running,
    ):
        for path in sorted(DASHBOARDS.glob("*.json")):
            draw(path, running.prometheus, running.span, target / f"{path.stem}.png", NOTE)
        (target / "agreement.md").write_text(agreement(running), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(float(word) for word in (sys.argv[2:4] or ("180", "30"))))
