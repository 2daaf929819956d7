"""What a store remembers: the sessions it has met, to notice a loss, and the updates it is in doubt about."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Known", "Memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """How far a session had come, by what the server has acknowledged."""

    generation: bytes
    turns: int = 0
    version: int = 0


class Memory:
    """The last ``limit`` sessions by root key, and as many doubts. Safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._doubts: OrderedDict[bytes, Known] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, root: bytes) -> Known | None:
        with self._lock:
            if root in self._known:
                self._known.move_to_end(root)
            return self._known.get(root)

    def learn(self, root: bytes, seen: Known, *, since: Known | None) -> None:
        """Notes what a reply told, in whatever order the replies of concurrent calls come.

        ``since`` is what was recalled before the call: a reply about a session that was meanwhile replaced or
        deleted must not bring it back.
        """
        with self._lock:
            known = self._known.get(root)
            if known is not None and known.generation == seen.generation:
                seen = Known(
                    generation=seen.generation,
                    turns=max(known.turns, seen.turns),
                    version=max(known.version, seen.version),
                )
            elif (known and known.generation) != (since and since.generation):
                return
            self._known[root] = seen
            self._known.move_to_end(root)
            if len(self._known) > self._limit:
                self._known.popitem(last=False)

    def forget(self, root: bytes) -> None:
        with self._lock:
            self._known.pop(root, None)

    def doubt(self, update: bytes, first: Known) -> None:
        """Notes that an update may have taken place; ``first`` is what was known when it was first tried."""
        with self._lock:
            self._doubts[update] = first
            if len(self._doubts) > self._limit:
                self._doubts.popitem(last=False)

    def doubted(self, update: bytes, generation: bytes) -> Known | None:
        """What was known when the update was first tried, if it is in doubt and that was the same session."""
        first = self._doubts.get(update)
        if first is not None and first.generation and generation and first.generation != generation:
            return None
        return first

    def settle(self, update: bytes) -> None:
        """Notes that the server has answered the update."""
        if update in self._doubts:
            with self._lock:
                self._doubts.pop(update, None)
