"""Lost objects that Ray makes again: the words that it is told, and a real Ray that hears them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install 'inference-cache[ray]'")

import grpc
from ray.core.generated import (
    common_pb2,
    core_worker_pb2,
    core_worker_pb2_grpc,
    gcs_pb2,
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    node_manager_pb2,
    node_manager_pb2_grpc,
)

from fixtures.engines.ray_cluster import RayCluster
from fixtures.engines.ray_pool import object_keys
from fixtures.observe import wait_for
from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from inference_cache.connection import Client, connect
from inference_cache.errors import UsageError
from inference_cache.ray_spill import SpillParams, SpillStorage, _plug
from inference_cache.ray_spill._names import parse_url
from inference_cache.ray_spill._rebuild import NotRebuilt, Rebuilder
from tests.servers import eventually, valkey_server
from tests.test_ray_spill_plug import CoreWorker, Ref

OBJECT = bytes(range(28))
NODE = bytes(range(100, 128))
MB = 1_000_000
RESULT, PUT = Ref(0x01000000), Ref(0x01E1F505)
"""The first result of a task, and the first object that it put, as their ids end."""
LOST = str(_plug.ErrorType.Value("OBJECT_LOST")).encode()


class Ears:
    """Stands for an owner, a raylet and a GCS, which only write down what they are told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.raylet_lives = True
        self._server = grpc.server(ThreadPoolExecutor(2))
        core_worker_pb2_grpc.add_CoreWorkerServiceServicer_to_server(self, self._server)
        node_manager_pb2_grpc.add_NodeManagerServiceServicer_to_server(self, self._server)
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(self, self._server)
        gcs_service_pb2_grpc.add_ControlPlanePubSubGcsServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def owner(self) -> bytes:
        address = common_pb2.Address(ip_address="127.0.0.1", port=self.port, worker_id=b"w" * 28)
        return bytes(address.SerializeToString())

    def methods(self) -> list[str]:
        return [method for method, _ in self.heard]

    def UpdateObjectLocationBatch(self, request: Any, context: object) -> Any:
        self.heard.append(("UpdateObjectLocationBatch", request))
        return core_worker_pb2.UpdateObjectLocationBatchReply()

    def FreeLocalObjects(self, request: Any, context: object) -> Any:
        self.heard.append(("FreeLocalObjects", request))
        return node_manager_pb2.FreeLocalObjectsReply()

    def GetAllNodeAddressAndLiveness(self, request: Any, context: object) -> Any:
        self.heard.append(("GetAllNodeAddressAndLiveness", request))
        found = gcs_pb2.GcsNodeAddressAndLiveness(
            node_id=request.node_ids[0], node_manager_address="127.0.0.1", node_manager_port=self.port
        )
        return gcs_service_pb2.GetAllNodeAddressAndLivenessReply(
            node_info_list=[found] if self.raylet_lives else []
        )

    def GcsPublish(self, request: Any, context: object) -> Any:
        self.heard.append(("GcsPublish", request))
        return gcs_service_pb2.GcsPublishReply()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """All the other methods of these services: nobody is to call them."""
        if not name[0].isupper():
            raise AttributeError(name)
        return lambda request, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, name)


@pytest.fixture
def ears() -> Iterator[Ears]:
    listening = Ears()
    yield listening
    listening.stop()


Rebuild = Callable[..., None]


@pytest.fixture
def rebuild(ears: Ears) -> Iterator[Rebuild]:
    rebuilder = Rebuilder(ears.address)

    def run(*, stored: Callable[[], bool] = lambda: False, owner: bytes = b"") -> None:
        rebuilder.rebuild(OBJECT, owner=owner or ears.owner, node=NODE.hex(), stored=stored)

    yield run
    rebuilder.close()


