"""Transfers that wait for a thread: bounded in bytes, loads before stores, stores dropped before loads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from inference_cache.kv_offload._identity import BlockId

__all__ = ["Job", "JobQueue", "JobResult", "Transfer"]


class Transfer(Enum):
    """Which way."""

    STORE = "store"
    LOAD = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Blocks to move between slots of the primary tier and the server."""

    number: int
    transfer: Transfer
    items: tuple[tuple[BlockId, int], ...]
    """Each block with the slot that it is in, or goes to."""
    size_bytes: int
    submitted_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What became of a job; each job submitted has exactly one."""

    number: int
    transfer: Transfer
    done: tuple[bool, ...]
    """For each block whether it was moved, or, for a store, need not be."""
    moved_bytes: int
    took_s: float
    """From the submission."""

    @property
    def ok(self) -> bool:
        """Whether every block was."""
        return all(self.done)

    @property
    def block_s(self) -> float:
        """How long it took for each of its blocks, in seconds."""
        return self.took_s / max(1, len(self.done))


class JobQueue:
    """Jobs that nobody works on yet, and those that somebody does.

    ``most_bytes`` bounds what waits. A store that finds no room is refused; a load makes room by pushing
    stores out, the oldest first, and is refused when that is not enough. Threads may share it.
    """

    def __init__(self, *, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._changed = threading.Condition()
        self._waiting: dict[Transfer, deque[Job]] = {Transfer.LOAD: deque(), Transfer.STORE: deque()}
        self._waiting_bytes = 0
        self._running = {Transfer.LOAD: 0, Transfer.STORE: 0}
        self._closed = False

    def put(self, job: Job) -> tuple[bool, list[Job]]:
        """Whether the job waits now, and which stores had to go for it. Never waits itself."""
        with self._changed:
            out: list[Job] = []
            if job.transfer is Transfer.LOAD:
                stores = self._waiting[Transfer.STORE]
                while stores and self._waiting_bytes + job.size_bytes > self._most_bytes:
                    out.append(self._taken(stores.popleft()))
            # One job alone may be larger than the bound: nothing could ever be moved otherwise.
            crowded = self._waiting_bytes and self._waiting_bytes + job.size_bytes > self._most_bytes
            if self._closed or crowded:
                return False, out
            self._waiting[job.transfer].append(job)
            self._waiting_bytes += job.size_bytes
            self._changed.notify_all()
            return True, out

    def take(self, kinds: Sequence[Transfer], *, wait_s: float) -> Job | None:
        """The next job of the first kind that has one, waiting that long; to be followed by :meth:`ended`."""
        with self._changed:
            if not self._closed and not any(self._waiting[kind] for kind in kinds):
                self._changed.wait(wait_s)
            for kind in kinds:
                if self._waiting[kind]:
                    self._running[kind] += 1
                    return self._taken(self._waiting[kind].popleft())
        return None

    def _taken(self, job: Job) -> Job:
        self._waiting_bytes -= job.size_bytes
        return job

    def ended(self, job: Job) -> None:
        """A job that was taken is over, and its result can be had."""
        with self._changed:
            self._running[job.transfer] -= 1
            self._changed.notify_all()

    def clear(self) -> list[Job]:
        """Takes out all that wait."""
        with self._changed:
            jobs = [*self._waiting[Transfer.LOAD], *self._waiting[Transfer.STORE]]
            for waiting in self._waiting.values():
                waiting.clear()
            self._waiting_bytes = 0
            return jobs

    def wait_idle(self, *, wait_s: float) -> bool:
        """Whether nobody works on a job any more, after waiting that long for it."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(self._running.values()), wait_s)

    def close(self) -> None:
        """Refuses jobs from now on, and wakes whoever waits for one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether it takes no jobs any more."""
        return self._closed

    @property
    def loading(self) -> bool:
        """Whether a load waits, or somebody works on one."""
        return bool(self._waiting[Transfer.LOAD] or self._running[Transfer.LOAD])

    @property
    def waiting_bytes(self) -> int:
        """What waits."""
        return self._waiting_bytes
