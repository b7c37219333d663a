"""What the shipped studies ask of vLLM are flags that the vLLM of this interpreter takes."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

STUDIES = Path(__file__).resolve().parents[4] / "studies"


def put_in(text: str, known: dict[str, str]) -> str:
    for _ in range(3):
        text = re.sub(r"\{([a-z_]+)\}", lambda found: known.get(found[1], found[0]), text)
    return text


def commands() -> Iterator[tuple[str, list[str]]]:
    """(study and arm, the words after `wattserve vllm`) of every arm, the file's variables put in."""
    for path in sorted(STUDIES.glob("*.toml")):
        study = tomllib.loads(path.read_text(encoding="utf-8"))
        known = {**study.get("variables", {}), "port": "8000"}
        for arm in study["arm"]:
            words: list[str] = []
            for word in shlex.split(arm["command"]):
                filled = put_in(word, known)
                words += shlex.split(filled) if re.fullmatch(r"\{[a-z_]+\}", word) else [filled]
            if words[:2] == ["wattserve", "vllm"]:
                yield f"{path.stem}-{arm['name']}", words[2:]


ARMS = dict(commands())


def test_there_are_arms() -> None:
    assert len(ARMS) > 25


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_vllm_takes_the_flags_of_an_arm(arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Where the parser is depends on vLLM's version; what the command imports it from does not.
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(ARMS[arm])
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    assert parsed.port == 8000