class TestWords:
    def test_owner_raylet_and_everybody_are_told_in_this_order(self, ears: Ears, rebuild: Rebuild) -> None:
        rebuild()
        eventually(lambda: "GcsPublish" in ears.methods(), "the death to be announced")

        assert ears.methods() == [
            "UpdateObjectLocationBatch",
            "GetAllNodeAddressAndLiveness",
            "FreeLocalObjects",
            "GcsPublish",
        ]
        told = dict(ears.heard)
        update = told["UpdateObjectLocationBatch"]
        assert update.intended_worker_id == b"w" * 28
        assert update.object_location_updates[0].object_id == OBJECT
        assert update.object_location_updates[0].spilled_location_update.spilled_to_local_storage
        assert list(told["GetAllNodeAddressAndLiveness"].node_ids) == [NODE]
        assert list(told["FreeLocalObjects"].object_ids) == [OBJECT]
        [message] = told["GcsPublish"].pub_messages
        death = message.node_address_and_liveness_message
        assert message.key_id == death.node_id == update.node_id
        assert death.state == gcs_pb2.GcsNodeInfo.DEAD

    def test_the_node_that_dies_is_never_one_of_the_clusters(self, ears: Ears, rebuild: Rebuild) -> None:
        for _ in range(3):
            rebuild()
        named = {request.node_id for method, request in ears.heard if method == "UpdateObjectLocationBatch"}

        assert len(named) == 3
        assert NODE not in named
        assert {len(name) for name in named} == {len(NODE)}

    def test_it_dies_when_the_old_value_is_removed(self, ears: Ears, rebuild: Rebuild) -> None:
        there = [True]
        rebuild(stored=lambda: there[0])
        eventually(lambda: "FreeLocalObjects" in ears.methods(), "the raylet to be told")
        assert "GcsPublish" not in ears.methods()
        there[0] = False

        eventually(lambda: "GcsPublish" in ears.methods(), "the death to be announced")

    def test_or_after_a_while(self, ears: Ears, rebuild: Rebuild, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules[Rebuilder.__module__], "_FORGOTTEN_S", 0.2)
        rebuild(stored=lambda: True)

        eventually(lambda: "GcsPublish" in ears.methods(), "the death to be announced")

    def test_a_dead_raylet_has_nothing_to_forget(self, ears: Ears, rebuild: Rebuild) -> None:
        ears.raylet_lives = False
        rebuild()
        eventually(lambda: "GcsPublish" in ears.methods(), "the death to be announced")

        assert "FreeLocalObjects" not in ears.methods()

    def test_an_owner_who_is_gone_is_an_error_and_nothing_is_freed(
        self, ears: Ears, rebuild: Rebuild
    ) -> None:
        gone = common_pb2.Address(ip_address="127.0.0.1", port=1, worker_id=b"w" * 28).SerializeToString()
        with pytest.raises(NotRebuilt, match=r"127\.0\.0\.1:1 did not take UpdateObjectLocationBatch"):
            rebuild(owner=gone)

        assert ears.heard == []


class TestStorage:
    """What the storage makes of a lost object, by who hears it."""

    @pytest.fixture
    def adapter(self, ears: Ears, tmp_path: Path) -> Iterator[tuple[_plug.RayStorage, CoreWorker, Client]]:
        with (
            valkey_server(tmp_path, "maxmemory-policy volatile-lru") as server,
            connect(server.url) as client,
        ):
            params = SpillParams(url=server.url, rebuild=True, sweep_every_s=None)
            storage = SpillStorage(params, session="s", node=NODE.hex())
            adapter, core = _plug.RayStorage(storage, rebuilder=Rebuilder(ears.address)), CoreWorker()
            adapter._core_worker = core
            yield adapter, core, client
            adapter.destroy_external_storage()

    @pytest.fixture
    def lose(
        self, adapter: tuple[_plug.RayStorage, CoreWorker, Client]
    ) -> Callable[[Ref, bytes], CoreWorker]:
        storage, core, client = adapter

        def run(ref: Ref, owner: bytes) -> CoreWorker:
            core.local = {ref.hex(): (b"x" * 10, b"meta")}
            urls = storage.spill_objects([ref], [owner])
            client.unlink(parse_url(urls[0]).key)
            storage.restore_spilled_objects([ref], urls)
            return core

        return run

    def test_a_result_is_left_to_ray(
        self, adapter: Any, ears: Ears, lose: Callable[[Ref, bytes], CoreWorker]
    ) -> None:
        core = lose(RESULT, ears.owner)

        assert core.put == []
        assert bytes(ears.heard[0][1].object_location_updates[0].object_id).hex() == RESULT.hex()
        assert adapter[0].storage.counters.copy()["rebuild", "asked"] == 1

    def test_its_death_is_announced_once_it_is_deleted(
        self, adapter: Any, ears: Ears, lose: Callable[[Ref, bytes], CoreWorker]
    ) -> None:
        lose(RESULT, ears.owner)
        assert "GcsPublish" not in ears.methods()
        adapter[0].delete_spilled_objects(
            [adapter[0].storage.names.url(adapter[0].storage.names.key(RESULT.hex()), 1)]
        )

        eventually(lambda: "GcsPublish" in ears.methods(), "the death to be announced")

    def test_where_nobody_hears_it_is_an_error_object(
        self, adapter: Any, lose: Callable[[Ref, bytes], CoreWorker]
    ) -> None:
        gone = common_pb2.Address(ip_address="127.0.0.1", port=1).SerializeToString()

        assert [entry[1] for entry in lose(RESULT, gone).put] == [LOST]
        assert adapter[0].storage.counters.copy()["rebuild", "failed"] == 1

    def test_what_was_put_is_an_error_object_at_once(
        self, ears: Ears, lose: Callable[[Ref, bytes], CoreWorker]
    ) -> None:
        assert [entry[1] for entry in lose(PUT, ears.owner).put] == [LOST]
        assert ears.heard == []


