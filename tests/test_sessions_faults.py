"""Sessions with a server that fails: typed errors in time, nothing lost or doubled, then recovery."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fixtures.faults.catalog import Bandwidth, BlackHole, ErrorReply, LateReply, Refuse, ResetMidReply
from fixtures.faults.fault import Fault
from fixtures.faults.proxy import FaultProxy
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.acl import render_acl
from inference_cache.connection import Client, connect, connect_async, deadline
from inference_cache.contract import load
from inference_cache.errors import (
    AccessDenied,
    CacheError,
    DeadlineExceeded,
    PersistenceFailed,
    ServerBusy,
    ServerFull,
    ServerLoading,
    ServerReadOnly,
    SessionConflict,
    SessionLost,
    SessionUnknown,
    Unreachable,
    UsageError,
)
from inference_cache.sessions import AsyncSessionStore, SessionStore, State, Turn
from tests.servers import cluster, eventually
from tests.session_uses import NASTY, STILL, USES, VOLATILE, NowAndThen, contents, filled, proxy_to, url

DEADLINE_S = 0.4
SLACK_S = 1.0


@pytest.fixture(scope="module", params=shipped_executables().values(), ids=shipped_executables())
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(request.param, VOLATILE) as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Client]:
    with server.connect() as connected:
        connected.flushall()
        yield connected


@pytest.fixture
def store(client: Client) -> SessionStore:
    return SessionStore(client)


@pytest.fixture
def proxy(server: EmbeddedServer, client: Client) -> Iterator[FaultProxy]:
    with proxy_to(server) as running:
        yield running


FAULTS: dict[str, tuple[Callable[[], Fault], type[CacheError]]] = {
    "refuses": (lambda: Refuse(how="listen"), Unreachable),
    "cuts off": (lambda: Refuse(how="accept"), Unreachable),
    "hangs": (BlackHole, DeadlineExceeded),
    "resets in mid-reply": (lambda: ResetMidReply(after_bytes=3), Unreachable),
    "one byte a second": (lambda: Bandwidth(bytes_per_s=1), DeadlineExceeded),
    "answers late": (lambda: LateReply(seconds=2 * DEADLINE_S), DeadlineExceeded),
    "loading": (lambda: ErrorReply(code="LOADING", message="loading"), ServerLoading),
    "full": (lambda: ErrorReply(code="OOM", message="used memory > maxmemory"), ServerFull),
    "read-only": (lambda: ErrorReply(code="READONLY", message="a replica"), ServerReadOnly),
    "no password": (lambda: ErrorReply(code="NOAUTH", message="required"), AccessDenied),
    "disk full": (lambda: ErrorReply(code="MISCONF", message="cannot persist"), PersistenceFailed),
    "no connection left": (
        lambda: ErrorReply(code="ERR", message="max number of clients reached", at_connect=True),
        ServerBusy,
    ),
}


def connections_to(port: int) -> int:
    """How many sockets of this process are connected to the port."""
    return sum(
        bool(found.raddr) and found.raddr.port == port for found in psutil.Process().net_connections("tcp")
    )


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_every_use_fails_typed_and_in_time_and_recovers(
        self, store: SessionStore, proxy: FaultProxy, fault: str
    ) -> None:
        """The same store goes on after the fault, and an append that failed is repeated without doubling."""
        make, expected = FAULTS[fault]
        handle = filled(store, "a")
        before = contents(store.read(handle))
        at_connect = fault == "no connection left"
        with SessionStore(url(proxy), deadline_s=DEADLINE_S) as mine:
            if not at_connect:
                mine.open("a")
            held = connections_to(proxy.port)
            with proxy.fault(make()) as armed:
                for name in ("append", "read", "compare_and_set", "get_state", "touch", "exists"):
                    began_s = time.monotonic()
                    with pytest.raises(expected):
                        USES[name](mine, handle)
                    assert time.monotonic() - began_s < DEADLINE_S + SLACK_S
                began_s = time.monotonic()
                with pytest.raises(expected):
                    mine.delete("b")
                with pytest.raises(expected):
                    mine.create("b")
                assert time.monotonic() - began_s < 2 * (DEADLINE_S + SLACK_S)
                assert armed.acted
            assert mine.append(handle, b"x", idempotency_key="w") == 3
            assert contents(mine.read(handle)) == [*before, b"x"]
            assert mine.get_state(handle).version in (1, 2)
            assert connections_to(proxy.port) <= held + at_connect
        assert connections_to(proxy.port) == 0

    @pytest.mark.parametrize("fault", FAULTS)
    def test_the_asyncio_store_does_the_same(
        self, store: SessionStore, proxy: FaultProxy, fault: str
    ) -> None:
        make, expected = FAULTS[fault]
        handle = filled(store, "a")

        async def scenario() -> None:
            async with AsyncSessionStore(url(proxy), deadline_s=DEADLINE_S) as mine:
                if fault != "no connection left":
                    await mine.open("a")
                with proxy.fault(make()) as armed:
                    for ask in (
                        lambda: mine.append(handle, b"x", idempotency_key="w"),
                        lambda: mine.read(handle),
                        lambda: mine.compare_and_set(handle, b"new", 1),
                    ):
                        began_s = time.monotonic()
                        with pytest.raises(expected):
                            await ask()
                        assert time.monotonic() - began_s < DEADLINE_S + SLACK_S
                    assert armed.acted
                assert await mine.append(handle, b"x", idempotency_key="w") == 3
                assert len(await mine.read(handle)) == 4
            assert connections_to(proxy.port) == 0

        asyncio.run(scenario())

    def test_a_deadline_around_a_call_is_kept(self, store: SessionStore, proxy: FaultProxy) -> None:
        filled(store, "a")
        with SessionStore(url(proxy), deadline_s=30) as mine, proxy.fault(BlackHole()):
            began_s = time.monotonic()
            with deadline(0.2), pytest.raises(DeadlineExceeded):
                mine.read("a")
            assert time.monotonic() - began_s < 1

    def test_a_restart_is_survived_with_all_pooled_connections(self) -> None:
        executable = next(iter(shipped_executables().values()))
        with (
            EmbeddedServer(executable, {"save": "", "appendonly": "yes"}) as server,
            SessionStore(server.url, deadline_s=5) as store,
        ):
            handle = filled(store, "a")
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: store.read(handle), range(64)))
            server.restart()
            for n in range(3, 20):
                assert store.append(handle, b"x", idempotency_key=str(n)) == n

    def test_scripts_that_the_server_forgot_are_sent_again(self, store: SessionStore, client: Client) -> None:
        handle = filled(store, "a")
        for name, use in USES.items():
            client.script_flush()
            use(store, handle) if name != "compare_and_set" else store.compare_and_set(handle, b"n", 1)
        client.script_flush()
        store.delete(handle)

    def test_a_crash_loses_and_doubles_nothing(self) -> None:
        """kill -9 under load with appendfsync always: what was acknowledged is there, once."""
        executable = next(iter(shipped_executables().values()))
        always = {"save": "", "appendonly": "yes", "appendfsync": "always"}
        acknowledged: dict[bytes, int] = {}
        stop = threading.Event()

        def write(writer: int, target_url: str) -> None:
            with SessionStore(target_url, deadline_s=5) as mine:
                for n in itertools.count():
                    content = b"%d %d" % (writer, n)
                    while True:
                        try:
                            position = mine.append("a", content, idempotency_key=content.decode())
                            break
                        except CacheError:
                            time.sleep(0.01)
                    acknowledged[content] = position
                    if stop.is_set():
                        return

        with EmbeddedServer(executable, always) as server, SessionStore(server.url) as store:
            store.create("a")
            with ThreadPoolExecutor(4) as pool:
                writing = [pool.submit(write, writer, server.url) for writer in range(4)]
                for _ in range(4):
                    time.sleep(random.uniform(0.1, 0.4))
                    server.crash()
                    server.start()
                stop.set()
                for done in writing:
                    done.result(30)
            found = contents(store.read("a"))
        assert len(found) == len(acknowledged) == len(set(found))
        assert all(found[position] == content for content, position in acknowledged.items())


class TestServers:
    def test_on_a_cluster(self, tmp_path: Path) -> None:
        with (
            cluster(tmp_path) as nodes,
            SessionStore(f"valkey+cluster://127.0.0.1:{nodes[0].port}", deadline_s=10) as store,
        ):
            for id in NASTY:
                filled(store, id)
            for id in NASTY:
                assert len(store.read(id)) == 3
                store.delete(id)

    def test_a_full_server_refuses_updates_and_serves_the_rest(self, server: EmbeddedServer) -> None:
        strict = {**VOLATILE, "maxmemory-policy": "noeviction"}
        with EmbeddedServer(server.executable, strict) as full, full.connect() as client:
            store = SessionStore(client)
            handle = filled(store, "a")
            client.config_set("maxmemory", "1mb")
            with pytest.raises(ServerFull):
                client.set("emb:1", b"x")
            before = contents(store.read(handle, slide=False))
            for name in ("append", "append_many", "compare_and_set"):
                with pytest.raises(ServerFull):
                    USES[name](store, handle)
            with pytest.raises(ServerFull):
                store.create("b")
            for name in ("touch", "get_state", "window", "exists"):
                USES[name](store, handle)
            assert contents(store.read(handle)) == before
            store.delete(handle)
            assert not client.exists(*store.keys("a").all)

    def test_a_replica_serves_still_reads(self, server: EmbeddedServer, store: SessionStore) -> None:
        handle = filled(store, "a")
        follows = {**VOLATILE, "replicaof": f"127.0.0.1 {server.port}"}
        with EmbeddedServer(server.executable, follows) as replica, replica.connect() as client:
            eventually(lambda: client.exists(*store.keys("a").all) == 3, "the replica to follow")
            copy = SessionStore(client)
            for use in STILL.values():
                assert use(copy, handle)
            for name in ("read", "touch", "append"):
                with pytest.raises(ServerReadOnly):
                    USES[name](copy, handle)

    def test_a_server_that_cannot_persist_serves_still_reads(self, server: EmbeddedServer) -> None:
        with EmbeddedServer(server.executable, {"save": "3600 1"}) as failing, failing.connect() as client:
            store = SessionStore(client)
            handle = filled(store, "a")
            shutil.rmtree(failing.data_dir)
            with suppress(CacheError):
                client.bgsave()
            eventually(
                lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "BGSAVE to fail"
            )
            for use in STILL.values():
                assert use(store, handle)
            for name in ("read", "touch", "append", "compare_and_set"):
                with pytest.raises(PersistenceFailed):
                    USES[name](store, handle)

    def test_the_user_of_the_workload_may_do_everything(self, server: EmbeddedServer, tmp_path: Path) -> None:
        acl = tmp_path / "users.acl"
        acl.write_text(render_acl(load()))
        with (
            EmbeddedServer(server.executable, {**VOLATILE, "aclfile": str(acl)}) as guarded,
            connect(guarded.url, username="sessions", password="any") as client,
            connect(guarded.url, username="ray", password="any") as foreign,
        ):
            for ttl_s in (60, None):
                store = SessionStore(client, ttl_s=ttl_s)
                for name, use in USES.items():
                    handle = filled(store, name)
                    use(store, handle)
                    store.create(name, replace=True)
                    store.delete(name)
            filled(store, "a")
            with pytest.raises(AccessDenied):
                SessionStore(foreign).read("a")

    def test_the_example_of_the_documentation_runs(self, server: EmbeddedServer, client: Client) -> None:
        text = Path("docs/sessions.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        assert example.count("valkey://localhost:6379") == 2
        exec(example.replace("valkey://localhost:6379", server.url), {})
        assert client.dbsize() == 0


class TestAsyncio:
    def test_all_of_it(self, server: EmbeddedServer, client: Client) -> None:
        async def scenario() -> None:
            async with connect_async(server.url) as connected:
                store = AsyncSessionStore(connected)
                with pytest.raises(SessionUnknown):
                    await store.read("a")
                handle = await store.create(("user", 123))
                turn = Turn(content=b"\0\xff", role="user", metadata=b"m")
                for _ in range(2):
                    assert await store.append(handle, turn, idempotency_key="1") == 0
                assert await store.append_many(handle, [b"x"] * 600, idempotency_key="2") == list(
                    range(1, 601)
                )
                found = await store.read(handle)
                assert len(found) == 601
                assert (found[0].content, found[0].role, found[0].metadata) == (b"\0\xff", "user", b"m")
                assert len(await store.window(handle, last_turns=5)) == 5
                counted = await store.window(handle, last_tokens=7, count_tokens=lambda _: 2)
                assert [found.position for found in counted] == [598, 599, 600]
                assert await store.get_state(handle) == State(b"", 0)
                assert await store.compare_and_set(handle, b"s", 0) == 1
                with pytest.raises(SessionConflict):
                    await store.compare_and_set(handle, b"s", 0)
                await store.touch(handle)
                assert await store.open(("user", 123)) == handle
                assert await store.exists(handle)
                with pytest.raises(UsageError):
                    await store.window(handle, last_turns=-1)
                client.delete(store.keys(("user", 123)).turns)
                with pytest.raises(SessionLost):
                    await store.read(("user", 123))
                fresh = await store.create(("user", 123), replace=True)
                assert await store.read(fresh) == []
                await store.delete(fresh)
                store.forget(("user", 123))
                assert not await store.exists(("user", 123))
                assert client.dbsize() == 0

        asyncio.run(scenario())

    def test_many_writers_with_lost_replies(self, proxy: FaultProxy, store: SessionStore) -> None:
        store.create("a")

        async def write(mine: AsyncSessionStore, writer: int) -> None:
            for n in range(20):
                while True:
                    try:
                        await mine.append("a", b"%d %d" % (writer, n), idempotency_key=f"{writer} {n}")
                        break
                    except Unreachable:
                        continue

        async def scenario() -> None:
            async with AsyncSessionStore(url(proxy), deadline_s=5) as mine:
                await asyncio.gather(*(write(mine, writer) for writer in range(16)))

        with proxy.fault(NowAndThen(every=3)) as fault:
            asyncio.run(scenario())
        assert fault.acted > 50
        found = [tuple(map(int, content.split())) for content in contents(store.read("a"))]
        assert sorted(found) == [(writer, n) for writer in range(16) for n in range(20)]
        for writer in range(16):
            assert [n for who, n in found if who == writer] == list(range(20))

    def test_a_cancelled_call_leaves_the_store_usable(self, proxy: FaultProxy, store: SessionStore) -> None:
        handle = filled(store, "a")

        async def scenario() -> None:
            async with AsyncSessionStore(url(proxy), deadline_s=5) as mine:
                with proxy.fault(LateReply(seconds=0.2)), pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await mine.append(handle, b"x", idempotency_key="x")
                assert await mine.append(handle, b"x", idempotency_key="x") == 3
                assert len(await mine.read(handle)) == 4

        asyncio.run(scenario())
