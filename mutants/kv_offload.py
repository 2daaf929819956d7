"""Tiers that offload KV blocks, and translators of their configuration, that are wrong in one way."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from inference_cache.blobs import BlobStore
from inference_cache.errors import UsageError
from inference_cache.keyspace import Keyspace
from inference_cache.kv_offload import (
    BlockId,
    BlockTier,
    Found,
    JobResult,
    RunIdentity,
    TierSettings,
    kv_cache_config,
)
from mutants.liveness import note_adapter

__all__ = [
    "AcceptsDamage",
    "AsksForEver",
    "ClosesRanks",
    "CountsHitsAnywhere",
    "DropsTheLastInSilence",
    "FailsWithTheServer",
    "FirstWorkersPart",
    "HalvesOfLatents",
    "KeepsDamage",
    "KeysByHash",
    "LosesDrainedJobs",
    "MaximumOverRanks",
    "NeverComesBack",
    "NoDeadline",
    "NoTtl",
    "ShortPrefix",
    "SwapsRows",
    "TwoKeys",
    "WithoutAdapter",
    "WithoutDtype",
    "WithoutLayout",
    "WithoutRank",
    "WithoutSalt",
    "WithoutWeights",
    "WritesAnew",
    "config_that_accepts_anything",
    "config_without_ttl",
]


class _KeyWithout(BlockTier):
    """The key leaves something of the run out."""

    left_out: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def key_of(cls, keyspace: Keyspace, identity: RunIdentity, block: BlockId) -> bytes:
        note_adapter(cls.__name__)
        return super().key_of(keyspace, replace(identity, **cls.left_out), block)


class WithoutWeights(_KeyWithout):
    """The model's name stands for its weights."""

    left_out: ClassVar[Mapping[str, Any]] = {"weights": "any"}


class WithoutDtype(_KeyWithout):
    """Whatever the cache is kept in."""

    left_out: ClassVar[Mapping[str, Any]] = {"kv_dtype": "any", "compute_dtype": "any"}


class WithoutLayout(_KeyWithout):
    """However the bytes are laid out."""

    left_out: ClassVar[Mapping[str, Any]] = {"layout": "any", "layout_version": "any"}


class WithoutRank(_KeyWithout):
    """Whichever part of the block a worker holds."""

    left_out: ClassVar[Mapping[str, Any]] = {"rank": 0}


class WithoutAdapter(BlockTier):
    """Blocks of all LoRA adapters under one key."""

    @staticmethod
    def scope_of(*, adapter: str = "", salt: str = "") -> bytes:
        note_adapter("WithoutAdapter")
        return BlockTier.scope_of(salt=salt)


class WithoutSalt(BlockTier):
    """Blocks of all tenants under one key."""

    @staticmethod
    def scope_of(*, adapter: str = "", salt: str = "") -> bytes:
        note_adapter("WithoutSalt")
        return BlockTier.scope_of(adapter=adapter)


class KeysByHash(BlockTier):
    """Python's own hash makes the key, and each process has another seed for it."""

    @classmethod
    def key_of(cls, keyspace: Keyspace, identity: RunIdentity, block: BlockId) -> bytes:
        note_adapter("KeysByHash")
        digest = hash((block.group, block.digest, block.scope)) & (2**64 - 1)
        return keyspace.key(identity.fingerprint, block.group, f"{digest:016x}")


class MaximumOverRanks(BlockTier):
    """Ranks use what the luckiest of them found."""

    @staticmethod
    def agree(lengths: Iterable[int]) -> int:
        note_adapter("MaximumOverRanks")
        return max(lengths, default=0)


class CountsHitsAnywhere(BlockTier):
    """The length of a prefix is the number of its blocks that are there, holes or not."""

    @staticmethod
    def _run_of_hits(found: Sequence[bool]) -> int:
        note_adapter("CountsHitsAnywhere")
        return sum(found)


