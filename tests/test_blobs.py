"""Large values: they come back as they were or not at all, in time, and leave nothing behind."""

from __future__ import annotations

import itertools
import os
import re
import socket
import ssl
import struct
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from servers import eventually, fake, free_port, tls_in_front_of, valkey_server
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from fixtures.faults.catalog import (
    Bandwidth,
    BitFlip,
    BlackHole,
    ErrorReply,
    FlipOver,
    LateReply,
    NilToEmpty,
    Refuse,
    ResetMidReply,
    Truncate,
    TruncateOver,
    ValuesAsText,
)
from fixtures.faults.fault import End, Fault, OnCommand, OnReply
from fixtures.faults.proxy import FaultProxy
from fixtures.strategies import against_a_server, key_parts
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.acl import render_acl
from inference_cache.blobs import INCOMPLETE, BlobStore, Damage, Outcome, Status
from inference_cache.blobs._frame import HEADER_BYTES, whole_header
from inference_cache.blobs._transport import full_url
from inference_cache.blobs._wire import Buffer, Wire
from inference_cache.connection import Client, RetryPolicy, deadline, parse_url
from inference_cache.contract import load
from inference_cache.errors import (
    BlobCorrupt,
    BlobLost,
    DeadlineExceeded,
    KeyFormatError,
    ServerReadOnly,
    UsageError,
)
from inference_cache.keyspace import Keyspace

SPACE = Keyspace("ray:")
KEY = SPACE.key("object")
CHUNK = 1024
DEADLINE_S = 10.0
SHORT_S = 0.4
SLACK_S = 1.0
"""A call may take this much longer than its deadline on a busy machine."""
DOCUMENT = Path(__file__).parent.parent / "docs" / "blobs.md"


@pytest.fixture(scope="module", params=list(shipped_executables().items()), ids=lambda item: item[0])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(request.param[1], {"save": "", "unixsocket": "s"}) as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Client]:
    with server.connect() as connected:
        connected.flushall()
        yield connected


def open_store(url: str, **options: Any) -> BlobStore:
    """A store with small chunks, where several fit into a test."""
    given = {"keyspace": SPACE, "deadline_s": DEADLINE_S, "chunk_bytes": CHUNK, "max_bytes": 4 << 20}
    return BlobStore(url, **(given | options))


@pytest.fixture
def store(server: EmbeddedServer, client: Client) -> Iterator[BlobStore]:
    with open_store(server.url) as opened:
        yield opened


@pytest.fixture
def large_store(server: EmbeddedServer, client: Client) -> Iterator[BlobStore]:
    with open_store(server.url, chunk_bytes=1 << 20) as opened:
        yield opened


def a_value(size_bytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size_bytes)


# --- round trips


@against_a_server(max_examples=150)
@given(
    parts=key_parts(),
    size_bytes=st.one_of(
        st.integers(0, 2 * HEADER_BYTES), st.integers(0, 7 * CHUNK), st.sampled_from([4095, 4096, 4097])
    ),
    nearest=st.sampled_from([None, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 1]),
    misaligned_bytes=st.integers(0, 9),
    seed=st.integers(0, 1 << 32),
)
def test_a_value_of_any_size_and_alignment_comes_back_as_it_was(
    server: EmbeddedServer,
    parts: tuple[bytes, ...],
    size_bytes: int,
    nearest: int | None,
    misaligned_bytes: int,
    seed: int,
) -> None:
    size = size_bytes if nearest is None else nearest
    source = memoryview(a_value(size + misaligned_bytes, seed))[misaligned_bytes:]
    around = bytearray(b"\xaa" * (size + misaligned_bytes + 8))
    with open_store(server.url, ttl_s=60) as store:
        assert store.store(parts, source).status is Status.STORED
        assert store.load_into(parts, memoryview(around)[misaligned_bytes:-8]).status is Status.HIT
        assert around == b"\xaa" * misaligned_bytes + source + b"\xaa" * 8
        assert store.load(SPACE.key(*parts)) == source
        assert store.size_of(parts) == size
        assert [outcome.status for outcome in store.delete_many([parts])] == [Status.DELETED]
    with server.connect() as client:
        assert client.dbsize() == 0


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint16", "bool", "complex64", ">f4"]
)
def test_arrays_of_any_type_and_shape_are_their_bytes(store: BlobStore, dtype: str) -> None:
    values = np.frombuffer(a_value(4800), dtype="uint8") % 2 if dtype == "bool" else a_value(4800)
    array = np.frombuffer(bytes(values), dtype=dtype).reshape(2, -1, 3)
    back = np.zeros_like(array)
    assert store.store(KEY, array).ok
    assert store.load_into(KEY, back).ok
    assert back.tobytes() == array.tobytes()


def test_large_values_cross_the_default_chunk_limit(server: EmbeddedServer, client: Client) -> None:
    value = np.random.default_rng(1).integers(0, 256, (130 << 20) + 7, dtype=np.uint8)
    back = np.zeros_like(value)
    with BlobStore(server.url, keyspace=SPACE, deadline_s=60) as store:
        assert store.store(KEY, value).require().status is Status.STORED
        assert client.dbsize() == 1 + 3
        assert store.load_into(KEY, back).require().status is Status.HIT
        assert np.array_equal(value, back)
        assert store.delete_many([KEY])[0].ok
    assert client.dbsize() == 0


