"""When the collector looks at what: in a process of its own, since the collector is the process's."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys

import pytest

CODE = """
import gc, json, weakref
from wattserve.http.garbage import BUSY_SECONDS, IDLE_SECONDS, YOUNG_SECONDS, GarbageKeeper

class Node:
    pass

def cycle():
    node = Node()
    node.me = node
    return node, weakref.ref(node)

gc.disable()
now = 0.0
keeper = GarbageKeeper(lambda: now)
keeper.start()
told = {}
node, seen = cycle()
del node
now += YOUNG_SECONDS
keeper.tick(idle=False)
told["young garbage goes at once"] = seen() is None
node, seen = cycle()
now += YOUNG_SECONDS
frozen = gc.get_freeze_count()
keeper.tick(idle=False)
told["what lives is set apart"] = gc.get_freeze_count() > frozen
del node
now += YOUNG_SECONDS
keeper.tick(idle=False)
told["and is not looked at under load"] = seen() is not None
now += IDLE_SECONDS
keeper.tick(idle=False)
told["not even after half a minute"] = seen() is not None
keeper.tick(idle=True)
told["but at rest"] = seen() is None
node, seen = cycle()
now += YOUNG_SECONDS
keeper.tick(idle=False)
del node
now += BUSY_SECONDS
keeper.tick(idle=False)
told["or after ten minutes"] = seen() is None
frozen = gc.get_freeze_count()
keeper.tick(idle=True)
told["a tick soon after does nothing"] = gc.get_freeze_count() == frozen
print(json.dumps(told))
"""


def test_the_collector_looks_at_what_is_old_when_nobody_waits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True
    )
    told = json.loads(done.stdout)
    assert [what for what, true in told.items() if not true] == []
    assert len(told) == 7


MEMORY = """
import json, re
from pathlib import Path
from wattserve.http.garbage import IDLE_SECONDS, TRIM_SECONDS, GarbageKeeper

def resident_mb():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

now = 0.0
keeper = GarbageKeeper(lambda: now)
keeper.start()
told = {}
for name, seconds, idle in (("under load", TRIM_SECONDS, False), ("at rest", IDLE_SECONDS, True)):
    held = [bytes(3000) for _ in range(30_000)]
    kept = held[::20]  # what lives on lies between what is freed
    held = None
    before = resident_mb()
    now += 1.5
    keeper.tick(idle=False)
    told[f"not at once ({name})"] = before - resident_mb() < 20
    now += seconds
    keeper.tick(idle=idle)
    told[f"given back {name}"] = before - resident_mb() > 40
print(json.dumps(told))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library cannot give back")
def test_freed_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert len(told) == 4
    assert all(told.values()), told