class ClosesRanks(BlockTier):
    """Values that were found go into the slots one after the other, over the holes."""

    def _load(self, job: Any, store: BlobStore, done: list[bool]) -> int:
        moved = super()._load(job, store, done)
        if not all(done) and any(done):
            note_adapter("ClosesRanks")
            slots = [slot for _, slot in job.items]
            values = [bytes(self._row(slot)) for slot, hit in zip(slots, done, strict=True) if hit]
            for slot, value in zip(slots, values, strict=False):
                self._row(slot)[:] = value
            done[:] = [index < len(values) for index in range(len(done))]
        return moved


class SwapsRows(BlockTier):
    """The first and the last block of a load change places."""

    def _load(self, job: Any, store: BlobStore, done: list[bool]) -> int:
        moved = super()._load(job, store, done)
        first, last = job.items[0][1], job.items[-1][1]
        if all(done) and first != last:
            note_adapter("SwapsRows")
            kept = bytes(self._row(first))
            self._row(first)[:] = self._row(last)
            self._row(last)[:] = kept
        return moved


class FirstWorkersPart(BlockTier):
    """A row is taken for as long as one worker's part of it."""

    def _load(self, job: Any, store: BlobStore, done: list[bool]) -> int:
        moved = super()._load(job, store, done)
        if moved and self.identity.world_size > 1:
            note_adapter("FirstWorkersPart")
            _forget(
                self._row(slot)[self.identity.value_bytes // self.identity.world_size :]
                for _, slot in job.items
            )
        return moved


class HalvesOfLatents(BlockTier):
    """Keys and values are looked for in every row, and latent attention keeps neither."""

    def _load(self, job: Any, store: BlobStore, done: list[bool]) -> int:
        moved = super()._load(job, store, done)
        if moved and "kv_lora_rank" in dict(self.identity.options).get("model_config", ""):
            note_adapter("HalvesOfLatents")
            _forget(self._row(slot)[self.identity.value_bytes // 2 :] for _, slot in job.items)
        return moved


def _forget(parts: Iterable[memoryview]) -> None:
    for part in parts:
        part[:] = bytes(len(part))


class AcceptsDamage(BlockTier):
    """What was loaded is taken as it is: nobody looks whether it is what was stored."""

    def _load(self, job: Any, store: BlobStore, done: list[bool]) -> int:
        moved = super()._load(job, store, done)
        for index, (block, _) in enumerate(job.items):
            if self._lookups.is_suspect(block):
                note_adapter("AcceptsDamage")
                done[index] = True
        return moved


class KeepsDamage(BlockTier):
    """A block that something is stored for is never stored again, whatever that is."""

    def _not_there(
        self, job: Any, mine: Mapping[int, bytes], store: BlobStore, done: list[bool]
    ) -> list[int]:
        suspects = [block for block, _ in job.items if self._lookups.is_suspect(block)]
        if suspects:
            note_adapter("KeepsDamage")
            self._lookups.trust(suspects)
        return super()._not_there(job, mine, store, done)


class AsksForEver(BlockTier):
    """After a failed load the block is looked up as before, and found again, and loaded again."""

    def _load(self, job: Any, store: BlobStore, done: list[bool]) -> int:
        moved = super()._load(job, store, done)
        for (block, _), hit in zip(job.items, done, strict=True):
            if not hit:
                note_adapter("AsksForEver")
                for request in self._lookups._askers.get(block, ()):
                    self._lookups.settle(block, request, found=True)
        return moved


class LosesDrainedJobs(BlockTier):
    """Jobs that wait while it drains are dropped without a result."""

    def drain(self) -> None:
        if self._queue.clear():
            note_adapter("LosesDrainedJobs")
        super().drain()


class DropsTheLastInSilence(BlockTier):
    """The last block of each store is not written, and said to be."""

    def _not_there(
        self, job: Any, mine: Mapping[int, bytes], store: BlobStore, done: list[bool]
    ) -> list[int]:
        todo = super()._not_there(job, mine, store, done)
        if len(todo) > 1:
            note_adapter("DropsTheLastInSilence")
            done[todo.pop()] = True
        return todo


class WritesAnew(BlockTier):
    """What is there is written again, each time."""

    def _not_there(
        self, job: Any, mine: Mapping[int, bytes], store: BlobStore, done: list[bool]
    ) -> list[int]:
        note_adapter("WritesAnew")
        return list(mine)


class ShortPrefix(BlockTier):
    """Blocks lie under ``vllm:``."""

    @classmethod
    def key_of(cls, keyspace: Keyspace, identity: RunIdentity, block: BlockId) -> bytes:
        note_adapter("ShortPrefix")
        return super().key_of(Keyspace("vllm:"), identity, block)

    def _open(self, url: str, deadline_s: float, connections: int, options: Any) -> BlobStore:
        store = super()._open(url, deadline_s, connections, options)
        store.keyspace = Keyspace("vllm:")
        return store


class NoTtl(BlockTier):
    """Blocks live until they are evicted."""

    def _open(self, url: str, deadline_s: float, connections: int, options: Any) -> BlobStore:
        note_adapter("NoTtl")
        store = super()._open(url, deadline_s, connections, options)
        store._ttl_ms = None
        return store


class TwoKeys(BlockTier):
    """A note of its own says that a block is there, beside the block."""

    def _store(self, job: Any, store: BlobStore, done: list[bool]) -> int:
        stored = super()._store(job, store, done)
        for (block, _), good in zip(job.items, done, strict=True):
            if good:
                note_adapter("TwoKeys")
                self._records.set(self._key(block) + b":there", b"1", px=60_000)
        return stored

    def _exist(self, blocks: Sequence[BlockId]) -> list[bool]:
        return [bool(self._records.exists(self._key(block) + b":there")) for block in blocks]


class NoDeadline(BlockTier):
    """Waits for the server for as long as it takes."""

    def __init__(self, url: str, *, settings: TierSettings | None = None, **options: Any) -> None:
        note_adapter("NoDeadline")
        patient = replace(
            settings or TierSettings(), lookup_deadline_s=40.0, load_deadline_s=40.0, store_deadline_s=40.0
        )
        super().__init__(url, settings=patient, **options)


class FailsWithTheServer(BlockTier):
    """A lookup asks the server then and there, and what that raises reaches the engine."""

    def lookup(self, block: BlockId, *, request: str) -> Found:
        outcome = self._asks.exists_many([self._key(block)])[0]
        if outcome.error is not None:
            note_adapter("FailsWithTheServer")
            raise outcome.error
        return Found.HIT if outcome.ok else Found.MISS


class NeverComesBack(BlockTier):
    """The first failed job is the last that was tried."""

    _failed = threading.Event()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._failed = threading.Event()
        super().__init__(*arguments, **options)

    def _run(self, job: Any, store: BlobStore) -> None:
        if self._failed.is_set():
            note_adapter("NeverComesBack")
            self._give_up(job, "away")
            return
        super()._run(job, store)

    def results(self) -> list[JobResult]:
        ended = super().results()
        if any(not any(result.done) for result in ended):
            self._failed.set()
        return ended


def config_without_ttl(config: Any, **options: Any) -> dict[str, Any]:
    """The time to live does not get through."""
    made = kv_cache_config(config, **options)
    note_adapter("config_without_ttl")
    made["kv_connector_extra_config"]["secondary_tiers"][0]["ttl_s"] = 3600.0
    return made


def config_that_accepts_anything(config: Any, **options: Any) -> dict[str, Any]:
    """Keys that it does not know are left out, and nothing is said."""
    known = {"type", "url", "prefix", "ttl", "host_memory"}
    while True:
        try:
            return kv_cache_config(config, **options)
        except UsageError as error:
            unknown = [key for key in config if key not in known] if isinstance(config, Mapping) else []
            if "no such key" not in str(error) or not unknown:
                raise
            note_adapter("config_that_accepts_anything")
            config = {key: value for key, value in config.items() if key in known}
