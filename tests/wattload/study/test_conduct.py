"""A study is made, goes wrong in every way that it can, and goes on."""

from __future__ import annotations

import json
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from study_files import TINY, FakeLoad, study_of, study_text
from synthetic_run import Synthetic
from wattload.errors import InputError, RunInvalid
from wattload.study.conduct import Conductor, Left
from wattload.study.design import blocks
from wattload.study.directory import StudyDir, read_facts
from wattload.study.program import Identity, free_port, start, this_boot
from wattload.study.spec import Study

RUN = Synthetic(rate=8.0, duration=8.0, warmup=1.0, gaps=False)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def load(templates: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLoad:
    fake = FakeLoad(templates)
    monkeypatch.setattr("wattload.launch.run_settings", fake)
    return fake


class Made:
    """A study in a directory, made once or again."""

    def __init__(self, folder: Path, text: str | None = None) -> None:
        self.folder = folder
        self.study: Study = study_of(folder, text)
        self.dir = StudyDir(folder / "out")
        self.said: list[str] = []
        self.now = 0.0

    def make(self, until_seconds: float | None = None, until_repeat: int | None = None) -> Left:
        self.dir.begin(self.study)
        with self.dir.locked():
            return Conductor(
                self.study,
                self.dir,
                say=self.said.append,
                until_seconds=until_seconds,
                until_repeat=until_repeat,
                clock=lambda: self.now,
            ).run()

    def cells(self) -> list[str]:
        """Names of the directories below the arms'."""
        return sorted(path.name for path in (self.dir.path / "cells").glob("*/*"))

    @property
    def text(self) -> str:
        return "\n".join(self.said)


def test_every_cell_is_made_once_and_nothing_is_left_open(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)
    left = made.make()
    assert left.cells == 0
    assert left.sentence() == "all 8 cells are made"
    assert len(load.made) == 8
    assert made.dir.open_things() == {}
    order = [(s["name"], s["seed"]) for s in load.made]
    assert order == [(f"{c.arm}-{c.name}", c.seed) for block in blocks(made.study) for c in block.cells]
    # A server a block.
    assert len(list(made.dir.servers.glob("*.log"))) == 4
    assert made.make().cells == 0
    assert len(load.made) == 8


def test_a_study_with_more_repeats_goes_on_with_those(tmp_path: Path, load: FakeLoad) -> None:
    Made(tmp_path).make()
    more = Made(tmp_path, study_text().replace("repeats = 2", "repeats = 3"))
    more.make()
    assert len(load.made) == 12
    with pytest.raises(InputError, match="holds a study with another run, arm 'tight'; name another"):
        Made(tmp_path, study_text(tight="start_timeout = 5").replace('"4s"', '"5s"')).make()


def test_an_arm_that_left_the_file_comes_back_only_as_it_was(tmp_path: Path, load: FakeLoad) -> None:
    """Its cells are still there: under another command they would be taken for that one's."""
    made = Made(tmp_path)
    made.make()
    renamed = study_text().replace('name = "tight"', 'name = "tighter"')
    Made(tmp_path, renamed).make()
    assert len(load.made) == 12
    other = study_text(tight="start_timeout = 5")
    with pytest.raises(InputError, match="holds a study with another arm 'tight'; name another"):
        Made(tmp_path, other).make()
    with pytest.raises(InputError, match="another arm 'tight'"):
        made.dir.check_same(study_of(tmp_path, other))
    Made(tmp_path).make()
    assert len(load.made) == 12


def test_a_title_may_be_put_right(tmp_path: Path, load: FakeLoad) -> None:
    Made(tmp_path).make()
    titled = study_text(tight='title = "what it turned out to be"')
    made = Made(tmp_path, titled)
    made.make()
    assert len(load.made) == 8
    assert made.dir.file_path.read_text() == titled


def test_an_interrupted_cell_is_set_aside_and_made_again(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)

    def interrupt(settings: Mapping[str, Any]) -> None:
        if len(load.made) == 3:
            Path(str(settings["out"])).mkdir(parents=True)
            raise KeyboardInterrupt

    load.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        made.make()
    assert made.dir.open_things() == {}, "the server is stopped all the same"
    load.during = lambda _settings: None
    assert made.make().cells == 0
    assert len(load.made) == 9
    assert sum(name.endswith(".cut-1") for name in made.cells()) == 1


def test_an_invalid_cell_is_repeated_once_and_then_kept_with_its_reason(
    tmp_path: Path, load: FakeLoad
) -> None:
    made = Made(tmp_path)
    late = replace(RUN, overrides={"reasons": ["client saturated"]})
    load.during = lambda settings: late if settings["name"] == "tight-conv-8-r1" else None
    left = made.make()
    assert (left.cells, left.invalid) == (0, 1)
    assert "1 of them not valid and kept with their reasons" in left.sentence()
    assert len(load.made) == 9
    assert {"conv-8-r1", "conv-8-r1.invalid-1"} <= set(made.cells())
    facts = read_facts(made.dir.path / "cells/tight/conv-8-r1")
    assert facts is not None
    assert (facts.valid, facts.reasons, facts.attempt) == (False, ["client saturated"], 2)


def test_a_cell_that_is_valid_the_second_time_counts(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)
    late = replace(RUN, overrides={"reasons": ["client saturated"]})
    load.during = lambda settings: late if len(load.made) == 1 else None
    assert made.make().invalid == 0
    assert sum(".invalid-" in name for name in made.cells()) == 1


def test_requests_that_fail_make_a_cell_invalid(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path, study_text().replace("[2, 8]", "[2]").replace("repeats = 2", "repeats = 1"))
    load.during = lambda _settings: replace(RUN, failed=0.2)
    assert made.make().invalid == 2
    assert "of the requests failed" in made.text
    assert "http_5xx" in made.text


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (TINY + " --say 'no such model' --exit 2", "the server of tight ended with 2: no such model"),
        (TINY + " --say 'CUDA out of memory' --exit 1", "the server of tight ran out of memory: CUDA out"),
        (TINY + " --model other", "the server of tight: model m: .* serves other"),
        (TINY + " --deaf", "did not come up within 1 s"),
        ("no-such-program {port}", "no-such-program: No such file"),
    ],
)
def test_a_server_that_does_not_come_up_costs_its_own_cells_alone(
    command: str, sentence: str, tmp_path: Path, load: FakeLoad
) -> None:
    text = study_text(tight='model = "m"\nstart_timeout = "1s"', free='start_timeout = "60s"')
    first, second = text.split('name = "tight"')
    made = Made(tmp_path, first + 'name = "tight"' + second.replace(TINY, command))
    left = made.make()
    assert re.search(sentence, left.given_up["tight"])
    assert left.cells == 4
    assert {settings["name"][:4] for settings in load.made} == {"free"}
    assert len(load.made) == 4
    assert made.dir.open_things() == {}


