"""A second --model is refused: the first would be dropped without a word."""

from __future__ import annotations

import pytest

from wattload.cli.app import load_command, main
from wattload.cli.given_once import check_given_once
from wattload.errors import InputError

TWICE = [
    ("run", ["--model", "a", "--model", "b"], "--model was given 2 times .* --model a,b or a=3,b=1"),
    ("run", ["-m", "a", "--model=b"], "--model was given 2 times"),
    ("run", ["--model=b", "-ma"], "-m was given 2 times"),
    ("sweep", ["--rate", "1", "--model", "a", "--rate", "2", "-m", "b", "-m", "c"], "-m was given 3 times"),
]
ONCE = [
    ("run", ["http://x", "--rate", "1", "--model", "a"]),
    ("run", ["--header", "a: b", "-H", "c: d", "--energy", "x", "--energy", "y"]),
    ("run", ["--body", "--model", "--model", "b"]),  # the first is a value
    ("run", ["--model", "a", "--", "--model", "b"]),
    ("run", ["--no-exact-output", "--no-exact-output"]),
    ("estimate", ["file", "--rate", "1", "--rate", "2"]),
    ("run", ["--rate", "1", "--rate", "2"]),  # a wrapper's default and what overrides it
]


@pytest.mark.parametrize(("command", "arguments", "says"), TWICE)
def test_twice_is_refused_with_what_to_write(command: str, arguments: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_given_once(load_command(command), arguments)


@pytest.mark.parametrize(("command", "arguments"), ONCE)
def test_once_and_what_takes_several_is_not(command: str, arguments: list[str]) -> None:
    check_given_once(load_command(command), arguments)


def test_it_is_one_sentence_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "http://127.0.0.1:9", "--model", "a", "--model", "b", "--rate", "1"])
    assert ended.value.code == 2
    assert "was given 2 times" in capsys.readouterr().err
