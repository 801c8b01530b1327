"""Does a tree's cache gain from a limit of depth? SIEVE with and without one, on look-ups in a binary search tree.

The paper's front-end caches nodes down to a depth that adapts itself to the miss ratio; deeper nodes are read past the
cache. Here every look-up walks a tree of random keys (two nodes to a page of 256 bytes, Zipf .99), and the reads that
miss are counted: `python -m bench.lab.cache_depth`.
"""

from __future__ import annotations

import numpy as np

KEYS, LOOKUPS, THETA = 100_000, 60_000, 0.99
WINDOW, NARROW, WIDEN = 4096, 0.5, 0.25  # the adaptive limit: node reads per step, miss ratios that move it
DEEPEST = 64


class Sieve:
    """Numbers of the pages kept, with SIEVE's hand going from the oldest to the newest."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.used: dict[int, bool] = {}
        self.older: dict[int, int | None] = {}
        self.newer: dict[int, int | None] = {}
        self.newest: int | None = None
        self.oldest: int | None = None
        self.hand: int | None = None

    def hit(self, page: int) -> bool:
        """Whether the page is here; it is marked as used then."""
        if page not in self.used:
            return False
        self.used[page] = True
        return True

    def add(self, page: int) -> None:
        """Keep a page that missed, in place of another if there is no room."""
        if len(self.used) >= self.room:
            self._evict()
        self.used[page], self.older[page], self.newer[page] = False, self.newest, None
        if self.newest is None:
            self.oldest = page
        else:
            self.newer[self.newest] = page
        self.newest = page

    def _evict(self) -> None:
        at = self.oldest if self.hand is None else self.hand
        assert at is not None
        while self.used[at]:
            self.used[at] = False
            onward = self.newer[at]
            at = self.oldest if onward is None else onward
            assert at is not None
        older, newer = self.older.pop(at), self.newer.pop(at)
        del self.used[at]
        if older is None:
            self.oldest = newer
        else:
            self.newer[older] = newer
        if newer is None:
            self.newest = older
        else:
            self.older[newer] = older
        self.hand = newer


def tree(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parent, depth and page of each key's node in a search tree that keys were put into in a drawn order."""
    inserted = random.permutation(KEYS)
    time = np.empty(KEYS, np.int64)
    time[inserted] = np.arange(KEYS)
    parent, path = np.full(KEYS, -1), []
    for key in range(KEYS):  # the tree is the Cartesian tree of the times of insertion
        below = -1
        while path and time[path[-1]] > time[key]:
            below = path.pop()
        if below >= 0:
            parent[below] = key
        if path:
            parent[key] = path[-1]
        path.append(key)
    depth = np.zeros(KEYS, np.int64)
    for key in inserted:
        if parent[key] >= 0:
            depth[key] = depth[parent[key]] + 1
    return parent, depth, time // 2


def misses(room: int, limit: int | None, adaptive: bool = False) -> float:
    """Reads that miss, per look-up, of a cache of `room` pages that keeps nodes down to depth `limit` (None: all)."""
    random = np.random.default_rng(1)
    parent, depth, page = tree(random)
    weights = 1 / np.arange(1, KEYS + 1) ** THETA
    keys = random.permutation(KEYS)[random.choice(KEYS, LOOKUPS, p=weights / weights.sum())]
    cache, missed, in_window, missed_in_window = Sieve(room), 0, 0, 0
    for key in keys:
        path = []
        while key >= 0:
            path.append(key)
            key = parent[key]
        for node in reversed(path):
            in_window += 1
            if not cache.hit(page[node]):
                missed += 1
                missed_in_window += 1
                if limit is None or depth[node] <= limit:
                    cache.add(page[node])
            if adaptive and in_window == WINDOW:
                assert limit is not None
                ratio = missed_in_window / in_window
                limit += (ratio < WIDEN) - (ratio > NARROW)
                in_window = missed_in_window = 0
    return missed / LOOKUPS


def main() -> None:
    """Print a line per size of the cache."""
    for share in (0.1, 0.02, 0.005):
        room = int(KEYS / 2 * share)
        fixed = {depth: round(misses(room, depth), 2) for depth in (12, 16, 20, 24)}
        print(
            f"cache {share:.1%}: no limit {misses(room, None):.2f} reads a look-up, "
            f"adaptive {misses(room, DEEPEST, adaptive=True):.2f}, fixed {fixed}"
        )


if __name__ == "__main__":
    main()
