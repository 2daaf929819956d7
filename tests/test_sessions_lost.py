"""Lost is never taken for new, and damage never for a turn."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from fixtures.faults.fault import Context, Fault, OnReply, Reply
from fixtures.faults.resp import Command, Frame
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.connection import Client
from inference_cache.errors import SessionCorrupt, SessionLost, SessionUnknown
from inference_cache.sessions import SessionStore, Turn
from tests.session_uses import USES, VOLATILE, contents, filled, proxy_to, snapshot, url


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


SUBSETS = [
    set(chosen) for size in (1, 2, 3) for chosen in itertools.combinations(("root", "turns", "state"), size)
]


class TestLoss:
    @pytest.mark.parametrize("use", [*USES, "create", "open or create"])
    @pytest.mark.parametrize("lost", SUBSETS, ids=lambda lost: "+".join(sorted(lost)))
    def test_is_told_whatever_part_is_lost(
        self, store: SessionStore, client: Client, use: str, lost: set[str]
    ) -> None:
        uses = {
            **USES,
            "create": lambda store, session: store.create("a"),
            "open or create": lambda store, session: store.open("a", create=True),
        }
        handle = filled(store, "a")
        client.delete(*(getattr(store.keys("a"), part) for part in lost))
        left = snapshot(client)

        for who, session in ((store, handle), (store, "a")):
            with pytest.raises(SessionLost) as caught:
                uses[use](who, session)
            assert caught.value.how == ("gone" if len(lost) == 3 else "partial")
        stranger = SessionStore(client)
        if use not in ("create", "open or create", "open"):
            with pytest.raises(SessionLost):
                uses[use](stranger, handle)
        if len(lost) < 3:
            with pytest.raises(SessionLost):
                uses[use](stranger, "a")
        assert snapshot(client) == left

    @pytest.mark.parametrize("lost", SUBSETS, ids=lambda lost: "+".join(sorted(lost)))
    def test_can_be_overcome(self, store: SessionStore, client: Client, lost: set[str]) -> None:
        for begin in (
            lambda: store.create("a", replace=True),
            lambda: (store.delete("a"), store.create("a"))[1],
        ):
            old = filled(store, "a") if not store.exists("a") else store.open("a")
            client.delete(*(getattr(store.keys("a"), part) for part in lost))
            fresh = begin()
            assert fresh.generation != old.generation
            assert store.read(fresh) == []
            assert store.get_state(fresh).version == 0
            store.delete("a")

    @pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
    def test_by_eviction_is_always_told(self, policy: str, server: EmbeddedServer) -> None:
        small = {**VOLATILE, "maxmemory": "8mb", "maxmemory-policy": policy}
        with EmbeddedServer(server.executable, small) as full, full.connect() as client:
            store = SessionStore(client)
            history = [os.urandom(400) for _ in range(10)]
            for n in range(200):
                store.create(n)
                store.append_many(n, history, idempotency_key="1")
                store.compare_and_set(n, b"s" * 2000, 0)
            flood = itertools.count()
            while client.info("stats")["evicted_keys"] < 450:
                client.set(f"vllm:kv:{next(flood)}", os.urandom(8_000))
            client.config_set("maxmemory", "64mb")  # so that reading evicts nothing more
            told: list[str] = []
            for n in range(200):
                for ask, right in ((store.read, history), (store.get_state, (b"s" * 2000, 1))):
                    try:
                        answer = ask(n, slide=False)
                        assert (contents(answer) if ask == store.read else answer) == right
                        told.append("whole")
                    except SessionLost as error:
                        told.append(error.how)
                try:
                    assert contents(SessionStore(client).read(n, slide=False)) == history
                except (SessionLost, SessionUnknown):
                    assert told[-1] != "whole"
            assert {"partial", "whole"} <= set(told)

    def test_of_what_was_acknowledged_is_told(self, store: SessionStore, client: Client) -> None:
        handle = filled(store, "a", turns=2)
        earlier = snapshot(client)
        store.append(handle, b"later", idempotency_key="later")
        client.flushall()
        for key, dump in earlier.items():
            client.restore(key, 0, dump)
        for use in ("read", "append", "get_state", "open"):
            with pytest.raises(SessionLost) as caught:
                USES[use](store, handle)
            assert caught.value.how == "rolled_back"
        store.forget("a")
        assert len(store.read(handle)) == 2


class OneBit(Fault):
    """Flips one bit in the middle of a long reply."""

    def on_reply(self, ctx: Context, command: Command, reply: Frame) -> OnReply:
        raw = bytearray(reply.raw)
        if len(raw) < 10_000:
            return None
        self.act()
        raw[5_000] ^= 4
        return Reply(raw=bytes(raw))


class TestDamage:
    @pytest.mark.parametrize("part", ["turns", "state"])
    def test_of_any_byte_is_noticed(self, store: SessionStore, client: Client, part: str) -> None:
        handle = store.create("a")
        store.append(handle, Turn(content=b"content", role="user", metadata=b"meta"), idempotency_key="k")
        store.compare_and_set(handle, b"state", 0)
        key = getattr(store.keys("a"), part)
        good = client.lindex(key, 0) if part == "turns" else client.get(key)
        for at in range(len(good)):
            for damaged in (
                good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :],
                good[:at],
                good[:at] + b"x" + good[at:],
            ):
                if damaged == good:
                    continue
                client.lset(key, 0, damaged) if part == "turns" else client.set(key, damaged)
                with pytest.raises(SessionCorrupt):
                    store.read(handle) if part == "turns" else store.get_state(handle)

    def test_turns_that_were_moved_or_added_are_noticed(self, store: SessionStore, client: Client) -> None:
        handle = filled(store, "a")
        other = filled(store, "b")
        turns = store.keys("a").turns
        entries = client.lrange(turns, 0, -1)
        for wrong in (entries[0], client.lindex(store.keys("b").turns, 1)):
            client.lset(turns, 1, wrong)
            with pytest.raises(SessionCorrupt):
                store.read(handle)
        client.lset(turns, 1, entries[1])
        client.rpush(turns, entries[0])
        with pytest.raises(SessionCorrupt):
            store.append(handle, b"x", idempotency_key="x")
        client.rename(store.keys("b").state, store.keys("a").state)
        client.ltrim(turns, 0, 2)
        with pytest.raises(SessionCorrupt):
            store.get_state(handle)
        assert other

    @pytest.mark.parametrize("part", ["root", "turns", "state"])
    def test_a_key_of_another_type_is_noticed_and_can_be_deleted(
        self, store: SessionStore, client: Client, part: str
    ) -> None:
        handle = filled(store, "a")
        key = getattr(store.keys("a"), part)
        client.delete(key)
        client.sadd(key, b"x")
        uses = {"get_state": USES["get_state"]} if part == "state" else USES
        for use in uses.values():
            with pytest.raises(SessionCorrupt):
                use(store, handle)
        store.delete(handle)
        assert client.dbsize() == 0

    def test_on_the_way_is_noticed(self, server: EmbeddedServer, store: SessionStore) -> None:
        sent = [os.urandom(3000) for _ in range(20)]
        store.create("a")
        store.append_many("a", sent, idempotency_key="1")
        with proxy_to(server) as proxy, SessionStore(url(proxy)) as mine:
            with proxy.fault(OneBit()) as fault, pytest.raises(SessionCorrupt):
                mine.read("a")
            assert fault.acted
            assert contents(mine.read("a")) == sent
