"""Who has objects here: one hash, ``ray:nodes``, and for each node a hash of its objects' ids.

A node is in the hash exactly as long as that hash is not empty, so nothing is left when the last object goes,
and nobody has to SCAN a server that holds millions of other keys. What stands there is a lease: when it was
last renewed (by the server's clock), the address of the cluster's GCS, and the host.

Each change is one script, and so whole: what spills and what deletes may run at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from inference_cache.connection import Client
from inference_cache.errors import KeyFormatError
from inference_cache.ray_spill._names import SpillNames

__all__ = ["Lease", "NodeBook"]

# KEYS: index, nodes. ARGV: field, facts, token, ids...
_ADD: Final = """
for at = 4, #ARGV do redis.call('HSET', KEYS[1], ARGV[at], ARGV[3]) end
redis.call('HSET', KEYS[2], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
"""
_RENEW: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
return 1
"""
_REMOVE: Final = """
for at = 4, #ARGV do redis.call('HDEL', KEYS[1], ARGV[at]) end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HDEL', KEYS[2], ARGV[1]) end
"""
# KEYS: index, nodes, the object's keys... ARGV: field, token, id
_UNDO: Final = """
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[2] then return 0 end
for at = 3, #KEYS do redis.call('UNLINK', KEYS[at]) end
redis.call('HDEL', KEYS[1], ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HDEL', KEYS[2], ARGV[1]) end
return 1
"""
_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('UNLINK', KEYS[1]) end"
_AT_ONCE: Final = 4000
"""Ids in one script: Lua has a limit, and others wait meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a node says of itself."""

    names: SpillNames
    renewed_s: int
    """Seconds since the epoch, by the server's clock."""
    gcs: str
    """``host:port`` of the cluster's GCS, or empty."""
    host: str
    """The machine that the node runs on."""


class NodeBook:
    """The hashes, over a client whose calls raise the CacheError tree."""

    def __init__(self, client: Client, names: SpillNames, *, gcs: str, host: str) -> None:
        self._client = client
        self._names = names
        self._facts = json.dumps({"gcs": gcs, "host": host}).encode()

    def add(self, ids: Sequence[str], *, token: str) -> None:
        """Enters objects that are about to be stored, and renews the lease."""
        for at in range(0, len(ids), _AT_ONCE):
            self._run(_ADD, self._names, self._facts, token, ids[at : at + _AT_ONCE])

    def remove(self, ids: Sequence[str], *, names: SpillNames | None = None) -> None:
        """Strikes objects of this node, or of the one given; a node without any goes too."""
        for at in range(0, len(ids) or 1, _AT_ONCE):
            self._run(_REMOVE, names or self._names, b"", "", ids[at : at + _AT_ONCE])

    def undo(self, object_id: str, keys: Sequence[bytes], *, token: str) -> bool:
        """Removes an object's keys, unless it was entered again since, under another token."""
        own = self._names
        gone = self._eval(_UNDO, 2 + len(keys), own.index, own.nodes, *keys, own.member, token, object_id)
        return bool(gone)

    def renew(self) -> bool:
        """Renews the lease if the node has objects; whether it has."""
        return bool(self._run(_RENEW, self._names, self._facts, "", ()))

    def ids(self, names: SpillNames | None = None) -> list[str]:
        """The objects of this node, or of the one given."""
        found = self._client.hgetall((names or self._names).index)
        return sorted(member.decode("utf-8", "replace") for member in found)

    def has(self, object_id: str, *, names: SpillNames) -> bool:
        """Whether an object stands among those of a node."""
        return self._client.hget(names.index, object_id) is not None

    def leases(self) -> list[Lease]:
        """Every node that has objects. Fields that nobody here wrote are passed over."""
        found = []
        for member, value in self._client.hgetall(self._names.nodes).items():
            lease = self._lease(member, value)
            found += [] if lease is None else [lease]
        return found

    def lease_of(self, names: SpillNames) -> Lease | None:
        """The lease of one node, None when it has no objects."""
        value = self._client.hget(names.nodes, names.member)
        return None if value is None else self._lease(names.member, value)

    def claim(self, token: bytes) -> bool:
        """Makes the caller the only janitor, for two minutes at most; whether that went well."""
        return bool(self._client.set(self._names.sweeper, token, nx=True, px=120_000))

    def release(self, token: bytes) -> None:
        """Ends a claim of that token."""
        self._eval(_RELEASE, 1, self._names.sweeper, token)

    def now_s(self) -> int:
        """The server's clock."""
        return int(self._client.time()[0])

    def _lease(self, member: bytes, value: bytes) -> Lease | None:
        renewed, _, facts = value.partition(b" ")
        try:
            names = self._names.of_member(member)
            told = json.loads(facts)
            return Lease(names=names, renewed_s=int(renewed), gcs=str(told["gcs"]), host=str(told["host"]))
        except (KeyFormatError, ValueError, KeyError, TypeError):
            return None

    def _eval(self, script: str, keys: int, *arguments: bytes | str) -> Any:
        return self._client.execute_command("EVAL", script, keys, *arguments)

    def _run(self, script: str, names: SpillNames, facts: bytes, token: str, ids: Sequence[str]) -> Any:
        return self._eval(script, 2, names.index, names.nodes, names.member, facts, token, *ids)
