"""Prints what CHANGELOG.md says about one version: python .github/release_notes.py 0.2.0"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def notes_of(version: str, changelog: str) -> str:
    """The text below the heading of `version`. Raises ValueError where there is none."""
    heading = re.search(rf"^## \[{re.escape(version)}\].*$", changelog, re.MULTILINE)
    if heading is None:
        raise ValueError(
            f"CHANGELOG.md: has no heading '## [{version}]'; rename '## [Unreleased]' to it first"
        )
    following = re.compile(r"^## ", re.MULTILINE).search(changelog, heading.end())
    notes = changelog[heading.end() : following.start() if following else None].strip()
    if not notes:
        raise ValueError(f"CHANGELOG.md: nothing is written under '## [{version}]'")
    return notes


if __name__ == "__main__":
    try:
        print(notes_of(sys.argv[1], Path("CHANGELOG.md").read_text(encoding="utf-8")))
    except (IndexError, OSError, ValueError) as error:
        sys.exit(f"release_notes: {error}" if sys.argv[1:] else __doc__)
