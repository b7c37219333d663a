"""A message that says what to install names only what the index has: nobody else can register that name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Wattload itself is not there before its first release.
ON_THE_INDEX = {"amdsmi", "nvidia-ml-py"}
_INSTALL = re.compile(r"pip install(?: --?[\w-]+)* ((?:'[^']+'|\S+))")


def named_packages(source: str) -> set[str]:
    """The distributions that the strings of a module tell people to install."""
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(v.value for v in node.values if isinstance(v, ast.Constant)))  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    named = {match[1].strip("'\"`,.;:)") for text in texts for match in _INSTALL.finditer(text)}
    # A path (of a checkout, of a wheel) names no package of the index.
    return {
        name for name in named if name and not name.startswith(("[", "./", "/")) and not name.endswith(".whl")
    }


def test_messages_name_packages_of_the_index_alone() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for side in ("server", "loadgen")
        for path in (ROOT / side).rglob("*.py")
        for name in named_packages(path.read_text("utf-8")) - ON_THE_INDEX
    }
    assert not found


def test_a_name_is_found_in_every_kind_of_string() -> None:
    assert named_packages("raise X(f\"{a} is missing: pip install 'own[extra]'\")") == {"own[extra]"}
    assert named_packages('"pip install --upgrade some-thing, and"') == {"some-thing"}
    assert named_packages("\"in a checkout: pip install '.[load]'\"") == set()
