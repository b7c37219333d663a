"""`python -m dashboards.generate [DIR]`: writes dashboards and recording rules under DIR."""

from __future__ import annotations

import sys
from pathlib import Path

from dashboards.generate import energy_of_serving, gpu_and_meter, load_test, rules
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

TARGET = Path(__file__).parents[1]
DASHBOARDS = {
    "energy-of-serving.json": energy_of_serving.build,
    "load-test.json": load_test.build,
    "gpu-and-meter.json": gpu_and_meter.build,
}


def encode(dashboard: Dashboard) -> str:
    """The dashboard as the JSON text that is committed."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard.build()) + "\n"


def files() -> dict[str, str]:
    """Every generated file: its path under dashboards/, and its text."""
    texts = {f"grafana/dashboards/{name}": encode(build()) for name, build in DASHBOARDS.items()}
    return texts | {"prometheus/rules/energy.yml": rules.build()}


def main(directory: Path) -> None:
    for name, text in files().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