def test_a_port_that_another_program_has(tmp_path: Path, load: FakeLoad) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        made = Made(tmp_path, study_text(tight=f"port = {port}"))
        left = made.make()
    assert f"port {port} is in use by another program" in left.given_up["tight"]
    # The next call tries again.
    assert made.make().cells == 0


def test_a_server_that_dies_in_a_cell_is_started_again_and_what_ran_is_kept(
    tmp_path: Path, load: FakeLoad
) -> None:
    text = study_text(tight='model = "m"').replace(TINY, TINY + " --say 'CUDA out of memory'")
    made = Made(tmp_path, text.replace("repeats = 2", "repeats = 1"))

    def die(settings: Mapping[str, Any]) -> None:
        if settings["name"] == "tight-conv-2-r1":
            with pytest.raises(httpx.HTTPError):
                httpx.get(f"{settings['url']}/die", trust_env=False)
            status = Path(f"/proc/{made.dir.open_things()['server']['pid']}/stat")
            deadline = time.monotonic() + 60
            while status.read_text().rpartition(")")[2].split()[0] != "Z":  # its last moments take a while
                assert time.monotonic() < deadline
                time.sleep(0.01)

    load.during = die
    left = made.make()
    assert (left.cells, left.invalid) == (0, 1)
    facts = read_facts(made.dir.path / "cells/tight/conv-2-r1")
    assert facts is not None
    assert facts.attempt == 2
    assert facts.reasons[0].startswith("the server of tight ran out of memory: CUDA out of memory")
    assert "(in this cell)" in facts.reasons[0]
    others = [s["name"] for s in load.made if s["name"] != "tight-conv-2-r1"]
    assert sorted(others) == ["free-conv-2-r1", "free-conv-8-r1", "tight-conv-8-r1"]