def test_batches_keep_their_order_and_spread_over_connections(server: EmbeddedServer, client: Client) -> None:
    sizes = [0, 1, CHUNK, 700_000, CHUNK + 1, 50, 300_000, 1 << 20, 900_000, 2_000_000]
    values = [a_value(size, seed) for seed, size in enumerate(sizes)]
    buffers = [bytearray(size) for size in sizes]
    with open_store(server.url, connections=3, chunk_bytes=1 << 20) as store:
        stored = store.store_many([((index,), value) for index, value in enumerate(values)])
        assert [outcome.key for outcome in stored] == [SPACE.key(index) for index in range(len(values))]
        assert all(outcome.ok for outcome in stored)
        wanted = [((index,), buffer) for index, buffer in enumerate(buffers)]
        loaded = store.load_many_into([*wanted[:4], (("absent",), bytearray(3)), *wanted[4:]])
        assert [outcome.status for outcome in loaded] == [*[Status.HIT] * 4, Status.MISS, *[Status.HIT] * 6]
        assert buffers == values
        names = [line["name"] for line in client.client_list()]
        assert 2 <= names.count("inference-cache-blobs") <= 3
        assert store.load_many_into([]) == store.store_many([]) == store.delete_many([]) == []


def test_small_values_go_out_together_and_not_one_at_a_time(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    flush = Wire._flush

    def counted(wire: Wire, parts: list[Buffer], left_bytes: int) -> None:
        sent.append(left_bytes)
        flush(wire, parts, left_bytes)

    monkeypatch.setattr(Wire, "_flush", counted)
    values = [(("small", number), bytes([number]) * 1000) for number in range(64)]
    with BlobStore(server.url, keyspace=SPACE, deadline_s=5, max_bytes=CHUNK, chunk_bytes=CHUNK) as store:
        assert all(outcome.ok for outcome in store.store_many(values))
        assert len(sent) == 1
        assert sent[0] > 64_000
        sent.clear()
        buffers = [(key, bytearray(1000)) for key, _ in values]
        assert all(outcome.ok for outcome in store.load_many_into(buffers))
        assert len(sent) == 1
    assert [bytes(buffer) for _, buffer in buffers] == [value for _, value in values]


def test_loading_and_storing_take_no_memory_of_the_size_of_the_value(server: EmbeddedServer) -> None:
    value, back = a_value(64 << 20), bytearray(64 << 20)
    for chunk_bytes in (64 << 20, 4 << 20):
        with open_store(server.url, chunk_bytes=chunk_bytes, max_bytes=64 << 20, deadline_s=60) as store:
            tracemalloc.start()
            try:
                assert store.store(KEY, value).ok
                assert store.load_into(KEY, back).ok
                peak_bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert back == value
            assert peak_bytes < 1 << 20
            store.delete_many([KEY])


# --- time to live, existence, deletion


@pytest.mark.parametrize("size_bytes", [CHUNK, 5 * CHUNK], ids=["whole", "chunked"])
def test_every_key_of_a_value_gets_the_time_to_live(
    client: Client, store: BlobStore, size_bytes: int
) -> None:
    def ttls() -> set[int]:
        return {round(client.pttl(key) / 1000) for key in client.scan_iter()}

    value = a_value(size_bytes)
    assert store.store(KEY, value, ttl_s=3600).ok
    assert ttls() == {3600}
    assert store.touch_many([KEY, SPACE.key("absent")], ttl_s=90.0)[0].status is Status.HIT
    assert ttls() == {90}
    assert store.touch_many([KEY], ttl_s=None)[0].ok
    assert {client.pttl(key) for key in client.scan_iter()} == {-1}
    assert store.store(KEY, value).ok
    assert {client.pttl(key) for key in client.scan_iter()} == {-1}
    assert store.touch_many([KEY], ttl_s=0.02)[0].ok
    eventually(lambda: client.dbsize() == 0, "the keys to expire")


def test_values_are_replaced_and_deleted_with_all_their_chunks(client: Client, store: BlobStore) -> None:
    for size, keys in [(5 * CHUNK, 6), (3 * CHUNK, 4), (1, 1), (4 * CHUNK, 5), (CHUNK, 1), (2 * CHUNK, 3)]:
        assert store.store(KEY, a_value(size)).ok
        assert client.dbsize() == keys
        assert store.load(KEY) == a_value(size)
    assert store.store(SPACE.key("other"), b"1").ok
    client.sadd(SPACE.key("set"), "member")
    names = [KEY, SPACE.key("absent"), SPACE.key("other"), SPACE.key("set")]
    assert [outcome.status.value for outcome in store.exists_many(names)] == ["hit", "miss", "hit", "hit"]
    assert [outcome.status.value for outcome in store.delete_many(names)] == [
        *("deleted", "miss", "deleted", "deleted")
    ]
    assert client.dbsize() == 0


def test_a_value_of_another_type_is_replaced(client: Client, store: BlobStore) -> None:
    for size in (10, 3 * CHUNK):
        client.unlink(KEY)
        client.hset(KEY, "field", "value")
        assert store.store(KEY, a_value(size)).ok
        assert store.load(KEY) == a_value(size)


def test_without_chunks_a_store_is_one_set(server: EmbeddedServer, client: Client) -> None:
    with open_store(server.url, max_bytes=CHUNK) as store:
        assert store.store(KEY, b"warm").ok
        client.config_resetstat()
        assert store.store(KEY, a_value(CHUNK)).ok
        calls = client.info("commandstats")
        assert [name for name in calls if "config" not in name and "info" not in name] == ["cmdstat_set"]
        assert calls["cmdstat_set"]["calls"] == 1
        assert store.load(KEY) == a_value(CHUNK)


# --- damage


def framed(value: bytes, key: bytes = KEY) -> bytes:
    return whole_header(key, len(value)) + value + xxh3_128_digest(value)


def resealed(frame: bytes, offset: int, byte: int) -> bytes:
    """A header with another byte that is nevertheless sealed rightly, as another version might write it."""
    changed = bytearray(frame)
    changed[offset] = byte
    changed[56:64] = struct.pack("<Q", xxh3_64_intdigest(bytes(changed[:56])))
    return bytes(changed)


VALUE = a_value(200)
FRAME = framed(VALUE)
DAMAGED: list[tuple[str, bytes, Damage]] = [
    ("empty", b"", Damage.SHORT),
    ("cut in the magic", FRAME[:3], Damage.SHORT),
    ("cut in the header", FRAME[:63], Damage.SHORT),
    ("header only", FRAME[:64], Damage.SHORT),
    ("one byte short", FRAME[:-1], Damage.SHORT),
    ("one byte long", FRAME + b"\0", Damage.LONG),
    ("twice", FRAME + FRAME, Damage.LONG),
    ("another's bytes", VALUE, Damage.FOREIGN),
    ("another's few bytes", b"x", Damage.FOREIGN),
    ("text", FRAME.decode(errors="replace").encode(), Damage.FOREIGN),
    ("another key's", framed(VALUE, SPACE.key("other")), Damage.FOREIGN),
    ("newer version", resealed(FRAME, 8, 2), Damage.VERSION),
    ("newer kind", resealed(FRAME, 9, 3), Damage.VERSION),
    ("reserved bits", resealed(FRAME, 10, 1), Damage.VERSION),
    ("a manifest of no chunk size", resealed(FRAME, 9, 2), Damage.FOREIGN),
    ("another length", resealed(FRAME, 16, 199), Damage.LONG),
    ("another key's checksum", resealed(FRAME, 48, FRAME[48] ^ 1), Damage.FOREIGN),
    ("another size", framed(VALUE[:-1]), Damage.SIZE),
]


@pytest.mark.parametrize(("raw", "damage"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_damaged_values_are_corrupt_with_the_reason(
    client: Client, store: BlobStore, raw: bytes, damage: Damage
) -> None:
    client.set(KEY, raw)
    outcome = store.load_into(KEY, bytearray(len(VALUE)))
    assert (outcome.status, outcome.reason) == (Status.CORRUPT, damage.value)
    assert store.counters == {("load", damage.value): 1}
    client.set(KEY, FRAME)
    assert store.load_into(KEY, bytearray(len(VALUE))).ok
    with pytest.raises(BlobCorrupt, match=damage.value) as caught:
        outcome.require()
    assert caught.value.damage == damage.value


def test_a_flip_of_any_byte_is_found(client: Client, store: BlobStore) -> None:
    due = {range(8): Damage.FOREIGN, range(8, 9): Damage.VERSION}
    for offset in range(len(FRAME)):
        client.set(KEY, FRAME[:offset] + bytes((FRAME[offset] ^ 0x10,)) + FRAME[offset + 1 :])
        reason = next((damage for offsets, damage in due.items() if offset in offsets), Damage.CHECKSUM)
        assert store.load_into(KEY, bytearray(len(VALUE))).reason == reason.value, offset


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda chunk: chunk[:-1], "short"),
        (lambda chunk: b"", "short"),
        (lambda chunk: chunk + b"\0", "long"),
        (lambda chunk: bytes((chunk[0] ^ 1,)) + chunk[1:], "checksum"),
        (lambda chunk: None, INCOMPLETE),
    ],
    ids=["short", "empty", "long", "altered", "missing"],
)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_damaged_chunk_spoils_the_value(
    client: Client, store: BlobStore, place: int, change: Callable[[bytes], bytes | None], reason: str
) -> None:
    assert store.store(KEY, a_value(4 * CHUNK + 5)).ok
    [name] = [key for key in client.scan_iter() if key.endswith(b":%d" % place)]
    changed = change(client.get(name) or b"")
    client.unlink(name)
    if changed is not None:
        client.set(name, changed)
    outcome = store.load_into(KEY, bytearray(4 * CHUNK + 5))
    assert outcome.status is (Status.MISS if reason == INCOMPLETE else Status.CORRUPT)
    assert outcome.reason == reason
    assert store.load(KEY) is None
    assert store.touch_many([KEY], ttl_s=9)[0].reason == (INCOMPLETE if reason == INCOMPLETE else "hit")


