# SPDX-License-Identifier: GPL-3.0-or-later
"""The KV cache of one engine: a pool of fixed-size blocks with block-wise prefix caching, as vLLM's block pool does
it.

A full block is named by the chained hash of all tokens up to its end (plus the adapter and the cache salt), so a
block that is found stands for its whole prefix. Blocks in use are counted; a block that nobody uses keeps its
content, at the end of a least-recently-used queue, until its place is needed. State is kept only for blocks that were
ever used: an idle pool of any size costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sim.tokens import BYTES_PER_TOKEN

BlockHash = int
BlockId = int


def root_hash(adapter: str | None, cache_salt: str | None) -> BlockHash:
    """Return the hash that every chain of this adapter and salt starts from: other adapters and salts never share
    blocks.
    """
    return hash((adapter, cache_salt))


def extend_hashes(hashes: list[BlockHash], root: BlockHash, data: bytes | bytearray, block_size: int) -> None:
    """Append the hashes of the full blocks of `data` (token bytes) that `hashes` does not hold yet. `block_size` is
    in tokens.
    """
    width = block_size * BYTES_PER_TOKEN
    parent = hashes[-1] if hashes else root
    view = bytes(data) if len(data) - len(hashes) * width >= 2 * width else data
    for start in range(len(hashes) * width, len(data) - width + 1, width):
        parent = hash((parent, bytes(view[start : start + width])))
        hashes.append(parent)


class BlockPool:
    """`total` blocks, each free, cached (free, but its content is known) or in use by one or more requests."""

    def __init__(self, total: int, enable_caching: bool = True) -> None:
        """`total`: number of blocks, at least 1. `enable_caching`: whether full blocks can be found again."""
        self.total = total
        self.enable_caching = enable_caching
        self._fresh = 0  # blocks [_fresh, total) were never used
        self._free: OrderedDict[BlockId, None] = OrderedDict()  # used before, now free; the oldest first
        self._references: dict[BlockId, int] = {}  # only blocks in use
        self._by_hash: dict[BlockHash, BlockId] = {}
        self._hash_of: dict[BlockId, BlockHash] = {}

    @property
    def in_use(self) -> int:
        """Number of blocks held by at least one request."""
        return len(self._references)

    @property
    def available(self) -> int:
        """Number of blocks that an allocation can have, cached content included."""
        return self.total - len(self._references)

    @property
    def cached(self) -> int:
        """Number of blocks that can be found by their hash."""
        return len(self._by_hash)

    def usage(self) -> float:
        """Return the share of blocks in use, in [0, 1]."""
        return len(self._references) / self.total

    def find(self, hashes: Sequence[BlockHash], limit: int) -> list[BlockId]:
        """Return the cached blocks of the longest known prefix of `hashes`, at most `limit` blocks. Takes no
        reference.
        """
        found: list[BlockId] = []
        for block_hash in hashes[:limit]:
            block = self._by_hash.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def allocate(self, reuse: Sequence[BlockId], count: int) -> list[BlockId] | None:
        """Take a reference on the blocks `reuse` (from `find`) and `count` new blocks; return the new ones.

        Returns None, and changes nothing, when there are not enough blocks.
        """
        revived = sum(1 for block in reuse if block not in self._references)
        if count + revived > self.available:
            return None
        for block in reuse:
            self._references[block] = self._references.get(block, 0) + 1
            self._free.pop(block, None)
        return [self._take() for _ in range(count)]

    def _take(self) -> BlockId:
        """Return a free block with one reference: an unused one if there is any, else the least recently used one,
        evicted.
        """
        if self._fresh < self.total:
            block = self._fresh
            self._fresh += 1
        else:
            block, _ = self._free.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: BlockId) -> None:
        """Make the content of `block` unknown."""
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._by_hash[block_hash]

    def publish(self, block: BlockId, block_hash: BlockHash) -> None:
        """Make `block`, which is in use and full, known by its hash. The newest of two equal blocks is the one that
        is found.
        """
        if not self.enable_caching or self._hash_of.get(block) == block_hash:
            return
        older = self._by_hash.get(block_hash)
        if older is not None:
            del self._hash_of[older]
        self._by_hash[block_hash] = block
        self._hash_of[block] = block_hash

    def release(self, blocks: Sequence[BlockId]) -> None:
        """Give back one reference on each block of one request, in its order: the end of the sequence is evicted
        first.
        """
        for block in reversed(blocks):
            left = self._references[block] - 1
            if left:
                self._references[block] = left
            else:
                del self._references[block]
                self._free[block] = None

    def reset(self) -> bool:
        """Forget all cached content. Returns False, and changes nothing, while blocks are in use."""
        if self._references:
            return False
        self._by_hash.clear()
        self._hash_of.clear()
        self._free.clear()
        self._fresh = 0
        return True
