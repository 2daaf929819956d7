"""What lies in the cache, by run: models, blocks, bytes, ages; read by SCAN within a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from inference_cache.connection import Client, deadline
from inference_cache.errors import CommandRejected, DeadlineExceeded, KeyFormatError, UsageError
from inference_cache.keyspace import Keyspace
from inference_cache.kv_offload._identity import RECORD_PART, RunIdentity, read_record, record_key

__all__ = ["Listing", "RunListing", "list_runs"]

_AT_ONCE: Final = 500


@dataclass(slots=True, kw_only=True)
class RunListing:
    """The blocks of one run that were seen."""

    fingerprint: str
    identity: RunIdentity | None = None
    """None when its record is gone or cannot be read."""
    blocks: int = 0
    memory_bytes: int = 0
    """What the server uses for them."""
    groups: set[int] = field(default_factory=set)
    youngest_s: float | None = None
    """Age of the block that was stored last, as its time to live tells; None when none has one."""
    oldest_s: float | None = None

    def see(self, group: int, memory_bytes: int, age_s: float | None) -> None:
        """Adds one block."""
        self.blocks += 1
        self.memory_bytes += memory_bytes
        self.groups.add(group)
        if age_s is not None:
            self.youngest_s = age_s if self.youngest_s is None else min(self.youngest_s, age_s)
            self.oldest_s = age_s if self.oldest_s is None else max(self.oldest_s, age_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All runs that were seen, the one with the most blocks first."""

    runs: tuple[RunListing, ...]
    keys_seen: int
    foreign_keys: int
    """Keys under the prefix that are no block and no record of a run."""
    complete: bool
    """Whether all keys were looked at, within the budget."""


def list_runs(client: Client, *, prefix: str, ttl_s: float, deadline_s: float, most_keys: int) -> Listing:
    """Walks the keys under the prefix, and stops after ``most_keys`` of them or ``deadline_s`` seconds.

    Nothing that it asks counts as a use of a key, so no block lives longer for it. ``ttl_s`` is the time to
    live that blocks are stored with; ages follow from what is left of it. Raises CacheError when the server
    does not answer.
    """
    keyspace = Keyspace(prefix)
    runs: dict[str, RunListing] = {}
    seen = foreign = 0
    complete = False
    try:
        with deadline(deadline_s):
            keys = client.scan_iter(match=keyspace.pattern(), count=_AT_ONCE)
            while named := list(islice(keys, _AT_ONCE)):
                seen += len(named)
                parsed = [(key, _block_of(keyspace, key)) for key in named if keyspace.contains(key)]
                foreign += sum(found is None for _, found in parsed)
                blocks = [(key, *found) for key, found in parsed if found is not None]
                for (_, fingerprint, group), (used, left_ms) in zip(
                    blocks, _sizes(client, [key for key, _, _ in blocks]), strict=True
                ):
                    run = runs.setdefault(fingerprint, RunListing(fingerprint=fingerprint))
                    if group is not None and used is not None:
                        age_s = None if left_ms < 0 else max(0.0, ttl_s - left_ms / 1000)
                        run.see(group, used, age_s)
                if seen >= most_keys:
                    break
            else:
                complete = True
            for run in runs.values():
                run.identity = _identity_of(client, keyspace, run.fingerprint)
    except DeadlineExceeded:
        complete = False
    ordered = sorted(runs.values(), key=lambda run: (-run.blocks, run.fingerprint))
    return Listing(runs=tuple(ordered), keys_seen=seen, foreign_keys=foreign, complete=complete)


def _block_of(keyspace: Keyspace, key: bytes) -> tuple[str, int | None] | None:
    """Fingerprint and group of a block; a record has no group; None for anything else."""
    try:
        parts = keyspace.parse(key)
        fingerprint = parts[0].decode("ascii")
        if parts[1:] == (RECORD_PART.encode(),):
            return fingerprint, None
        return (fingerprint, int(parts[1])) if len(parts) in (3, 4) else None
    except (KeyFormatError, UnicodeDecodeError, ValueError, IndexError):
        return None


def _sizes(client: Client, keys: list[bytes]) -> Iterator[tuple[int | None, int]]:
    """Memory of each key in bytes, None when it is gone by now, and what is left to live in milliseconds."""
    if not keys:
        return iter(())
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.execute_command("MEMORY", "USAGE", key)
            pipeline.pttl(key)
        replies: list[Any] = pipeline.execute()
    return zip(replies[::2], replies[1::2], strict=True)


def _identity_of(client: Client, keyspace: Keyspace, fingerprint: str) -> RunIdentity | None:
    try:
        record = client.get(record_key(keyspace, fingerprint))
        return read_record(record) if isinstance(record, bytes) else None
    except (UsageError, CommandRejected):
        return None