def test_a_damaged_manifest_is_corrupt(client: Client, store: BlobStore) -> None:
    assert store.store(KEY, a_value(3 * CHUNK)).ok
    manifest = client.get(KEY)
    assert manifest is not None
    for offset in range(len(manifest)):
        client.set(KEY, manifest[:offset] + bytes((manifest[offset] ^ 1,)) + manifest[offset + 1 :])
        assert store.load_into(KEY, bytearray(3 * CHUNK)).status is Status.CORRUPT
    client.set(KEY, manifest)
    assert store.load_into(KEY, bytearray(3 * CHUNK + 1)).reason == "size"


def test_something_that_is_no_string_is_foreign(client: Client, store: BlobStore) -> None:
    client.hset(KEY, "field", "value")
    assert store.load_into(KEY, bytearray(3)).reason == "foreign"
    assert store.size_of(KEY) is None
    assert store.touch_many([KEY], ttl_s=9)[0].reason == "foreign"


def test_more_than_max_bytes_is_not_loaded(server: EmbeddedServer, store: BlobStore) -> None:
    assert store.store(KEY, a_value(3 * CHUNK)).ok
    with open_store(server.url, max_bytes=2 * CHUNK) as smaller:
        assert smaller.load(KEY) is None
        assert smaller.counters == {("load", "size"): 1}


