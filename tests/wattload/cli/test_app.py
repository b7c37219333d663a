"""The command line: exit statuses, one last line that says why, help that names every setting."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from wattload.cli import app as cli
from wattload.config import SETTINGS
from wattload.errors import flag_of


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
        (["run", "h", "--url", "g"], "does not count the other 1"),
        (["run", "http://h", "--rate"], "requires an argument"),
        (["run", "http://h", "--trace", "conv", "--duration", "x"], "--duration x: not a valid duration"),
        (["run", "http://h", "--nonsense"], "--nonsense"),
        (["run", "ftp://h", "--trace", "conv", "--rate", "1", "--duration", "1"], "ftp://h"),
        (["sweep", "http://h", "--trace", "conv"], "--rates or --search"),
        (["sweep", "http://h", "--trace", "conv", "--rates", "0"], "--rates 0"),
        (["sweep", "http://h", "--trace", "conv", "--search", "luck"], "--search luck"),
        (["sweep", "http://h", "--trace", "conv", "--search", "rate"], "--slo"),
        (["worker", "--master-port", "0"], "--master-port"),
        (["worker", "--master-host", "http://h"], "--master-host http://h: is no host"),
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
        (["sweep", "--rates", "1"], ["continues it", "wattload: interrupted"]),
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

    monkeypatch.setattr(f"wattload.cli.{command[0]}.execute", interrupted)
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
        env={**os.environ, "COLUMNS": "200"},
    )
    for name in SETTINGS:
        flag = flag_of(name)
        assert flag == "URL" or flag in done.stdout, flag


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    for name, sentence in cli.COMMANDS.items():
        assert cli.load_command(name).help.splitlines()[0] == sentence


def test_the_old_name_of_a_command_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("calibrate", "profile"):
        code, _, err = call([name, "http://h", "--energy", "none"], capsys)
        assert code == 2
        assert "a calibration measures energy" in err


def loaded_after(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` are imported after `code`, in a process of its own."""
    program = (
        f"import sys\ntry:\n {code}\nexcept SystemExit: pass\nprint([n for n in {names} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return list(ast.literal_eval(done.stdout.strip().splitlines()[-1]))


def test_the_help_and_the_package_need_no_heavy_library() -> None:
    heavy = ("numpy", "pydantic", "pyarrow", "locust", "gevent", "scipy", "httpx", "matplotlib")
    assert loaded_after("from wattload.cli import main; main(['--help'])", heavy) == []
    assert loaded_after("import wattload", (*heavy, "typer", "rich")) == []
    assert loaded_after("import numpy", heavy) == ["numpy"]


def test_importing_the_package_sets_no_environment_variable() -> None:
    code = "import os; before = dict(os.environ); import wattload; print(before == dict(os.environ))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("debug", ["0", "1"])
def test_an_unforeseen_error_is_one_sentence_and_a_file(
    debug: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("tokens\nof two lines")

    monkeypatch.setattr("wattload.cli.run.execute", broken)
    monkeypatch.setenv("WATTLOAD_DEBUG", debug)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = call(["run", "http://h", "--trace", "conv"], capsys)
    assert (code, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("wattload: unexpected error: KeyError: ")
    if debug == "1":
        assert "Traceback" in err
        return
    assert err.strip() == last
    (kept,) = tmp_path.glob("wattload-*.traceback.txt")
    assert str(kept) in last
    assert "Traceback" in kept.read_text()
    assert "in broken" in kept.read_text()


def test_a_library_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "wattload.cli.traces", raising=False)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    code, _, err = call(["traces"], capsys)
    assert code == 2
    assert "rich.progress is not installed: install wattload with its extra 'load'" in err


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
