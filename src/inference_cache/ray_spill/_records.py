"""Records in and out of a server: a :class:`BlobStore` that stores several buffers as one value, and gives a
value that is larger than one chunk piece by piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

from inference_cache.blobs import BlobStore, Damage, Outcome, Status
from inference_cache.blobs._frame import Header
from inference_cache.blobs._requests import Commands, Load, LoadChunk
from inference_cache.errors import CacheError
from inference_cache.ray_spill._record import Gathered

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["RecordStore"]


class RecordStore(BlobStore):
    """Every failure is an outcome or its error, whatever ``on_loss`` says."""

    def _readable(self, buffer: ReadableBuffer) -> memoryview:
        # Only its length and its slices are used, and those it has.
        if isinstance(buffer, Gathered):
            return cast(memoryview, buffer)
        return super()._readable(buffer)

    def keys_of(self, key: bytes) -> list[bytes]:
        """The value's own key and those of its chunks, as far as the server tells."""
        header = self._headers([key], self._ends_at_s())[key]
        return [key, *(header.chunk_keys(key) if isinstance(header, Header) else [])]

    def pieces(
        self,
        key: bytes,
        scratch: Callable[[int, int], memoryview],
        *,
        size_bytes: int,
        limit_s: Callable[[int], float],
        patience: Callable[[CacheError], None],
    ) -> Iterator[memoryview]:
        """The value in pieces of at most ``chunk_bytes``, each checked before it is given, in order.

        ``size_bytes`` is what it should be long, and says only how long its first piece may take.
        ``scratch(turn, size)`` gives memory of that size; there are two turns, because the next piece is
        fetched while the caller has this one. A piece is good until the next one is asked for.
        ``limit_s(size)`` bounds each try in seconds. After one without a usable answer ``patience`` either
        returns, and it is tried again, or raises.

        Raises:
            BlobLost, BlobCorrupt: the value, or a part of it, is not there or is not what was stored.
        """

        def run(request: Load | LoadChunk, size_bytes: int) -> None:
            ends_at_s = time.monotonic() + limit_s(size_bytes)
            self._transport.run([request], ends_at_s=ends_at_s, what="GET")

        def first() -> tuple[Load, memoryview | None]:
            placed: list[memoryview] = []

            def place(size_bytes: int) -> memoryview:
                placed.append(scratch(0, size_bytes))
                return placed[-1]

            while True:
                load = Load(key, place, expected_bytes=0)
                run(load, min(size_bytes, self.chunk_bytes))
                if self._usable(_outcome(load, key), patience):
                    return load, placed[-1] if placed else None

        load, whole = first()
        if load.manifest is None:
            assert whole is not None
            yield whole
            return
        spans = [end - start for start, end in load.manifest.spans()]
        names = load.manifest.chunk_keys(key)

        # What was evicted is found before the caller has begun anything.
        present = Commands(key, [(b"EXISTS", *names)])
        self._transport.run([present], ends_at_s=time.monotonic() + limit_s(0), what="EXISTS")
        if present.error is None and present.replies != [len(names)]:
            Outcome.incomplete(key).require()

        def fetch(number: int) -> memoryview:
            view = scratch(number % 2, spans[number])
            while True:
                chunk = LoadChunk(names[number], view, due_digest=load.digests[number])
                run(chunk, spans[number])
                if self._usable(_outcome(chunk, key, of_many=True), patience):
                    return view

        with ThreadPoolExecutor(1, thread_name_prefix="spill-ahead") as ahead:
            coming = ahead.submit(fetch, 0)
            for number in range(len(names)):
                view = coming.result()
                if number + 1 < len(names):
                    coming = ahead.submit(fetch, number + 1)
                yield view

    def _usable(self, outcome: Outcome, patience: Callable[[CacheError], None]) -> bool:
        """Whether it is a hit; False when it should be tried again."""
        with self._counting:
            self._counts["load", outcome.reason] += 1
        if outcome.error is not None:
            patience(outcome.error)
            return False
        outcome.require()
        return True


def _outcome(load: Load | LoadChunk, key: bytes, *, of_many: bool = False) -> Outcome:
    if load.error is not None:
        return Outcome.failed(key, load.error)
    if load.damage is not None:
        return Outcome.corrupt(key, Damage(load.damage))
    if load.missing:
        return Outcome.incomplete(key) if of_many else Outcome.of(key, Status.MISS)
    return Outcome.of(key, Status.HIT)
