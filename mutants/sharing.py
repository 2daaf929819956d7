"""Adapters and samplers that do not go well with sharing an instance."""

from __future__ import annotations

import threading
from typing import Any

from inference_cache.blobs import BlobStore, Outcome
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.plan import LiveSample, sample_server
from inference_cache.sessions import SessionStore, Target, Turn
from mutants.liveness import note_adapter

__all__ = ["KeysInTheHotPath", "LooksByReading", "UnpacedBigValues", "attributes_to_first_word"]

_BIG_BYTES = 32 * 1024 * 1024
_WRITERS = 24


class KeysInTheHotPath(SessionStore):
    """Before each read all sessions are listed with KEYS, to see whether the one asked for is among them."""

    def read(self, session: Target, *, slide: bool = True) -> list[Turn]:
        self._client.keys(b"session:*")
        note_adapter("KeysInTheHotPath")
        return super().read(session, slide=slide)


class UnpacedBigValues(BlobStore):
    """Blocks are gathered into values of 32 MiB, and written on many connections as fast as they go."""

    _began = False

    def store(self, key: Any, buffer: Any, **options: Any) -> Outcome:
        outcome = super().store(key, buffer, **options)
        if not self._began:
            self._began = True
            for number in range(_WRITERS):
                threading.Thread(target=self._write_on, args=(number,), daemon=True).start()
        return outcome

    def _write_on(self, number: int) -> None:
        value = memoryview(bytearray(_BIG_BYTES))
        store = BlobStore(
            self.endpoint,
            keyspace=self.keyspace,
            deadline_s=60,
            connections=1,
            ttl_s=3600,
            max_bytes=_BIG_BYTES,
        )
        for counted in range(1_000_000):
            note_adapter("UnpacedBigValues")
            store.store(("gathered", number, counted % 2), value)


def attributes_to_first_word(client: Client, contract: Contract, **options: Any) -> LiveSample:
    """A key belongs to the workload whose prefix is what stands before its first colon."""
    seen = sample_server(client, contract, **options)
    nobody = len(seen.names)
    for number, name in enumerate(seen.names):
        if contract.workloads[name].prefix.count(":") > 1:
            note_adapter("attributes_to_first_word")
            seen.workloads[seen.workloads == number] = nobody
    return seen


class LooksByReading(SessionStore):
    """The read waits for the server to list and look at every key that there is, in one script."""

    _SCRIPT = (
        "local n = 0; local cursor = '0'; repeat local r = redis.call('SCAN', cursor, 'COUNT', 1000); "
        "cursor = r[1]; for _, k in ipairs(r[2]) do redis.call('OBJECT', 'IDLETIME', k); n = n + 1 end "
        "until cursor == '0'; return n"
    )

    def read(self, session: Target, *, slide: bool = True) -> list[Turn]:
        client: Any = self._client
        client.execute_command("EVAL", self._SCRIPT, 0)
        note_adapter("LooksByReading")
        return super().read(session, slide=slide)
