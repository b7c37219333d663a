"""What is wrong with the compose file, the Dockerfiles and .env.example, by reading them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Compose = dict[str, Any]

# The commands that run and end, or that have no port to ask.
WITHOUT_HEALTHCHECK = {"loadgen", "locust-worker"}
# vLLM compiles into its home; Grafana keeps its database and its plugins in its image's folders.
WRITABLE = {"vllm", "grafana"}


def faults(compose: Compose, root: Path) -> list[str]:
    """Everything wrong with a parsed docker-compose.yml whose relative paths start at `root`."""
    found = []
    for name, service in compose["services"].items():
        checks = (_ports, _image, _mounts, _healthcheck, _hardening)
        found += [f"{name}: {fault}" for check in checks for fault in check(name, service, root)]
    named = {m.split(":")[0] for s in compose["services"].values() for m in s.get("volumes", [])}
    missing = {n for n in named if re.fullmatch(r"[a-z][a-z-]*", n)} - set(compose.get("volumes", {}))
    return found + [f"volume {name} is not declared" for name in sorted(missing)]


def _ports(name: str, service: Compose, root: Path) -> Iterator[str]:
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"port {port} is published beyond 127.0.0.1"


def _image(name: str, service: Compose, root: Path) -> Iterator[str]:
    tag = service.get("image", "").partition(":")[2]
    if not tag or tag == "latest":
        yield f"image {service.get('image')} is not pinned"
    build = service.get("build")
    if build and not (root / build["context"] / build["dockerfile"]).is_file():
        yield f"{build['dockerfile']} does not exist"


def _mounts(name: str, service: Compose, root: Path) -> Iterator[str]:
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        if source.startswith(".") and not (root / source).exists():
            yield f"{source} is mounted and does not exist"
        if source.startswith(".") and not mount.endswith(":ro"):
            yield f"{source} is mounted writable"


def _healthcheck(name: str, service: Compose, root: Path) -> Iterator[str]:
    if name in WITHOUT_HEALTHCHECK:
        return
    test = service.get("healthcheck", {}).get("test")
    if not test:
        yield "no healthcheck"
        return
    script = next((Path(word).name for word in test if re.search(r"\.(py|sh)$", word)), None)
    if not script or not (root / "docker" / script).is_file():
        yield f"the healthcheck {test} is no script file of docker/"


def _hardening(name: str, service: Compose, root: Path) -> Iterator[str]:
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
        yield "may gain privileges"
    if name not in WRITABLE and not (service.get("read_only") is True and service.get("tmpfs") == ["/tmp"]):
        yield "may write to its file system"


def dockerfile_faults(text: str) -> list[str]:
    """What hadolint does not say: the images must end as an ordinary user."""
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    final = [s for s in stages if re.search(r"^CMD ", s, flags=re.MULTILINE)]
    users = [re.findall(r"^USER (\S+)", stage, flags=re.MULTILINE) for stage in final]
    found = [] if final else ["no stage has a CMD"]
    return found + [
        "an image runs as root" for user in users if not user or user[-1].split(":")[0] in {"root", "0"}
    ]


def settings(compose_text: str) -> dict[str, str]:
    """The variables that the compose file reads, with their defaults."""
    return dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose_text))


def env_example(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)
