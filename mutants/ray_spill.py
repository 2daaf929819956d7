"""Storages of spilled Ray objects that are wrong in one way. Ray's IO workers load them by name."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Sequence
from typing import Any

from inference_cache.blobs import Outcome
from inference_cache.errors import AccessDenied, BlobError, BlobLost, CacheError, CommandRejected
from inference_cache.ray_spill import SpilledObject, SpillStorage, SweepReport
from inference_cache.ray_spill._gcs import Life
from inference_cache.ray_spill._janitor import sweep
from inference_cache.ray_spill._names import SpillNames, parse_url
from inference_cache.ray_spill._record import HEAD_BYTES
from mutants.liveness import note_adapter

__all__ = [
    "AcknowledgesTooMuch",
    "AnswersWithAnOlderObject",
    "DeletesNothing",
    "DestroysTheSession",
    "ExpiresLiveObjects",
    "ForgetsTheChunks",
    "GivesUpReading",
    "IgnoresTheOffset",
    "ReadsItsOwnOnly",
    "SendsOverAndOver",
    "TrustsTheLeaseAlone",
    "TrustsWhatItFinds",
    "WaitsForEver",
    "ZeroesTheOwner",
]


class IgnoresTheOffset(SpillStorage):
    """Objects that were spilled together share a URL but for the offset, which is not looked at."""

    def spill(self, objects: Sequence[SpilledObject]) -> list[bytes]:
        urls = super().spill(objects)
        if len(urls) < 2:
            return urls
        note_adapter("IgnoresTheOffset")
        first = parse_url(urls[0]).key
        return [
            b"%b?offset=%d&size=%d" % (first, number, parse_url(url).size_bytes)
            for number, url in enumerate(urls)
        ]

    def restore(self, url: str | bytes, deliver: Any) -> int:
        at = parse_url(url)
        return super().restore(b"%b?offset=0&size=%d" % (at.key, at.size_bytes), deliver)


class TrustsWhatItFinds(SpillStorage):
    """Whatever lies under the key is handed on, however long it is and whatever its checksum says."""

    def restore(self, url: str | bytes, deliver: Any) -> int:
        try:
            return super().restore(url, deliver)
        except (BlobError, CacheError):
            raw = self._client.get(parse_url(url).key) or b""
            record = raw[64:]
            if len(record) < HEAD_BYTES:
                raise
            note_adapter("TrustsWhatItFinds")
            start = (
                HEAD_BYTES + int.from_bytes(record[4:8], "little") + int.from_bytes(record[8:12], "little")
            )
            deliver(b"", b"PYTHON", len(record[start:]), io.BytesIO(record[start:]))
            return len(record) - start


class ZeroesTheOwner(SpillStorage):
    """The owner's address is kept by its length only."""

    def spill(self, objects: Sequence[SpilledObject]) -> list[bytes]:
        note_adapter("ZeroesTheOwner")
        return super().spill([dataclasses.replace(item, owner=bytes(len(item.owner))) for item in objects])


class DeletesNothing(SpillStorage):
    """As Ray's smart_open storage: nothing is ever deleted."""

    def delete(self, urls: Sequence[str | bytes]) -> None:
        note_adapter("DeletesNothing")


class WaitsForEver(SpillStorage):
    """A lost object is waited for."""

    def restore(self, url: str | bytes, deliver: Any) -> int:
        try:
            return super().restore(url, deliver)
        except BlobError:
            note_adapter("WaitsForEver")
            while True:
                time.sleep(1)


class AcknowledgesTooMuch(SpillStorage):
    """Of each batch one object is not stored, and said to be."""

    def _store(self, items: Sequence[tuple[bytes, object]], limit_s: float) -> list[Outcome]:
        outcomes = super()._store(items, limit_s)
        if len(items) > 1:
            note_adapter("AcknowledgesTooMuch")
            self._records.delete_many([items[-1][0]])
        return outcomes


class AnswersWithAnOlderObject(SpillStorage):
    """The first object of each length is given for all of that length."""

    _first: dict[int, tuple[bytes, bytes, bytes]]

    def restore(self, url: str | bytes, deliver: Any) -> int:
        self._first = getattr(self, "_first", {})

        def older(owner: bytes, metadata: bytes, size: int, source: Any) -> None:
            kept = self._first.get(size)
            if kept is None:
                content = memoryview(bytearray(size))
                at = 0
                while at < size:
                    at += source.readinto(content[at:])
                kept = self._first[size] = (owner, metadata, bytes(content))
            else:
                note_adapter("AnswersWithAnOlderObject")
            deliver(kept[0], kept[1], size, io.BytesIO(kept[2]))

        return super().restore(url, older)


class ExpiresLiveObjects(SpillStorage):
    """Objects live for a day, references or not."""

    def spill(self, objects: Sequence[SpilledObject]) -> list[bytes]:
        urls = super().spill(objects)
        for url in urls:
            note_adapter("ExpiresLiveObjects")
            self._client.pexpire(parse_url(url).key, 86_400_000)
        return urls


class DestroysTheSession(SpillStorage):
    """Destroying one node's storage removes the objects of all: also when a head starts, with its dummy."""

    def destroy(self) -> int:
        count = 0
        for lease in self._book.leases():
            note_adapter("DestroysTheSession")
            ids = self._book.ids(lease.names)
            self._remove_all(lease.names, ids)
            count += len(ids)
        return count


class TrustsTheLeaseAlone(SpillStorage):
    """Who did not renew the lease in time is dead, whatever its cluster says."""

    def sweep(self, *, dead_sessions: Sequence[str] = ()) -> SweepReport:
        note_adapter("TrustsTheLeaseAlone")
        return sweep(
            self._book,
            self.names,
            remove=self._remove_all,
            lease_s=self.params.lease_s,
            abandoned_s=None,
            dead_sessions=dead_sessions,
            life=lambda _: Life.DEAD,
        )


class ForgetsTheChunks(SpillStorage):
    """Of an object in chunks only the manifest is removed."""

    def _remove_all(self, names: SpillNames, ids: Sequence[str]) -> None:
        if ids:
            note_adapter("ForgetsTheChunks")
            self._client.unlink(*(names.key(object_id) for object_id in ids))
        self._book.remove(ids, names=names)


class ReadsItsOwnOnly(SpillStorage):
    """What another node spilled is taken for lost."""

    def restore(self, url: str | bytes, deliver: Any) -> int:
        if not parse_url(url).key.startswith(self.names.objects.prefix.encode()):
            note_adapter("ReadsItsOwnOnly")
            raise BlobLost("this node did not spill it")
        return super().restore(url, deliver)


class SendsOverAndOver(SpillStorage):
    """A failure is no reason to wait: each time Ray asks, the objects are sent again."""

    def _not_stored(self, error: CacheError) -> None:
        note_adapter("SendsOverAndOver")


class GivesUpReading(SpillStorage):
    """Once the server has refused a read, every read is answered with that refusal, whatever comes later."""

    _refusal: CacheError | None = None

    def restore(self, url: str | bytes, deliver: Any) -> int:
        if self._refusal is not None:
            note_adapter("GivesUpReading")
            raise self._refusal
        try:
            return super().restore(url, deliver)
        except (AccessDenied, CommandRejected) as error:
            self._refusal = error
            raise
