"""The KV cache as blocks: who holds how many, which prefixes can be reused, and what is evicted for room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Ids

BLOCK_TOKENS = 16


def block_hashes(token_ids: Ids[int], parent: int = 0) -> list[int]:
    """One hash for each full block of 16 tokens, each covering all the tokens before it too.

    Only full blocks can be shared, as in vLLM, so a tail of fewer than 16 tokens has no hash. `parent` is the
    hash of the block before the first, where the tokens continue something.
    """
    hashes = []
    for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        parent = hash((parent, *token_ids[start : start + BLOCK_TOKENS]))
        hashes.append(parent)
    return hashes


class Holding:
    """The blocks of one sequence: those it shares by hash (in order from its start), and its private ones."""

    __slots__ = ("private", "shared")

    def __init__(self) -> None:
        self.shared: list[int] = []
        self.private = 0

    def __len__(self) -> int:
        return len(self.shared) + self.private


class KVCache:
    """A pool of `blocks` blocks. blank + reusable (cached, held by nobody) + held = blocks, always.

    A block that was filled with a known prefix stays findable after its last holder has gone, until room is
    needed: then the least recently used goes first.
    """

    def __init__(self, blocks: int, *, prefix_caching: bool = True) -> None:
        if blocks < 1:
            raise ValueError("a KV cache needs at least one block")
        self.blocks = blocks
        self.prefix_caching = prefix_caching
        self.blank = blocks
        self._holders: dict[int, int] = {}
        self._reusable: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    @property
    def free(self) -> int:
        """Blocks that an allocation can have: blank ones and reusable ones."""
        return self.blank + len(self._reusable)

    def blocks_held(self) -> int:
        """Blocks that somebody holds, each counted once."""
        return len(self._holders) + self._private

    @property
    def used_fraction(self) -> float:
        return 1.0 - self.free / self.blocks

    def find(self, hashes: Ids[int]) -> int:
        """How many of the leading blocks are in the cache."""
        if not self.prefix_caching:
            return 0
        for count, key in enumerate(hashes):
            if key not in self._holders and key not in self._reusable:
                return count
        return len(hashes)

    def admit(self, holding: Holding, hashes: Ids[int], private: int) -> bool:
        """Take the cached blocks `hashes` and `private` new ones for one that holds none; all or none."""
        from_reusable = sum(1 for key in hashes if key in self._reusable)
        if self.free - from_reusable < private:
            return False
        for key in hashes:
            if key in self._reusable:
                del self._reusable[key]
            self._holders[key] = self._holders.get(key, 0) + 1
        holding.shared.extend(hashes)
        return self.grow(holding, private)

    def grow(self, holding: Holding, count: int) -> bool:
        """`count` more private blocks, or none and False where there is no room."""
        if self.free < count:
            return False
        from_blank = min(self.blank, count)
        self.blank -= from_blank
        for _ in range(count - from_blank):
            self._reusable.popitem(last=False)
        holding.private += count
        self._private += count
        return True

    def publish(self, holding: Holding, hashes: Ids[int]) -> None:
        """Let others find the leading blocks `hashes`, which `holding` has filled.

        A block whose content somebody else published first stays private: a duplicate, as in vLLM.
        """
        if not self.prefix_caching:
            return
        while holding.private and len(holding.shared) < len(hashes):
            key = hashes[len(holding.shared)]
            if key in self._holders or key in self._reusable:
                return
            self._holders[key] = 1
            holding.shared.append(key)
            holding.private -= 1
            self._private -= 1

    def release(self, holding: Holding) -> None:
        """Give all blocks back. The end of a prefix becomes evictable before its start, so it goes first."""
        for key in reversed(holding.shared):
            left = self._holders[key] - 1
            if left:
                self._holders[key] = left
            else:
                del self._holders[key]
                self._reusable[key] = None
        holding.shared.clear()
        self.blank += holding.private
        self._private -= holding.private
        holding.private = 0
