"""When the collector looks at what: in a process of its own, since the collector is the process's."""

from __future__ import annotations

import json
import subprocess
import sys

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
