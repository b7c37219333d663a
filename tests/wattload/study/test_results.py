"""What a study says of cells whose truth is known: table, savings, answers and page."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from study_files import FakeLoad, study_of, study_text
from synthetic_run import Synthetic
from wattload.study.answers import answers
from wattload.study.conduct import Conductor
from wattload.study.directory import StudyDir
from wattload.study.results import Results
from wattload.study.spec import ENERGY_PER_REQUEST
from wattload.study.write import write_results

RUN = Synthetic(rate=20.0, duration=30.0, warmup=5.0, gaps=False, noise=0.01)
QUESTIONS = """
[[question]]
text = "Does a limit cost energy?"
arms = ["tight"]
paper = "up to 54 % more"
source = "the paper, 4.2"

[[question]]
text = "What does load save?"
against_rate = 2
arms = ["free"]

[[question]]
text = "What does a request cost?"
arms = ["free"]
against = "free"
number = "latency.ttft_seconds.p50"
"""
TEXT = study_text(more=QUESTIONS.replace('arms = ["free"]\nagainst = "free"\n', "")).replace(
    "repeats = 2", "repeats = 3"
)


def truth(settings: Mapping[str, Any]) -> Synthetic:
    """`tight` takes half as much again for its tokens, and at 8/s everything takes half; a draw a seed."""
    joules = 0.3 * (1.5 if settings["name"].startswith("tight") else 1.0)
    fraction = 0.5 if settings["rate"] == "8" else 1.0
    return replace(
        RUN,
        seed=int(settings["seed"]),
        idle_watts=1.0,
        prefill_token_joules=0.0,
        decode_token_joules=joules * fraction,
        overrides={"reasons": ["client saturated"]} if settings["name"] == "tight-conv-8-r2" else {},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study, of which one cell is not valid."""
    place = tmp_path_factory.mktemp("study")
    (place / "templates").mkdir()
    load = FakeLoad(place / "templates")
    load.during = truth
    study, out = study_of(place, TEXT), StudyDir(place / "out")
    out.begin(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wattload.launch.run_settings", load)
        Conductor(study, out, say=lambda _text: None).run()
    write_results(Results.of(study, out.path), out.path, "all 12 cells are made")
    return place


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return Results.of(study_of(folder, TEXT), folder / "out")


def test_the_saving_is_found_and_the_other_cells_are_not_touched(results: Results) -> None:
    found = {(s.level.text, s.arm): s.effect for s in results.savings(ENERGY_PER_REQUEST)}
    assert set(found) == {("2/s", "tight"), ("8/s", "tight")}
    for effect in found.values():
        assert effect is not None
        assert effect.ratio == pytest.approx(1.5, rel=0.03)
        assert effect.comparisons == 2
    at_two, at_eight = found["2/s", "tight"], found["8/s", "tight"]
    assert at_two is not None
    assert at_eight is not None
    assert (at_two.repeats, at_eight.repeats) == (3, 2), "what is not valid counts nowhere"
    assert at_two.significant


def test_every_question_gets_its_sentence(results: Results) -> None:
    first, second, third = answers(results)
    said = " ".join(first.sentences)
    assert re.search(r"conv, tight against free: total energy per request is (4|5)\d % higher \[\+", said)
    assert " at 2/s and " in said
    assert "after Holm's correction for 2 comparisons" in said
    assert "simulated" not in said
    assert re.search(r"energy per request is (4|5)\d % lower .* at 8/s than 2/s", " ".join(second.sentences))
    assert "TTFT p50 is" in " ".join(third.sentences)


def test_the_table_has_every_cell_with_its_reasons(folder: Path) -> None:
    with (folder / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(folder / "out" / "results.parquet")
    assert len(rows) == table.num_rows == 12
    assert table.column_names == list(rows[0])
    invalid = [row for row in rows if row["valid"] == "False"]
    assert [row["run"] for row in invalid] == ["cells/tight/conv-8-r2"]
    assert invalid[0]["reasons"] == "client saturated"
    assert all(float(row["energy_per_request_joules"]) > 0 for row in rows)
    assert all(row["energy_source"] == "nvml" for row in rows)


def test_results_json_is_what_is_computed_again_from_run_json_alone(folder: Path, tmp_path: Path) -> None:
    """What is kept of a study on a GPU is its run.json, cell.json and pairs.json; the figures follow."""
    for path in (folder / "out").glob("cells/*/*/*.json"):
        if path.name in ("run.json", "cell.json"):
            there = tmp_path / path.relative_to(folder / "out")
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())
    (tmp_path / "pairs.json").write_bytes((folder / "out" / "pairs.json").read_bytes())
    data = write_results(Results.of(study_of(folder, TEXT), tmp_path), tmp_path, "all 12 cells are made")
    kept = json.loads((folder / "out" / "results.json").read_text())
    assert json.loads(json.dumps(data)) == kept
    assert kept["schema"] == "wattload.study_results/1"
    assert [entry["run"] for entry in kept["invalid"]] == ["cells/tight/conv-8-r2"]
    assert kept["answers"][0]["paper"] == "up to 54 % more"


def test_the_page_stands_alone_and_its_plots_are_well_formed(folder: Path) -> None:
    text = (folder / "out" / "study.html").read_text()
    own = re.sub(r"<script>.*?</script>|<meta http-equiv.*?>", "", text, flags=re.DOTALL)
    assert "http" not in re.sub(r"http://www.w3.org[^\"]*|http://127[^<]*", "", own)
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 6
    ids: list[str] = []
    for plot in plots:
        ids += [name for e in ET.fromstring(plot).iter() if (name := e.get("id"))]
    assert len(ids) == len(set(ids))
    assert "1 cell is not valid" in text
    assert "client saturated" in text
    assert "Beside it: up to 54 % more (the paper, 4.2)" in text
    assert "2 comparisons with the baseline are one family" in text
    assert "imulated" not in re.sub(r"<style.*?</style>|<script>.*?</script>", "", text, flags=re.DOTALL)


def test_the_two_values_beside_a_change_are_of_the_repeats_that_both_have(
    folder: Path, results: Results
) -> None:
    """The second repeat of `tight` at 8/s is not valid, and the requests of each repeat are others."""
    text = (folder / "out" / "study.html").read_text()
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)]
    row = next(row for row in rows if row[1:2] == ["8/s"] and "%" in "".join(row[5:6]))
    against, arm = (float(cell.split()[0]) for cell in row[3:5])
    (saving,) = (s for s in results.savings(ENERGY_PER_REQUEST) if s.level.text == "8/s")
    assert saving.effect is not None
    assert arm / against == pytest.approx(saving.effect.ratio, rel=4e-3)
    whole = [results.estimate(ENERGY_PER_REQUEST, name, "conv", "8/s") for name in ("tight", "free")]
    assert whole[0] is not None
    assert whole[1] is not None
    assert whole[0].value / whole[1].value != pytest.approx(saving.effect.ratio, rel=4e-3)


