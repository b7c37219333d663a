"""Damaged inputs, a few hundred for each parser; CI gives `tests/support/fuzz.py` more time."""

from __future__ import annotations

import random

import pytest

from fuzz import TARGETS, Target, damaged, fault_of, main
from wattload.client.transport.http1 import HttpError


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_parser_parses_or_refuses(name: str) -> None:
    chance, target = random.Random(f"of {name}"), TARGETS[name]
    for seed in target.seeds:
        target.parse(seed)
    for _ in range(60 if name == "trace" else 400):
        data = damaged(chance, chance.choice(target.seeds))
        fault = fault_of(target, data)
        assert fault is None, f"{data[:500]!r}\n{fault}"


def test_a_fault_is_found() -> None:
    def wrong(data: bytes) -> object:
        return 1 // len(data)

    target = Target((b"a",), wrong, (HttpError,))
    assert "ZeroDivisionError" in (fault_of(target, b"") or "")
    assert fault_of(target, b"a") is None


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.2", "--seed", "1", "events"]) == 0
    assert "every one parsed or refused" in capsys.readouterr().out
