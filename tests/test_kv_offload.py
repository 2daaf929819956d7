"""The tier of KV blocks, and what it is made of."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fixtures.faults.catalog import BlackHole, ErrorReply, Latency
from fixtures.faults.proxy import FaultProxy
from fixtures.kv_blocks import BLOCK_BYTES, BlockRig, an_identity, block, bytes_of
from fixtures.kv_configs import ADR, BAD_CONFIGS, GOOD_CONFIGS
from fixtures.kv_partition import PARTITIONS
from inference_cache.cli import main
from inference_cache.connection import Client, connect
from inference_cache.errors import MissingExtra, UsageError
from inference_cache.keyspace import Keyspace
from inference_cache.kv_offload import (
    BlockId,
    BlockTier,
    Found,
    JobResult,
    RunIdentity,
    TierSettings,
    Transfer,
    kv_cache_config,
    list_runs,
    request_scope,
)
from inference_cache.kv_offload._breaker import Breaker
from inference_cache.kv_offload._identity import block_key, read_record, record_key, run_record
from inference_cache.kv_offload._jobs import Job, JobQueue
from inference_cache.kv_offload._lookups import Lookups
from inference_cache.kv_offload._weights import digest_of_folder, weights_of
from tests.servers import Server, eventually, valkey_server

SPACE = Keyspace("vllm:kv:")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with valkey_server(tmp_path_factory.mktemp("kv")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connect(server.url, deadline_s=10.0) as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=("127.0.0.1", server.port)) as running:
        yield running


def some(count: int, *, first: int = 0) -> list[tuple[BlockId, int]]:
    return [(block(first + number), number) for number in range(count)]


class TestIdentity:
    def test_the_fingerprint_is_the_same_in_every_process(self) -> None:
        # Written down, so that a change of the format does not go unnoticed: it makes every block unfindable.
        assert an_identity().fingerprint == "40e14213ce42141cf7a401f3a7dc24ed"

    def test_every_field_is_in_the_partition_matrix(self) -> None:
        varied = {name for row in PARTITIONS for name in row.run}
        assert varied == {each.name for each in fields(RunIdentity) if each.init}

    @pytest.mark.parametrize("row", [row for row in PARTITIONS if row.run], ids=lambda row: row.name)
    def test_every_field_changes_the_fingerprint(self, row: Any) -> None:
        assert an_identity(**row.run).fingerprint != an_identity().fingerprint

    def test_a_record_gives_the_identity_back(self) -> None:
        record = run_record(an_identity(), writer="test")
        assert read_record(record) == an_identity()
        assert json.loads(record)["run"]["model"] == "org/model"

    @pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"run": {}, "fingerprint": ""}', b"\xff"])
    def test_what_is_no_record_is_refused(self, text: bytes) -> None:
        with pytest.raises(UsageError, match="no record"):
            read_record(text)

    def test_a_record_under_another_fingerprint_is_refused(self) -> None:
        content = json.loads(run_record(an_identity(), writer="test"))
        content["run"]["model"] = "another"
        with pytest.raises(UsageError, match="describes the run"):
            read_record(json.dumps(content).encode())

    @pytest.mark.parametrize("name", ["model", "weights", "kv_dtype"])
    def test_what_it_cannot_do_without_must_not_be_empty(self, name: str) -> None:
        with pytest.raises(UsageError, match=name):
            an_identity(**{name: ""})

    def test_keys_can_be_read_by_people(self) -> None:
        key = block_key(SPACE, "ab12", BlockId(group=3, digest=b"\x01\xff"))
        assert key == b"vllm:kv:ab12:3:01ff"
        assert record_key(SPACE, "ab12") == b"vllm:kv:ab12:config"

    def test_the_fingerprint_is_of_all_fields_as_sorted_ascii_json(self) -> None:
        identity = an_identity(model="modèle")
        text = json.dumps(identity.as_dict(), sort_keys=True, separators=(",", ":"))
        assert "mod\\u00e8le" in text
        assert identity.fingerprint == hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    def test_a_block_has_one_token_and_one_byte_at_least(self) -> None:
        assert an_identity(value_bytes=1, block_tokens=1).fingerprint
        for wrong in ({"value_bytes": 0}, {"block_tokens": 0}):
            with pytest.raises(UsageError, match=r"^a block has tokens and bytes, not \d+ and \d+ of them$"):
                an_identity(**wrong)

    def test_what_describes_no_run_is_refused_with_what_is_missing(self) -> None:
        described = an_identity().as_dict()
        del described["layout"]
        with pytest.raises(UsageError, match=r"^this describes no run: 'layout'$"):
            RunIdentity.from_dict(described)

    def test_a_record_is_text_for_people(self) -> None:
        lines = run_record(an_identity(model="modèle"), writer="me").decode("ascii").splitlines()
        assert lines[:4] == [
            "{",
            f' "fingerprint": "{an_identity(model="modèle").fingerprint}",',
            ' "run": {',
            '  "adapters": "none",',
        ]
        assert lines[-2:] == [' "writer": "me"', "}"]
        names = [line.split('"')[1] for line in lines if line.startswith('  "')]
        assert names == sorted(names)

    def test_a_block_of_a_request_with_a_scope_has_a_key_of_its_own(self) -> None:
        key = block_key(SPACE, "ab12", BlockId(group=3, digest=b"\x01\xff", scope=b"\xaa\x0b"))
        assert key == b"vllm:kv:ab12:3:01ff:aa0b"

    def test_a_scope_is_a_digest_of_adapter_and_salt_in_this_order(self) -> None:
        for adapter, salt, text in (("ä", "s", b'["\\u00e4", "s"]'), ("", "x", b'["", "x"]')):
            assert request_scope(adapter=adapter, salt=salt) == hashlib.sha256(text).digest()[:16]

    def test_a_request_without_adapter_and_salt_adds_nothing(self) -> None:
        assert request_scope() == b""
        assert (
            len({request_scope(adapter="x"), request_scope(salt="x"), request_scope(adapter="x", salt="x")})
            == 3
        )


class TestBreaker:
    def make(self) -> Breaker:
        return Breaker(threshold=2, first_pause_s=0.02, longest_pause_s=0.08)

    def test_opens_after_so_many_failures_in_a_row(self) -> None:
        breaker = self.make()
        breaker.failed()
        breaker.succeeded()
        breaker.failed()
        assert not breaker.is_open
        breaker.failed()
        assert breaker.is_open
        assert breaker.opened == 1

    def test_lets_one_try_after_each_pause(self) -> None:
        breaker = self.make()
        breaker.failed()
        breaker.failed()
        assert not breaker.allows()
        eventually(breaker.allows, "the pause to end", within_s=5.0)
        assert not breaker.allows()
        breaker.succeeded()
        assert breaker.allows()
        assert not breaker.is_open


class TestQueue:
    def job(self, number: int, transfer: Transfer, size_bytes: int = 10) -> Job:
        return Job(number=number, transfer=transfer, items=(), size_bytes=size_bytes)

    def test_loads_go_before_stores(self) -> None:
        queue = JobQueue(most_bytes=100)
        queue.put(self.job(1, Transfer.STORE))
        queue.put(self.job(2, Transfer.LOAD))
        both = (Transfer.LOAD, Transfer.STORE)
        taken = [queue.take(both, wait_s=0) for _ in range(2)]
        assert [job.number for job in taken if job] == [2, 1]

    def test_stores_are_pushed_out_before_a_load_is_refused(self) -> None:
        queue = JobQueue(most_bytes=30)
        for number in range(3):
            assert queue.put(self.job(number, Transfer.STORE)) == (True, [])
        assert queue.put(self.job(9, Transfer.STORE)) == (False, [])
        waits, out = queue.put(self.job(10, Transfer.LOAD, 15))
        assert waits
        assert [job.number for job in out] == [0, 1]
        assert queue.waiting_bytes == 25

    def test_a_single_job_may_be_larger_than_the_bound(self) -> None:
        queue = JobQueue(most_bytes=5)
        assert queue.put(self.job(1, Transfer.LOAD, 50)) == (True, [])
        assert queue.put(self.job(2, Transfer.LOAD, 50)) == (False, [])

    def test_waiting_until_idle_has_an_end(self) -> None:
        queue = JobQueue(most_bytes=100)
        queue.put(self.job(1, Transfer.LOAD))
        job = queue.take([Transfer.LOAD], wait_s=0)
        assert job is not None
        assert not queue.wait_idle(wait_s=0.01)
        queue.ended(job)
        assert queue.wait_idle(wait_s=0.01)

    def test_tells_of_loads_that_wait_or_run(self) -> None:
        queue = JobQueue(most_bytes=100)
        queue.put(self.job(1, Transfer.STORE))
        store = queue.take([Transfer.STORE], wait_s=0)
        assert store is not None
        assert not queue.loading
        queue.put(self.job(2, Transfer.LOAD))
        assert queue.loading
        load = queue.take([Transfer.LOAD], wait_s=0)
        assert load is not None
        assert queue.loading
        queue.ended(load)
        assert not queue.loading
        queue.ended(store)
        assert queue.wait_idle(wait_s=0)

    def test_takes_nothing_after_it_was_closed(self) -> None:
        queue = JobQueue(most_bytes=100)
        queue.close()
        assert queue.put(self.job(1, Transfer.LOAD)) == (False, [])
        assert queue.take([Transfer.LOAD], wait_s=5.0) is None


class TestLookups:
    def make(self, deadline_s: float = 10.0, most_pending: int = 100) -> Lookups:
        return Lookups(deadline_s=deadline_s, most_pending=most_pending)

    def test_asks_in_one_batch_and_once_for_each_block(self) -> None:
        lookups = self.make()
        for request in ("a", "b"):
            for number in range(3):
                assert lookups.look(block(number), request) == (Found.LATER, "")
        lookups.flush()
        batch = lookups.next_batch(wait_s=0)
        assert batch is not None
        assert batch.blocks == tuple(block(number) for number in range(3))
        lookups.answer(batch, [True, False, True])
        assert [lookups.look(block(n), "a")[0] for n in range(3)] == [Found.HIT, Found.MISS, Found.HIT]
        assert lookups.pending == 0

    def test_a_late_answer_is_a_miss_and_stays_one(self) -> None:
        lookups = self.make(deadline_s=0.01)
        lookups.look(block(0), "a")
        lookups.flush()
        batch = lookups.next_batch(wait_s=0)
        eventually(lambda: lookups.look(block(0), "a") == (Found.MISS, "late"), "the deadline", within_s=5.0)
        assert batch is not None
        lookups.answer(batch, [True])
        assert lookups.look(block(0), "a")[0] is Found.MISS

    def test_more_than_may_be_pending_is_a_miss(self) -> None:
        lookups = self.make(most_pending=2)
        answers = [lookups.look(block(number), "a") for number in range(3)]
        assert answers == [(Found.LATER, ""), (Found.LATER, ""), (Found.MISS, "queue_full")]

    def test_a_failed_load_is_a_miss_from_then_on(self) -> None:
        lookups = self.make()
        lookups.look(block(0), "a")
        lookups.flush()
        batch = lookups.next_batch(wait_s=0)
        assert batch is not None
        lookups.answer(batch, [True])
        lookups.miss([block(0)])
        assert lookups.look(block(0), "a")[0] is Found.MISS

    def test_nothing_is_kept_for_a_finished_request(self) -> None:
        lookups = self.make()
        lookups.look(block(0), "a")
        lookups.look(block(0), "b")
        lookups.settle(block(0), "a", found=True)
        assert lookups.look(block(0), "a")[0] is Found.HIT
        assert lookups.look(block(0), "b")[0] is Found.LATER
        lookups.forget("a")
        lookups.forget("b")
        lookups.forget("never seen")
        assert lookups.look(block(0), "a")[0] is Found.LATER

    def test_a_miss_of_one_request_is_asked_again_by_the_next(self) -> None:
        lookups = self.make()
        lookups.settle(block(0), "a", found=False)
        assert lookups.look(block(0), "b")[0] is Found.LATER
        lookups.flush()
        batch = lookups.next_batch(wait_s=0)
        assert batch is not None
        lookups.answer(batch, [True])
        assert [lookups.look(block(0), request)[0] for request in "ab"] == [Found.MISS, Found.HIT]

    def test_a_damaged_block_is_a_miss_until_it_is_stored_anew(self) -> None:
        lookups = self.make()
        lookups.suspect(block(0))
        assert lookups.look(block(0), "a") == (Found.MISS, "suspect")
        lookups.trust([block(0)])
        assert lookups.look(block(0), "b")[0] is Found.LATER

    def test_remembers_so_many_damaged_blocks(self) -> None:
        lookups = self.make()
        for number in range(5):
            lookups.suspect(block(number), most=2)
        assert [lookups.is_suspect(block(number)) for number in range(5)] == [False] * 3 + [True] * 2


class TestTier:
    def test_stores_and_loads_without_an_engine(self, server: Server, client: Client) -> None:
        with BlockRig(BlockTier, server.url) as rig:
            stored = rig.store(some(8))
            assert stored.ok
            assert stored.moved_bytes == 8 * BLOCK_BYTES
            assert rig.look([block(n) for n in range(9)], request="r") == [Found.HIT] * 8 + [Found.MISS]
            loaded = rig.load(some(9))
            assert list(loaded.done) == [True] * 8 + [False]
            assert not loaded.ok
            assert rig.wrong(some(9), loaded) == 0
            assert rig.row(3) == bytes_of(rig.identity, block(3))

    def test_what_is_there_is_not_stored_again(self, server: Server, client: Client) -> None:
        with BlockRig(BlockTier, server.url) as rig:
            rig.store(some(4))
            again = rig.store(some(6))
            assert again.ok
            assert again.moved_bytes == 2 * BLOCK_BYTES
            assert rig.tier.counters["store", "present"] == 4

    def test_a_block_on_its_way_is_not_sent_twice(
        self, server: Server, client: Client, proxy: FaultProxy
    ) -> None:
        url = f"valkey://127.0.0.1:{proxy.port}"
        with BlockRig(BlockTier, url, shared_threads=2, store_deadline_s=20.0) as rig:
            with proxy.fault(Latency(seconds=0.3)):
                jobs = [rig.submit_store([(block(0), 0)]), rig.submit_store([(block(0), 1)])]
                results = [rig.result(job) for job in jobs]
            assert all(result.ok for result in results)
            counters = rig.tier.counters
            assert counters["store", "stored"] == 1
            assert counters.get(("store", "in_flight"), 0) + counters.get(("store", "present"), 0) == 1

    def test_what_waits_is_bounded_and_stores_go_first(
        self, server: Server, client: Client, proxy: FaultProxy
    ) -> None:
        url = f"valkey://127.0.0.1:{proxy.port}"
        settings = {"queue_bytes": 4 * BLOCK_BYTES, "load_deadline_s": 1.0, "store_deadline_s": 1.0}
        with BlockRig(BlockTier, url, **settings) as rig, proxy.fault(BlackHole()):
            began_s = time.monotonic()
            # One job keeps each thread busy, then the queue fills up.
            jobs = [rig.submit_load([(block(n), n)]) for n in range(2)]
            eventually(lambda: rig.tier.gauges["waiting_bytes"] == 0, "the threads to be busy", within_s=5.0)
            jobs += [rig.submit_store([(block(10 + n), 10 + n)]) for n in range(6)]
            jobs += [rig.submit_load([(block(20 + n), 20 + n)]) for n in range(6)]
            assert time.monotonic() - began_s < 1.0  # nothing waited for the server
            assert rig.tier.gauges["waiting_bytes"] <= 4 * BLOCK_BYTES
            counters = rig.tier.counters
            assert counters["store", "queue_full"] == 2
            assert counters["store", "pushed_out"] == 4
            assert counters["load", "queue_full"] == 2
            for job in jobs:
                assert not any(rig.result(job).done)

    def test_an_engine_that_steps_without_end_lets_what_it_waits_for_run(
        self, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        yielded: list[float] = []
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=yielded.append)
        monkeypatch.setattr("inference_cache.kv_offload._tier.time", clock)
        with BlockRig(BlockTier, f"valkey://127.0.0.1:{proxy.port}", load_deadline_s=0.5) as rig:
            rig.tier.flush()
            assert not yielded
            with proxy.fault(BlackHole()):
                job = rig.submit_load([(block(0), 0)])
                rig.tier.flush()
                assert yielded.pop() < 0.001
                rig.result(job)
                # The result is there a moment before the thread says that it is done.
                rig.tier.drain()
            yielded.clear()
            rig.tier.flush()
            assert not yielded
            with proxy.fault(BlackHole()):
                assert rig.tier.lookup(block(1), request="r") is Found.LATER
                rig.tier.flush()
                assert yielded

    def test_a_server_that_is_away_is_left_alone_and_found_again(
        self, server: Server, client: Client, proxy: FaultProxy
    ) -> None:
        url = f"valkey://127.0.0.1:{proxy.port}"
        settings = {"lookup_deadline_s": 0.1, "load_deadline_s": 0.1, "first_pause_s": 0.05}
        with BlockRig(BlockTier, url, **settings) as rig:
            rig.store(some(2))
            with proxy.fault(BlackHole()):
                for number in range(20):
                    rig.look([block(number)], request=f"r{number}")
                    if rig.tier.gauges["away"]:
                        break
                assert rig.tier.gauges["away"] == 1
                began_s = time.monotonic()
                assert rig.tier.lookup(block(0), request="new") is Found.MISS
                assert not any(rig.load(some(2)).done)
                assert not any(rig.store(some(2, first=50)).done)
                assert time.monotonic() - began_s < 1.0
                assert rig.tier.counters["lookup", "away"] >= 1
            eventually(lambda: not rig.tier.gauges["away"], "the server to be found again", within_s=10.0)
            assert rig.load(some(2)).ok

    def test_a_server_that_refuses_writes_still_serves_loads(
        self, server: Server, client: Client, proxy: FaultProxy
    ) -> None:
        url = f"valkey://127.0.0.1:{proxy.port}"
        with BlockRig(BlockTier, url, first_pause_s=0.05) as rig:
            rig.store(some(2))
            with proxy.fault(ErrorReply(code="OOM", message="full", commands="writes")):
                for number in range(20):
                    rig.store([(block(100 + number), 5)])
                assert rig.tier.gauges["writes_paused"] == 1
                assert rig.tier.counters["store", "full"] < 20
                assert rig.load(some(2)).ok
            eventually(lambda: rig.store([(block(300), 5)]).ok, "stores to work again", within_s=10.0)

    def test_a_drain_leaves_no_job_and_the_tier_goes_on(
        self, server: Server, client: Client, proxy: FaultProxy
    ) -> None:
        url = f"valkey://127.0.0.1:{proxy.port}"
        with BlockRig(BlockTier, url, load_deadline_s=0.3, store_deadline_s=0.3) as rig:
            with proxy.fault(BlackHole()):
                jobs = [rig.submit_load([(block(n), n)]) for n in range(6)]
                jobs += [rig.submit_store([(block(10 + n), 10 + n)]) for n in range(6)]
                rig.tier.drain()
                results = rig.collect()
                assert sorted(results) == jobs
            eventually(lambda: rig.store(some(2)).ok, "the tier to work again", within_s=10.0)

    def test_after_close_jobs_end_at_once(self, server: Server, client: Client) -> None:
        rig = BlockRig(BlockTier, server.url)
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("kv-")]
        rig.tier.close()
        assert not rig.result(rig.submit_load(some(2))).ok
        assert rig.tier.counters["load", "closed"] == 2
        assert not any(thread.is_alive() for thread in threads)

    def test_the_memory_is_given_back_on_close(self, server: Server, client: Client) -> None:
        rig = BlockRig(BlockTier, server.url)
        rig.store(some(2))
        rig.tier.close()
        rig.memory.clear()  # a BufferError while anybody holds a part of it

    def test_a_sliding_time_to_live_begins_anew_with_a_load(self, server: Server, client: Client) -> None:
        with BlockRig(BlockTier, server.url, ttl_s=1000.0, sliding_ttl=True) as rig:
            rig.store(some(1))
            client.pexpire(rig.key(block(0)), 5000)
            rig.load(some(1))
            eventually(lambda: client.pttl(rig.key(block(0))) > 900_000, "the time to live", within_s=5.0)

    def test_a_renewed_identity_finds_nothing_of_before(self, server: Server, client: Client) -> None:
        with BlockRig(BlockTier, server.url) as rig:
            rig.store(some(2))
            rig.tier.drain()
            rig.tier.renew(replace(rig.identity, epoch="2"))
            assert not any(rig.load(some(2)).done)
            with pytest.raises(UsageError, match="do not fit"):
                rig.tier.renew(replace(rig.identity, value_bytes=2 * BLOCK_BYTES))

    def test_the_record_is_written_again_after_a_while_only(self, server: Server, client: Client) -> None:
        with BlockRig(BlockTier, server.url, ttl_s=3600.0) as rig:
            for number in range(3):
                rig.store([(block(number), number)])
            assert rig.tier.counters["record", "stored"] == 1

    def test_an_error_of_its_own_costs_one_job_and_no_thread(
        self, server: Server, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(BlockTier):
            broken = True

            def _key(self, block: BlockId) -> bytes:
                if self.broken:
                    raise ValueError("a fault of ours")
                return super()._key(block)

        with BlockRig(Broken, server.url) as rig:
            assert not rig.load(some(2)).ok
            assert rig.look([block(0)], request="r") == [Found.MISS]
            assert rig.tier.counters["load", "error"] == 2
            assert "a fault of ours" in caplog.text
            rig.tier.broken = False
            assert rig.store(some(2)).ok

    @pytest.mark.parametrize(
        "memory",
        [memoryview(bytes(BLOCK_BYTES)), memoryview(bytearray(BLOCK_BYTES + 1))],
        ids=["readonly", "odd"],
    )
    def test_memory_that_does_not_fit_is_refused(self, server: Server, memory: memoryview) -> None:
        with pytest.raises(UsageError, match="memory is writable"):
            BlockTier(server.url, memory=memory, identity=an_identity())

    def test_slots_outside_of_the_memory_are_refused(self, server: Server) -> None:
        with BlockRig(BlockTier, server.url, slots=2) as rig:
            for slot in (-1, 2):
                with pytest.raises(UsageError, match="outside"):
                    rig.tier.submit_load(1, [(block(0), slot)])

    def test_memory_with_two_dimensions_is_taken_as_it_is(self, server: Server, client: Client) -> None:
        memory = bytearray(4 * BLOCK_BYTES)
        rows = memoryview(memory).cast("b").cast("b", (4, BLOCK_BYTES))
        with BlockTier(server.url, memory=rows, identity=an_identity()) as tier:
            memory[BLOCK_BYTES : 2 * BLOCK_BYTES] = b"x" * BLOCK_BYTES
            tier.submit_store(1, [(block(0), 1)])
            eventually(lambda: tier.counters.get(("store", "stored")), "the store")
            tier.submit_load(2, [(block(0), 3)])
            results: list[JobResult] = []
            eventually(lambda: results.extend(tier.results()) or len(results) == 2, "both results")
        assert bytes(memory[3 * BLOCK_BYTES :]) == b"x" * BLOCK_BYTES


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ttl_s", 0),
            ("load_deadline_s", "1"),
            ("store_deadline_s", True),
            ("lookup_deadline_s", float("nan")),
            ("connections", 0),
            ("queue_bytes", 1.5),
            ("load_threads", True),
            ("prefix", "vllm:kv"),
        ],
    )
    def test_wrong_ones_say_what_to_write(self, name: str, value: object) -> None:
        with pytest.raises(UsageError, match=rf"{name}.*write"):
            TierSettings(**{name: value})  # type: ignore[arg-type]


class TestConfig:
    @pytest.mark.parametrize("good", GOOD_CONFIGS, ids=lambda good: good.name)
    def test_good_ones_are_translated(self, good: Any) -> None:
        made = kv_cache_config(good.config, vllm_version=good.vllm)
        assert json.loads(json.dumps(made)) == made

    @pytest.mark.parametrize("bad", BAD_CONFIGS, ids=lambda bad: bad.name)
    def test_bad_ones_say_what_to_write(self, bad: Any) -> None:
        with pytest.raises(UsageError) as caught:
            kv_cache_config(bad.config, vllm_version=bad.vllm)
        for word in bad.says:
            assert word in str(caught.value)
        assert "secret-42" not in str(caught.value)

    def test_the_adapter_names_the_extra_where_vllm_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "vllm", None)
        monkeypatch.delitem(sys.modules, "inference_cache.kv_offload.vllm_tier", raising=False)
        with pytest.raises(MissingExtra, match=r"inference-cache\[vllm\]"):
            import inference_cache.kv_offload.vllm_tier  # noqa: F401

    def test_the_module_for_the_adr_is_named(self) -> None:
        made = kv_cache_config(ADR, vllm_version="0.33.0")
        assert made["kv_connector_module_path"] == "inference_cache.kv_offload.vllm_tier"


class TestWeights:
    def test_a_folder_is_known_by_its_content(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(b"weights" * 1000)
            (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / "c" / "model.safetensors").write_bytes(b"weightz" * 1000)
        (tmp_path / "b" / "README.md").write_text("no matter")
        first, second, third = (digest_of_folder(tmp_path / name) for name in ("a", "b", "c"))
        assert first == second
        assert first != third
        assert weights_of(str(tmp_path / "a")) == f"folder:{first}"

    def test_a_file_is_known_by_its_content(self, tmp_path: Path) -> None:
        one, other = tmp_path / "1.gguf", tmp_path / "2.gguf"
        one.write_bytes(b"x")
        other.write_bytes(b"y")
        assert weights_of(str(one)) != weights_of(str(other))

    def test_what_the_operator_declares_comes_first(self, tmp_path: Path) -> None:
        assert weights_of(str(tmp_path), weights_digest="42") == "declared:42"

    def test_a_revision_stands_where_nothing_better_is_known(self) -> None:
        assert weights_of("org/model-that-is-not-here", revision="abc") == "revision:abc"

    def test_a_bare_name_is_refused(self) -> None:
        with pytest.raises(UsageError, match="write 'revision'"):
            weights_of("org/model-that-is-not-here")


class TestListing:
    def test_tells_runs_apart_and_their_sizes(self, server: Server, client: Client) -> None:
        with BlockRig(BlockTier, server.url) as first:
            first.store(some(5))
        with BlockRig(BlockTier, server.url, identity=an_identity(model="org/other")) as second:
            second.store([(block(0, group=1), 0)])
        client.set(b"vllm:kv:who knows", b"x")
        client.set(b"emb:foreign", b"x")
        listing = list_runs(client, prefix="vllm:kv:", ttl_s=3600, deadline_s=10.0, most_keys=10_000)
        assert [(run.identity and run.identity.model, run.blocks) for run in listing.runs] == [
            ("org/model", 5),
            ("org/other", 1),
        ]
        assert listing.runs[0].memory_bytes >= 5 * BLOCK_BYTES
        assert listing.runs[1].groups == {1}
        assert listing.foreign_keys == 1
        assert listing.complete
        oldest_s = listing.runs[0].oldest_s
        assert oldest_s is not None
        assert 0 <= oldest_s < 60

    def test_looking_is_no_use_of_a_block(self, server: Server, client: Client) -> None:
        with BlockRig(BlockTier, server.url) as rig:
            rig.store(some(1))
            key = rig.key(block(0))
        eventually(lambda: client.object("IDLETIME", key) >= 2, "the block to be idle", within_s=20.0)
        list_runs(client, prefix="vllm:kv:", ttl_s=3600, deadline_s=10.0, most_keys=100)
        assert client.object("IDLETIME", key) >= 2

    def test_stops_within_its_budget(self, server: Server, client: Client) -> None:
        for number in range(3000):
            client.set(SPACE.key("ab", 0, f"{number:04x}"), b"x")
        listing = list_runs(client, prefix="vllm:kv:", ttl_s=3600, deadline_s=30.0, most_keys=1000)
        assert not listing.complete
        assert listing.keys_seen < 3000
        assert listing.runs[0].identity is None


class TestCommand:
    def test_prints_what_vllm_takes(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["kv", "config", "--url", "redis://h:6379", "--vllm", "0.33.0", "host_memory=1gb"]
        assert main([*arguments, "kv_events=true", "revision=12"]) == 0
        printed = json.loads(capsys.readouterr().out)
        extra = printed["kv_connector_extra_config"]
        assert extra["cpu_bytes_to_use"] == 1024**3
        assert extra["secondary_tiers"][0]["enable_kv_events"] is True
        assert extra["secondary_tiers"][0]["ttl_s"] == 3600

    def test_says_what_is_wrong(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["kv", "config", "--url", "redis://h:6379", "--vllm", "0.33.0", "tlt=5"]) == 2
        assert "did you mean 'ttl'" in capsys.readouterr().err
        assert main(["kv", "config", "--url", "redis://h:6379", "ttl"]) == 2
        assert "KEY=VALUE" in capsys.readouterr().err

    def test_lists_runs(self, server: Server, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
        with BlockRig(BlockTier, server.url) as rig:
            rig.store(some(3))
        assert main(["kv", "ls", "--url", server.url]) == 0
        table = capsys.readouterr().out
        assert "org/model" in table
        assert rig.identity.fingerprint in table
        assert main(["kv", "ls", "--url", server.url, "--format", "json"]) == 0
        listed = json.loads(capsys.readouterr().out)
        assert (listed["runs"][0]["blocks"], listed["complete"]) == (3, True)

    def test_without_an_action_it_explains_itself(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["kv"]) == 2
        assert "config" in capsys.readouterr().out