# --- faults on the way


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, and the reasons that storing and loading then give."""

    fault: Callable[[], Fault]
    store: str = "stored"
    load: str = "hit"
    reconnect: bool = False
    hides_headers: bool = False
    """A manifest that cannot be read when it is replaced leaves its chunks behind."""


CASES = {
    "values cut short": Case(fault=lambda: Truncate(over_bytes=100), load="short"),
    "stream cut short": Case(fault=lambda: Truncate(over_bytes=100, stream=True), load="unreachable"),
    "bit flipped": Case(fault=BitFlip, load="checksum", hides_headers=True),
    "reset in mid-reply": Case(fault=lambda: ResetMidReply(after_bytes=100), load="unreachable"),
    "reset in the first byte": Case(
        fault=lambda: ResetMidReply(after_bytes=1), load="unreachable", store="unreachable"
    ),
    "black hole": Case(fault=BlackHole, load="deadline", store="deadline"),
    "1 byte/s": Case(fault=lambda: Bandwidth(bytes_per_s=1), load="deadline", store="deadline"),
    "late reply": Case(fault=lambda: LateReply(seconds=3 * SHORT_S), load="deadline", store="deadline"),
    "LOADING": Case(fault=lambda: ErrorReply(code="LOADING"), load="loading", store="loading"),
    "NOAUTH": Case(fault=lambda: ErrorReply(code="NOAUTH"), load="access", store="access"),
    "OOM": Case(fault=lambda: ErrorReply(code="OOM", commands="writes"), store="full"),
    "READONLY": Case(fault=lambda: ErrorReply(code="READONLY", commands="writes"), store="read_only"),
    "MISCONF": Case(fault=lambda: ErrorReply(code="MISCONF", commands="writes"), store="persistence"),
    "unknown error": Case(fault=lambda: ErrorReply(code="WAT"), load="rejected", store="rejected"),
    "out of connections": Case(
        fault=lambda: ErrorReply(code="ERR", message="max number of clients reached", at_connect=True),
        load="busy",
        store="busy",
        reconnect=True,
    ),
    "reset at once": Case(fault=Refuse, load="unreachable", store="unreachable"),
    "nobody listens": Case(fault=lambda: Refuse(how="listen"), load="unreachable", store="unreachable"),
    "nothing is an empty string": Case(fault=NilToEmpty),
}


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=("127.0.0.1", server.port)) as running:
        yield running


def sockets_to(port: int) -> int:
    """Sockets of ours, leaving out the proxy's."""
    connections = psutil.Process().net_connections("tcp")
    return sum(bool(each.raddr) and each.raddr.port == port for each in connections)


def only_staging_is_left(client: Client) -> bool:
    """Whether all keys expire within the minute that incomplete values are given."""
    return all(0 < client.pttl(key) <= 60_000 for key in client.scan_iter())


def in_time(call: Callable[[], Any]) -> Any:
    began_s = time.monotonic()
    result = call()
    assert time.monotonic() - began_s < SHORT_S + SLACK_S
    return result


