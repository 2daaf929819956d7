"""Sessions on real servers: each turn once and in order, one lifetime, and lost never taken for new."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from valkey.crc import key_slot

from fixtures.faults.catalog import Refuse, ResetMidReply
from fixtures.faults.proxy import FaultProxy
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.connection import Client
from inference_cache.errors import (
    SessionConflict,
    SessionError,
    SessionExists,
    SessionLost,
    SessionUncertain,
    SessionUnknown,
    Unreachable,
    UsageError,
)
from inference_cache.keyspace import Keyspace
from inference_cache.sessions import (
    SessionHandle,
    SessionId,
    SessionStore,
    State,
    Turn,
)
from tests.session_uses import (
    NASTY,
    SLIDING,
    STILL,
    USES,
    VOLATILE,
    WRITES,
    NowAndThen,
    contents,
    filled,
    proxy_to,
    snapshot,
    url,
)


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


class TestTurns:
    def test_come_back_as_they_were(self, store: SessionStore) -> None:
        every_byte = bytes(range(256)) * 3
        store.create("a")
        sent = [
            Turn(content=b""),
            Turn(content=every_byte, role="üser\n", metadata=every_byte[::-1]),
            Turn(content=b"x" * 1024 * 1024, role="r" * 256),
        ]
        for number, turn in enumerate(sent):
            assert store.append("a", turn, idempotency_key=f"é{number}") == number

        found = store.read("a")

        assert [replace(turn, idempotency_key="", position=None, at_ms=None) for turn in found] == sent
        assert [(turn.position, turn.idempotency_key) for turn in found] == [(0, "é0"), (1, "é1"), (2, "é2")]
        assert all(abs((turn.at_ms or 0) / 1000 - time.time()) < 60 for turn in found)

    def test_many_at_once_get_positions_in_a_row(self, store: SessionStore) -> None:
        store.create("a")
        assert store.append_many("a", [b"x"], idempotency_key="1") == [0]
        assert store.append_many("a", [b"%d" % n for n in range(1000)], idempotency_key="2") == list(
            range(1, 1001)
        )
        assert contents(store.read("a")) == [b"x", *(b"%d" % n for n in range(1000))]

    def test_a_window_is_the_end(self, store: SessionStore) -> None:
        store.create("a")
        store.append_many("a", [b"%d" % n for n in range(600)], idempotency_key="1")
        for last in (0, 1, 2, 511, 512, 513, 599, 600, 601, 10_000):
            expected = [b"%d" % n for n in range(max(600 - last, 0), 600)]
            assert contents(store.window("a", last_turns=last)) == expected

    def test_a_window_of_tokens_holds_whole_turns_only(self, store: SessionStore) -> None:
        store.create("a")
        sizes = [random.Random(7).randrange(1, 50) for _ in range(200)]
        store.append_many("a", [b"x" * size for size in sizes], idempotency_key="1")
        for budget in (0, 1, sizes[-1] - 1, sizes[-1], 300, sum(sizes) - 1, sum(sizes), 10**9):
            counted: list[int] = []

            def count(turn: Turn, counted: list[int] = counted) -> int:
                counted.append(len(turn.content))
                return len(turn.content)

            found = store.window("a", last_tokens=budget, count_tokens=count)
            suffixes = [n for n in range(201) if sum(sizes[n:]) <= budget]
            assert [len(turn.content) for turn in found] == sizes[min(suffixes) :]
            assert len(counted) <= len(found) + 1

    def test_reading_goes_in_pages_of_bounded_size(self, store: SessionStore, client: Client) -> None:
        store.create("a")
        big = [bytes([n]) * 400_000 for n in range(8)]
        for n, content in enumerate(big):
            store.append("a", content, idempotency_key=str(n))
        client.config_resetstat()
        assert contents(store.read("a")) == big
        assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == 3
        assert contents(store.window("a", last_turns=1)) == big[-1:]

    def test_an_empty_session_is_empty(self, store: SessionStore) -> None:
        store.create("a")
        assert store.read("a") == store.window("a", last_turns=5) == []
        assert store.get_state("a") == State(b"", 0)

    def test_pages_of_a_session_that_is_replaced_meanwhile_are_not_mixed(
        self, store: SessionStore, client: Client
    ) -> None:
        store.create("a")
        store.append_many("a", [b"old"] * 40, idempotency_key="1")

        def count(turn: Turn) -> int:
            if turn.position == 30:
                fresh = SessionStore(client).create("a", replace=True)
                store.append_many(fresh, [b"new"] * 40, idempotency_key="1")
            return 1

        with pytest.raises(SessionLost) as caught:
            store.window("a", last_tokens=1000, count_tokens=count)
        assert caught.value.how == "replaced"


class TestExactlyOnce:
    def test_a_repeated_append_adds_nothing(self, store: SessionStore, client: Client) -> None:
        store.create("a")
        other = SessionStore(client)
        for again in (store, other, store):
            assert again.append("a", b"0", idempotency_key="first") == 0
        assert other.append("a", b"1", idempotency_key="second") == 1
        for again in (store, other):
            assert again.append("a", b"0", idempotency_key="first") == 0
        assert contents(store.read("a")) == [b"0", b"1"]

    def test_a_repeated_batch_gives_the_same_positions(self, store: SessionStore) -> None:
        store.create("a")
        store.append("a", b"x", idempotency_key="1")
        for _ in range(3):
            assert store.append_many("a", [b"a", b"b", b"c"], idempotency_key="2") == [1, 2, 3]
        assert len(store.read("a")) == 4

    @pytest.mark.parametrize(
        "other",
        [[b"y"], [b"x", b"x"], [Turn(content=b"x", role="user")], [Turn(content=b"x", metadata=b"m")]],
        ids=["content", "more", "role", "metadata"],
    )
    def test_a_key_that_comes_again_with_something_else_is_refused(
        self, store: SessionStore, other: list[bytes | Turn]
    ) -> None:
        store.create("a")
        store.append("a", b"x", idempotency_key="k")
        with pytest.raises(UsageError, match="used to append something else"):
            store.append_many("a", other, idempotency_key="k")
        assert contents(store.read("a")) == [b"x"]

    def test_updates_are_remembered_up_to_the_limit_and_no_further(self, client: Client) -> None:
        store = SessionStore(client, remember_updates=4)
        store.create("a")
        for n in range(50):
            assert store.append("a", b"%d" % n, idempotency_key=f"k{n}") == n
            for earlier in range(max(n - 3, 0), n):
                assert store.append("a", b"%d" % earlier, idempotency_key=f"k{earlier}") == earlier
        fields = client.hkeys(store.keys("a").root)
        assert len(fields) == 5 + 2 * 4
        assert store.append("a", b"46", idempotency_key="k46") == 46
        assert store.append("a", b"45", idempotency_key="k45") == 50

    def test_the_limit_is_that_of_the_creator(self, client: Client) -> None:
        SessionStore(client, remember_updates=2).create("a")
        other = SessionStore(client, remember_updates=100)
        for n in range(10):
            other.append("a", b"%d" % n, idempotency_key=str(n))
        assert len(client.hkeys(other.keys("a").root)) == 5 + 2 * 2

    def test_a_repeated_set_is_answered_as_the_first_time(self, store: SessionStore) -> None:
        store.create("a")
        assert store.compare_and_set("a", b"1", 0, idempotency_key="k") == 1
        assert store.compare_and_set("a", b"2", 1) == 2
        assert store.compare_and_set("a", b"1", 0, idempotency_key="k") == 1
        assert store.get_state("a") == (b"2", 2)
        with pytest.raises(SessionConflict):
            store.compare_and_set("a", b"other", 0, idempotency_key="k")

    @pytest.mark.parametrize("remembered", [1, 250])
    def test_many_writers_with_lost_replies(self, proxy: FaultProxy, client: Client, remembered: int) -> None:
        """16 threads append through a proxy that resets one connection in three in mid-reply."""
        each, writers = 25, 16
        store = SessionStore(client, remember_updates=remembered)
        store.create("a")
        positions: dict[bytes, int] = {}

        def write(writer: int) -> None:
            with SessionStore(url(proxy), deadline_s=5) as mine:
                for n in range(each):
                    content = b"%d %d" % (writer, n)
                    while True:
                        try:
                            position = mine.append("a", content, idempotency_key=content.decode())
                        except Unreachable:
                            continue
                        break
                    positions[content] = position

        fault = NowAndThen(every=3)
        with proxy.fault(fault), ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))

        found = contents(store.read("a"))
        assert fault.acted > 50
        assert len(found) == each * writers
        assert all(found[position] == content for content, position in positions.items())
        for writer in range(writers):
            own = [content for content in found if content.split()[0] == b"%d" % writer]
            assert own == [b"%d %d" % (writer, n) for n in range(each)]

    @pytest.mark.parametrize("size", [1, 3])
    def test_a_late_retry_of_the_same_store_adds_nothing(
        self, proxy: FaultProxy, client: Client, size: int
    ) -> None:
        """Although the server has long forgotten the key, the turns have not."""
        store = SessionStore(client, remember_updates=1)
        handle = filled(store, "a")
        sent = [b"mine %d" % n for n in range(size)]
        with SessionStore(url(proxy)) as mine:
            mine.read("a")
            with proxy.fault(ResetMidReply(after_bytes=3)), pytest.raises(Unreachable):
                mine.append_many("a", sent, idempotency_key="mine")
            for n in range(200):
                store.append(handle, b"%d" % n, idempotency_key=f"other {n}")
            mine.read("a")
            for _ in range(2):
                with proxy.fault(ResetMidReply(after_bytes=3)), pytest.raises(Unreachable):
                    mine.append_many("a", sent, idempotency_key="mine")
            assert mine.append_many("a", sent, idempotency_key="mine") == list(range(3, 3 + size))
            assert len(mine.read("a")) == 203 + size
            with proxy.fault(Refuse()), pytest.raises(Unreachable):
                mine.append("a", b"never sent", idempotency_key="new")
            store.append(handle, b"x", idempotency_key="x")
            assert mine.append("a", b"never sent", idempotency_key="new") == 204 + size

    def test_creating_with_lost_replies(self, proxy: FaultProxy, store: SessionStore) -> None:
        with proxy.fault(NowAndThen(every=2)), SessionStore(url(proxy), deadline_s=5) as mine:
            for n in range(30):
                try:
                    mine.create(n)
                except Unreachable:
                    assert store.open(n)
                assert store.read(n) == []


class TestState:
    def test_is_set_only_on_the_expected_version(self, store: SessionStore) -> None:
        store.create("a")
        value = bytes(range(256))
        assert store.compare_and_set("a", value, 0) == 1
        assert store.get_state("a") == (value, 1)
        for wrong in (0, 2, 10**15):
            with pytest.raises(SessionConflict) as caught:
                store.compare_and_set("a", b"x", wrong)
            assert (caught.value.expected_version, caught.value.actual_version) == (wrong, 1)
        assert store.compare_and_set("a", b"", 1) == 2
        assert store.get_state("a") == (b"", 2)

    def test_a_late_retry_is_answered_or_refused_but_never_set_twice(
        self, proxy: FaultProxy, client: Client
    ) -> None:
        store = SessionStore(client, remember_updates=2)
        store.create("a")

        def others(count: int) -> None:
            for _ in range(count):
                store.append("a", b"x", idempotency_key=str(time.monotonic_ns()))

        with SessionStore(url(proxy)) as mine:

            def lose(new: bytes, expected: int) -> None:
                with proxy.fault(ResetMidReply(after_bytes=3)), pytest.raises(Unreachable):
                    mine.compare_and_set("a", new, expected, idempotency_key="k")

            lose(b"1", 0)
            others(5)
            assert mine.compare_and_set("a", b"1", 0, idempotency_key="k") == 1
            lose(b"2", 1)
            assert store.compare_and_set("a", b"3", 2) == 3
            assert mine.compare_and_set("a", b"2", 1, idempotency_key="k") == 2
            lose(b"4", 3)
            assert store.compare_and_set("a", b"5", 4) == 5
            others(5)
            with pytest.raises(SessionUncertain):
                mine.compare_and_set("a", b"4", 3, idempotency_key="k")
            with proxy.fault(Refuse()), pytest.raises(Unreachable):
                mine.compare_and_set("a", b"6", 5, idempotency_key="k")
            for version in (5, 6):
                store.compare_and_set("a", b"theirs", version)
                with pytest.raises(SessionConflict):
                    mine.compare_and_set("a", b"6", 5, idempotency_key="k")
                with proxy.fault(Refuse()), pytest.raises(Unreachable):
                    mine.compare_and_set("a", b"6", 5, idempotency_key="k")
            assert store.get_state("a") == (b"theirs", 7)

    def test_a_race_loses_nothing(self, server: EmbeddedServer, store: SessionStore) -> None:
        store.create("a")

        def count(_: int) -> None:
            with SessionStore(server.url, deadline_s=20) as mine:
                for _ in range(200):
                    while True:
                        value, version = mine.get_state("a")
                        try:
                            mine.compare_and_set("a", b"%d" % (int(value or b"0") + 1), version)
                            break
                        except SessionConflict:
                            continue

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))
        assert store.get_state("a") == (b"1600", 1600)

    def test_a_race_with_lost_replies_counts_nothing_twice(
        self, proxy: FaultProxy, store: SessionStore
    ) -> None:
        store.create("a")

        def count(worker: int) -> None:
            with SessionStore(url(proxy), deadline_s=5) as mine:
                for n in range(20):
                    for attempt in itertools.count():
                        try:
                            value, version = mine.get_state("a")
                        except Unreachable:
                            continue
                        key = f"{worker} {n} {attempt}"
                        if add(mine, b"%d" % (int(value or b"0") + 1), version, key):
                            break

        def add(mine: SessionStore, new: bytes, version: int, key: str) -> bool:
            while True:
                try:
                    mine.compare_and_set("a", new, version, idempotency_key=key)
                except SessionConflict:
                    return False
                except Unreachable:
                    continue
                return True

        with proxy.fault(NowAndThen(every=4)), ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))
        assert store.get_state("a") == (b"160", 160)


def deadlines_ms(client: Client, store: SessionStore, id: SessionId) -> set[int]:
    return {client.pexpiretime(key) for key in store.keys(id).all if client.exists(key)}


class TestLifetime:
    @pytest.mark.parametrize("use", SLIDING)
    def test_every_use_gives_all_keys_one_later_deadline(
        self, store: SessionStore, client: Client, use: str
    ) -> None:
        handle = filled(store, "a")
        keys = store.keys("a")
        for key, ms in zip(keys.all, (60_000, 70_000, 80_000), strict=True):
            client.pexpire(key, ms)
        before_ms = int(client.time()[0] * 1000)
        SLIDING[use](store, handle)
        after_ms = int((client.time()[0] + 1) * 1000)

        (deadline_ms,) = deadlines_ms(client, store, "a")
        assert client.exists(*keys.all) == 3
        assert before_ms <= deadline_ms - 86_400_000 <= after_ms

    @pytest.mark.parametrize("use", STILL)
    def test_a_still_use_moves_no_deadline(self, store: SessionStore, client: Client, use: str) -> None:
        handle = filled(store, "a")
        before = deadlines_ms(client, store, "a")
        time.sleep(0.005)
        STILL[use](store, handle)
        assert deadlines_ms(client, store, "a") == before

    @pytest.mark.parametrize("use", USES)
    def test_without_a_ttl_no_key_has_one(self, client: Client, use: str) -> None:
        store = SessionStore(client, ttl_s=None)
        handle = filled(store, "a")
        assert deadlines_ms(client, store, "a") == {-1}
        USES[use](store, handle)
        assert deadlines_ms(client, store, "a") == {-1}

    @pytest.mark.parametrize("use", WRITES)
    def test_a_store_without_a_ttl_takes_that_of_another_away(self, client: Client, use: str) -> None:
        filled(SessionStore(client), "a")
        WRITES[use](SessionStore(client, ttl_s=None), "a")
        assert deadlines_ms(client, SessionStore(client), "a") == {-1}

    def test_sliding_keeps_a_session_and_idling_loses_it(self, client: Client) -> None:
        store = SessionStore(client, ttl_s=0.4)
        handle = filled(store, "a")
        for _ in range(6):
            time.sleep(0.15)
            assert len(store.read(handle)) == 3
        time.sleep(0.5)
        assert client.dbsize() == 0 or client.exists(*store.keys("a").all) == 0
        with pytest.raises(SessionLost) as caught:
            store.read(handle)
        assert caught.value.how == "gone"


class TestKeys:
    @pytest.mark.parametrize("id", NASTY, ids=ascii)
    def test_all_of_a_session_share_a_slot_and_the_prefix(self, store: SessionStore, id: SessionId) -> None:
        keys = store.keys(id).all
        assert len({key_slot(key) for key in keys}) == 1
        parsed = [Keyspace("session:").parse(key) for key in keys]
        assert [parts[len(parsed[0]) :] for parts in parsed] == [(), (b"turns",), (b"state",)]

    def test_the_slot_is_what_a_cluster_says(self, client: Client, store: SessionStore) -> None:
        root = store.keys(("user", 123)).root
        assert root == b"session:user:{123}"
        assert key_slot(root) == key_slot(b"123")

    def test_of_different_sessions_are_different(self, store: SessionStore) -> None:
        keys = [key for id in NASTY for key in store.keys(id).all]
        assert len(set(keys)) == len(keys)

    def test_deleting_one_session_deletes_only_it(self, store: SessionStore, client: Client) -> None:
        for id in NASTY:
            filled(store, id)
        client.set("session:user:123", b"not ours")
        for number, id in enumerate(NASTY):
            before = set(client.keys())
            store.delete(id)
            assert before - set(client.keys()) == set(store.keys(id).all)
            assert not client.exists(*store.keys(id).all)
            for other in NASTY[number + 1 :]:
                assert len(store.read(other)) == 3
        assert client.keys() == [b"session:user:123"]

    def test_a_stale_handle_does_not_delete_the_next_session(
        self, store: SessionStore, client: Client
    ) -> None:
        old = filled(store, "a")
        store.delete("a")
        fresh = filled(SessionStore(client), "a")
        with pytest.raises(SessionLost):
            store.delete(old)
        assert len(store.read(fresh)) == 3


class TestBeginning:
    def test_only_create_begins_a_session(self, store: SessionStore, client: Client) -> None:
        for use in USES.values():
            if use is USES["exists"]:
                assert use(store, "a") is False
                continue
            with pytest.raises(SessionUnknown):
                use(store, "a")
        assert client.dbsize() == 0

    def test_create_refuses_one_that_exists(self, store: SessionStore, client: Client) -> None:
        handle = filled(store, "a")
        for other in (store, SessionStore(client)):
            with pytest.raises(SessionExists):
                other.create("a")
            assert other.open("a") == other.open("a", create=True) == handle
        assert len(store.read("a")) == 3

    def test_open_may_create(self, store: SessionStore, client: Client) -> None:
        handle = store.open("a", create=True)
        assert SessionStore(client).open("a", create=True) == handle
        assert store.read("a") == []

    def test_replacing_begins_anew(self, store: SessionStore, client: Client) -> None:
        old = filled(store, "a")
        other = SessionStore(client)
        other.open("a")
        new = store.create("a", replace=True)
        assert new.generation != old.generation
        assert store.read("a") == store.read(new) == []
        for stale in (old, "a"):
            with pytest.raises(SessionLost) as caught:
                other.read(stale)
            assert caught.value.how == "replaced"
        other.forget("a")
        assert other.read("a") == []

    def test_a_handle_can_be_made_from_its_fields(self, store: SessionStore, client: Client) -> None:
        handle = filled(store, ("user", 123))
        again = SessionHandle(id=("user", 123), generation=handle.generation)
        assert len(SessionStore(client).read(again)) == 3
        store.delete(handle)
        with pytest.raises(SessionLost):
            SessionStore(client).read(again)


WRONG: dict[str, Callable[[SessionStore], object]] = {
    "an empty id": lambda store: store.create(""),
    "no part": lambda store: store.create(()),
    "an empty part": lambda store: store.create(("", "a")),
    "a long id": lambda store: store.create("a" * 1025),
    "a long id in parts": lambda store: store.create(("a" * 1000, b"b" * 25)),
    "an id of 64 KiB": lambda store: store.create(b"\0" * 65_536),
    "an id that is no text": lambda store: store.create("\ud800"),
    "a float as id": lambda store: store.create(1.5),  # type: ignore[arg-type]
    "a truth value as id": lambda store: store.create(True),
    "None as id": lambda store: store.create(None),  # type: ignore[arg-type]
    "str as content": lambda store: store.append("a", "x", idempotency_key="x"),  # type: ignore[arg-type]
    "str in a turn": lambda store: store.append("a", Turn(content="x"), idempotency_key="x"),  # type: ignore[arg-type]
    "bytes as role": lambda store: store.append("a", Turn(content=b"", role=b"r"), idempotency_key="x"),  # type: ignore[arg-type]
    "a role that is no text": lambda store: store.append(
        "a", Turn(content=b"", role="\ud800"), idempotency_key="x"
    ),
    "a long role": lambda store: store.append("a", Turn(content=b"", role="r" * 257), idempotency_key="x"),
    "a big turn": lambda store: store.append("a", b"x" * 1_048_577, idempotency_key="x"),
    "big metadata": lambda store: store.append(
        "a", Turn(content=b"x", metadata=b"m" * 1_048_576), idempotency_key="x"
    ),
    "no turn": lambda store: store.append_many("a", [], idempotency_key="x"),
    "too many turns": lambda store: store.append_many("a", [b""] * 1001, idempotency_key="x"),
    "too big a batch": lambda store: store.append_many("a", [b"x" * 1_048_576] * 17, idempotency_key="x"),
    "an empty key": lambda store: store.append("a", b"x", idempotency_key=""),
    "a long key": lambda store: store.append("a", b"x", idempotency_key="k" * 257),
    "bytes as key": lambda store: store.append("a", b"x", idempotency_key=b"k"),  # type: ignore[arg-type]
    "a key that is no text": lambda store: store.append("a", b"x", idempotency_key="\ud800"),
    "a negative window": lambda store: store.window("a", last_turns=-1),
    "half a turn": lambda store: store.window("a", last_turns=0.5),  # type: ignore[arg-type]
    "no window": lambda store: store.window("a"),
    "two windows": lambda store: store.window("a", last_turns=1, last_tokens=1, count_tokens=lambda _: 1),
    "tokens without count": lambda store: store.window("a", last_tokens=1),
    "negative tokens": lambda store: store.window("a", last_tokens=-1, count_tokens=lambda _: 1),
    "a negative count": lambda store: store.window("a", last_tokens=1, count_tokens=lambda _: -1),
    "a fractional count": lambda store: store.window("a", last_tokens=1, count_tokens=lambda _: 0.5),  # type: ignore[arg-type, return-value]
    "str as state": lambda store: store.compare_and_set("a", "x", 1),  # type: ignore[arg-type]
    "a big state": lambda store: store.compare_and_set("a", b"x" * 1_048_577, 1),
    "a negative version": lambda store: store.compare_and_set("a", b"x", -1),
    "a truth value as version": lambda store: store.compare_and_set("a", b"x", True),
    "an empty key of a state": lambda store: store.compare_and_set("a", b"x", 1, idempotency_key=""),
    "a wrong generation": lambda store: store.read(SessionHandle(id="a", generation="")),
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"ttl_s": 0}, {"ttl_s": -1}, {"ttl_s": float("nan")}, {"ttl_s": float("inf")}, {"ttl_s": 1e-9},
    {"deadline_s": 0}, {"deadline_s": -1}, {"max_turn_bytes": 0}, {"max_turn_bytes": 1 << 30},
    {"max_state_bytes": 0}, {"remember_updates": 0}, {"remember_updates": 0.5}, {"remember_sessions": 0},
)  # fmt: skip


class TestWrongInput:
    @pytest.mark.parametrize("wrong", WRONG)
    def test_is_refused_and_changes_nothing(self, store: SessionStore, client: Client, wrong: str) -> None:
        filled(store, "a")
        before = snapshot(client)
        with pytest.raises(UsageError):
            WRONG[wrong](store)
        assert snapshot(client) == before

    @pytest.mark.parametrize("wrong", SETTINGS, ids=str)
    def test_a_setting_is_refused(self, client: Client, wrong: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            SessionStore(client, **wrong)

    def test_errors_name_no_id(self, store: SessionStore) -> None:
        for _ in range(2):
            with pytest.raises(SessionError) as caught:
                store.read("alice@example.org")
            assert "alice" not in str(caught.value)
            assert b"alice" in caught.value.key
