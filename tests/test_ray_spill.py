"""Spilled objects without Ray: what the storage stores, gives back, removes, and says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.faults.catalog import BitFlip, BlackHole, ErrorReply, LateReply, Refuse, Truncate
from fixtures.faults.proxy import FaultProxy
from inference_cache import ray_hook
from inference_cache.cli import main
from inference_cache.connection import Client, connect
from inference_cache.errors import (
    AccessDenied,
    BlobCorrupt,
    BlobLost,
    CacheError,
    CacheUnavailable,
    KeyFormatError,
    UnsafeServer,
    UsageError,
)
from inference_cache.keyspace import Keyspace
from inference_cache.ray_spill import SpilledObject, SpillParams, SpillStorage, TornRestore, config
from inference_cache.ray_spill._breaker import Breaker
from inference_cache.ray_spill._gcs import Life, life_of
from inference_cache.ray_spill._janitor import sweep
from inference_cache.ray_spill._names import SpillNames, SpillUrl, parse_url
from inference_cache.ray_spill._nodes import Lease
from inference_cache.ray_spill._record import HEAD_BYTES, Gathered, parse_head, record_bytes, record_of
from tests.servers import Server, eventually, valkey_server

ROOT = Path(__file__).parents[1]
CHUNK = 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with valkey_server(
        tmp_path_factory.mktemp("valkey"), "maxmemory 200mb", "maxmemory-policy volatile-lru"
    ) as up:
        yield up


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connect(server.url) as opened:
        opened.flushall()
        yield opened


@pytest.fixture
def make(server: Server, client: Client) -> Iterator[Callable[..., SpillStorage]]:
    """Storages on the server, or on what is given as ``url``; closed at the end."""
    opened: list[SpillStorage] = []

    def open_storage(*, session: str = "session_1", node: str = "node_1", **params: Any) -> SpillStorage:
        settings = {"url": server.url, "chunk_bytes": CHUNK, "sweep_every_s": None, "call_s": 2.0, **params}
        opened.append(SpillStorage(SpillParams.of(settings), session=session, node=node))
        return opened[-1]

    yield open_storage
    for storage in opened:
        storage.close()


def an_object(
    number: int, size: int, *, owner: bytes = b"owner", metadata: bytes = b"PYTHON"
) -> SpilledObject:
    content = (b"%d:" % number) * (size // 2 + 1)
    return SpilledObject(
        id=f"{number:056x}", owner=owner, metadata=metadata, buffer=memoryview(content[:size])
    )


class Sink:
    """Takes objects as Ray does: all of the bytes, or an exception in between."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, bytes, bytes]] = []

    def __call__(self, owner: bytes, metadata: bytes, size: int, source: Any) -> None:
        target = memoryview(bytearray(size))
        at = 0
        while at < size:
            at += source.readinto(target[at:])
        self.got.append((owner, metadata, bytes(target)))


def restored(storage: SpillStorage, url: bytes) -> tuple[bytes, bytes, bytes]:
    sink = Sink()
    storage.restore(url, sink)
    [got] = sink.got
    return got


def names(node: str = "node_1", session: str = "session_1") -> SpillNames:
    return SpillNames(Keyspace("ray:"), session=session, node=node)


class TestRecord:
    @given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 250), st.integers(0, 250))
    def test_gathered_buffers_slice_as_one(self, parts: list[bytes], start: int, stop: int) -> None:
        gathered = Gathered([memoryview(part) for part in parts])

        assert gathered.nbytes == len(gathered) == len(b"".join(parts))
        piece = gathered[start:stop]
        assert isinstance(piece, memoryview)
        assert bytes(piece) == b"".join(parts)[start:stop]

    def test_a_large_slice_across_buffers_is_not_copied(self) -> None:
        first, second = bytes(2_000_000), bytes(2_000_000)
        piece = Gathered([memoryview(first), memoryview(second)])[1_000_000:3_000_000]

        assert isinstance(piece, Gathered)
        assert piece.nbytes == 2_000_000

    @given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 200))
    def test_the_head_is_read_back(self, owner: bytes, metadata: bytes, size: int) -> None:
        item = an_object(1, size, owner=owner, metadata=metadata)
        record = bytes(record_of(item)[0 : record_bytes(item)])  # type: ignore[arg-type]
        head = parse_head(record, total_bytes=len(record))

        assert (head.owner_bytes, head.metadata_bytes, head.buffer_bytes) == (len(owner), len(metadata), size)
        assert record[head.before_bytes :] == bytes(item.buffer)

    @pytest.mark.parametrize("start", [b"", b"x" * HEAD_BYTES, bytes(HEAD_BYTES)])
    def test_something_else_is_no_record(self, start: bytes) -> None:
        with pytest.raises(BlobCorrupt):
            parse_head(start, total_bytes=500)