def test_a_run_that_cannot_begin_is_a_reason(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path, study_text().replace("repeats = 2", "repeats = 1"))

    def refuse(settings: Mapping[str, Any]) -> None:
        if settings["name"] == "free-conv-2-r1":
            raise InputError("the endpoint answered 500")

    load.during = refuse
    left = made.make()
    assert (left.cells, left.invalid) == (0, 1)
    facts = read_facts(made.dir.path / "cells/free/conv-2-r1")
    assert facts is not None
    assert (facts.reasons, facts.has_run) == (["the endpoint answered 500"], False)


def test_a_budget_ends_between_cells_and_the_rest_is_said(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)

    def take(_settings: Mapping[str, Any]) -> None:
        made.now += 30

    load.during = take
    # A block is guessed to take 132 s; its two cells take 60 s, after which the second is known to fit.
    left = made.make(until_seconds=150)
    assert (len(load.made), left.cells) == (4, 4)
    assert 4 * 30 <= left.seconds <= 4 * 30 + 30
    assert "left, about" in left.sentence()
    assert "too short" in made.text
    assert made.make().cells == 0
    assert len(load.made) == 8


def test_a_budget_that_no_cell_fits_into_starts_nothing(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)
    assert made.make(until_seconds=20).cells == 8
    assert load.made == []
    assert not list(made.dir.servers.glob("*.log"))


def test_the_first_repeat_alone_and_the_others_in_a_later_call(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)
    assert made.make(until_repeat=1).cells == 4
    assert made.cells() == sorted(["conv-2-r1", "conv-8-r1"] * 2)
    assert "repeats after 1 are left for another call (--until-repeat)" in made.text
    assert made.make(until_repeat=1).cells == 4
    assert made.make(until_repeat=9).cells == 0
    assert len(load.made) == 8


def condition(tmp_path: Path, teardown: str = "printf 700 > {here}/watts") -> str:
    (tmp_path / "watts").write_text("700")
    setup = "sh -c 'printf 500 > {here}/watts'"
    return f'setup = ["{setup}"]\nteardown = ["sh -c \'{teardown}\'"]\ncheck = "cat {{here}}/watts"'


def test_conditions_hold_for_their_arm_alone(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path, study_text(tight=condition(tmp_path)))
    seen: dict[str, set[str]] = {}

    def look(settings: Mapping[str, Any]) -> None:
        seen.setdefault(settings["name"].partition("-")[0], set()).add((tmp_path / "watts").read_text())

    load.during = look
    made.make()
    assert seen == {"free": {"700"}, "tight": {"500"}}
    assert (tmp_path / "watts").read_text() == "700"


def test_conditions_that_are_not_undone_stop_the_study(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path, study_text(tight=condition(tmp_path, teardown="true")))
    with pytest.raises(RunInvalid, match=r"were not undone: .* says '500', before '700'; the study stops"):
        made.make()
    assert "undo" in made.dir.open_things(), "the next call tries to undo them first"
    with pytest.raises(RunInvalid, match="were not undone"):
        made.make()


