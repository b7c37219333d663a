"""The committed dashboards and rules, read: as generated, and without a fault that reading can see."""

from __future__ import annotations

from pathlib import Path

import pytest
from checker import dashboard as boards
from checker import static
from dashboards.generate.__main__ import files

ROOT = Path(__file__).resolve().parents[2] / "dashboards"
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))
RULES = [
    *sorted((ROOT / "prometheus/rules").glob("*.yml")),
    *sorted((ROOT / "prometheus/alerts").glob("*.yml")),
]


@pytest.mark.parametrize("name", sorted(files()))
def test_committed_equals_generated(name: str) -> None:
    committed = (ROOT / name).read_text(encoding="utf-8")
    assert committed == files()[name], f"{name} is stale: run `python -m dashboards.generate`"


def test_every_committed_dashboard_is_generated() -> None:
    assert {f"grafana/dashboards/{p.name}" for p in DASHBOARDS} == {n for n in files() if n.endswith(".json")}


def test_rules_have_the_dimension_that_their_names_claim() -> None:
    _, faults = static.recorded(static.rules(RULES))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda p: p.stem)
def test_dashboard_reads_well(path: Path) -> None:
    records, _ = static.recorded(static.rules(RULES))
    faults = static.dashboard_faults(boards.read(path), records)
    assert not faults, "\n".join(faults)


def test_uids_are_unique_and_dashboards_link_to_each_other() -> None:
    loaded = [boards.read(p) for p in DASHBOARDS]
    assert len({b["uid"] for b in loaded}) == len({b["title"] for b in loaded}) == len(loaded)
    for board in loaded:
        linked = {tag for link in board["links"] for tag in link["tags"] if link["type"] == "dashboards"}
        assert all(linked & set(other["tags"]) for other in loaded), board["title"]


def test_panels_do_not_overlap() -> None:
    for path in DASHBOARDS:
        taken: dict[tuple[int, int], str] = {}
        for panel in boards.read(path)["panels"]:
            pos = panel["gridPos"]
            assert pos["x"] + pos["w"] <= 24, f"{panel['title']} is wider than the page"
            for x in range(pos["x"], pos["x"] + pos["w"]):
                for y in range(pos["y"], pos["y"] + pos["h"]):
                    assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]} in {path.name}"
                    taken[x, y] = panel["title"]
