"""Chunks without text: which were tokens, and what the record says without those that were not."""

from __future__ import annotations

import pytest

from wattload.client.record import RequestRecord
from wattload.client.signs_of_life import drop_chunks, signs_of_life


@pytest.mark.parametrize(
    ("blanks", "with_text", "counted", "dropped"),
    [
        ([0, 1], 16, 16, [0, 1]),  # the text accounts for every token
        ([0, 7, 17], 15, 15, [0, 7, 17]),
        ([0, 7], 14, 16, []),  # every chunk was a token: special ones, half characters
        ([0], 0, 1, []),
        ([0, 1, 2], 0, 9, []),  # no text at all, but tokens
        ([0, 1, 2], 0, 0, [0, 1, 2]),
        ([0, 1, 5], 8, 16, [0, 1]),  # several tokens a chunk: the count does not decide
        ([0, 1, 5], 8, None, [0, 1]),
        ([3, 5], 8, None, []),
        ([0, 1], 0, None, [0, 1]),
    ],
)
def test_the_count_decides(
    blanks: list[int], with_text: int, counted: int | None, dropped: list[int]
) -> None:
    assert signs_of_life(blanks, with_text, counted) == dropped


def record_of(gaps: list[float]) -> RequestRecord:
    record = RequestRecord(0, "r", -1, "", 100.0, 1, 3, first_token_unix=101.0, chunks=len(gaps) + 1)
    record.itl_seconds = gaps
    return record


def test_the_first_token_is_the_first_that_is_left() -> None:
    record = record_of([0.5, 0.5, 0.01, 0.01])
    last = drop_chunks(record, [0, 1], 7.02)
    assert (record.first_token_unix, record.chunks, last) == (102.0, 3, 7.02)
    assert record.itl_seconds == pytest.approx([0.01, 0.01])


def test_gaps_go_over_what_was_dropped_and_the_end_moves() -> None:
    record = record_of([0.1, 0.2, 0.3])
    last = drop_chunks(record, [1, 3], 7.6)
    assert (record.first_token_unix, record.chunks) == (101.0, 2)
    assert record.itl_seconds == pytest.approx([0.3])
    assert last == pytest.approx(7.3)


def test_nothing_may_be_left() -> None:
    record = record_of([0.1])
    drop_chunks(record, [0, 1], 7.0)
    assert (record.first_token_unix, record.chunks, record.itl_seconds) == (None, 0, [])


def test_nothing_to_drop_changes_nothing() -> None:
    record = record_of([0.1])
    assert drop_chunks(record, [], 7.0) == 7.0
    assert (record.first_token_unix, record.chunks, record.itl_seconds) == (101.0, 2, [0.1])
