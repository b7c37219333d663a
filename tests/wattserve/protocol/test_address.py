"""Addresses: what is one, and who has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattserve.protocol.address import Ownership, SocketInUseError, address_of, new, socket_path


def test_a_second_meter_cannot_take_the_socket(tmp_path: Path) -> None:
    address = address_of(str(tmp_path / "meter.sock"))
    first = Ownership(address)
    with pytest.raises(SocketInUseError, match="another meter already takes"):
        Ownership(address)
    first.release()
    Ownership(address).release()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/tmp/" + "x" * 120, "longer than"),
        ("tcp://localhost", "tcp://HOST:PORT"),
        ("tcp://localhost:99999", "tcp://HOST:PORT"),
        ("http://localhost:1", "neither"),
    ],
)
def test_what_is_no_address(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        address_of(text)


def test_addresses() -> None:
    assert address_of("tcp://meter:9000") == "tcp://meter:9000"
    assert socket_path("tcp://meter:9000") is None
    assert address_of("ipc:///tmp/a.sock") == address_of("/tmp/a.sock") == "ipc:///tmp/a.sock"
    made = socket_path(new())
    assert made is not None
    assert made.parent.stat().st_mode & 0o077 == 0
    Ownership(f"ipc://{made}").release()
    assert not made.parent.exists()
