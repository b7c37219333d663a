"""Chunks without text: tokens that have none, or signs of life of a server or gateway that has no token yet.

Servers stream a token that is half a character, or a special token, as an event with empty text. Others send
the same event to keep a connection alive while they compute a prompt. One event does not tell which it is;
the count of the response's tokens does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from wattload.client.record import RequestRecord


def signs_of_life(blanks: Sequence[int], with_text: int, counted: int | None) -> list[int]:
    """Which of the chunks without text carried no token.

    Args:
        blanks: the places of the chunks without text among the response's chunks, from 0, in order.
        with_text: how many chunks had text.
        counted: how many tokens the response had, as the server counts; None where it does not.

    Chunks with text account for one token each at least, so nothing is left for the others where these are as
    many as were counted. Where all chunks together are, each carried one. Otherwise chunks carry several
    tokens and the count does not decide: what came before the first text is then taken for signs of life, and
    what came later for tokens.
    """
    if counted is not None and counted <= with_text:
        return list(blanks)
    if counted is not None and (with_text == 0 or counted == with_text + len(blanks)):
        return []
    return [blank for place, blank in enumerate(blanks) if blank == place]


def drop_chunks(record: RequestRecord, places: Sequence[int], last_perf: float) -> float:
    """Takes the chunks at `places` out of the record's times, and returns the time of the last that is left.

    `last_perf` is the time of its last chunk on the clock in which the caller counts.
    """
    if not places or record.first_token_unix is None:
        return last_perf
    dropped = set(places)
    after_first = list(accumulate(record.itl_seconds, initial=0.0))
    kept = [time for place, time in enumerate(after_first) if place not in dropped]
    record.chunks = len(kept)
    if not kept:
        record.first_token_unix, record.itl_seconds = None, []
        return last_perf
    record.first_token_unix += kept[0]
    record.itl_seconds = [later - earlier for earlier, later in pairwise(kept)]
    return last_perf - (after_first[-1] - kept[-1])
