"""A study file: what it means, and what is said of one that is wrong, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from study_files import study_of, study_text
from wattload.errors import InputError
from wattload.study.levels import parse_level

TEXT = study_text()


def test_what_a_cell_is_sent(tmp_path: Path) -> None:
    text = study_text(tight='run = { duration = "6s", drain = "3s" }', workload="capacity = 10")
    study = study_of(tmp_path, text.replace("[2, 8]", '[2, "50%", "offline:9", "batch:4", "closed:3"]'))
    workload = study.workloads["conv"]
    at = {level.text: study.settings(study.arms["tight"], workload, level) for level in workload.levels()}
    assert list(at) == ["2/s", "50%", "offline:9", "batch:4", "closed:3"]
    assert (at["2/s"]["rate"], at["2/s"]["duration"], at["2/s"]["arrivals"]) == ("2", "6s", "poisson")
    assert at["50%"]["rate"] == "5"
    assert (at["batch:4"]["arrivals"], at["batch:4"]["requests"]) == ("offline", 4)
    assert "duration" not in at["batch:4"]
    assert "rate" not in at["batch:4"]
    assert "drain" in at["2/s"]
    assert "drain" not in {**at["batch:4"], **at["offline:9"]}, "all of the run is after the last sending"
    assert (at["closed:3"]["arrivals"], at["closed:3"]["duration"]) == ("closed:concurrency=3", "6s")


def test_a_trace_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("seconds,prompt_tokens,output_tokens\n0,50,64\n1,50,64\n")
    text = TEXT.replace('trace = "conv"', 'trace = "mine.csv", repeat = true')
    study = study_of(tmp_path, text)
    workload = study.workloads["conv"]
    settings = study.settings(study.arms["free"], workload, workload.levels()[0])
    assert settings["trace"] == str(tmp_path / "mine.csv")
    assert "mine.csv" in str(study.as_dict()["workloads"])
    assert str(tmp_path) not in str(study.as_dict()["workloads"])


def test_variables_are_put_in_and_others_stay(tmp_path: Path) -> None:
    text = TEXT + '\n[variables]\nmodel_folder = "/m"\n'
    text = text.replace("--port {port}", """--port {port} --model {model_folder} '{\\"a\\": 1}'""", 1)
    study = study_of(tmp_path, text)
    command = study.arms["free"].command
    assert command is not None
    assert [study.filled(word, port="1") for word in command][-3:] == ["--model", "/m", '{"a": 1}']
    other = study_of(tmp_path, text, variables={"model_folder": "/other"})
    assert other.filled("{model_folder}") == "/other"


def test_a_variable_alone_stands_for_all_its_words(tmp_path: Path) -> None:
    more = '[variables]\nserve = "vllm serve {model} --quiet"\nmodel = "/m"\n'
    study = study_of(tmp_path, TEXT + more)
    assert study.words(("{serve}", "--port", "{port}", "x={model}"), port="1") == (
        "vllm", "serve", "/m", "--quiet", "--port", "1", "x=/m",
    )  # fmt: skip


WRONG = {
    "not TOML": ("[study", "is not TOML"),
    "nested too deep": ("study = " + "[" * 5000, "is not TOML"),
    "a number without end": ("study = " + "9" * 5000, "is not TOML"),
    "unknown key": (TEXT.replace("baseline =", "base_line ="), r"\[study\] has an unknown key 'base_line'"),
    "unknown key of an arm": (
        study_text(tight='comand = "x"'),
        r"\[arm number 2 \(tight\)\] has an unknown key 'comand'; did you mean 'command'\?",
    ),
    "unknown table": (TEXT + "[extra]\na = 1\n", "unknown key 'extra'"),
    "no arm": (TEXT.split("[[arm]]", maxsplit=1)[0], "lacks 'arm'"),
    "no workload": (TEXT.replace("[[workload]]", "[[x]]"), "unknown key|lacks 'workload'"),
    "arm twice": (TEXT.replace('name = "tight"', 'name = "free"'), "the arm 'free' is there twice"),
    "workload twice": (
        study_text(more='[[workload]]\nname = "conv"\nrates = [1]\nrun = { trace = "code" }'),
        "the workload 'conv' is there twice",
    ),
    "no baseline": (TEXT.replace('baseline = "free"\n', ""), r"\[study\] lacks 'baseline'"),
    "unknown baseline": (
        TEXT.replace('baseline = "free"', 'baseline = "fre"'),
        "baseline: there is no arm 'fre'; the arms are free, tight",
    ),
    "rate twice": (TEXT.replace("[2, 8]", "[2, 2.0]"), "the rate 2/s is there twice"),
    "rate of nothing": (TEXT.replace("[2, 8]", '["fast"]'), "'fast' is not a rate; write 5"),
    "rate below 0": (TEXT.replace("[2, 8]", "[-1]"), "-1/s: a rate must be above 0"),
    "share without capacity": (TEXT.replace("[2, 8]", '["50%"]'), "'50%' is a share of 'capacity'"),
    "offline without an end": (
        TEXT.replace("[2, 8]", '["offline"]'),
        "conv at offline: needs 'requests', or offline:N,",
    ),
    "no rates": (TEXT.replace("[2, 8]", "[]"), "rates: List should have at least 1 item"),
    "neither command nor url": (
        TEXT + '[[arm]]\nname = "third"\n',
        r"\[arm\] number 3 \(third\): needs either 'command'.*or 'url'",
    ),
    "both": (study_text(tight='url = "http://h:1"'), "needs either 'command'"),
    "no port": (
        TEXT.replace(" --port {port}", "", 1),
        r"\(free\): needs 'port', or \{port\} in its command",
    ),
    "setup without teardown": (study_text(tight='setup = ["a"]'), "'setup' needs 'teardown', and 'check'"),
    "teardown without setup": (study_text(tight='teardown = ["a"]'), "'teardown' and 'check' belong to"),
    "unknown place": (study_text(tight='environment = { A = "{prt}" }'), r"\[arm tight\] \{prt\} is no var"),
    "bad name": (TEXT.replace('name = "tight"', 'name = "a/b"'), "'a/b' is not a name"),
    "unclosed quote": (TEXT.replace('command = "', "command = \"'", 1), "is not a command"),
    "setting that is none": (
        TEXT.replace('duration = "4s"', 'duraton = "4s"'),
        r"\[run\]: 'duraton' is not a setting of a run; did you mean 'duration'\?",
    ),
    "setting of the study's": (study_text(tight="run = { seed = 4 }"), "'seed' is decided by the study"),
    "setting of no use": (
        TEXT.replace('"4s"', '"soon"'),
        "free, conv at 2/s: duration.*not a valid duration",
    ),
    "trace that is not there": (TEXT.replace('trace = "conv"', 'trace = "cnv"'), "conv at 2/s: .*cnv"),
    "question about nobody": (
        study_text(more='[[question]]\ntext = "?"\narms = ["loose"]'),
        r"\[question number 1\]: there is no arm 'loose'",
    ),
    "question about no number": (
        study_text(more='[[question]]\ntext = "?"\nnumber = "energy.per_request"'),
        "run.json has no number 'energy.per_request'",
    ),
    "question about no rate": (
        study_text(more='[[question]]\ntext = "?"\nrates = [3]'),
        "no workload has the rate 3",
    ),
    "question against itself": (
        study_text(more='[[question]]\ntext = "?"\narms = ["tight"]\nagainst = "tight"'),
        "compares tight with itself",
    ),
    "meter and energy": (
        study_text(tight='energy = "http://h:1"\nmeter = { command = "m", port = 8790 }'),
        "'meter' and 'energy' are both given",
    ),
    "repeats": (TEXT.replace("repeats = 2", "repeats = 0"), r"\[study\] repeats: must be greater than"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_said_of_a_wrong_file(name: str, tmp_path: Path) -> None:
    text, sentence = WRONG[name]
    with pytest.raises(InputError, match=sentence) as caught:
        study_of(tmp_path, text)
    assert str(tmp_path / "study.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    from wattload.study.spec import load_study

    with pytest.raises(InputError, match=r"no\.toml: cannot be read"):
        load_study(tmp_path / "no.toml")


def test_a_variable_that_the_file_has_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--set colour: "):
        study_of(tmp_path, variables={"colour": "red"})


REHEARSAL = """
simulated = { command = "wattserve sim --port {port}", model = "s" }
model = "real"
"""


def test_a_rehearsal_has_the_stand_ins_alone(tmp_path: Path) -> None:
    more = """
[[question]]
text = "both?"
arms = ["tight", "free"]
against = "free"

[[question]]
text = "tight?"
arms = ["tight"]

[simulated]
repeats = 1
run = { duration = "2s" }
rates = { conv = [1] }
"""
    text = study_text(tight=REHEARSAL, more=more.replace('arms = ["tight", "free"]\nagainst = "free"', ""))
    study = study_of(tmp_path, text, simulated=True)
    assert list(study.arms) == ["tight"]
    assert study.left_out == ("free",)
    assert study.baseline == "tight"
    assert study.head.repeats == 1
    arm, workload = study.arms["tight"], study.workloads["conv"]
    assert arm.model == "s"
    assert [level.text for level in workload.levels()] == ["1/s"]
    assert study.settings(arm, workload, workload.levels()[0])["duration"] == "2s"


def test_a_rehearsal_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no arm has 'simulated'"):
        study_of(tmp_path, simulated=True)


@pytest.mark.parametrize("value", [True, "", "5", "%", "batch:0", "closed:", "-5%", "0%"])
def test_levels_that_are_none(value: object) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_level(value, 10.0)  # type: ignore[arg-type]
