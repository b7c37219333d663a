"""The tables of a page of the documentation, to compare with the files that their figures are from."""

from __future__ import annotations

import re


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each row of each table in `text`, the head of each first."""
    return [
        [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in found.splitlines()
            if line[:4] != "|---"
        ]
        for found in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    ]
