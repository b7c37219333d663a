"""What tenants are called: names of bounded length, and a bounded number of them.

A tenant's name comes with a request, from whoever sends it. Neither a name of a megabyte nor a million names
may take the meter's memory, or hide the tenants that were there before.
"""

from __future__ import annotations

import hashlib

LONGEST_NAME = 128
MAX_TENANTS = 1_000
# All tenants beyond the first MAX_TENANTS are one.
OTHERS = "(other tenants)"


class TenantNames:
    """The names in use, the first MAX_TENANTS that were heard. The empty name, of nobody, is none of them."""

    def __init__(self, *, most: int = MAX_TENANTS) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        """The name under which a tenant is kept. One that is too long is cut, with a checksum."""
        if len(name) > LONGEST_NAME:
            checksum = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:16]
            name = f"{name[: LONGEST_NAME - 17]}~{checksum}"
        if not name or name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHERS
        self._known.add(name)
        return name
