"""Events that repeat the one before but for their text: most of what a stream of tokens is.

A server writes every event of a request from one template: id, model, nulls around a few bytes of text.
Comparing what is around the text with the event before costs a third of reading the HTTP chunk, the event and
its keys each time.
"""

from __future__ import annotations

import re

_KEYS = (b'"text":"', b'"content":"')
# What a JSON string may hold as it is: no quotes, no escapes, nothing but ASCII.
_TEXT = re.compile(rb"[ !#-\[\]-~]*")
_LONGEST_SIZE_LINE = 12


class RepeatedEvent:
    """The bytes before and after the text of an event that `is_plain_token` found to be one."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before, self._after = before, after

    @classmethod
    def of(cls, payload: bytes) -> RepeatedEvent | None:
        """None where the text is not one that can be told from what is around it."""
        for key in _KEYS:
            begin = payload.find(key) + len(key)
            if begin >= len(key):
                text = _TEXT.match(payload, begin)
                assert text is not None
                end = text.end()
                if payload[end : end + 1] == b'"':
                    return cls(b"data: " + payload[:begin], payload[end:] + b"\n\n\r\n")
        return None

    def is_all_of(self, data: bytes) -> bool:
        """Whether `data` is one whole HTTP chunk of one whole event, the same but for its text.

        Such an event is a plain token, as the one that was learnt from: its text holds no quote, so no key
        can begin or end in it. False says nothing.
        """
        line = data.find(b"\r\n", 0, _LONGEST_SIZE_LINE)
        size = len(data) - line - 4
        return (
            data.endswith(self._after)
            and data.startswith(self._before, line + 2)
            and data[:line] == b"%x" % size
            and _TEXT.fullmatch(data, line + 2 + len(self._before), len(data) - len(self._after)) is not None
        )
