"""docs/how-to/troubleshooting.md: what it quotes in code type is what the product says, word for word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from wattload.client.record import Outcome
from wattmeter.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "troubleshooting.md"
# Quoted with placeholders, and the name of a field.
KNOWN = {"--model NAME: URL serves ...", "null"}


def spoken() -> str:
    """All strings of the product; of one with values in it, the pieces between them."""
    pieces = []
    for side in ("server", "loadgen"):
        for path in (ROOT / side).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    pieces.append(" ".join(node.value.split()))
    return "\n".join(pieces)


def test_the_messages_are_the_product_s() -> None:
    said = spoken() + "\n".join([*Outcome, *Fault])
    quoted = [
        fragment
        for line in PAGE.read_text("utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("|---")
        for fragment in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    ]
    assert len(quoted) > 40
    assert [each for each in quoted if each not in KNOWN and each not in said] == []
