"""Two runs of equal requests, compared request by request: what one repeat alone can say of a difference.

The comparison needs the runs' rows. Its intervals are kept in pairs.json, so that the results can be made
again where only run.json and cell.json of the cells were kept.
"""

from __future__ import annotations

import json
from pathlib import Path

from wattload.analysis.compare import compare
from wattload.errors import InputError
from wattload.rundir.directory import RunDir, read_json
from wattmeter.whole_file import write_atomically

PAIRS_FILE = "pairs.json"
Interval = tuple[float, float]


class Pairs:
    """The paired intervals of ratios, by the directories of two runs (as in a study's table)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / PAIRS_FILE
        self._known: dict[str, dict[str, Interval]] = {}
        if self._path.exists():
            self._known = {
                key: {number: (low, high) for number, (low, high) in values.items()}
                for key, values in read_json(self._path).items()
            }

    def interval(self, number: str, run: Path, against: Path) -> Interval | None:
        """The 95 % interval of the ratio of a number of `run` to that of `against`; None where they are not
        paired, or their rows are gone and nothing was kept.
        """
        key = f"{run} / {against}"
        if key not in self._known:
            both = [self._folder / path for path in (against, run)]
            if not all(RunDir(path).requests_path.exists() for path in both):
                return None
            self._known[key] = _compared(both)
            if self._folder.exists():
                write_atomically(self._path, json.dumps(self._known, indent=1, sort_keys=True))
        return self._known[key].get(number)


def _compared(both: list[Path]) -> dict[str, Interval]:
    try:
        against = compare(both, force=True).against[0]
    except InputError:
        return {}
    if not against.paired:
        return {}
    return {
        change.path: (change.ratio.low, change.ratio.high)
        for change in against.changes
        if change.ratio is not None and change.ratio.low > 0
    }
