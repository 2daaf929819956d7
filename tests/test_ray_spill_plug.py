"""Between Ray and the storage: what Ray is told, with a core worker that only remembers what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="pip install 'inference-cache[ray]'")

from fixtures.faults.catalog import Refuse
from fixtures.faults.proxy import FaultProxy
from inference_cache import ray_hook
from inference_cache.connection import Client, connect
from inference_cache.errors import UnsafeServer, UsageError
from inference_cache.ray_spill import SpillParams, SpillStorage, _plug
from tests.servers import Server, valkey_server


class Ref:
    def __init__(self, number: int) -> None:
        self._hex = f"{number:056x}"

    def hex(self) -> str:
        return self._hex


class CoreWorker:
    """The two calls that a storage makes."""

    def __init__(self) -> None:
        self.local: dict[str, tuple[bytes | None, bytes]] = {}
        self.put: list[tuple[str, bytes, bytes, bytes]] = []

    def get_if_local(self, refs: list[Ref]) -> list[tuple[bytes | None, bytes, None]]:
        return [(*self.local.get(ref.hex(), (None, b"")), None) for ref in refs]

    def put_file_like_object(self, metadata: bytes, size: int, source: Any, ref: Ref, owner: bytes) -> None:
        target = memoryview(bytearray(size))
        at = 0
        while at < size:
            at += source.readinto(target[at:])
        self.put.append((ref.hex(), metadata, bytes(target), owner))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = ("maxmemory 200mb", "maxmemory-policy volatile-lru")
    with valkey_server(tmp_path_factory.mktemp("valkey"), *settings) as up:
        yield up


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connect(server.url) as opened:
        opened.flushall()
        yield opened


@pytest.fixture
def make(server: Server, client: Client) -> Iterator[Callable[..., tuple[_plug.RayStorage, CoreWorker]]]:
    opened: list[SpillStorage] = []

    def build(**params: Any) -> tuple[_plug.RayStorage, CoreWorker]:
        settings = {"url": server.url, "chunk_bytes": 100_000, "sweep_every_s": None, "call_s": 1.0, **params}
        opened.append(SpillStorage(SpillParams.of(settings), session="s", node="n"))
        adapter, core = _plug.RayStorage(opened[-1]), CoreWorker()
        adapter._core_worker = core
        return adapter, core

    yield build
    for storage in opened:
        storage.close()


class TestRayStorage:
    def test_what_is_spilled_is_put_back_with_metadata_and_owner(self, make: Any) -> None:
        adapter, core = make()
        refs = [Ref(1), Ref(2), Ref(3)]
        contents = [b"x" * 10, None, b"y" * 300_000]
        core.local = {
            ref.hex(): (content, b"meta%d" % number)
            for number, (ref, content) in enumerate(zip(refs, contents, strict=True))
        }
        urls = adapter.spill_objects(refs, [b"owner1", b"owner2", b"owner3"])
        total = adapter.restore_spilled_objects(refs, urls)

        assert total == 300_010
        assert core.put == [
            (ref.hex(), b"meta%d" % number, content or b"", b"owner%d" % (number + 1))
            for number, (ref, content) in enumerate(zip(refs, contents, strict=True))
        ]

    def test_nothing_to_spill_is_nothing(self, make: Any) -> None:
        assert make()[0].spill_objects([], []) == []

    def test_an_object_that_is_not_there_is_an_error_of_rays(self, make: Any) -> None:
        with pytest.raises(ValueError, match="not in the local object store"):
            make()[0].spill_objects([Ref(1)], [b"owner"])

    def test_a_lost_object_becomes_an_error_object(self, make: Any, client: Client) -> None:
        adapter, core = make()
        core.local = {Ref(1).hex(): (b"x" * 10, b"meta"), Ref(2).hex(): (b"y" * 10, b"meta")}
        urls = adapter.spill_objects([Ref(1), Ref(2)], [b"", b""])
        client.unlink(urls[0].partition(b"?")[0])
        adapter.restore_spilled_objects([Ref(1), Ref(2)], urls)

        assert [entry[1] for entry in core.put] == [_number("OBJECT_LOST"), b"meta"]

    def test_an_object_out_of_reach_becomes_another_error_object(self, make: Any, server: Server) -> None:
        with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
            adapter, core = make(url=f"valkey://127.0.0.1:{proxy.port}", restore_s=0.2)
            core.local = {Ref(1).hex(): (b"x" * 10, b"meta")}
            urls = adapter.spill_objects([Ref(1)], [b""])
            with proxy.fault(Refuse(how="listen")):
                adapter.restore_spilled_objects([Ref(1)], urls)

        assert [entry[1] for entry in core.put] == [_number("OBJECT_FETCH_TIMED_OUT")]

    def test_a_torn_object_ends_the_process(
        self, make: Any, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter, core = make()
        core.local = {Ref(1).hex(): (b"x" * 500_000, b"meta")}
        urls = adapter.spill_objects([Ref(1)], [b""])
        [last] = client.scan_iter(match=urls[0].partition(b"?")[0] + b":~*:4")
        client.execute_command("SETRANGE", last, 7, b"?")
        ended: list[int] = []
        monkeypatch.setattr(_plug.os, "_exit", ended.append)
        monkeypatch.setattr(_plug.logging, "shutdown", lambda: None)
        adapter.restore_spilled_objects([Ref(1)], urls)

        assert ended == [_plug._TORN]

    def test_deleting_and_destroying_leave_nothing(self, make: Any, client: Client) -> None:
        adapter, core = make()
        core.local = {Ref(number).hex(): (b"x", b"meta") for number in range(3)}
        urls = adapter.spill_objects([Ref(number) for number in range(3)], [b""] * 3)
        adapter.delete_spilled_objects(urls[:1])
        assert client.execute_command("HLEN", adapter.storage.names.index) == 2
        adapter.destroy_external_storage()

        assert client.dbsize() == 0

    def test_destroying_without_a_server_does_not_stop_the_shutdown(self, make: Any, server: Server) -> None:
        adapter, _ = make(url="valkey://127.0.0.1:1")
        adapter.destroy_external_storage()


class TestBuild:
    def test_rays_own_factory_makes_one(self, server: Server) -> None:
        import ray._private.external_storage as external_storage

        ray_hook.install()
        storage = external_storage.setup_external_storage(
            {"type": "valkey", "params": {"url": server.url}}, "node", "session"
        )
        try:
            assert isinstance(storage, _plug.RayStorage)
            assert storage.storage.names.member == b"session:node"
        finally:
            storage.storage.close()
            external_storage.reset_external_storage()

    def test_a_head_refuses_a_server_that_evicts(self, tmp_path: Path) -> None:
        with valkey_server(tmp_path, "maxmemory 50mb", "maxmemory-policy allkeys-lru") as risky:
            with pytest.raises(UnsafeServer):
                _plug.build({"url": risky.url}, "node", "session")
            _plug.build({"url": risky.url, "contract": "adr_0023"}, "node", "session").storage.close()

    def test_something_else_than_a_storage_is_refused(self, server: Server) -> None:
        with pytest.raises((UsageError, TypeError)):
            _plug.build({"url": server.url, "implementation": "builtins:dict"}, "node", "session")


def _number(name: str) -> bytes:
    return str(_plug.ErrorType.Value(name)).encode()