class TestNames:
    def test_keys_are_the_contracts_shape(self) -> None:
        assert names().key("ab") == b"ray:session_1:node_1:ab"

    def test_an_url_is_read_back_and_has_nothing_that_ray_would_split(self) -> None:
        key = names().key("ab")
        url = names().url(key, 77)

        assert parse_url(url) == SpillUrl(key=key, offset=0, size_bytes=77)
        assert not {*"?&="} & {*url.decode().partition("?")[0]}

    @pytest.mark.parametrize("owner", [bytes(range(256)), b"\xff\xfe\xfd", b"a", b"=&?"])
    def test_an_url_carries_the_owner_in_letters_that_ray_does_not_split(self, owner: bytes) -> None:
        url = names().url(names().key("ab"), 77, owner=owner)

        assert parse_url(url).owner == owner
        assert parse_url(url.decode()) == parse_url(url)
        pairs = url.decode().partition("?")[2].split("&")
        assert [pair.partition("=")[0] for pair in pairs] == ["offset", "size", "owner"]
        assert all(pair.count("=") == 1 for pair in pairs)

    @pytest.mark.parametrize(
        "url", ["ray:x", "ray:x?offset=0", "ray:x?offset=a&size=1", "ray:x?offset=0&size=1&owner=a"]
    )
    def test_other_urls_are_refused(self, url: str) -> None:
        with pytest.raises(UsageError, match="offset=0&size=N"):
            parse_url(url)

    @pytest.mark.parametrize("bad", ["", "a?b", "a&b", "a=b"])
    def test_names_that_ray_would_split_are_refused(self, bad: str) -> None:
        with pytest.raises(UsageError):
            SpillNames(Keyspace("ray:"), session=bad, node="n")

    def test_a_field_names_its_node(self) -> None:
        own = names(node="n:1", session="s/2")
        found = own.of_member(own.member)

        assert (found.session, found.node) == ("s/2", "n:1")
        with pytest.raises((KeyFormatError, ValueError)):
            own.of_member(b"one part")

    def test_an_objects_key_names_node_and_object_and_others_none(self) -> None:
        own = names()
        found = own.object_of(own.key("ab"))

        assert found is not None
        assert (found[0].member, found[1]) == (own.member, "ab")
        assert own.object_of(own.index) is None
        assert own.object_of(own.nodes) is None
        assert own.object_of(b"emb:x") is None


