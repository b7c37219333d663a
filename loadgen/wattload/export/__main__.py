"""A finished run exported by a process of its own: {"path": ..., setting: value, ...} on standard input.

Locust has patched the sockets of the process that sent the load, and clients of other tools start threads and
processes. Addresses may hold passwords, and a command line is seen by everybody. Prints a line of JSON per
tool: whether it took the run, and a sentence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wattload.errors import InputError
from wattload.export.destinations import export_run
from wattload.export.options import ExportOptions
from wattload.redaction import shown


def main() -> None:
    """Exports what standard input says."""
    given = json.load(sys.stdin)
    path, seconds = Path(given.pop("path")), given.pop("seconds")
    try:
        for outcome in export_run(path, ExportOptions(**given), seconds):
            print(json.dumps(outcome), flush=True)
    except InputError as error:
        print(json.dumps((False, error.for_command_line())))
    except Exception as error:  # whatever a tool's client raises: the run is whole, and one line says why
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps((False, shown(said)[:300])))


if __name__ == "__main__":
    main()
