"""The load generator: what it asks for, when, and what it measures."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from fixtures.traffic import (
    FOUR,
    Stream,
    StreamResult,
    cache_key,
    four_streams,
    planned,
    requests_of,
    run_traffic,
    size_range,
    start_traffic,
)
from inference_cache.connection import connect
from inference_cache.contract import load
from inference_cache.sessions import SessionStore

CONTRACT = load()
KIB, MIB = 1024, 1024 * 1024
STREAM = Stream(
    name="embeddings",
    prefix="emb:",
    rate_per_s=200,
    keys=50,
    value_min_bytes=300,
    value_max_bytes=1200,
    zipf=0.9,
    ttl_s=60,
    seed=5,
)


class TestRequests:
    def test_follow_from_the_seed(self) -> None:
        assert requests_of(STREAM, 3.0) == requests_of(STREAM, 3.0)
        assert requests_of(STREAM, 3.0) != requests_of(replace(STREAM, seed=6), 3.0)

    def test_come_in_order_at_the_rate_and_within_the_time(self) -> None:
        requests = requests_of(STREAM, 10.0)
        due = [request.due_s for request in requests]
        assert len(requests) == 2000
        assert due == sorted(due)
        assert 0 < due[0] < due[-1] < 10.0
        pauses = sorted(b - a for a, b in itertools.pairwise(due))
        # Exponential, not a metronome: the median pause is ln 2 of the mean.
        assert pauses[len(pauses) // 2] == pytest.approx(0.69 / 200, rel=0.15)

    def test_popular_keys_are_asked_for_more_often(self) -> None:
        numbers = [request.number for request in requests_of(STREAM, 20.0)]
        assert numbers.count(0) > 5 * numbers.count(40)
        assert set(numbers) <= set(range(50))

    def test_without_popularity_all_have_their_turn(self) -> None:
        numbers = [request.number for request in requests_of(replace(STREAM, zipf=0.0), 1.0)]
        assert numbers[:100] == [*range(50), *range(50)]

    def test_sizes_are_in_range_spread_and_always_the_same(self) -> None:
        sizes = [STREAM.size_of(number) for number in range(200)]
        assert min(sizes) >= 300
        assert max(sizes) <= 1200
        assert len(set(sizes)) > 150
        assert sizes == [STREAM.size_of(number) for number in range(200)]


class TestFour:
    def test_have_the_sizes_that_the_workloads_have(self) -> None:
        sizes = {name: (stream.value_min_bytes, stream.value_max_bytes) for name, stream in FOUR.items()}
        assert sizes == {
            "vllm_kv": (2 * MIB, 8 * MIB),
            "embeddings": (3 * KIB, 12 * KIB),
            "sessions": (1 * KIB, 32 * KIB),
            "ray": (8 * MIB, 100 * MIB),
        }
        assert set(FOUR) == set(CONTRACT.workloads)

    def test_sizes_lie_within_the_contract(self) -> None:
        for name, stream in FOUR.items():
            workload = CONTRACT.workloads[name]
            assert workload.value_min_bytes <= stream.value_min_bytes
            assert stream.value_max_bytes <= workload.value_max_bytes

    def test_only_big_values_are_scaled(self) -> None:
        assert size_range(CONTRACT.workloads["vllm_kv"], scale=64) == (32 * KIB, 128 * KIB)
        assert size_range(CONTRACT.workloads["sessions"], scale=64) == (1 * KIB, 32 * KIB)

    def test_keys_fill_the_part_of_the_share_that_was_asked_for(self) -> None:
        for stream in four_streams(CONTRACT, maxmemory_bytes=512 * MIB, filled=0.5, scale=64):
            held = sum(stream.size_of(number) for number in range(stream.keys))
            share = CONTRACT.workloads[stream.name].share * 512 * MIB
            assert stream.prefix == CONTRACT.workloads[stream.name].prefix
            assert held == pytest.approx(0.5 * share, rel=0.2), stream.name


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(resolve_executable(None), {"save": "", "appendonly": "no"}) as started:
        yield started


class TestRun:
    def test_reads_and_writes_what_was_not_there(self, server: EmbeddedServer) -> None:
        result = run_traffic([(server.url, [STREAM])], seconds=1.0)["embeddings"]
        numbers = [request.number for request in requests_of(STREAM, 1.0)]
        assert (result.requests, result.unsent, result.errors.total()) == (200, 0, 0)
        assert result.hits == len(numbers) - len(set(numbers))
        assert result.histogram.get_total_count() == 200
        with server.connect() as client:
            key = cache_key(STREAM, numbers[0])
            assert client.strlen(key) == STREAM.size_of(numbers[0])
            assert 0 < client.ttl(key) <= 60

    def test_several_processes_are_added_up(self, server: EmbeddedServer) -> None:
        streams = [replace(STREAM, prefix=f"emb:{n}:", seed=n) for n in range(3)]
        result = run_traffic([(server.url, [stream]) for stream in streams], seconds=0.5)["embeddings"]
        assert result.requests == result.histogram.get_total_count() == 300

    def test_the_plan_of_what_was_sent_has_the_hits_that_there_were(self, server: EmbeddedServer) -> None:
        stream = replace(STREAM, prefix="emb:planned:")
        result = run_traffic([(server.url, [stream])], seconds=1.0)["embeddings"]
        plan = planned(
            CONTRACT, [stream], seconds=1.0, sent={"embeddings": result.requests}, allocator="libc"
        )
        assert plan.shared["embeddings"].reachable * result.requests == pytest.approx(result.hits)

    def test_a_failing_process_fails_the_run(self, server: EmbeddedServer) -> None:
        broken = replace(STREAM, driver="blobs", path="fixtures.traffic:nothing_there")
        with pytest.raises(RuntimeError, match="nothing_there"):
            run_traffic([(server.url, [broken])], seconds=0.5)

    def test_leaving_ends_the_processes(self, server: EmbeddedServer) -> None:
        with start_traffic([(server.url, [STREAM])], seconds=60.0) as traffic:
            [process] = traffic._processes
            assert process.poll() is None
        assert process.poll() is not None


@contextmanager
def stalling(port: int, *, after_bytes: int, stall_s: float) -> Iterator[int]:
    """A link to the port that stands still once, for so long, after so many bytes of replies."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stop = threading.Event()

    def pump(source: socket.socket, sink: socket.socket, *, stalls: bool) -> None:
        seen, stalled = 0, not stalls
        with source, suppress(OSError):  # either end may go first
            while data := source.recv(65_536):
                seen += len(data)
                if seen > after_bytes and not stalled:
                    stalled = True
                    stop.wait(stall_s)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            server = socket.create_connection(("127.0.0.1", port))
            for arguments, stalls in (((client, server), False), ((server, client), True)):
                threading.Thread(target=pump, args=arguments, kwargs={"stalls": stalls}, daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        stop.set()
        thread.join()
        listener.close()


class TestLatency:
    def test_a_stall_counts_in_every_request_that_it_delayed(self, server: EmbeddedServer) -> None:
        """One stall of 1 s at 100 requests/s delays about a hundred, half of them by 0.5 s and more."""
        stream = replace(STREAM, rate_per_s=100, keys=5, prefix="emb:stall:")
        with connect(server.url, deadline_s=5) as client:
            for number in range(5):
                client.set(cache_key(stream, number), b"x" * 500)
        with stalling(server.port, after_bytes=50_000, stall_s=1.0) as port:
            result = run_traffic([(f"valkey://127.0.0.1:{port}", [stream])], seconds=3.0)["embeddings"]
        assert result.requests == 300
        # Of 300, the 36 slowest waited 0.64 s and more; a generator that waits for answers would see one.
        assert result.percentile_ms(88) > 400
        assert result.percentile_ms(100) >= 990

    def test_results_survive_json_and_merge(self) -> None:
        one, two = StreamResult(requests=1), StreamResult(requests=2, lost=1)
        one.histogram.record_value(1000)
        two.histogram.record_value(9000)
        one.errors["OOM"] += 1
        merged = StreamResult.from_json(one.to_json())
        merged.merge(StreamResult.from_json(two.to_json()))
        assert (merged.requests, merged.lost, dict(merged.errors)) == (3, 1, {"OOM": 1})
        assert merged.percentile_ms(100) == pytest.approx(9.0, rel=0.01)
        assert merged.percentile_ms(1) == pytest.approx(1.0, rel=0.01)

    def test_nothing_measured_is_zero(self) -> None:
        assert StreamResult().percentile_ms(99) == 0.0


class PushedOut(SessionStore):
    """A session store whose sessions are evicted as soon as they are made."""

    def append(self, session: Any, *turns: Any, **options: Any) -> Any:
        self.delete(session)
        return super().append(session, *turns, **options)


def test_a_session_that_is_evicted_before_its_first_turn_is_lost_and_fails_nothing(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    stream = replace(
        STREAM, name="reads", prefix="session:", keys=5, driver="sessions", path="test_load_traffic:PushedOut"
    )
    result = run_traffic([(server.url, [stream])], seconds=0.5)["reads"]

    assert result.requests == 100
    assert result.lost > 100
    assert result.errors.total() == 0
