"""TLS between bytes and bytes, so that the read path stays one for both kinds of connection."""

from __future__ import annotations

import ssl
from pathlib import Path

from wattload.errors import InputError


def tls_context(
    *,
    verify: bool = True,
    ca_file: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
) -> ssl.SSLContext:
    """A client context. Raises InputError naming the setting whose file cannot be used."""
    for field, name in (("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)):
        if name is not None and not Path(name).is_file():
            raise InputError(field, f"{name}: no such file")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise InputError("ca_file", f"{ca_file}: holds no certificates ({error.reason})") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file)
        except ssl.SSLError as error:
            raise InputError("cert_file", f"{cert_file}: cannot be used ({error.reason})") from error
    return context


class TlsLayer:
    """One connection's TLS. All methods raise ssl.SSLError where the peer breaks the protocol or is not
    trusted.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "open")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.open = False

    def handshake(self, received: bytes) -> bytes:
        """Takes what the peer sent, gives what to send; `open` once the handshake is through."""
        if received:
            self._incoming.write(received)
        try:
            self._tls.do_handshake()
            self.open = True
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    def decrypt(self, received: bytes) -> tuple[bytes, bool]:
        """Plain bytes out of `received`, and whether the peer has closed its side properly."""
        if received:
            self._incoming.write(received)
        parts: list[bytes] = []
        while True:
            try:
                part = self._tls.read(65536)
            except ssl.SSLWantReadError:
                return b"".join(parts), False
            except ssl.SSLZeroReturnError:
                return b"".join(parts), True
            if not part:
                return b"".join(parts), True
            parts.append(part)
