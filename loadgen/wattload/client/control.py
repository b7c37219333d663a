"""The HTTP client of the control plane: questions to an endpoint, a meter or a Prometheus.

It follows the same rules as the load: the proxy by `proxy_for`, certificates by `tls_context`. An answer is
bounded in time and size as a whole, since httpx bounds each read alone: a server that sends a byte a second,
or without end, would hold a question for ever.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from wattload.client.proxy import proxy_for
from wattload.client.readable import readable_json
from wattload.client.transport.tls import tls_context

# What makes the TLS settings, rather than the settings: gevent replaces the class when Locust is imported,
# and a context made before that cannot be used after it.
TlsMaker = Callable[[], ssl.SSLContext | None] | None

# A minute of a thousand devices' counters is a few megabytes.
MAX_ANSWER_BYTES = 64 << 20
# How many times longer than one read may take the whole answer may.
_WHOLE_TIMEOUTS = 3.0


def control_client(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    tls: TlsMaker = None,
    timeout_seconds: float = 10.0,
    follow_redirects: bool = False,
    bounded: bool = True,
) -> httpx.Client:
    """A client for questions to the server of `url`.

    `tls` None, or one that gives None: the certificates that the system trusts. A whole answer may take three
    times `timeout_seconds` and MAX_ANSWER_BYTES, unless `bounded` is False, for a download that is read
    piece by piece. Raises InputError where a proxy variable that applies to `url` cannot be used.
    """
    proxy = proxy_for(url)
    through = None
    if proxy is not None:
        own = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else None
        through = httpx.Proxy(proxy.url, headers=own)
    transport: httpx.BaseTransport = httpx.HTTPTransport(
        verify=(tls() if tls is not None else None) or _context_for(url, follow_redirects),
        proxy=through,
        # The environment has been read above, by the rule that the load follows too.
        trust_env=False,
    )
    if bounded:
        transport = WholeAnswers(transport, _WHOLE_TIMEOUTS * timeout_seconds)
    return httpx.Client(
        timeout=timeout_seconds,
        headers=dict(headers or {}),
        transport=transport,
        follow_redirects=follow_redirects,
        trust_env=False,
    )


class WholeAnswers(httpx.BaseTransport):
    """Gives whole answers of `inner`, or raises httpx.ReadTimeout after `seconds`, or httpx.DecodingError for
    one of more than `most_bytes`, unpacked.

    A thread of its own asks: whatever it waits for, names and headers too, the caller waits no longer.
    """

    def __init__(
        self, inner: httpx.BaseTransport, seconds: float, most_bytes: int = MAX_ANSWER_BYTES
    ) -> None:
        self._inner, self._seconds, self._most = inner, seconds, most_bytes

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        found: list[httpx.Response | Exception] = []
        until = time.monotonic() + self._seconds

        def ask() -> None:
            try:
                found.append(self._whole(request, until))
            except Exception as error:
                found.append(error)

        asking = threading.Thread(target=ask, name="question", daemon=True)
        asking.start()
        asking.join(self._seconds + 0.1)
        if not found:
            # Its connection is not to be used again; the next question makes a new one.
            self._inner.close()
            raise httpx.ReadTimeout(f"no whole answer within {self._seconds:g} s", request=request)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _whole(self, request: httpx.Request, until: float) -> httpx.Response:
        answer = self._inner.handle_request(request)
        body = bytearray()
        try:
            for part in answer.iter_bytes():
                body += part
                if len(body) > self._most:
                    raise httpx.DecodingError(
                        f"its answer is longer than {self._most} bytes", request=request
                    )
                if time.monotonic() > until:
                    raise httpx.ReadTimeout(f"no whole answer within {self._seconds:g} s", request=request)
        finally:
            answer.close()
        headers = [(k, v) for k, v in answer.headers.multi_items() if k.lower() not in _OF_THE_WIRE]
        return httpx.Response(answer.status_code, headers=headers, content=bytes(body), request=request)

    def close(self) -> None:
        self._inner.close()


# What says how a body travelled, which a whole one does not any more.
_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")


def _context_for(url: str, follow_redirects: bool) -> ssl.SSLContext:
    """The usual certificates; none where no TLS will be spoken, since reading them takes 60 ms."""
    if url.startswith("http://") and not follow_redirects:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return tls_context()


def json_of(answer: httpx.Response) -> Any:
    """The JSON of an answer, its texts readable. Raises ValueError where it is none."""
    try:
        return readable_json(answer.json())
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None
