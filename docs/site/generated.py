"""Writes what is generated for the documentation: python docs/site/generated.py [--check]

The reference of the command line, the flags of other tools, and the JSON Schemas of the package. With --check
nothing is written, and the exit status is 1 where a file is not what it should be.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cli_reference
import json_schemas
import other_tools

FILES: dict[Path, Callable[[], str]] = {
    cli_reference.PAGE: cli_reference.page,
    other_tools.PAGE: other_tools.page,
    json_schemas.RUN_FILE: lambda: json_schemas.text(json_schemas.run_schema()),
    json_schemas.ENERGY_FILE: lambda: json_schemas.text(json_schemas.energy_schema()),
}


def main() -> None:
    check = "--check" in sys.argv[1:]
    stale = []
    for path, make in FILES.items():
        made = make()
        if not path.exists() or path.read_text("utf-8") != made:
            stale.append(path.name)
            if not check:
                path.write_text(made, "utf-8")
                print(f"wrote {path.name}")
    if check and stale:
        sys.exit(f"{', '.join(stale)}: not up to date; run python docs/site/generated.py")


if __name__ == "__main__":
    main()
