"""Master and workers prove to one another that they know a secret, and that each message is theirs.

A worker is told which server to load, and how hard; a master believes what workers tell. So neither speaks to
a stranger. Both know one text (`WATTLOAD_SECRET`, or a file; processes of one host get it from their master),
which is never sent:

    worker: hello, a random number W
    master: challenge, a random number M and HMAC(secret, "master" W M id)
    worker: proof, HMAC(secret, "worker" W M id)
    both: the keys of this conversation, HMAC(secret, "from master" W M id) and "from worker"

Every message after that is numbered and carries an HMAC with the sender's key, so that none can be made,
changed or sent again by others. It can be read by others on the way: what is secret is not sent at all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack

from wattload.errors import InputError

VARIABLE = "WATTLOAD_SECRET"
SHORTEST_CHARACTERS = 16
# How far messages may change places.
WINDOW = 64


class SealError(ValueError):
    """A message that is not from who it should be from: one sentence."""


def new_secret() -> str:
    """A secret for the processes of one host."""
    return secrets.token_hex(32)


def given_secret(file: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """The secret in a file, or in the variable; empty where there is none. Raises InputError."""
    if file is None:
        text, where = environment.get(VARIABLE, "").strip(), VARIABLE
    else:
        where = str(file)
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("secret_file", f"{file}: cannot be read ({error})") from None
    if (text or file is not None) and len(text) < SHORTEST_CHARACTERS:
        raise InputError("secret_file", f": {where} holds fewer than {SHORTEST_CHARACTERS} characters")
    return text


def check_reachable(host: str, secret: str) -> None:
    """Raises InputError where strangers can reach a master that has no secret."""
    if secret or host in ("127.0.0.1", "::1", "localhost"):
        return
    raise InputError(
        "master",
        f": whoever reaches `master_bind_host` {host} would be taken for a worker; set {VARIABLE}, or"
        f" `secret_file`, to one text of at least {SHORTEST_CHARACTERS} characters here and for each worker",
    )


def nonce() -> bytes:
    return secrets.token_bytes(32)


class Handshake:
    """What master and worker tell each other to prove that they know `secret`, from one number of each."""

    def __init__(self, secret: str, worker_id: str, of_worker: bytes, of_master: bytes) -> None:
        self._secret = secret.encode()
        self._both = of_worker + of_master + worker_id.encode()

    def _mac(self, role: bytes) -> bytes:
        return hmac.digest(self._secret, role + b"\0" + self._both, hashlib.sha256)

    @property
    def of_master(self) -> bytes:
        return self._mac(b"master")

    @property
    def of_worker(self) -> bytes:
        return self._mac(b"worker")

    def is_master(self, mac: object) -> bool:
        return isinstance(mac, bytes) and hmac.compare_digest(mac, self.of_master)

    def is_worker(self, mac: object) -> bool:
        return isinstance(mac, bytes) and hmac.compare_digest(mac, self.of_worker)

    def seal(self, *, master: bool) -> Seal:
        """For the messages of this conversation, on the master's or on the worker's side."""
        own, other = (b"from master", b"from worker") if master else (b"from worker", b"from master")
        return Seal(self._mac(own), self._mac(other))


class Seal:
    """Numbers and seals what is sent, and opens what comes: unchanged, and once.

    Messages that several greenlets send at once may change places on the way.
    """

    def __init__(self, own_key: bytes, other_key: bytes) -> None:
        self._own, self._other = own_key, other_key
        self._sent = self._newest = 0
        self._seen: set[int] = set()

    def close(self, kind: str, data: Any) -> dict[str, Any]:
        """A message's data, sealed."""
        self._sent += 1
        body = msgpack.packb(data, use_bin_type=True)
        return {"number": self._sent, "body": body, "mac": _mac(self._own, kind, self._sent, body)}

    def open(self, kind: str, sealed: object) -> Any:
        """The data of a message. Raises SealError."""
        if not isinstance(sealed, dict) or not isinstance(sealed.get("body"), bytes):
            raise SealError(f"a {kind} message without a seal")
        number, body, mac = sealed.get("number"), sealed["body"], sealed.get("mac")
        if not isinstance(number, int) or not isinstance(mac, bytes):
            raise SealError(f"a {kind} message without a seal")
        if not hmac.compare_digest(mac, _mac(self._other, kind, number, body)):
            raise SealError(f"a {kind} message with a wrong seal")
        if number in self._seen or number <= self._newest - WINDOW:
            raise SealError(f"a {kind} message that came before")
        self._seen.add(number)
        if number > self._newest:
            self._seen = {seen for seen in self._seen if seen > number - WINDOW}
            self._newest = number
        return msgpack.unpackb(body, raw=False, strict_map_key=False)


def _mac(key: bytes, kind: str, number: int, body: bytes) -> bytes:
    return hmac.digest(key, kind.encode() + b"\0" + number.to_bytes(8, "big") + body, hashlib.sha256)
