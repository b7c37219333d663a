"""Progress on a stream that takes nothing more: the load goes on."""

from __future__ import annotations

import errno
import io

import pytest

from wattload.load.progress import WrittenProgress, make_progress


class Full(io.StringIO):
    """Takes `room` writes, then none: a disk that is full, or a reader that is gone."""

    def __init__(self, room: int, number: int) -> None:
        super().__init__()
        self.room, self.number, self.tried = room, number, 0

    def write(self, text: str) -> int:
        self.tried += 1
        if self.room <= 0:
            raise OSError(self.number, "nothing more")
        self.room -= 1
        return super().write(text)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO])
@pytest.mark.parametrize("kind", ["plain", "json", "rich"])
def test_a_stream_that_takes_nothing_more_is_left_alone(kind: str, number: int) -> None:
    stream = Full(1, number)
    progress = make_progress(kind, stream)
    for text in ("first", "next", "last"):
        progress.say(text)
    assert "first" in stream.getvalue()
    assert "next" not in stream.getvalue()
    assert stream.tried == 2


def test_any_other_error_is_not_hidden() -> None:
    stream = io.StringIO()
    stream.close()
    with pytest.raises(ValueError, match="closed file"):
        make_progress("plain", stream).say("text")


def test_auto_asks_the_stream() -> None:
    assert isinstance(make_progress("auto", io.StringIO()), WrittenProgress)