class TestStoring:
    @pytest.mark.parametrize("size", [0, 1, 5_000, CHUNK - 200, CHUNK, 10 * CHUNK + 7])
    def test_objects_come_back_with_owner_and_metadata(
        self, make: Callable[..., SpillStorage], size: int
    ) -> None:
        storage = make()
        item = an_object(1, size)
        [url] = storage.spill([item])

        assert restored(storage, url) == (b"owner", b"PYTHON", bytes(item.buffer))

    def test_another_process_and_node_restores_them(self, make: Callable[..., SpillStorage]) -> None:
        item = an_object(1, 3 * CHUNK)
        [url] = make().spill([item])

        assert restored(make(node="node_2"), url)[2] == bytes(item.buffer)

    def test_nothing_is_left_after_the_last_deletion(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        storage = make()
        urls = storage.spill([an_object(number, size) for number, size in enumerate((10, CHUNK, 5 * CHUNK))])
        storage.delete(urls[:2])
        assert client.exists(storage.names.index, storage.names.nodes) == 2
        storage.delete(urls[2:])

        assert list(client.scan_iter()) == []

    def test_deleting_twice_is_fine(self, make: Callable[..., SpillStorage], client: Client) -> None:
        storage = make()
        urls = storage.spill([an_object(1, 10)])
        storage.delete(urls)
        storage.delete(urls)

        assert client.dbsize() == 0

    def test_no_object_has_a_ttl(self, make: Callable[..., SpillStorage], client: Client) -> None:
        make().spill([an_object(1, 10), an_object(2, 5 * CHUNK)])

        assert {client.pttl(key) for key in client.scan_iter()} == {-1}

    def test_destroy_takes_the_nodes_own_keys_only(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        first, second, dummy = make(node="1"), make(node="2"), make(node="dummy")
        first.spill([an_object(1, 3 * CHUNK)])
        kept = second.spill([an_object(1, 3 * CHUNK)])

        assert dummy.destroy() == 0
        assert first.destroy() == 1
        assert restored(second, kept[0])[2]
        assert not list(client.scan_iter(match="ray:session_1:1:*"))

    def test_a_password_in_a_file_lets_in(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("open sesame")
        with valkey_server(tmp_path / "server", 'requirepass "open sesame"') as locked:
            params = SpillParams(url=locked.url, password_file=str(secret), sweep_every_s=None)
            with SpillStorage(params, session="s", node="n") as storage:
                [url] = storage.spill([an_object(1, 10)])
                assert restored(storage, url)[2] == bytes(an_object(1, 10).buffer)


class TestLoss:
    def test_a_missing_object_is_lost(self, make: Callable[..., SpillStorage], client: Client) -> None:
        storage = make()
        [url] = storage.spill([an_object(1, 10)])
        client.unlink(parse_url(url).key)

        with pytest.raises(BlobLost):
            storage.restore(url, Sink())
        assert storage.counters.copy()["restore", "lost_missing"] == 1

    def test_a_missing_chunk_is_found_before_the_object_is_begun(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        storage, sink = make(), Sink()
        [url] = storage.spill([an_object(1, 5 * CHUNK)])
        client.unlink(max(client.scan_iter(match=parse_url(url).key + b":~*")))

        with pytest.raises(BlobLost):
            storage.restore(url, sink)
        assert sink.got == []

    def test_damage_in_the_first_chunk_is_found_before_the_object_is_begun(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        storage = make()
        [url] = storage.spill([an_object(1, 5 * CHUNK)])
        flip(client, parse_url(url).key + b":~*:0")

        with pytest.raises(BlobCorrupt):
            storage.restore(url, Sink())

    def test_damage_in_a_later_chunk_tears_once_and_is_a_loss_ever_after(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        storage = make()
        [url] = storage.spill([an_object(1, 5 * CHUNK)])
        flip(client, parse_url(url).key + b":~*:4")

        with pytest.raises(TornRestore):
            storage.restore(url, Sink())
        with pytest.raises(BlobLost):
            storage.restore(url, Sink())

    @pytest.mark.parametrize("fault", [lambda: BitFlip(over_bytes=90), lambda: Truncate(over_bytes=90)])
    def test_what_a_wire_damages_is_not_handed_on(
        self, make: Callable[..., SpillStorage], server: Server, fault: Callable[[], Any]
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage, sink = make(url=f"valkey://127.0.0.1:{proxy.port}", restore_s=1.0), Sink()
            urls = storage.spill([an_object(1, 5_000), an_object(2, 3 * CHUNK)])
            with proxy.fault(fault()) as acting:
                for url in urls:
                    with pytest.raises((BlobCorrupt, BlobLost, CacheUnavailable, TornRestore)):
                        storage.restore(url, sink)
            assert acting.acted
            assert sink.got == []

    def test_a_record_of_another_length_is_refused(self, make: Callable[..., SpillStorage]) -> None:
        storage = make()
        [url] = storage.spill([an_object(1, 5_000)])
        at = parse_url(url)

        for wrong in (at.size_bytes - 1, at.size_bytes + 1):
            with pytest.raises(BlobCorrupt):
                storage.restore(b"%b?offset=0&size=%d" % (at.key, wrong), Sink())


class TestTrouble:
    def test_a_full_server_keeps_nothing_half_done(self, tmp_path: Path) -> None:
        with valkey_server(tmp_path, "maxmemory 12mb", "maxmemory-policy noeviction") as small:
            params = SpillParams(url=small.url, chunk_bytes=8_000_000, sweep_every_s=None)
            with SpillStorage(params, session="s", node="n") as storage, connect(small.url) as client:
                objects = [an_object(number, 3_000_000) for number in range(8)]
                urls = [url for item in objects for url in storage.spill([item])]
                assert 0 < len(urls) < 8
                stored = {parse_url(url).key for url in urls}
                eventually(
                    lambda: set(client.scan_iter(match="ray:s:n:0*")) == stored,
                    "what was refused to be taken back",
                )
                assert client.execute_command("HLEN", storage.names.index) == len(urls)
                for item, url in zip(objects, urls, strict=False):
                    assert restored(storage, url)[2] == bytes(item.buffer)

    def test_reads_that_were_refused_for_long_go_on_when_they_are_allowed_again(
        self, make: Callable[..., SpillStorage], server: Server
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage, item = make(url=f"valkey://127.0.0.1:{proxy.port}", restore_s=0.3), an_object(1, 1000)
            urls = storage.spill([item])
            with proxy.fault(ErrorReply(code="NOAUTH", message="Authentication required.")) as acting:
                for _ in range(2):
                    with pytest.raises((AccessDenied, CacheUnavailable)):
                        storage.restore(urls[0], Sink())
                    time.sleep(0.4)
                assert acting.acted

            def is_read() -> bool:
                try:
                    return restored(storage, urls[0])[2] == bytes(item.buffer)
                except CacheError:
                    return False

            eventually(is_read, "the object to be read")
            storage.delete(urls)
            with connect(server.url) as client:
                eventually(lambda: not client.exists(parse_url(urls[0]).key), "the object to be deleted")

    def test_after_a_failure_nothing_is_sent_for_a_while(
        self, make: Callable[..., SpillStorage], server: Server
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage = make(url=f"valkey://127.0.0.1:{proxy.port}")
            full = ErrorReply(code="OOM", message="command not allowed when used memory", commands="writes")
            with proxy.fault(full):
                assert storage.spill([an_object(1, 1000)]) == []
                began_s = time.monotonic()
                answers = [storage.spill([an_object(1, 1000)]) for _ in range(200)]
                assert answers == [[]] * 200
                assert time.monotonic() - began_s < 5
            assert storage.counters.copy()["spill", "held"] >= 150
            eventually(lambda: storage.spill([an_object(1, 1000)]), "spilling to go on")

    @pytest.mark.parametrize("fault", [lambda: Refuse(how="listen"), BlackHole])
    def test_it_works_again_by_itself_when_the_server_is_back(
        self, make: Callable[..., SpillStorage], server: Server, fault: Callable[[], Any]
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage = make(url=f"valkey://127.0.0.1:{proxy.port}", call_s=0.5)
            [url] = storage.spill([an_object(1, 1000)])
            with proxy.fault(fault()):
                assert storage.spill([an_object(2, 1000)]) == []
            eventually(lambda: storage.spill([an_object(2, 1000)]), "spilling to go on")
            assert restored(storage, url)[2]

    def test_a_read_waits_for_the_server_and_then_succeeds(
        self, make: Callable[..., SpillStorage], server: Server
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage = make(url=f"valkey://127.0.0.1:{proxy.port}", restore_s=30.0)
            [url] = storage.spill([an_object(1, 1000)])
            fault = Refuse(how="listen")
            proxy.arm(fault)
            sink = Sink()
            healer = threading.Timer(1.0, proxy.disarm, [fault])
            healer.start()
            storage.restore(url, sink)
            healer.join()
            assert len(sink.got) == 1
            assert storage.counters.copy()["restore", "retried_unreachable"] >= 1

    def test_a_read_ends_when_the_server_stays_away(
        self, make: Callable[..., SpillStorage], server: Server
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage = make(url=f"valkey://127.0.0.1:{proxy.port}", restore_s=0.5, call_s=0.5)
            [url] = storage.spill([an_object(1, 1000)])
            with proxy.fault(Refuse(how="listen")), pytest.raises(CacheUnavailable):
                storage.restore(url, Sink())

    def test_deletions_are_made_up_for(
        self, make: Callable[..., SpillStorage], server: Server, client: Client
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage = make(url=f"valkey://127.0.0.1:{proxy.port}", call_s=0.5)
            urls = storage.spill([an_object(1, 1000), an_object(2, 3 * CHUNK)])
            with proxy.fault(Refuse(how="listen")):
                storage.delete(urls)
                assert client.exists(*(parse_url(url).key for url in urls)) == 2
            eventually(lambda: client.dbsize() == 0, "the deletions to be made up for")

    def test_what_was_in_doubt_is_undone_later(
        self, make: Callable[..., SpillStorage], server: Server, client: Client
    ) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            storage = make(url=f"valkey://127.0.0.1:{proxy.port}", call_s=0.5)
            with proxy.fault(LateReply(seconds=2, commands=["SET"])):
                assert storage.spill([an_object(1, 1000)]) == []
            eventually(lambda: client.dbsize() == 0, "what was stored unseen to be removed")

    def test_undoing_spares_an_object_that_was_stored_again(self, make: Callable[..., SpillStorage]) -> None:
        storage = make()
        item = an_object(1, 3 * CHUNK)
        storage._doubtful = {item.id: "the token of an earlier try"}
        [url] = storage.spill([item])
        storage._undo_doubtful()

        assert restored(storage, url)[2] == bytes(item.buffer)
        assert storage._doubtful == {}

    def test_metrics_are_written(self, make: Callable[..., SpillStorage], tmp_path: Path) -> None:
        pytest.importorskip("prometheus_client", reason="pip install 'inference-cache[gate]'")
        storage = make(metrics_folder=str(tmp_path))
        storage.spill([an_object(1, 1000)])
        path = tmp_path / f"ray_spill_{os.getpid()}.prom"
        eventually(lambda: path.exists() and 'direction="write"' in path.read_text(), "the metrics")

        [line] = [
            t for t in path.read_text().splitlines() if t.startswith("inference_cache_adapter_bytes_total{")
        ]
        assert 'workload="ray"' in line
        assert f'pid="{os.getpid()}"' in line
        assert float(line.split()[-1]) > 1000

    def test_calls_are_timed_also_those_that_fail(self, make: Callable[..., SpillStorage]) -> None:
        storage = make()
        [url] = storage.spill([an_object(1, 1000)])
        restored(storage, url)
        storage.delete([url])
        with pytest.raises(BlobLost):
            restored(storage, url)

        spreads = storage.durations.copy()
        assert {operation: spread.count for operation, spread in spreads.items()} == {
            "spill": 1,
            "restore": 2,
        }
        assert all(spread.sum_s > 0 for spread in spreads.values())


class TestBreaker:
    def test_it_lets_one_try_after_the_pause(self) -> None:
        breaker = Breaker()
        assert breaker.admits()
        breaker.failed("full")
        assert not breaker.admits()
        eventually(breaker.admits, "the pause to end")
        assert not breaker.admits()

        breaker.closed()
        assert breaker.admits()
        assert breaker.open_for_s == 0

    def test_pauses_grow_and_end_somewhere(self) -> None:
        breaker = Breaker()
        for _ in range(50):
            breaker.failed("full")

        assert 1 < breaker._opens_until_s - time.monotonic() <= 4


class TestSafety:
    @pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
    def test_a_server_that_evicts_only_copies_is_refused_with_the_remedy(
        self, tmp_path: Path, policy: str
    ) -> None:
        with valkey_server(tmp_path, "maxmemory 50mb", f"maxmemory-policy {policy}") as risky:
            undeclared = SpillParams(url=risky.url)
            with (
                SpillStorage(undeclared, session="s", node="n") as storage,
                pytest.raises(UnsafeServer, match=r"volatile-lru.*contract"),
            ):
                storage.check()
            declared = SpillParams(url=risky.url, contract="adr_0023")
            with SpillStorage(declared, session="s", node="n") as storage:
                storage.check()

    def test_a_contract_that_declares_no_loss_accepts_none(self, tmp_path: Path) -> None:
        with valkey_server(tmp_path, "maxmemory 50mb", "maxmemory-policy allkeys-lru") as risky:
            params = SpillParams(url=risky.url, contract="adr_0023_safe")
            with SpillStorage(params, session="s", node="n") as storage, pytest.raises(UnsafeServer):
                storage.check()

    def test_too_little_room_is_refused(self, server: Server) -> None:
        params = SpillParams(url=server.url, reserve_bytes=10**9)
        with (
            SpillStorage(params, session="s", node="n") as storage,
            pytest.raises(UnsafeServer, match="reserve_bytes"),
        ):
            storage.check()

    def test_a_policy_that_changes_meanwhile_stops_the_spilling(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        storage = make()
        assert storage.spill([an_object(1, 10)])
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            storage._recheck()
            assert storage.spill([an_object(2, 10)]) == []
            assert "allkeys-lru" in storage.trouble
        finally:
            client.config_set("maxmemory-policy", "volatile-lru")
        storage._recheck()
        assert storage.spill([an_object(2, 10)])


class TestJanitor:
    def sweep(self, storage: SpillStorage, life: Life, **options: Any) -> Any:
        settings: dict[str, Any] = {"lease_s": 60.0, "abandoned_s": None, **options}
        return sweep(
            storage._book, storage.names, remove=storage._remove_all, life=lambda _: life, **settings
        )

    @pytest.mark.parametrize("life", list(Life))
    def test_who_renewed_its_lease_is_left_alone(
        self, make: Callable[..., SpillStorage], client: Client, life: Life
    ) -> None:
        make(node="other").spill([an_object(1, 10)])
        before = set(client.scan_iter())

        assert self.sweep(make(), life).removed == 0
        assert set(client.scan_iter()) == before

    @pytest.mark.parametrize(
        ("life", "removed"), [(Life.DEAD, 2), (Life.ALIVE, 0), (Life.RESTORABLE, 0), (Life.UNKNOWN, 0)]
    )
    def test_without_a_lease_life_decides(
        self, make: Callable[..., SpillStorage], client: Client, life: Life, removed: int
    ) -> None:
        make(node="other").spill([an_object(1, 10), an_object(2, 5 * CHUNK)])
        age(client)
        report = self.sweep(make(), life)

        assert report.removed == removed
        assert bool(client.dbsize()) == (removed == 0)

    def test_only_the_dead_are_removed_among_several(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        kept = make(node="living").spill([an_object(1, 10)])
        make(session="session_0", node="dead").spill([an_object(1, 5 * CHUNK)])
        age(client)
        storage = make()
        report = sweep(
            storage._book,
            storage.names,
            remove=storage._remove_all,
            lease_s=60,
            abandoned_s=None,
            life=lambda lease: Life.DEAD if lease.names.node == "dead" else Life.ALIVE,
        )

        assert report.dead == ["session_0:dead"]
        assert restored(storage, kept[0])
        assert not list(client.scan_iter(match="ray:session_0:*"))

    def test_who_comes_back_in_the_middle_is_left_alone(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        other = make(node="other")
        other.spill([an_object(1, 10)])
        age(client)
        storage = make()

        def it_lives(_: Lease) -> Life:
            other._book.renew()
            return Life.DEAD

        report = sweep(
            storage._book,
            storage.names,
            remove=storage._remove_all,
            lease_s=60,
            abandoned_s=None,
            life=it_lives,
        )
        assert (report.removed, report.alive) == (0, 1)

    def test_the_unknown_are_removed_when_they_were_abandoned(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        make(node="other").spill([an_object(1, 10)])
        age(client)

        assert self.sweep(make(), Life.UNKNOWN, abandoned_s=5000.0).removed == 0
        assert self.sweep(make(), Life.UNKNOWN, abandoned_s=3000.0).removed == 1

    def test_a_session_that_the_caller_knows_to_be_over_needs_no_proof(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        make(session="over", node="other").spill([an_object(1, 10)])

        assert self.sweep(make(), Life.ALIVE, dead_sessions=["over"]).removed == 1
        assert client.dbsize() == 0

    def test_the_storage_sweeps_by_itself(
        self, make: Callable[..., SpillStorage], server: Server, client: Client
    ) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            gone = f"127.0.0.1:{bound.getsockname()[1]}"
        params = SpillParams(url=server.url, sweep_every_s=None)
        with SpillStorage(params, session="over", node="n", gcs=gone) as dead:
            dead.spill([an_object(1, 10)])
        age(client)
        make(sweep_every_s=0.5).delete([])

        eventually(lambda: client.dbsize() == 0, "the keys of the dead to be swept")

    def test_one_works_at_a_time(self, make: Callable[..., SpillStorage], client: Client) -> None:
        make(node="other").spill([an_object(1, 10)])
        age(client)
        client.set("ray:sweeper", "somebody", px=60_000)

        assert self.sweep(make(), Life.DEAD).busy

    def test_fields_of_others_are_passed_over(
        self, make: Callable[..., SpillStorage], client: Client
    ) -> None:
        client.execute_command("HSET", "ray:nodes", "rubbish", "x", "a:b", "1 {}", "c:d", "y z")

        assert make()._book.leases() == []

    def test_a_gcs_that_is_not_there_any_more_means_death(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
        lease = Lease(names=names(), renewed_s=0, gcs=f"127.0.0.1:{port}", host=socket.gethostname())

        assert life_of(lease) is Life.DEAD

    @pytest.mark.parametrize("gcs", ["", "nonsense", "127.0.0.1:1"])
    def test_a_gcs_that_cannot_be_reached_from_here_says_nothing(self, gcs: str) -> None:
        lease = Lease(names=names(), renewed_s=0, gcs=gcs, host="another-machine")

        assert life_of(lease) is Life.UNKNOWN


class TestHook:
    def test_the_pth_file_makes_new_interpreters_ready(self, tmp_path: Path) -> None:
        shutil.copy(ROOT / "src" / "inference_cache_ray_spill.pth", tmp_path)
        code = f"import site, sys; site.addsitedir({str(tmp_path)!r})"
        done = run_python(
            code + "; print('inference_cache.ray_hook' in sys.modules)", PYTHONPATH=str(ROOT / "src")
        )

        assert done.stdout.strip() == "True"

    def test_without_the_package_it_is_silent(self, tmp_path: Path) -> None:
        shutil.copy(ROOT / "src" / "inference_cache_ray_spill.pth", tmp_path)
        done = run_python(
            "import sys; sys.modules['inference_cache'] = None; import site; "
            f"site.addsitedir({str(tmp_path)!r})"
        )

        assert (done.returncode, done.stderr) == (0, "")

    def test_it_costs_no_import_but_itself(self) -> None:
        done = run_python(
            "import sys; before = set(sys.modules); import inference_cache.ray_hook;"
            "print(sorted(set(sys.modules) - before))",
            PYTHONPATH=str(ROOT / "src"),
        )

        assert done.stdout.strip() == "['__future__', 'inference_cache', 'inference_cache.ray_hook']"

    def test_the_factory_is_wrapped_on_import_and_others_types_are_rays(self, tmp_path: Path) -> None:
        package = tmp_path / "ray" / "_private"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").write_text("")
        (package / "__init__.py").write_text("")
        (package / "external_storage.py").write_text(
            "def setup_external_storage(config, node_id, session_name):\n"
            "    return ('ray', config, node_id, session_name)\n"
        )
        done = run_python(
            "import inference_cache.ray_hook as hook\n"
            "assert hook.installed()\n"
            "import ray._private.external_storage as storage\n"
            "assert hook.installed()\n"
            "print(storage.setup_external_storage({'type': 'filesystem'}, 'n', session_name='s'))\n"
            "print(storage.setup_external_storage(None, 'n', 's'))\n",
            PYTHONPATH=f"{ROOT / 'src'}:{tmp_path}",
        )

        assert done.stdout.splitlines() == [
            "('ray', {'type': 'filesystem'}, 'n', 's')",
            "('ray', None, 'n', 's')",
        ]

    def test_a_module_without_the_factory_is_left_as_it_is(self) -> None:
        module = SimpleNamespace()
        ray_hook.patch(module)

        assert not vars(module)

    def test_patching_twice_wraps_once(self) -> None:
        module = SimpleNamespace(setup_external_storage=lambda *_: None)
        ray_hook.patch(module)
        once = module.setup_external_storage
        ray_hook.patch(module)

        assert module.setup_external_storage is once


class TestParams:
    def test_what_is_given_arrives_in_the_io_workers(self) -> None:
        made = config(url="valkey://host:1", contract="adr_0023", ray_settings={"max_io_workers": 2})
        told = json.loads(made.system_config["object_spilling_config"])

        assert told["type"] == "valkey"
        assert SpillParams.of(told["params"]) == made.params
        assert made.system_config["max_io_workers"] == 2

    def test_the_argument_for_ray_start_is_one_word_of_json(self) -> None:
        argument = config(url="valkey://host:1").ray_start
        flag, _, value = argument.partition("=")

        assert flag == "--system-config"
        assert not argument.split()[1:]
        assert "object_spilling_config" in json.loads(value)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"url": "valkey://:secret@host:1"}, "password_env"),
            ({"url": "valkey://host:1", "chunks": 1}, "chunks"),
            ({}, "url"),
            ({"url": "valkey://host:1", "lease_s": 0}, "lease_s"),
            ({"url": "valkey://host:1", "restore_s": -1}, "restore_s"),
        ],
    )
    def test_mistakes_are_refused_and_no_secret_is_told(self, given: dict[str, Any], said: str) -> None:
        with pytest.raises(UsageError, match=said) as caught:
            SpillParams.of(given)
        assert "secret" not in str(caught.value)


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
        code = main(["ray-spill", *words])
        return code, capsys.readouterr().out

    def test_config_prints_what_ray_start_takes(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out = self.run(capsys, "config", "--url", "valkey://host:1", "--set", "restore_s=7")
        told = json.loads(out.strip().removeprefix("--system-config="))

        assert code == 0
        assert json.loads(told["object_spilling_config"])["params"]["restore_s"] == 7

    @pytest.mark.parametrize("setting", ["restore_s", "restore_s=x"])
    def test_a_setting_that_is_no_json_is_a_usage_error(
        self, capsys: pytest.CaptureFixture[str], setting: str
    ) -> None:
        assert self.run(capsys, "config", "--url", "valkey://host:1", "--set", setting)[0] == 2

    def test_doctor_tells_a_safe_server_from_a_risky_one(
        self, capsys: pytest.CaptureFixture[str], server: Server, client: Client
    ) -> None:
        code, out = self.run(capsys, "doctor", "--url", server.url)
        assert "ok      policy" in out
        assert "ok      round trip" in out
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            code, out = self.run(capsys, "doctor", "--url", server.url)
        finally:
            client.config_set("maxmemory-policy", "volatile-lru")
        assert code == 1
        assert "WRONG   policy" in out
        assert client.dbsize() == 0

    def test_doctor_says_that_nobody_answers(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out = self.run(capsys, "doctor", "--url", "valkey://127.0.0.1:1")

        assert code == 1
        assert "WRONG   server" in out

    def test_sweep_removes_a_session_that_is_over_and_says_so(
        self,
        capsys: pytest.CaptureFixture[str],
        make: Callable[..., SpillStorage],
        server: Server,
        client: Client,
    ) -> None:
        make(session="over").spill([an_object(1, 10)])
        code, out = self.run(capsys, "sweep", "--url", server.url)
        assert (code, client.dbsize() > 0) == (0, True)
        code, out = self.run(capsys, "sweep", "--url", server.url, "--session", "over")

        assert (code, client.dbsize()) == (0, 0)
        assert "removed: over:node_1" in out

    def test_sweep_without_a_server_is_no_success(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(capsys, "sweep", "--url", "valkey://127.0.0.1:1")[0] == 3


def flip(client: Client, pattern: bytes) -> None:
    """Alters a byte of the only key that matches."""
    [key] = client.scan_iter(match=pattern)
    byte = client.getrange(key, 500, 500)
    client.execute_command("SETRANGE", key, 500, bytes([byte[0] ^ 1]))


def age(client: Client) -> None:
    """All leases look an hour older."""
    for field, value in client.hgetall("ray:nodes").items():
        renewed, _, facts = value.partition(b" ")
        client.execute_command("HSET", "ray:nodes", field, b"%d %b" % (int(renewed) - 3600, facts))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code without site-packages, so that an installed hook does not answer for the one under test."""
    base = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**base, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
