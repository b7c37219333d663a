"""The command line: exit statuses, one last line that says why, help that names every setting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from wattload import cli
from wattload.config import RunConfig, flag_of


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "URL is missing"),
        (["run", "http://h"], "--trace is missing"),
        (["run", "http://h", "--trace", "conv", "--duration", "x"], "--duration x: is no time"),
        (["run", "http://h", "--nonsense"], "--nonsense"),
        (["run", "ftp://h", "--trace", "conv", "--rate", "1", "--duration", "1"], "ftp://h"),
        (["sweep", "http://h", "--trace", "conv"], "--rates or --search"),
        (["sweep", "http://h", "--trace", "conv", "--rates", "0"], "--rates 0"),
        (["sweep", "http://h", "--trace", "conv", "--search", "luck"], "--search luck"),
        (["sweep", "http://h", "--trace", "conv", "--search", "rate"], "--slo"),
        (["worker", "--master-port", "0"], "--master-port"),
        (["report", "/nonexistent"], "/nonexistent"),
        (["bogus"], "bogus"),
    ],
)
def test_bad_arguments_are_status_2_and_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(arguments, capsys)
    assert code == 2
    assert said in err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["run"], ["wattload: interrupted"]),
        (["sweep", "--rates", "1"], ["goes on from", "wattload: interrupted"]),
    ],
)
def test_ctrl_c_before_or_after_the_load_is_said(
    command: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"wattload.commands.{command[0]}.execute", interrupted)
    arguments = ["http://h", "--trace", "conv", "--duration", "1", "--out", str(tmp_path / "out")]
    code, _, err = call([command[0], *arguments, *command[1:]], capsys)
    assert code == 130
    assert all(part in err for part in said), err
    assert err.strip().splitlines()[-1] == "wattload: interrupted"


def test_help_names_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wattload.cli", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin"},
    )
    for name in RunConfig.model_fields:
        flag = flag_of(name)
        assert flag == "URL" or flag in done.stdout, flag


def test_a_command_imports_nothing_it_does_not_need() -> None:
    code = (
        "import sys\n"
        "from wattload.cli import main\n"
        "try: main(['run', 'http://127.0.0.1:9', '--trace', 'conv', '--rate', '1', '--duration', '1'])\n"
        "except SystemExit as end: assert end.code == 2\n"
        "print([name for name in ('scipy', 'matplotlib', 'locust') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
