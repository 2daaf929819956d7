"""The load of the four workloads, made by workers of a real Ray cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.engines.ray_cluster import RayCluster
from fixtures.nested_gate import run_gate
from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from fixtures.traffic import Stream, run_traffic, start_traffic
from inference_cache.gate.outcomes import ExitCode

pytest.importorskip("ray", reason="needs Ray: pip install 'inference-cache[ray]'")

BLOCKS = Stream(
    name="blocks", prefix="vllm:kv:", rate_per_s=50, keys=10, value_min_bytes=1000, value_max_bytes=5000,
    driver="blobs", path="ray_probe:TellingStore",
)  # fmt: skip
READS = Stream(
    name="reads", prefix="emb:", rate_per_s=100, keys=20, value_min_bytes=100, value_max_bytes=200, seed=3
)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    settings = {"save": "", "appendonly": "no", "maxmemory-policy": "volatile-lru"}
    with EmbeddedServer(resolve_executable(None), settings) as started:
        yield started


@pytest.fixture(scope="module")
def cluster(server: EmbeddedServer) -> Iterator[RayCluster]:
    with RayCluster(url=server.login_url(), nodes=2) as started:
        yield started


@pytest.fixture(autouse=True)
def ray_probe_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


class TestOnRay:
    def test_workers_on_the_clusters_nodes_make_the_load(
        self, server: EmbeddedServer, cluster: RayCluster
    ) -> None:
        """Each pair of a URL and its streams is a worker; results add up as those of processes here do."""
        loads = [(server.url, [replace(BLOCKS, seed=n)]) for n in range(3)]
        results = run_traffic([*loads, (server.url, [READS])], seconds=1.0, ray_address=cluster.gcs)

        assert (results["blocks"].requests, results["reads"].requests) == (150, 100)
        assert results["blocks"].errors.total() == 0
        assert results["blocks"].histogram.get_total_count() == 150
        with server.connect() as client:
            told = {node.decode() for node in client.smembers("nodes")}
        assert told
        assert told <= set(cluster.nodes)

    def test_a_server_that_the_nodes_cannot_reach_is_told_with_the_node(self, cluster: RayCluster) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            url = f"valkey://127.0.0.1:{held.getsockname()[1]}"
            with pytest.raises(RuntimeError, match=r"on the Ray node .*must be reachable"):
                run_traffic([(url, [BLOCKS])], seconds=0.5, ray_address=cluster.gcs)

    def test_leaving_ends_the_workers(self, server: EmbeddedServer, cluster: RayCluster) -> None:
        with start_traffic([(server.url, [READS])], seconds=60.0, ray_address=cluster.gcs) as traffic:
            [process] = traffic._processes
        assert process.poll() is not None


class TestAnAddressWithoutACluster:
    def test_is_told_before_anything_is_judged(self, tmp_path: Path) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{held.getsockname()[1]}"
            code, told = run_gate(tmp_path, "--clause", "SHR-02", "--ray-address", address)

        assert code == ExitCode.BROKEN
        assert f"--ray-address: no Ray cluster answers at {address}" in told
        assert not list(tmp_path.iterdir())

    def test_is_told_by_the_load_too(self) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{held.getsockname()[1]}"
            with pytest.raises(RuntimeError, match=f"no Ray cluster answers at {address}"):
                run_traffic([("valkey://127.0.0.1:1", [READS])], seconds=0.5, ray_address=address)
