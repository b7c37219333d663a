"""One term for one thing: what users read has the words of docs/reference/glossary.md, and none of these.

Read are the strings with a space in them that are no docstrings (messages, help texts, titles), the templates
of the pages and the dashboards, the pages and results, and for the oldest words the docstrings as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A pattern, and what to write instead.
BANNED: dict[str, str] = {
    r"\b(joules?|J|energy|watts?) an? (request|token|second|rate|step|group|tenant)\b": "per",
    r"\bown joules\b|\bjoules of (its|their) own\b": "attributed energy",
    r"\b(the|own) books\b|\bbooked\b": "energy accounting",
    r"in the house": "with at least one request in flight",
    r"virtual (GPU|H\d+)": "simulator, simulated GPU",
    r"\basked (rate|for different)|\bcannot be asked\b": "target rate; cannot reach",
    r"\brequests? (that )?(were |was |is |are )?due\b|\bdue time\b": "scheduled",
    r"\bsend lag\b|\blateness\b": "dispatch delay",
    r"\bfrom board to board\b|(?<!GPU )\bboards\b": "GPUs",
    r"\bis no (time|address|directory|number|object|JSON)\b": "is not a ...",
    r"\bat most so (long|many)\b|\b(over|at most) so many\b": "this many",
    r"\bif not given\b": "Default: ...",
    r"\bgoes on where\b|\bgone on with\b": "continues",
    r"\bfrontier\b": "trade-off curve",
    r"\bcoalitions?\b": "tenant subsets",
    r"\bsettled energy\b": "final energy",
    r"no such run either|speaks against": "say what is wrong",
}
# Of the time before the glossary: not in docstrings and file names either.
OLD = re.compile(r"\b(the|own|its|their) books\b|\bbooked\b|\bledgers?\b|virtual GPU", re.IGNORECASE)
# A program's own name for a thing, or a message of somebody else's.
ALLOWED: frozenset[str] = frozenset()
# Pages that quote what was typed, or what was not understood.
QUOTING = {"typed-commands.md", "page-review.md"}
PAGES = ("docs", "benchmarks", "studies", "deploy")


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module that are no docstrings, with their lines."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in documented:
            continue
        if isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def found(texts: Iterator[tuple[int, str]], place: str) -> list[str]:
    return [
        f"{place}:{line}: {text.strip()[:90]!r}: write {instead}"
        for line, text in texts
        for pattern, instead in BANNED.items()
        if text not in ALLOWED and re.search(pattern, text)
    ]


@pytest.mark.parametrize("folder", ["loadgen", "server", "dashboards/generate", "benchmarks"])
def test_what_users_read_has_the_glossarys_words(folder: str) -> None:
    wrong: list[str] = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        wrong += found(strings(path), str(path.relative_to(ROOT)))
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize("suffix", ["html", "js", "css"])
def test_the_pages_have_them_too(suffix: str) -> None:
    wrong: list[str] = []
    for path in sorted((ROOT / "loadgen").rglob(f"*.{suffix}")):
        wrong += found(iter(enumerate(path.read_text("utf-8").splitlines(), 1)), path.name)
    assert wrong == [], "\n".join(wrong)


def test_the_documentation_has_them_too() -> None:
    wrong: list[str] = []
    for path in [*sorted(ROOT.glob("*.md")), *(p for f in PAGES for p in sorted((ROOT / f).rglob("*.md")))]:
        if path.name not in QUOTING:
            wrong += found(prose(path), str(path.relative_to(ROOT)))
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize("folder", ["loadgen", "server", "dashboards", "benchmarks", "docker"])
def test_the_oldest_words_are_nowhere(folder: str) -> None:
    """Docstrings, comments and file names included."""
    wrong: list[str] = []
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix in {".py", ".md", ".sh", ".yml", ".yaml"}:
            wrong += [
                f"{path.relative_to(ROOT)}:{line}: {text.strip()[:90]!r}"
                for line, text in enumerate(path.read_text("utf-8").splitlines(), 1)
                if OLD.search(text)
            ]
        if re.search(r"books|ledger", path.stem):
            wrong.append(f"{path.relative_to(ROOT)}: the name")
    assert wrong == [], "\n".join(wrong)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page without code, and without the names of the experiments with tenant subsets."""
    text = re.sub(
        r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text("utf-8"), flags=re.DOTALL
    )
    for number, line in enumerate(text.splitlines(), 1):
        yield number, re.sub(r"`[^`]*`|\bcoalitions-(low|high)\b|of the coalitions\b", "", line)


def test_a_private_word_is_found() -> None:
    for text in (
        "joules a request",
        "the virtual GPU is idle",
        "12 requests due in the window",
        "3sec is no time",
    ):
        assert found(iter([(1, text)]), "here"), text
    assert not found(iter([(1, "total energy per request, scheduled in the window")]), "here")


def test_code_of_a_page_is_not_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("the `virtual GPU`\n```\nvirtual GPU\n```\nthe virtual GPU\n")
    assert [line.split(":")[1] for line in found(prose(page), "here")] == ["5"]
