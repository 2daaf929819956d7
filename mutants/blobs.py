"""Stores of large values that are wrong in one way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from inference_cache.blobs import BlobStore, Outcome, Status
from inference_cache.errors import BlobLost
from mutants.liveness import note_adapter

__all__ = ["FailsInSilence", "RaisesOnMiss", "StoresLater", "VisibleTooEarly"]


class StoresLater(BlobStore):
    """Says stored, and reads the caller's buffer afterwards."""

    def store(self, key: Any, buffer: Any, **options: Any) -> Outcome:
        note_adapter("StoresLater")
        name = key if isinstance(key, bytes) else self.keyspace.key(*key)
        store = super().store

        def later() -> None:
            time.sleep(0.002)
            store(key, buffer, **options)

        thread = threading.Thread(target=later, daemon=True)
        thread.start()
        return Outcome(key=name, status=Status.STORED, reason="stored")

    def load_into(self, key: Any, buffer: Any) -> Outcome:
        time.sleep(0.05)
        return super().load_into(key, buffer)


class RaisesOnMiss(BlobStore):
    """A block that has gone is an exception."""

    def load_many_into(self, items: Iterable[tuple[Any, Any]]) -> list[Outcome]:
        outcomes = super().load_many_into(items)
        for outcome in outcomes:
            if outcome.status is Status.MISS:
                note_adapter("RaisesOnMiss")
                raise BlobLost(f"{outcome.key!r} has gone")
        return outcomes


class VisibleTooEarly(BlobStore):
    """The first half is put in place while the second is on its way."""

    def store(self, key: Any, buffer: Any, **options: Any) -> Outcome:
        note_adapter("VisibleTooEarly")
        super().store(key, memoryview(buffer)[: len(buffer) // 2], **options)
        return super().store(key, buffer, **options)


class FailsInSilence(BlobStore):
    """One store in ten is not made, and said to be."""

    def store_many(self, items: Iterable[tuple[Any, Any]], **options: Any) -> list[Outcome]:
        pairs = list(items)
        kept = [pair for number, pair in enumerate(pairs) if number % 10 != 9]
        done = {outcome.key: outcome for outcome in super().store_many(kept, **options)}
        outcomes = []
        for key, _ in pairs:
            name = key if isinstance(key, bytes) else self.keyspace.key(*key)
            if name not in done:
                note_adapter("FailsInSilence")
            outcomes.append(done.get(name, Outcome(key=name, status=Status.STORED, reason="stored")))
        return outcomes
