"""Pods of a Kubernetes cluster by their labels, asked of its API over plain HTTPS.

In a pod by its service account; elsewhere by what `kubectl config view` says of the current context, which
needs no client library and no YAML. Needs the right to `list` pods.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from wattload import redaction
from wattload.client.control import TlsMaker, control_client, json_of
from wattload.client.unreachable import why_unreachable
from wattload.errors import InputError
from wattload.redaction import shown

PREFIX = "k8s:"
DEFAULT_PORT = 8790
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_SECONDS = 10.0
_PAGE = 500


@dataclass(frozen=True, slots=True)
class PodSelector:
    """`k8s:app=wattserve-meter,namespace=energy,port=8790`: labels as kubectl's -l has them, and where.

    `namespace` None: the one of the context or the pod; `*`: all.
    """

    labels: str
    namespace: str | None = None
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> PodSelector:
        """Raises ValueError for what is no selector."""
        labels: list[str] = []
        given: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.removeprefix(PREFIX).split(","))):
            key, equals, value = part.partition("=")
            if key in ("namespace", "port") and equals:
                given[key] = value
            else:
                labels.append(part)
        if not labels or any("(" in part or " " in part for part in labels):
            raise ValueError(
                f"needs labels of the meters' pods, as {PREFIX}app=wattserve-meter,namespace=energy"
            )
        port = given.get("port", str(DEFAULT_PORT))
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"port={port}: not a port")
        return cls(",".join(labels), given.get("namespace") or None, int(port))


@dataclass(frozen=True, slots=True)
class Access:
    """The API of a cluster: where it is, and how it is asked."""

    server: str
    namespace: str
    headers: Mapping[str, str]
    tls: TlsMaker


def pods(selector: PodSelector, access: Access) -> list[tuple[str, str]]:
    """(name of the node, address of the meter) of every pod that is to run.

    Raises InputError where the API does not answer, has no such pod, or has one that is not running yet: its
    joules would be missing.
    """
    namespace = selector.namespace or access.namespace
    scope = "" if namespace == "*" else f"/namespaces/{namespace}"
    where = f"pods with {selector.labels} in {'all namespaces' if not scope else namespace}"
    items: list[dict[str, Any]] = []
    more = ""
    with control_client(
        access.server, headers=access.headers, tls=access.tls, timeout_seconds=_TIMEOUT_SECONDS
    ) as client:
        while True:
            asked = {
                "labelSelector": selector.labels,
                "limit": str(_PAGE),
                **({"continue": more} if more else {}),
            }
            try:
                answer = client.get(f"{access.server}/api/v1{scope}/pods", params=asked)
                body = json_of(answer)
                if answer.status_code != 200:
                    raise ValueError(f"it answered {answer.status_code}: {body.get('message', '')}")
                items += body["items"]
                more = (body.get("metadata") or {}).get("continue") or ""
            except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    "energy",
                    f": Kubernetes at {shown(access.server)} does not list {where}: {why_unreachable(error)}",
                ) from error
            if not more:
                break
    found = [_of_pod(pod, selector.port) for pod in items if _phase(pod) not in ("Succeeded", "Failed")]
    if not found:
        raise InputError("energy", f": Kubernetes has no {where}")
    return sorted(found)


def _phase(pod: Mapping[str, Any]) -> str:
    return str((pod.get("status") or {}).get("phase"))


def _of_pod(pod: Mapping[str, Any], port: int) -> tuple[str, str]:
    status, name = pod.get("status") or {}, (pod.get("metadata") or {}).get("name")
    address = status.get("podIP")
    if _phase(pod) != "Running" or not address:
        raise InputError(
            "energy", f": the pod {name} is {_phase(pod)}, so the joules of its node would be missing"
        )
    host = f"[{address}]" if ":" in str(address) else str(address)
    return str((pod.get("spec") or {}).get("nodeName") or name), f"http://{host}:{port}"


def access(environment: Mapping[str, str] = os.environ, account: Path = _ACCOUNT) -> Access:
    """How the cluster is reached from here. Raises InputError where that is not known."""
    host = environment.get("KUBERNETES_SERVICE_HOST")
    if host and (account / "token").exists():
        token = (account / "token").read_text().strip()
        place = f"[{host}]" if ":" in host else host
        port = environment.get("KUBERNETES_SERVICE_PORT", "443")
        ca_file = str(account / "ca.crt")
        return Access(
            f"https://{place}:{port}",
            _text(account / "namespace") or "default",
            _bearer(token),
            lambda: ssl.create_default_context(cafile=ca_file),
        )
    return _of_kubectl()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _bearer(token: str) -> dict[str, str]:
    redaction.learn([token])
    return {"Authorization": f"Bearer {token}"}


def _of_kubectl() -> Access:
    """By the current context, as kubectl has it: one cluster, one user, the contents of files in place."""
    hint = "give the meters' addresses instead, or run where `kubectl get pods` works"
    raw = _run(["kubectl", "config", "view", "--raw", "--minify", "--flatten", "-o", "json"], hint)
    try:
        context = raw["contexts"][0]["context"]
        cluster, user = raw["clusters"][0]["cluster"], raw["users"][0]["user"]
        server = str(cluster["server"]).rstrip("/")
    except (KeyError, IndexError, TypeError) as error:
        raise InputError("energy", f": kubectl has no current context; {hint}") from error
    headers: dict[str, str] = {}
    if user.get("token"):
        headers = _bearer(str(user["token"]))
    elif user.get("exec"):
        headers = _of_plugin(user["exec"], hint)
    return Access(server, str(context.get("namespace") or "default"), headers, lambda: _tls(cluster, user))


def _of_plugin(plugin: Mapping[str, Any], hint: str) -> dict[str, str]:
    """The token that a cloud's own program gives for this user."""
    given = {str(each["name"]): str(each["value"]) for each in plugin.get("env") or []}
    credential = {
        "apiVersion": plugin.get("apiVersion"),
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }
    given["KUBERNETES_EXEC_INFO"] = json.dumps(credential)
    answer = _run([str(plugin["command"]), *map(str, plugin.get("args") or [])], hint, given)
    token = (answer.get("status") or {}).get("token")
    if not token:
        raise InputError("energy", f": {plugin['command']} gave no token for Kubernetes; {hint}")
    return _bearer(str(token))


def _run(words: list[str], hint: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200]
            raise ValueError(f"ended with status {done.returncode}: {said}")
        answer = json.loads(done.stdout)
        if not isinstance(answer, dict):
            raise ValueError("did not print a JSON object")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        why = "is not installed" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError("energy", f": Kubernetes: {words[0]} {shown(why)}; {hint}") from error
    return answer


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
    authority = cluster.get("certificate-authority-data")
    context = ssl.create_default_context(cadata=base64.b64decode(authority).decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    certificate, key = user.get("client-certificate-data"), user.get("client-key-data")
    if certificate and key:
        # The library takes certificates from files alone; this one nobody else may read.
        with tempfile.NamedTemporaryFile() as file:
            file.write(base64.b64decode(certificate) + b"\n" + base64.b64decode(key))
            file.flush()
            context.load_cert_chain(file.name)
    return context