@pytest.mark.parametrize("size_bytes", [200, 3 * CHUNK], ids=["whole", "chunked"])
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_fault_gives_its_outcome_in_time_and_is_survived(
    client: Client, proxy: FaultProxy, case: Case, size_bytes: int
) -> None:
    value, other = a_value(size_bytes), a_value(size_bytes, 1)
    with open_store(f"valkey://127.0.0.1:{proxy.port}", deadline_s=SHORT_S) as store:
        assert store.store(KEY, value).ok
        connected = sockets_to(proxy.port)
        if case.reconnect:
            store.close()
        with proxy.fault(case.fault()) as fault:
            loaded = in_time(lambda: store.load_into(KEY, bytearray(size_bytes)))
            stored = in_time(lambda: store.store(KEY, other))
            for call in (
                lambda: store.exists_many([KEY]),
                lambda: store.size_of(KEY),
                lambda: store.touch_many([KEY], ttl_s=60),
                lambda: store.load(SPACE.key("absent")),
            ):
                in_time(call)
            assert fault.acted
        assert (loaded.reason, stored.reason) == (case.load, case.store)
        eventually(lambda: store.store(KEY, other).ok, "the store to work again")
        assert store.load(KEY) == other
        assert store.delete_many([KEY])[0].ok
        assert sockets_to(proxy.port) <= connected
    assert sockets_to(proxy.port) == 0
    assert case.hides_headers or only_staging_is_left(client)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (TruncateOver(over_bytes=150), "short"),
        (FlipOver(over_bytes=150), "checksum"),
        (ValuesAsText(), "foreign"),
    ],
    ids=["cut", "flipped", "taken for text"],
)
def test_what_was_spoiled_on_the_way_in_is_corrupt(
    client: Client, proxy: FaultProxy, fault: Fault, reason: str
) -> None:
    with open_store(f"valkey://127.0.0.1:{proxy.port}") as store:
        with proxy.fault(fault):
            assert store.store(KEY, VALUE).ok
        assert fault.acted
        assert store.load_into(KEY, bytearray(len(VALUE))).reason == reason


def test_no_reply_is_taken_for_that_of_another_key(client: Client, proxy: FaultProxy) -> None:
    values = {(index,): a_value(300, index) for index in range(20)}
    with open_store(f"valkey://127.0.0.1:{proxy.port}", deadline_s=SHORT_S) as store:
        assert all(outcome.ok for outcome in store.store_many(values.items()))
        with proxy.fault(LateReply(seconds=1.5 * SHORT_S, every=7)) as fault:
            ends_at_s = time.monotonic() + 3
            for key in itertools.cycle(values):
                if time.monotonic() > ends_at_s:
                    break
                loaded = in_time(lambda key=key: store.load(key))
                assert loaded is None or loaded == values[key]
            assert fault.acted
        assert store.counters[("load", "hit")]
        assert set(store.counters) == {("store", "stored"), ("load", "hit"), ("load", "deadline")}


def test_a_dead_idle_connection_is_replaced_and_a_deadline_scope_only_tightens(
    client: Client, proxy: FaultProxy
) -> None:
    with open_store(f"valkey://127.0.0.1:{proxy.port}") as store:
        assert store.store(KEY, VALUE).ok
        with proxy.fault(Refuse(how="listen")):
            pass
        assert store.load(KEY) == VALUE
        with proxy.fault(BlackHole()), deadline(SHORT_S):
            assert in_time(lambda: store.exists_many([KEY]))[0].status is Status.LATE


def test_a_batch_goes_on_after_a_lost_connection(client: Client, proxy: FaultProxy) -> None:
    class ResetOnce(ResetMidReply):
        def on_reply(self, ctx: Any, command: Any, reply: Any) -> Any:
            hit = not self.acted and command.argv[1:2] == (SPACE.key(5),)
            return super().on_reply(ctx, command, reply) if hit else None

    with open_store(f"valkey://127.0.0.1:{proxy.port}", connections=1) as store:
        items = [((index,), a_value(400, index)) for index in range(10)]
        for commands in ("SET", "GET"):
            with proxy.fault(ResetOnce(after_bytes=1)) as fault:
                if commands == "SET":
                    assert all(outcome.ok for outcome in store.store_many(items))
                else:
                    buffers = [bytearray(400) for _ in items]
                    wanted = [(key, buffer) for (key, _), buffer in zip(items, buffers, strict=True)]
                    assert all(outcome.ok for outcome in store.load_many_into(wanted))
                    assert buffers == [value for _, value in items]
                assert fault.acted


@dataclass(kw_only=True, eq=False)
class Once(Fault):
    """Does something when it first sees a command, or resets the connection instead of the first reply."""

    command: bytes
    then: Callable[[], object] | None = None

    def on_command(self, ctx: Any, command: Any) -> OnCommand:
        if self.then is not None and command.name == self.command and not self.acted:
            self.act()
            self.then()
        return None

    def on_reply(self, ctx: Any, command: Any, reply: Any) -> OnReply:
        if self.then is None and command.name == self.command and not self.acted:
            self.act()
            return End.RESET
        return None


@pytest.mark.parametrize("command", [b"WATCH", b"GETRANGE", b"SET", b"EXEC", b"UNLINK"])
@pytest.mark.parametrize("size_bytes", [200, 3 * CHUNK], ids=["whole", "chunked"])
def test_a_lost_reply_is_made_good(
    client: Client, proxy: FaultProxy, store: BlobStore, command: bytes, size_bytes: int
) -> None:
    assert store.store(KEY, a_value(4 * CHUNK)).ok
    with open_store(f"valkey://127.0.0.1:{proxy.port}") as faulty:
        with proxy.fault(Once(command=command)):
            assert faulty.store(KEY, a_value(size_bytes)).status is Status.STORED
        assert store.load(KEY) == a_value(size_bytes)
        assert client.dbsize() == (1 if size_bytes == 200 else 4)
        with proxy.fault(Once(command=command)):
            assert faulty.delete_many([KEY])[0].status in (Status.DELETED, Status.MISS)
    assert client.dbsize() == 0


