"""Downloads a public trace and holds it against its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from wattload.client.control import control_client
from wattload.errors import InputError
from wattload.traces.catalog import PublicTrace
from wattload.traces.reading.files import sha256_of

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """`verified`: what the checksum was held against: "published", "first fetch" or, the first time, None."""

    path: Path
    sha256: str
    size_bytes: int
    verified: str | None
    downloaded: bool


def fetch(
    public: PublicTrace, directory: Path, *, progress: Callable[[int, int | None], None] | None = None
) -> Fetched:
    """Puts the trace into `directory`, under its own file name; one that lies there already is only verified.

    The file appears whole or not at all. A checksum that is not published is written beside the file
    (`NAME.sha256`) the first time and must be the same from then on. `progress` gets (bytes so far, bytes in
    all). Raises InputError where the directory cannot be written, the address cannot be read, or the checksum
    differs.
    """
    path = directory / public.file_name
    noted = path.with_name(path.name + ".sha256")
    expected, against = public.sha256, "published"
    if expected is None and noted.exists():
        expected, against = noted.read_text().split()[0], "first fetch"
    present = path.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = sha256_of(path) if present else _download(public.url, path, expected, progress)
    except OSError as error:
        raise InputError("out", f"{directory}: {error.strerror or error}") from error
    if expected is not None and found != expected:
        raise InputError(
            f"{path if present else public.url}: sha256 is {found}, but {expected} is expected ({against}); "
            f"{'remove the file to fetch it again' if present else 'nothing was kept'}"
        )
    if public.sha256 is None and not noted.exists():
        noted.write_text(f"{found}  {path.name}\n")
    return Fetched(path, found, path.stat().st_size, against if expected else None, not present)


def _download(
    url: str, path: Path, expected: str | None, progress: Callable[[int, int | None], None] | None
) -> str:
    """The checksum of what `url` holds; it is at `path` afterwards unless another was expected."""
    partial = path.with_name(path.name + ".partial")
    digest = hashlib.sha256()
    try:
        with (
            control_client(url, timeout_seconds=30.0, follow_redirects=True, bounded=False) as client,
            client.stream("GET", url) as answer,
            partial.open("wb") as out,
        ):
            answer.raise_for_status()
            length = answer.headers.get("content-length")
            done = 0
            for chunk in answer.iter_bytes(_CHUNK_BYTES):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, int(length) if length and length.isdecimal() else None)
        if expected in (None, digest.hexdigest()):
            partial.replace(path)
    except httpx.HTTPStatusError as error:
        raise InputError(f"{url} answered {error.response.status_code}") from error
    except httpx.HTTPError as error:
        raise InputError(f"{url} cannot be fetched: {error or type(error).__name__}") from error
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()
