"""Which meters there are, where `--energy` says how to find them rather than where each is.

    k8s:app=wattserve-meter,namespace=energy           pods of a Kubernetes cluster, by their labels
    targets+http://prometheus:9090?job=wattserve       what a Prometheus scrapes, by the labels of its targets

They are looked up once, before the load: a meter that goes missing then leaves no total. One that does not
run, or that Prometheus cannot reach, is not left out: the total would be too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from wattload.client.control import TlsMaker, control_client, json_of
from wattload.client.unreachable import why_unreachable
from wattload.energy import kubernetes
from wattload.energy.local import address_of
from wattload.errors import InputError

TARGETS = "targets+"


@dataclass(frozen=True, slots=True)
class Found:
    """The address of a source; `name` is that of its host where the finder knows it."""

    url: str
    name: str | None = None


def is_finder(source: str) -> bool:
    """Whether a source says how meters are found."""
    return source.startswith((kubernetes.PREFIX, TARGETS))


def check_finder(source: str) -> None:
    """Raises ValueError where it cannot be understood."""
    if source.startswith(kubernetes.PREFIX):
        kubernetes.PodSelector.parse(source)
    else:
        _prometheus(source)


def found_sources(source: str, headers: Mapping[str, str], tls: TlsMaker) -> list[Found]:
    """The sources that an address of `--energy` names or finds. `headers` and `tls` are for a Prometheus.

    Raises InputError where it finds none, or cannot ask.
    """
    if source.startswith(kubernetes.PREFIX):
        pods = kubernetes.pods(kubernetes.PodSelector.parse(source), kubernetes.access())
        return [Found(url, node) for node, url in pods]
    if source.startswith(TARGETS):
        return _targets(source, headers, tls)
    return [Found(address_of(source))]


def _prometheus(source: str) -> tuple[str, dict[str, str]]:
    """(address of the Prometheus, labels that targets must have). Raises ValueError."""
    try:
        url = httpx.URL(source.removeprefix(TARGETS))
    except httpx.InvalidURL as error:
        raise ValueError(f"{source!r}: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{source!r}: needs a Prometheus, as {TARGETS}http://HOST:9090?job=wattserve")
    if url.userinfo:
        raise ValueError("a user name or password in an address is not sent; use `header`")
    labels = dict(url.params)
    if not labels:
        raise ValueError(f"{source!r}: needs labels of the meters' targets, as ?job=wattserve")
    return str(url.copy_with(query=None)).rstrip("/"), labels


def _targets(source: str, headers: Mapping[str, str], tls: TlsMaker) -> list[Found]:
    base, labels = _prometheus(source)
    try:
        with control_client(base, headers=headers, tls=tls) as client:
            answer = client.get(f"{base}/api/v1/targets", params={"state": "active"})
            answer.raise_for_status()
            active: list[dict[str, Any]] = json_of(answer)["data"]["activeTargets"]
            kept = [target for target in active if labels.items() <= target["labels"].items()]
            places = [(_base_of(target["scrapeUrl"]), target["labels"]) for target in kept]
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("energy", f": {base} does not list its targets: {why_unreachable(error)}") from error
    if not places:
        wanted = ", ".join(f"{name}={value}" for name, value in labels.items())
        raise InputError("energy", f": {base} has no target with {wanted} ({len(active)} others)")
    return [
        Found(url, own.get("node") or own.get("nodename")) for url, own in sorted(places, key=lambda p: p[0])
    ]


def _base_of(scraped: str) -> str:
    parts = urlsplit(scraped)
    return f"{parts.scheme}://{parts.netloc}"
