"""Which proxy stands between this host and an address: one rule for the load and for every question.

`HTTP_PROXY` is for http:// addresses, `HTTPS_PROXY` for https:// ones, `ALL_PROXY` for both where the other
is not set; the lower-case names win. `NO_PROXY` lists what is reached directly: host names with their
subdomains, IP addresses, networks as 10.0.0.0/8, each with a port or without, or `*`. Addresses of this host
itself (localhost, 127.0.0.0/8, ::1) never go through a proxy.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from wattload.errors import InputError

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `variable` named it; `authorization` is the Proxy-Authorization header, or None."""

    host: str
    port: int
    variable: str
    authorization: str | None = None

    @property
    def url(self) -> str:
        """Its address without the password."""
        return f"http://{_bracketed(self.host)}:{self.port}"

    def __str__(self) -> str:
        return f"the proxy {self.url} of {self.variable}"

    def connect_request(self, host: str, port: int) -> bytes:
        """What asks the proxy for a tunnel to `host`, which TLS goes through."""
        target = f"{_bracketed(host)}:{port}"
        own = f"Proxy-Authorization: {self.authorization}\r\n" if self.authorization else ""
        return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{own}\r\n".encode("latin-1")


def proxy_for(url: str, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy for `url`, None where it is reached directly.

    Raises InputError naming the variable whose proxy is needed and cannot be used.
    """
    variables = os.environ if environment is None else environment
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    if not host or _is_this_host(host):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        # A web server passes a request's `Proxy:` header on as HTTP_PROXY to the programs it starts.
        upper = name.upper() if "REQUEST_METHOD" not in variables or name != "http_proxy" else name
        for variable in (name, upper):
            value = variables.get(variable, "").strip()
            if value:
                listed = variables.get("no_proxy") or variables.get("NO_PROXY") or ""
                return None if _is_excepted(host, port, listed) else _parsed(value, variable)
    return None


def through(url: str) -> str:
    """` (through the proxy ... of HTTP_PROXY)` where there is one: for messages about `url`."""
    try:
        proxy = proxy_for(url)
    except (InputError, ValueError):
        return ""
    return f" (through {proxy})" if proxy is not None else ""


def _parsed(value: str, variable: str) -> Proxy:
    text = value if "://" in value else f"http://{value}"
    shown = re.sub(r"//[^/@]*@", "//", text)
    hint = "use an http:// proxy, or list the host in NO_PROXY"
    parts = urlsplit(text)
    if parts.scheme != "http":
        raise InputError(f"{variable}={shown}: a proxy of kind {parts.scheme}:// is not supported; {hint}")
    try:
        port = parts.port or 80
    except ValueError:
        raise InputError(f"{variable}={shown}: the port is not a number from 1 to 65535") from None
    if not parts.hostname:
        raise InputError(f"{variable}={shown}: is not the address of a proxy; {hint}")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, port, variable, authorization)


def _is_this_host(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _is_excepted(host: str, port: int, listed: str) -> bool:
    return any(_covers(entry, host, port) for entry in re.split(r"[,\s]+", listed.lower()) if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    """Whether one entry of NO_PROXY is about `host`; an entry that cannot be read is about nothing."""
    if entry == "*":
        return True
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]+):(\d+)", entry)
    if found is not None:
        if int(found[2]) != port:
            return False
        entry = found[1]
    entry = entry.strip("[]")
    address = _address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(entry, strict=False)
        except (ValueError, TypeError):
            return False
    name = entry.removeprefix("*").lstrip(".")
    return bool(name) and (host == name or host.endswith("." + name))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
