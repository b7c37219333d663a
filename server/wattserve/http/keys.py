"""API keys: who may ask, and whose requests are whose.

A key is compared by its checksum and never kept. With several keys each is a tenant, called by the beginning
of that checksum: it sees the joules of its own requests alone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping
from typing import Literal, Self

from wattserve.http.errors import send_error
from wattserve.http.middleware import TENANT_KEY, ASGIApp, Receive, Scope, Send

# Keys for the servers of our own, separated by commas: a command line is seen by everybody on the host.
VARIABLE = "WATTSERVE_API_KEY"
# What tells that a server lives, and nothing else.
OPEN_PATHS = frozenset({"/health", "/ping"})
TAG_DIGITS = 12

TenantFrom = Literal["header", "key"]


class KeyFileError(ValueError):
    """A setting of keys that cannot be used: one sentence."""


def tag_of(key: str) -> str:
    """What the tenant of a key is called."""
    return hashlib.sha256(key.encode()).hexdigest()[:TAG_DIGITS]


class Keys:
    """The keys that open a server; without any, none is asked for.

    `tenant_from`: who says whose a request is. "key": the key that it came with. "header": its
    x-energy-group, which a proxy in front must set, since any client can; then every key sees all.
    """

    def __init__(self, keys: Iterable[str], tenant_from: TenantFrom | None = None) -> None:
        self._digests = {hashlib.sha256(key.encode()).digest(): tag_of(key) for key in keys}
        several = len(self._digests) > 1
        self.tenant_from: TenantFrom = tenant_from or ("key" if several else "header")

    @classmethod
    def closed(cls) -> Self:
        """Keys of which nobody has one."""
        return cls([secrets.token_hex(32)])

    @classmethod
    def given(
        cls,
        flags: Iterable[str],
        environment: Mapping[str, str] = os.environ,
        tenant_from: TenantFrom | None = None,
    ) -> Self:
        """Those of `--api-key`, or of the variable where there are none. Raises KeyFileError."""
        keys = list(flags) or [part for part in environment.get(VARIABLE, "").split(",") if part.strip()]
        keys = [key.strip() for key in keys]
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
            raise KeyFileError(f"--api-key ({VARIABLE}): a key is a word of printable ASCII characters")
        return cls(keys, tenant_from)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def tenant(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """The tenant of the key that a request came with; None where it came with none of these."""
        for name, value in headers:
            if name.lower() != b"authorization":
                continue
            scheme, _, key = value.strip().partition(b" ")
            digest = hashlib.sha256(key.strip()).digest()
            found = None
            for known, tag in self._digests.items():
                if secrets.compare_digest(known, digest):
                    found = tag
            return found if scheme.lower() == b"bearer" else None
        return None

    def admit(self, scope: Scope) -> Scope | None:
        """The scope of a request whose key is right, with its tenant where the key says that; else None."""
        tenant = self.tenant(scope["headers"])
        if tenant is None:
            return None
        return {**scope, TENANT_KEY: tenant} if self.tenant_from == "key" else scope


class KeyGuard:
    """Lets requests with a right key through to `app`; others get 401 before anybody has heard of them."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        admitted = self._keys.admit(scope)
        if admitted is None:
            await unauthorized(send)
        else:
            await self._app(admitted, receive, send)


async def unauthorized(send: Send) -> None:
    """The answer to a request without a right key."""
    message = "an API key is needed: Authorization: Bearer KEY"
    headers = [(b"www-authenticate", b"Bearer")]
    await send_error(send, 401, "AuthenticationError", message, headers=headers)
