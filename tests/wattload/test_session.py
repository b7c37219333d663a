"""What is refused before the load, since it could not be finished after it."""

from __future__ import annotations

import resource

import pytest

from wattload.errors import InputError
from wattload.session import LEAST_ADDRESS_SPACE_BYTES, check_address_space


def test_an_address_space_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load was sent, and the analysis waited for memory for ever."""
    limits = [resource.RLIM_INFINITY, LEAST_ADDRESS_SPACE_BYTES, 600 << 20]

    def getrlimit(which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_AS
        return limits.pop(0), resource.RLIM_INFINITY

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    check_address_space()
    check_address_space()
    with pytest.raises(InputError, match="limited to 600 MiB"):
        check_address_space()
