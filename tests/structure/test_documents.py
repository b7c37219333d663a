"""Files that text mentions are there: links of Markdown pages, and pages that code and messages name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "server",
    "loadgen",
    "docker",
    "dashboards",
    "benchmarks",
    "tests",
    "docs",
    "deploy",
    "action",
    ".github",
)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")
_PAGE = re.compile(r"(?<![\w/.-])docs/[\w/.-]+\.md\b")
_CODE = re.compile(r"```.*?```", re.DOTALL)


def files(*suffixes: str) -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    found += [path for name in FOLDERS if (ROOT / name).is_dir() for path in (ROOT / name).rglob("*")]
    return sorted(path for path in found if path.suffix in suffixes and "__pycache__" not in path.parts)


def broken_links(text: str, folder: Path) -> list[str]:
    """Targets of Markdown links, relative to `folder`, that are not there."""
    return [link for link in _LINK.findall(_CODE.sub("", text)) if not (folder / link).exists()]


def missing_pages(text: str) -> list[str]:
    """Pages of docs/ that a text names and that are not there."""
    return [page for page in _PAGE.findall(text) if not (ROOT / page).exists()]


def test_links_lead_somewhere() -> None:
    found = {path: broken_links(path.read_text("utf-8"), path.parent) for path in files(".md")}
    assert {str(path.relative_to(ROOT)): links for path, links in found.items() if links} == {}


def test_pages_that_are_named_are_there() -> None:
    kinds = (".py", ".md", ".yml", ".yaml", ".toml", ".json", ".sh", ".html")
    found = {path: missing_pages(path.read_text("utf-8")) for path in files(*kinds) if path != Path(__file__)}
    assert {str(path.relative_to(ROOT)): pages for path, pages in found.items() if pages} == {}


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").touch()
    text = "[a](there.md#part) [b](gone.md) [c](https://x/y.md)\n```\n[d](in-code.md)\n```\n"
    assert broken_links(text, tmp_path) == ["gone.md"]
    assert missing_pages("see docs/gone.md, not example.org/docs/gone.md") == ["docs/gone.md"]