def test_a_value_whose_chunks_were_evicted_before_its_end_is_not_stored(
    client: Client, proxy: FaultProxy
) -> None:
    def evict() -> None:
        client.unlink(next(key for key in client.scan_iter() if key != KEY))

    with open_store(f"valkey://127.0.0.1:{proxy.port}") as store:
        with proxy.fault(Once(command=b"WATCH", then=evict)):
            outcome = store.store(KEY, a_value(3 * CHUNK))
        assert (outcome.status, outcome.reason) == (Status.REFUSED, "full")
        assert client.dbsize() == 0
        assert store.store(KEY, a_value(3 * CHUNK)).ok


# --- cut on the way to the server


@dataclass(kw_only=True)
class Wiretap:
    """Passes what a client sends on to a server, up to ``limit_bytes``, and then cuts all its connections."""

    port: int
    limit_bytes: int | None = None
    seen: bytearray

    def __call__(self, connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as upstream:
            back = threading.Thread(target=self._copy_back, args=(upstream, connection), daemon=True)
            back.start()
            while data := connection.recv(65536):
                if self.limit_bytes is not None:
                    data = data[: max(0, self.limit_bytes - len(self.seen))]
                self.seen += data
                upstream.sendall(data)
                if self.limit_bytes is not None and len(self.seen) >= self.limit_bytes:
                    break
            upstream.shutdown(socket.SHUT_WR)
            back.join()

    @staticmethod
    def _copy_back(upstream: socket.socket, connection: socket.socket) -> None:
        with suppress(OSError):
            while data := upstream.recv(65536):
                connection.sendall(data)
            connection.shutdown(socket.SHUT_RDWR)


def store_tapped(tap: Wiretap, value: bytes) -> Outcome:
    with (
        fake(tap) as listener,
        open_store(
            listener.url, connections=1, connect_options={"retry": RetryPolicy(backoff_s=0.001)}
        ) as store,
    ):
        return store.store(KEY, value)


@pytest.mark.parametrize("size_bytes", [200, 2 * CHUNK + 5], ids=["whole", "chunked"])
@pytest.mark.parametrize("before_bytes", [None, 150, 3 * CHUNK], ids=["new", "over whole", "over chunked"])
def test_a_store_that_is_cut_anywhere_is_seen_whole_or_not_at_all(
    server: EmbeddedServer, client: Client, store: BlobStore, size_bytes: int, before_bytes: int | None
) -> None:
    new = a_value(size_bytes, 1)
    old = None if before_bytes is None else a_value(before_bytes, 2)

    def begin() -> None:
        client.flushall()
        if old is not None:
            assert store.store(KEY, old).ok

    begin()
    tap = Wiretap(port=server.port, seen=bytearray())
    assert store_tapped(tap, new).ok
    ends = [match.end() for match in re.finditer(rb"\r\n", bytes(tap.seen))]
    cuts = {end + near for end in ends for near in (-1, 0)} | set(range(0, len(tap.seen), 211))
    outcomes = set()
    for cut in sorted(cuts & set(range(len(tap.seen)))):
        begin()
        tap = Wiretap(port=server.port, limit_bytes=cut, seen=bytearray())
        outcome = store_tapped(tap, new)
        outcomes.add(outcome.status)
        found = store.load(KEY)
        assert found in (old, new), f"cut after {cut} bytes"
        assert found == new or not outcome.ok
        store.delete_many([KEY])
        assert only_staging_is_left(client), f"cut after {cut} bytes"
    assert Status.UNAVAILABLE in outcomes


# --- readers, writers, threads, processes


def test_readers_of_a_value_that_is_overwritten_see_one_version(
    server: EmbeddedServer, client: Client
) -> None:
    size = 40 * CHUNK
    sizes = [size, size, size, CHUNK]
    done = threading.Event()

    def write(number: int) -> int:
        with open_store(server.url) as store:
            for count in itertools.count():
                if done.is_set():
                    return count
                fill = bytes((number * 64 + count % 64,))
                assert store.store(KEY, fill * sizes[count % len(sizes)]).status is Status.STORED
        raise AssertionError

    def read() -> set[int]:
        seen = set()
        with open_store(server.url) as store:
            while not done.is_set():
                value = store.load(KEY)
                assert value is not None
                assert len(value) in (size, CHUNK)
                assert len(set(value)) == 1
                seen.add(value[0])
            assert set(store.counters) == {("load", "hit")}
        return seen

    with open_store(server.url) as first, ThreadPoolExecutor(4) as pool:
        assert first.store(KEY, b"\0" * size).ok
        readers = [pool.submit(read) for _ in range(2)]
        writers = [pool.submit(write, number) for number in range(2)]
        time.sleep(2.5)
        done.set()
        assert all(writer.result() > 5 for writer in writers)
        assert all(len(reader.result()) > 3 for reader in readers)
        assert first.delete_many([KEY])[0].ok
    assert client.dbsize() == 0


def test_threads_share_a_store(client: Client, large_store: BlobStore) -> None:
    store = large_store

    def work(number: int) -> None:
        for count in range(15):
            values = [a_value(300_000 * (index + 1), number * 100 + count) for index in range(3)]
            assert all(o.ok for o in store.store_many([((number, i), v) for i, v in enumerate(values)]))
            buffers = [bytearray(len(value)) for value in values]
            assert all(o.ok for o in store.load_many_into([((number, i), b) for i, b in enumerate(buffers)]))
            assert buffers == values

    with ThreadPoolExecutor(6) as pool:
        for result in [pool.submit(work, number) for number in range(6)]:
            result.result()
    connected = [line for line in client.client_list() if line["name"] == "inference-cache-blobs"]
    assert len(connected) <= 2


def test_a_forked_process_uses_connections_of_its_own(client: Client, large_store: BlobStore) -> None:
    store = large_store

    def work(name: str) -> None:
        value, back = a_value(2 << 20, len(name)), bytearray(2 << 20)
        for _ in range(20):
            assert store.store((name,), value).ok
            assert store.load_into((name,), back).ok
            assert back == value

    work("before")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is the point
        child = os.fork()
    if not child:
        status = 1
        try:
            work("child")
            status = 0
        finally:
            os._exit(status)
    work("parent")
    assert os.waitpid(child, 0)[1] == 0
    work("afterwards")


# --- servers that say no


def test_a_full_server_refuses_and_nothing_is_left(tmp_path: Path) -> None:
    with (
        valkey_server(tmp_path, "maxmemory 8mb", "maxmemory-policy noeviction") as full,
        open_store(full.url, chunk_bytes=1 << 20, max_bytes=64 << 20) as store,
    ):
        for size in (1 << 20, 32 << 20):
            outcomes = [store.store((index,), a_value(size)) for index in range(20)]
            assert outcomes[-1].status is Status.REFUSED
            assert outcomes[-1].reason == "full"
            store.delete_many([(index,) for index in range(20)])
        assert store.store(("again",), b"1").ok
        assert [outcome.ok for outcome in store.exists_many([(0,), ("again",)])] == [False, True]


def test_values_above_the_server_s_limit_go_in_chunks_below_it(tmp_path: Path) -> None:
    value = a_value(3 << 20)
    with valkey_server(tmp_path, "proto-max-bulk-len 1mb") as strict:
        with open_store(strict.url, chunk_bytes=512 << 10) as store:
            assert store.store(KEY, value).ok
            assert store.load(KEY) == value
        with open_store(strict.url, chunk_bytes=4 << 20) as store:
            outcome = store.store(SPACE.key("whole"), value)
            assert outcome.status in (Status.REFUSED, Status.UNAVAILABLE)
            assert store.load(KEY) == value


def test_a_user_confined_to_the_prefix_may_do_all_of_it(tmp_path: Path) -> None:
    contract = load()
    passwords = dict.fromkeys(contract.workloads, "secret")
    rules = tmp_path / "users.acl"
    rules.write_text(render_acl(contract, passwords=passwords, default_user="off"))
    user = next(name for name, workload in contract.workloads.items() if workload.prefix == SPACE.prefix)
    with valkey_server(tmp_path / "server", f"aclfile {rules}") as guarded:
        address = guarded.url.removeprefix("valkey://")
        with open_store(f"valkey://{user}:secret@{address}", ttl_s=60) as store:
            for size in (1, 5 * CHUNK, 3 * CHUNK, 2):
                assert store.store(KEY, a_value(size)).require().ok
                assert store.load(KEY) == a_value(size)
                assert store.touch_many([KEY], ttl_s=9)[0].require().ok
                assert store.size_of(KEY) == size
            assert store.exists_many([KEY])[0].require().ok
            assert store.delete_many([KEY])[0].require().ok
        with open_store(f"valkey://{user}:wrong@{address}") as store:
            assert store.store(KEY, b"1").reason == store.load_into(KEY, bytearray(1)).reason == "access"


# --- other ways to a server


def test_unix_sockets_databases_tls_and_sentinels_work(
    server: EmbeddedServer, client: Client, tmp_path: Path
) -> None:
    value = a_value(3 << 20)

    def works(url: str, **options: Any) -> None:
        with open_store(url, chunk_bytes=1 << 20, **options) as store:
            assert store.store(KEY, value).require().ok
            assert store.load(KEY) == value
            assert store.delete_many([KEY])[0].require().ok

    works(f"unix://{server.data_dir}/s?db=3")
    works(f"{server.url}/5", connect_options={"client_name": "me"})
    assert [line["db"] for line in client.client_list() if line["name"] == "me"] in ([], ["5"])
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with tls_in_front_of(server.port, context) as terminator:
        url = terminator.url.replace("valkey://", "valkeys://")
        works(url, connect_options={"tls_ca_file": tmp_path / "ca.pem"})
        works(parse_url(f"{url}?tls_ca_file={tmp_path / 'ca.pem'}"))
    monitor = f"sentinel monitor cache 127.0.0.1 {server.port} 1"
    with valkey_server(tmp_path / "sentinel", monitor, sentinel=True) as sentinel:
        works(f"valkey+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/cache")


@pytest.mark.parametrize(
    "url",
    [
        "valkey://h:1/2",
        "valkeys://us%40er:p%3Aw@[::1]:7/1?tls_verify=no&client_name=a",
        "valkey://:secret@h",
        "unix:///a/b%20c?db=4&password_env=X",
        "valkey+sentinel://u:p@a,b:2/my%2Fsvc/4",
    ],
)
def test_an_endpoint_is_as_good_as_its_url(url: str) -> None:
    assert parse_url(full_url(parse_url(url))) == parse_url(url)


# --- wrong use

ARRAY = np.zeros((4, 6), dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.store("object", b""), "not str"),
        (lambda s: s.store(["object"], b""), "not list"),
        (lambda s: s.store(b"emb:object", b""), "does not start with 'ray:'"),
        (lambda s: s.store(b"ray:a:~" + b"0" * 32 + b":7", b""), "shape of a chunk"),
        (lambda s: s.store((), b""), "needs a part"),
        (lambda s: s.store((1.5,), b""), "float"),
        (lambda s: s.store(KEY, "text"), "str gives none"),
        (lambda s: s.store(KEY, None), "NoneType gives none"),
        (lambda s: s.store(KEY, ARRAY[:, ::2]), "C-contiguous"),
        (lambda s: s.store(KEY, memoryview(b"abcdef")[::2]), "C-contiguous"),
        (lambda s: s.store(KEY, ARRAY.astype(object)), "addresses"),
        (lambda s: s.load_into(KEY, ARRAY.astype("f4,O")), "addresses"),
        (lambda s: s.store(KEY, ARRAY.astype("M8[s]")), "gives none"),
        (lambda s: s.store(KEY, bytes((4 << 20) + 1)), "larger than max_bytes"),
        (lambda s: s.store(KEY, b"", ttl_s=0), "ttl_s"),
        (lambda s: s.store_many([(KEY, b"1"), (("object",), b"2")]), "twice"),
        (lambda s: s.store_many([(("good",), b"1"), (KEY, "bad")]), "str gives none"),
        (lambda s: s.load_into(KEY, bytes(3)), "read-only"),
        (lambda s: s.load_into(KEY, memoryview(bytearray(8))[::2]), "C-contiguous"),
        (lambda s: s.touch_many([KEY], ttl_s=float("nan")), "ttl_s"),
    ],
)
def test_a_wrong_argument_is_an_error_and_nothing_is_written(
    client: Client, store: BlobStore, call: Callable[[BlobStore], object], message: str
) -> None:
    with pytest.raises((UsageError, KeyFormatError), match=message):
        call(store)
    assert client.dbsize() == 0
    assert store.counters == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "valkey+cluster://h"}, "cluster"),
        ({"url": "h:1"}, "scheme"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"chunk_bytes": 16}, "chunks"),
        ({"window": 0}, "window"),
        ({"connections": 0}, "connections"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"ttl_s": -1}, "ttl_s"),
        ({"on_loss": "panic"}, "on_loss"),
    ],
)
def test_a_store_that_cannot_be_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_store(options.pop("url", "valkey://h"), **options)


