"""Why a server could not be asked, in words that say what to do."""

from __future__ import annotations

import re

# What libraries and the system write, and what it means to somebody who typed an address. First match first.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        "connection refused",
        "connection refused; is the server running there? (`wattserve sim` serves without a GPU)",
    ),
    ("wrong_version_number|record_layer_failure", "it does not speak TLS; is it an http:// address?"),
    (
        "certificate_verify_failed",
        "its TLS certificate is not trusted; `ca_file` names one to trust, `insecure` does not verify it",
    ),
    (
        "name or service not known|nodename nor servname|name resolution|no address associated",
        "no host of this name is known",
    ),
    ("no route to host|network is unreachable", "no network path leads to this host"),
    ("timed out|timeout", "it did not respond in time"),
    ("server disconnected|connection reset", "it closed the connection; does it need https://?"),
    ("expecting value|not json|extra data", "its response is not JSON; is it an OpenAI-compatible server?"),
)


def why_unreachable(error: Exception) -> str:
    """The reason with what to do about it; the error's own words where nothing better is known."""
    text = " ".join(f"{error}".split()) or type(error).__name__
    name = f"{type(error).__name__} {text}".lower()
    return next((meaning for pattern, meaning in _MEANINGS if re.search(pattern, name)), text)