class TestBuild:
    def test_a_ray_that_lacks_the_calls_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(node_manager_pb2, "FreeLocalObjectsRequest")
        monkeypatch.delitem(sys.modules, "inference_cache.ray_spill._rebuild")

        with pytest.raises(UsageError, match=r"rebuild needs calls that came with Ray 2\.60"):
            _plug.build({"url": "valkey://127.0.0.1:1", "rebuild": True}, "node", "session")


@pytest.fixture(scope="module")
def spilling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayCluster, Client, Path]]:
    """A real Ray, its server, and the folder with the IO workers' metrics."""
    metrics = tmp_path_factory.mktemp("metrics")
    settings = {"maxmemory": "400mb", "maxmemory-policy": "volatile-lru", "save": "", "appendonly": "no"}
    with (
        EmbeddedServer(resolve_executable(None), settings) as server,
        RayCluster(url=server.url, params={"rebuild": True, "metrics_folder": str(metrics)}) as cluster,
        server.connect() as client,
    ):
        yield cluster, client, metrics


def missed(metrics: Path) -> int:
    """How many objects were to be restored, and were not there."""
    total = 0
    for file in metrics.glob("*.prom"):
        for line in file.read_text("utf-8").splitlines():
            if line.startswith("inference_cache_adapter_misses_total"):
                total += int(float(line.rpartition(" ")[2]))
    return total


def lose(client: Client, ids: list[str]) -> list[int]:
    """Removes the values of those of the objects that are spilled; which of them these are."""
    lost = []
    for at, object_id in enumerate(ids):
        if keys := [key for key in object_keys(client) if key.endswith(object_id.encode())]:
            client.unlink(*keys)
            lost.append(at)
    return lost


class TestRealRay:
    def test_what_a_task_made_is_made_again_and_kept(self, spilling: tuple[RayCluster, Client, Path]) -> None:
        cluster, client, metrics = spilling
        before = missed(metrics)
        made = cluster.make(24, 6 * MB, seed=1)
        wait_for(lambda: len(object_keys(client)) > 8, what="Ray to spill", deadline_s=30)
        lost = [made.numbers[at] for at in lose(client, made.ids)]
        # What is still in the object store as well is not missed there: others push it out.
        others = cluster.put(24, 6 * MB, seed=2)

        first = cluster.get(lost, timeout_s=30)
        assert {answer.answer for answer in first} == {"right"}, first
        wait_for(lambda: missed(metrics) >= before + 5, what="five to be missed", deadline_s=10)

        # Made again, they are spilled and restored like any other: no second loss, no wait without end.
        more = cluster.put(24, 6 * MB, seed=3)
        second = cluster.get(lost, timeout_s=30)
        assert {answer.answer for answer in second} == {"right"}, second
        cluster.drop([*made.numbers, *others.numbers, *more.numbers])
        wait_for(lambda: not object_keys(client), what="the keys to be removed", deadline_s=30)

    @pytest.mark.parametrize(
        ("how", "error"),
        [("put", "ObjectLostError"), ("made without retries", "ObjectReconstructionFailedError")],
    )
    def test_what_cannot_be_made_again_is_a_typed_error(
        self, spilling: tuple[RayCluster, Client, Path], how: str, error: str
    ) -> None:
        cluster, client, _ = spilling
        make = cluster.put if how == "put" else lambda *a, **k: cluster.make(*a, max_retries=0, **k)
        made = make(24, 6 * MB, seed=4)
        wait_for(lambda: len(object_keys(client)) > 8, what="Ray to spill", deadline_s=30)
        lost = lose(client, made.ids)
        others = cluster.put(24, 6 * MB, seed=5)
        answers = cluster.get([made.numbers[at] for at in lost], timeout_s=20)

        found = {answer.answer for answer in answers}
        assert error in found
        assert found <= {"right", error}
        assert max(answer.took_s for answer in answers) < 10
        cluster.drop([*made.numbers, *others.numbers])
        wait_for(lambda: not object_keys(client), what="the keys to be removed", deadline_s=30)