def test_what_a_killed_call_left_is_undone_first(tmp_path: Path, load: FakeLoad) -> None:
    """As after kill -9: a server runs, a limit is set, a cell is half there."""
    made = Made(tmp_path, study_text(tight=condition(tmp_path)))
    made.dir.begin(made.study)
    port = 0
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = tuple(made.study.filled(word, port=str(port), python=sys.executable) for word in TINY.split())
    orphan = start("orphan", words, environment={}, port=port, log=tmp_path / "log", folder=tmp_path)
    identity = orphan.identity
    (tmp_path / "watts").write_text("500")
    arm = made.study.arms["tight"]
    made.dir.save_open(
        {
            "boot": this_boot(),
            "host": platform.node(),
            "server": {"pid": identity.pid, "started_ticks": identity.started_ticks},
            "undo": {
                "arm": "tight",
                "teardown": [[made.study.filled(word) for word in arm.teardown[0]]],
                "check": ["cat", str(tmp_path / "watts")],
                "before": "700",
            },
        }
    )
    half = made.dir.path / "cells/free/conv-2-r1"
    half.mkdir(parents=True)
    (half / "requests.partial.arrow").write_bytes(b"x")
    assert made.make().cells == 0
    assert orphan.ended
    assert "ended the server that an interrupted call left running" in made.text
    assert (half.parent / "conv-2-r1.cut-1" / "requests.partial.arrow").exists()
    assert isinstance(identity, Identity)


def test_what_was_left_on_another_machine_is_not_touched_here(tmp_path: Path, load: FakeLoad) -> None:
    """A directory moves: process ids and conditions of the machine before mean nothing here."""
    made = Made(tmp_path, study_text(tight=condition(tmp_path)))
    made.dir.begin(made.study)
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    identity = Identity.of(bystander.pid)
    try:
        made.dir.save_open(
            {
                "boot": "another",
                "host": "elsewhere",
                "server": {"pid": identity.pid, "started_ticks": identity.started_ticks},
                "undo": {"arm": "tight", "teardown": [["false"]], "check": ["true"], "before": "700"},
            }
        )
        assert made.make().cells == 0
        assert bystander.poll() is None
        assert "the conditions of tight were left set on elsewhere" in made.text
    finally:
        bystander.kill()
        bystander.wait()


def test_an_arm_that_needs_another_machine_waits(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path, study_text(tight=f"requires = 'test -f {tmp_path}/h200'"))
    left = made.make()
    assert left.cells == 4
    assert "does not hold on this machine" in left.waiting["tight"]
    (tmp_path / "h200").touch()
    assert made.make().cells == 0


def test_two_at_once_are_refused(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)
    made.dir.begin(made.study)
    with made.dir.locked(), pytest.raises(InputError, match="another process is at this study"):
        made.make()


def test_a_meter_beside_the_server_is_asked_for_energy(tmp_path: Path, load: FakeLoad) -> None:
    meter = f'meter = {{ command = "{TINY}", health = "/health" }}'
    text = study_text(tight=meter).replace('energy = "none"\n', "").replace("repeats = 2", "repeats = 1")
    made = Made(tmp_path, text)
    made.make()
    by_arm = {s["name"].partition("-")[0]: str(s.get("energy")) for s in load.made}
    assert by_arm["free"] == "None"
    assert by_arm["tight"].startswith("http://127.0.0.1:")
    assert by_arm["tight"] != next(s["url"] for s in load.made if s["name"].startswith("tight"))


def test_a_meter_that_does_not_answer_is_found_before_any_load(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path, study_text(tight=f'energy = "http://127.0.0.1:{free_port()}"'))
    left = made.make()
    assert re.search(r"the server of tight: cannot read energy from http", left.given_up["tight"])
    assert {settings["name"][:4] for settings in load.made} == {"free"}


def test_the_journal_survives_a_line_that_was_cut_short(tmp_path: Path, load: FakeLoad) -> None:
    made = Made(tmp_path)
    made.make()
    whole = len(made.dir.journal())
    with made.dir.journal_path.open("a") as file:
        file.write('{"event": "cell", "seco')
    assert len(made.dir.journal()) == whole
    assert made.make().cells == 0
    assert json.loads((made.dir.path / "study.json").read_text())["name"] == "batching"
