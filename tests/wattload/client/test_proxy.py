"""Proxies: one reading of the environment, and a load that goes through them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from wattload.client.control import control_client
from wattload.client.proxy import proxy_for, through
from wattload.errors import InputError


def proxied(url: str, **variables: str) -> str | None:
    proxy = proxy_for(url, variables)
    return None if proxy is None else proxy.url


def test_each_scheme_has_its_variable_and_the_small_name_wins() -> None:
    assert proxied("http://a", HTTP_PROXY="http://p:1") == "http://p:1"
    assert proxied("https://a", HTTP_PROXY="http://p:1") is None
    assert proxied("https://a", HTTPS_PROXY="http://p:1", ALL_PROXY="http://q:2") == "http://p:1"
    assert proxied("https://a", ALL_PROXY="q:2") == "http://q:2"
    assert proxied("http://a", http_proxy="http://small:1", HTTP_PROXY="http://big:1") == "http://small:1"
    assert proxied("http://a", HTTP_PROXY="http://p:1", REQUEST_METHOD="GET") is None
    assert proxied("http://a") is None


@pytest.mark.parametrize(
    "url", ["http://localhost:8000", "http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:1"]
)
def test_this_host_is_reached_directly(url: str) -> None:
    assert proxied(url, HTTP_PROXY="http://p:1", ALL_PROXY="socks5://p:1") is None


@pytest.mark.parametrize(
    ("listed", "url", "direct"),
    [
        ("*", "http://a.b", True),
        ("b.c", "http://a.b.c", True),
        (".b.c", "http://a.b.c", True),
        ("*.b.c", "http://a.b.c", True),
        ("b.c", "http://ab.c", False),
        ("a, b", "http://b:1", True),
        ("b:2", "http://b:1", False),
        ("b:1", "http://b:1", True),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("localhost,127.0.0.1,::1,[::1]", "http://a", False),
        ("[fd00::1]:80", "http://[fd00::1]", True),
        ("fd00::/8", "http://[fd00::1]", True),
        ("b", "http://10.0.0.1", False),
    ],
)  # fmt: skip
def test_no_proxy(listed: str, url: str, direct: bool) -> None:
    assert (proxied(url, HTTP_PROXY="http://p:1", NO_PROXY=listed) is None) is direct


def test_a_proxy_that_cannot_be_used_is_named_without_its_password() -> None:
    with pytest.raises(InputError, match=r"ALL_PROXY=socks5://p:1: a proxy of kind socks5://"):
        proxy_for("http://a", {"ALL_PROXY": "socks5://me:secret@p:1"})
    with pytest.raises(InputError, match="not a number from 1 to 65535"):
        proxy_for("http://a", {"HTTP_PROXY": "http://p:99999"})
    with pytest.raises(InputError, match="is not the address of a proxy"):
        proxy_for("http://a", {"HTTP_PROXY": "http://:1"})
    proxy = proxy_for("http://a", {"HTTP_PROXY": "http://me:s%40crt@p:1"})
    assert proxy is not None
    assert "crt" not in str(proxy)
    assert proxy.authorization == "Basic bWU6c0BjcnQ="


def test_questions_follow_the_rule_and_messages_name_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    control_client("http://127.0.0.1:1").close()
    with pytest.raises(InputError, match="ALL_PROXY"):
        control_client("http://gpu.invalid:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert through("http://gpu.invalid:1") == " (through the proxy http://127.0.0.1:9 of HTTP_PROXY)"
    assert through("http://localhost:1") == ""


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy of one answer for each connection: it remembers the request's head."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                seen.append(data.partition(b"\r\n\r\n")[0])
                connection.sendall(
                    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )

    threading.Thread(target=answer, daemon=True).start()
    yield f"http://me:pw@127.0.0.1:{listener.getsockname()[1]}", seen
    listener.close()


def test_questions_go_through_the_proxy(
    proxy: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, seen = proxy
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with control_client("http://gpu.invalid:8000") as client:
        assert client.get("http://gpu.invalid:8000/v1/models").status_code == 403
    assert seen[0].startswith(b"GET http://gpu.invalid:8000/v1/models HTTP/1.1")
    assert b"Basic bWU6cHc=" in seen[0]
