"""Data sets in the local cache of Hugging Face, by their names: which files, of which revision.

Nothing is downloaded: `hf download --repo-type dataset ORG/NAME` fills the cache. Its layout is public
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from wattload.errors import InputError

_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<files>.+))?")
_SNAPSHOT = re.compile(r"/datasets--([^/]+)--([^/]+)/snapshots/([0-9a-f]{7,64})/")
# The first kind that a data set has is read.
_KINDS = ((".parquet",), (".jsonl", ".jsonl.gz", ".ndjson"), (".json", ".json.gz"), (".csv", ".csv.gz"))


@dataclass(frozen=True, slots=True)
class CachedData:
    """Files of one data set, in their order, and the revision (a commit) that they are of."""

    name: str
    revision: str
    files: tuple[Path, ...]


def is_name(text: str) -> bool:
    """Whether `text` looks like ORG/NAME or ORG/NAME:FILES."""
    return _NAME.fullmatch(text) is not None


def cached(text: str, environment: Mapping[str, str] | None = None) -> CachedData:
    """The data set `ORG/NAME`, or `ORG/NAME:FILES` with a pattern for the paths of its files.

    Of several splits `train` is read. Raises InputError where it is not in the cache, has no file that can be
    read, or has several configurations of which none is named.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise InputError("trace", f"{text}: is not ORG/NAME, nor ORG/NAME:FILES")
    name, pattern = found["name"], found["files"]
    hub = hub_of(os.environ if environment is None else environment)
    folder = hub / f"datasets--{name.replace('/', '--')}"
    snapshot = _snapshot(name, folder, hub)
    here = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
    relative = {path: path.relative_to(snapshot).as_posix() for path in here}
    if pattern is not None:
        here = [path for path in here if fnmatch(relative[path], pattern)]
    files = next((kept for kind in _KINDS if (kept := [p for p in here if p.name.endswith(kind)])), [])
    if not files:
        named = f" matches {pattern}" if pattern is not None else " is Parquet, JSON or CSV"
        raise InputError("trace", f"{text}: no file of {snapshot}{named}")
    if pattern is None:
        files = [path for path in files if "train" in path.name] or files
        folders = sorted({Path(relative[path]).parent.as_posix() for path in files})
        if len(folders) > 1:
            raise InputError(
                "trace",
                f"{text}: has several configurations; name one, as {name}:{folders[0]}/*"
                f" (there are {', '.join(folders)})",
            )
    return CachedData(name, snapshot.name, tuple(files))


def revision_of(path: Path) -> str | None:
    """The revision that a file in the cache is of; None for a file elsewhere."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return found[3] if found is not None else None


def hub_of(environment: Mapping[str, str]) -> Path:
    """Where the cache is, by Hugging Face's own variables."""
    if environment.get("HF_HUB_CACHE"):
        return Path(environment["HF_HUB_CACHE"]).expanduser()
    home = environment.get("HF_HOME")
    if not home:
        cache = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME", "~")) / ".cache")
        home = str(Path(cache) / "huggingface")
    return Path(home).expanduser() / "hub"


def _snapshot(name: str, folder: Path, hub: Path) -> Path:
    snapshots = folder / "snapshots"
    there = sorted(path.name for path in snapshots.iterdir()) if snapshots.is_dir() else []
    if not there:
        raise InputError(
            "trace",
            f"{name}: no such file, and no data set of that name in {hub}; `hf download --repo-type dataset"
            f" {name}` puts it there",
        )
    main = folder / "refs" / "main"
    revision = main.read_text().strip() if main.is_file() else there[0]
    if revision not in there or (not main.is_file() and len(there) > 1):
        raise InputError(
            "trace",
            f"{name}: {snapshots} has the revisions {', '.join(there)} and no main; name files of one",
        )
    return snapshots / revision
