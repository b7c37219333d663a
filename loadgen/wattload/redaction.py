"""What must not be written down or shown: which values are secret, and texts without them.

Three rules. The value of a header is hidden unless the header is known to be harmless. User information and
credentials in the query of an address are cut out of every text. A secret that this process was given is cut
out of what a server says, since a server may echo it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

HIDDEN = "(hidden)"
# Headers that say how a request is to be answered, and nothing about who asks.
HARMLESS_HEADERS = frozenset(
    {
        "accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-type",
        "user-agent", "x-energy-group",
    }
)  # fmt: skip
# A shorter value is hidden where it is set, and not looked for elsewhere: it would be found in any text.
SHORTEST_SECRET = 6

# One slash is left of two where an address was taken for a path.
_USER_INFORMATION = re.compile(
    r"(?<=:/)(/?)(?:[^/?#\s\"]*|[^/?#\s\"@:\[]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s\"@]*)@"
)
_SECRET_NAME = r"[\w.-]*(?:api_?-?key|key|token|secret|passw|auth|signature|sig|credential)[\w.-]*"
_QUERY = re.compile(rf"([?&;]{_SECRET_NAME})=[^&;#\s\"'<>]*", re.I)
_NAME = re.compile(_SECRET_NAME, re.I)
# What the keys of well-known services look like, and the word before a key.
_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|nvapi|xai)[-_][A-Za-z0-9_-]{8,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bAKIA[A-Z0-9]{12,}"
    r"|(?<=\bBearer )[A-Za-z0-9._~+/=-]{6,}|(?<=\bBasic )[A-Za-z0-9+/=]{6,}",
)
_known: dict[str, None] = {}


def without_credentials(text: str) -> str:
    """`text` without user information and credentials in the addresses in it, nor what looks like a key."""
    text = _USER_INFORMATION.sub(r"\1", text)
    text = _QUERY.sub(rf"\1={HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def is_harmless(header: str) -> bool:
    """Whether the value of a header with this name may be written down."""
    return header.strip().lower() in HARMLESS_HEADERS


def header_line(line: str) -> str:
    """`Name: value` with the value hidden, unless the header is a harmless one."""
    name, _, _ = line.partition(":")
    return without_credentials(line) if is_harmless(name) else f"{name}: {HIDDEN}"


def plain(value: Any, *, name: str = "") -> Any:
    """A JSON value as it may be written down: texts under the name of a secret are hidden."""
    if isinstance(value, str):
        return HIDDEN if name and _NAME.fullmatch(name) else without_credentials(value)
    if isinstance(value, Mapping):
        return {key: plain(item, name=str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, name=name) for item in value]
    return value


def secrets_in(value: Any, *, name: str = "") -> list[str]:
    """The texts that `plain` hides for their names."""
    if isinstance(value, str):
        return [value] if name and _NAME.fullmatch(name) else []
    if isinstance(value, Mapping):
        return [secret for key, item in value.items() for secret in secrets_in(item, name=str(key))]
    if isinstance(value, (list, tuple)):
        return [secret for item in value for secret in secrets_in(item, name=name)]
    return []


def secrets_of(headers: Mapping[str, str], body: Any = None) -> list[str]:
    """What is secret of a request: values of headers that are not harmless, and texts of its body."""
    return [value for name, value in headers.items() if not is_harmless(name)] + secrets_in(body)


class Redactor:
    """Cuts given secrets out of texts, in the forms in which a server may echo them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret) if len(form) >= SHORTEST_SECRET}
        # The longest first: a key may be part of another.
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(HIDDEN, text)
        return without_credentials(text)


def learn(secrets: Iterable[str]) -> None:
    """Notes secrets that this process was given; `shown` cuts them out of all that it says."""
    _known.update(dict.fromkeys(secrets))


def shown(text: str) -> str:
    """A text as it may be printed or kept: without what `learn` noted and without credentials."""
    return Redactor(_known)(text)


def _forms(secret: str) -> set[str]:
    """A secret, what is in it, and how it looks when it is quoted."""
    secret = secret.strip()
    parts = {secret}
    scheme, _, rest = secret.partition(" ")
    if rest and scheme.isalpha():
        parts.add(rest.strip())
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
                parts |= {password, f"{user}:{password}"}
            except (binascii.Error, ValueError):
                pass
    quoted = {quote(part, safe="") for part in parts} | {json.dumps(part)[1:-1] for part in parts}
    return parts | quoted | {base64.b64encode(part.encode()).decode() for part in parts}
