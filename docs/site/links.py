"""Links that leave docs/ go to the repository on the site, and must lead to a file that is there."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# MkDocs counts warnings of its own loggers, and --strict makes them errors.
LOG = logging.getLogger("mkdocs.hooks.links")
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>\.\.?/[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, /, *, page: Any, **_: Any) -> str:
    """Replaces links to files outside docs/: by GitHub's page of the file, or by their text where no
    repository is known, as in a build on one's own machine.
    """
    server, repository = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    here = (DOCS / page.file.src_uri).parent

    def replaced(link: re.Match[str]) -> str:
        path = (here / link["target"]).resolve()
        if path.is_relative_to(DOCS):
            return link[0]
        if not path.is_relative_to(ROOT) or not path.exists():
            LOG.warning("%s: the link %s leads to nothing", page.file.src_uri, link["target"])
        if not (server and repository):
            return link["text"]
        kind = "tree" if path.is_dir() else "blob"
        address = f"{server}/{repository}/{kind}/HEAD/{path.relative_to(ROOT)}"
        return f"[{link['text']}]({address}{link['anchor'] or ''})"

    return _LINK.sub(replaced, markdown)
