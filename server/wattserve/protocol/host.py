"""Whose clock a time is of: engines and meter join their times only within one start of one host."""

from __future__ import annotations

from pathlib import Path


def pid_namespace() -> str:
    """What tells this process's numbering of processes from others'; empty where the system does not say."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def boot_id() -> str:
    """What tells this start of this host from all others; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
