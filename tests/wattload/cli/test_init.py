"""The file that init writes is one that run reads, and names every setting."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from wattload import config
from wattload.cli import app as cli
from wattload.cli.init import template
from wattload.config import SETTINGS


def test_it_is_read_as_it_is_and_with_every_switch_and_list_set(tmp_path: Path) -> None:
    file = tmp_path / "wattload.toml"
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", str(file), "--url", "http://h:1"])
    assert ended.value.code == 0
    made = config.load({}, file)
    assert made.endpoint.url == "http://h:1"
    assert (made.workload.trace, made.schedule.duration_seconds) == ("conv", 300)
    names = {line.lstrip("# ").partition(" = ")[0] for line in file.read_text().splitlines() if " = " in line}
    assert {"assert" if name == "assertions" else name for name in SETTINGS} <= names


def test_every_setting_that_has_a_value_is_valid_toml() -> None:
    for line in template("http://h").splitlines():
        if " = " in line and line.lstrip("# ").partition(" = ")[0].isidentifier():
            tomllib.loads(line.lstrip("# "))


def test_a_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.toml"
    file.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", str(file)])
    assert ended.value.code == 2
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "mine"