# --- the only copy


def test_losing_the_only_copy_is_an_error(server: EmbeddedServer, client: Client, proxy: FaultProxy) -> None:
    url = f"valkey://127.0.0.1:{proxy.port}"
    with open_store(url, on_loss="raise", deadline_s=SHORT_S) as store:
        absent: Sequence[Callable[[], object]] = (
            lambda: store.load(KEY),
            lambda: store.load_into(KEY, bytearray(3)),
            lambda: store.size_of(KEY),
        )
        for call in absent:
            with pytest.raises(BlobLost, match="not there"):
                call()
        answers = [*store.exists_many([KEY]), *store.delete_many([KEY]), *store.touch_many([KEY], ttl_s=1)]
        assert [outcome.status for outcome in answers] == [Status.MISS] * 3
        client.set(KEY, FRAME[:-1])
        with pytest.raises(BlobCorrupt, match="short"):
            store.load(KEY)
        with proxy.fault(BlackHole()), pytest.raises(DeadlineExceeded):
            store.exists_many([KEY])
        with proxy.fault(ErrorReply(code="READONLY", commands="writes")), pytest.raises(ServerReadOnly):
            store.store_many([(KEY, b"1")])
        assert store.store(KEY, b"1").ok
        assert store.counters[("load", "miss")] == 2


def test_the_example_in_the_documentation_works(server: EmbeddedServer, client: Client) -> None:
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert "valkey://127.0.0.1:6379" in example
    exec(compile(example.replace("valkey://127.0.0.1:6379", server.url), str(DOCUMENT), "exec"), {})
    assert client.dbsize() == 0