def test_modelled_joules_are_labelled_everywhere(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "out").glob("cells/*/*/*.json"):
        if path.name in ("run.json", "cell.json"):
            there = tmp_path / path.relative_to(folder / "out")
            there.parent.mkdir(parents=True, exist_ok=True)
            values = json.loads(path.read_text())
            if path.name == "run.json":
                values["energy"]["flags"] = ["modelled"]
            there.write_text(json.dumps(values))
    results = Results.of(study_of(folder, TEXT), tmp_path)
    write_results(results, tmp_path, "all made")
    text = (tmp_path / "study.html").read_text()
    assert "<strong>Simulated.</strong>" in text
    assert "(J) (simulated)" in text
    assert "simulated total energy per request is" in " ".join(answers(results)[0].sentences)
    rows = re.findall(r'<td class="number">([^<]*\d [mkMµ]?J(?:/token)?[^<]*)</td>', text)
    assert rows
    assert all(row.endswith("simulated") for row in rows)


def test_a_study_of_which_nothing_is_made_has_a_page_too(tmp_path: Path) -> None:
    study = study_of(tmp_path, TEXT)
    data = write_results(Results.of(study, tmp_path), tmp_path, "0 of 12 cells are made")
    assert data["points"] == []
    assert "no cell is made yet" in (tmp_path / "study.html").read_text()


def test_one_repeat_is_compared_request_by_request_and_that_is_kept(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    load = FakeLoad(tmp_path / "templates")
    load.during = truth
    study = study_of(tmp_path, TEXT.replace("repeats = 3", "repeats = 1"))
    out = StudyDir(tmp_path / "out")
    out.begin(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wattload.launch.run_settings", load)
        Conductor(study, out, say=lambda _text: None).run()
    first = Results.of(study, out.path).savings(ENERGY_PER_REQUEST)
    for saving in first:
        assert saving.effect is not None
        assert saving.effect.method == "request by request, one run each"
        assert saving.effect.ratio == pytest.approx(1.5, rel=0.05)
        assert saving.effect.low is not None
        assert saving.effect.high is not None
        # What requests differ by from one another is in both runs, and in no interval.
        assert saving.effect.high / saving.effect.low < 1.1
    for path in out.path.glob("cells/*/*/requests.parquet"):
        path.unlink()
    assert Results.of(study, out.path).savings(ENERGY_PER_REQUEST) == first
    (out.path / "pairs.json").unlink()
    alone = Results.of(study, out.path).savings(ENERGY_PER_REQUEST)
    assert all(saving.effect is not None and "own" in saving.effect.method for saving in alone)
