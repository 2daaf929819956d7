"""Which blocks are there: asked in batches on another thread, answered on the caller's without waiting."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from inference_cache.kv_offload._identity import BlockId

__all__ = ["Batch", "Found", "Lookups"]


class Found(Enum):
    """The answer to a lookup."""

    HIT = "hit"
    """It was there a moment ago; only a load proves more."""
    MISS = "miss"
    LATER = "later"
    """Not known yet: ask again after the next step."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks to ask the server about together."""

    blocks: tuple[BlockId, ...]


class Lookups:
    """Answers by request, kept for as long as it is alive; a block that two ask about is asked about once.

    One thread calls :meth:`look`, :meth:`flush` and :meth:`forget`; any thread :meth:`next_batch` and
    :meth:`answer`. A block of which nothing is known after ``deadline_s`` is a miss for the request, and
    stays one. No more than ``most_pending`` blocks are asked about at a time; what is beyond is a miss.
    """

    def __init__(self, *, deadline_s: float, most_pending: int) -> None:
        self._deadline_s = deadline_s
        self._most_pending = most_pending
        self._condition = threading.Condition()
        self._answers: dict[str, dict[BlockId, bool | float]] = {}
        """For each request what is known of a block, or since when it waits."""
        self._askers: dict[BlockId, set[str]] = {}
        self._pending: set[BlockId] = set()
        self._asked: list[BlockId] = []
        self._batches: deque[Batch] = deque()
        self._suspect: OrderedDict[BlockId, None] = OrderedDict()
        self._closed = False

    def look(self, block: BlockId, request: str) -> tuple[Found, str]:
        """The answer, and a word for the counters; none (``""``) as long as there is no answer."""
        with self._condition:
            known = self._answers.setdefault(request, {}).get(block)
            if isinstance(known, bool):
                return (Found.HIT, "hit") if known else (Found.MISS, "miss")
            if known is not None:
                if time.monotonic() - known <= self._deadline_s:
                    return Found.LATER, ""
                self._note(block, request, False)
                return Found.MISS, "late"
            if block in self._suspect:
                self._note(block, request, False)
                return Found.MISS, "suspect"
            if block not in self._pending:
                if len(self._pending) >= self._most_pending:
                    self._note(block, request, False)
                    return Found.MISS, "queue_full"
                self._pending.add(block)
                self._asked.append(block)
            self._note(block, request, time.monotonic())
            return Found.LATER, ""

    def settle(self, block: BlockId, request: str, *, found: bool) -> None:
        """Fixes the answer for a request, whatever the server may say later."""
        with self._condition:
            self._note(block, request, found)

    def _note(self, block: BlockId, request: str, known: bool | float) -> None:
        self._answers.setdefault(request, {})[block] = known
        self._askers.setdefault(block, set()).add(request)

    def flush(self) -> None:
        """Hands over what was asked since the last time, as one batch."""
        with self._condition:
            if self._asked:
                self._batches.append(Batch(tuple(self._asked)))
                self._asked = []
                self._condition.notify()

    def miss(self, blocks: Iterable[BlockId]) -> None:
        """Those were not there when they were loaded: a miss for every request that has asked."""
        with self._condition:
            for block in blocks:
                for request in self._askers.get(block, ()):
                    self._answers[request][block] = False

    def suspect(self, block: BlockId, *, most: int = 65_536) -> None:
        """What is stored there is damaged: a miss for everybody until it is stored again."""
        with self._condition:
            self._suspect[block] = None
            while len(self._suspect) > most:
                self._suspect.popitem(last=False)

    def is_suspect(self, block: BlockId) -> bool:
        """Whether it must be stored anew although it is there."""
        return block in self._suspect

    def trust(self, blocks: Iterable[BlockId]) -> None:
        """Those have been stored anew."""
        with self._condition:
            for block in blocks:
                self._suspect.pop(block, None)

    def forget(self, request: str) -> None:
        """That request asks no more."""
        with self._condition:
            for block in self._answers.pop(request, ()):
                askers = self._askers[block]
                askers.discard(request)
                if not askers:
                    del self._askers[block]

    def next_batch(self, *, wait_s: float) -> Batch | None:
        """The oldest batch, waiting that long for one; None when there is none."""
        with self._condition:
            if not self._batches and not self._closed:
                self._condition.wait(wait_s)
            return self._batches.popleft() if self._batches else None

    def answer(self, batch: Batch, found: Sequence[bool]) -> None:
        """What the server said of each block of a batch."""
        with self._condition:
            for block, there in zip(batch.blocks, found, strict=True):
                self._pending.discard(block)
                for request in self._askers.get(block, ()):
                    # An answer that came too late, or after a failed load, changes nothing.
                    if not isinstance(self._answers[request][block], bool):
                        self._answers[request][block] = there

    @property
    def pending(self) -> int:
        """Blocks asked about without an answer yet."""
        return len(self._pending)

    def close(self) -> None:
        """No one waits for a batch any more."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
