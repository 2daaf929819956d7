"""SES: sessions are ordered, complete, alone with their keys, and never lost unnoticed."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.faults.catalog import ResetMidReply
from fixtures.faults.fault import Context, OnReply
from fixtures.faults.proxy import FaultProxy
from fixtures.faults.resp import Command, Frame
from fixtures.load import Payloads, store, workload_items
from fixtures.observe import require_info, server_time_ms, wait_for
from fixtures.servers import ServerFactory, effective_maxmemory, empty
from fixtures.slots import slot_of
from fixtures.spec import Evidence, Numbers, check, clause, ensure, not_proven
from fixtures.strategies import adversarial_parts, against_a_server
from fixtures.targets import Target
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.errors import CacheUnavailable, SessionConflict, SessionError, SessionLost

Implementation = Callable[[str], Any]


class Outages(ResetMidReply):
    """Of every 80 replies the last 40 are lost with their connections, after the server did what was asked.

    Shared by the writers, that is more in a row than a client's own retries last: callers have to try again
    too.
    """

    _replies = 0

    def on_reply(self, ctx: Context, command: Command, reply: Frame) -> OnReply:
        self._replies += 1
        return super().on_reply(ctx, command, reply) if self._replies % 80 >= 40 else None


@pytest.mark.cost_s(4)
@clause("SES-01", needs={"write", "net"})
def test_turns_come_back_in_order_and_exactly_once(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """Six writers append to one session through a network that loses replies, and try again with the same
    idempotency key: every turn is there once, in the order in which its writer appended.
    """
    server = servers.scaled()
    writers, each = 6, 30
    fault = Outages(after_bytes=1, commands="all")
    retried = [0] * writers
    errors: list[BaseException] = []
    with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
        url = server.login_url(proxy.port)
        with implementation("sessions")(server.login_url(), deadline_s=10) as direct:
            handle = direct.create("shared")

        def write(writer: int) -> None:
            try:
                with implementation("sessions")(url, deadline_s=5) as sessions:
                    for number in range(each):
                        append_until_known(sessions, handle, writer, number, retried)
            except Exception as error:
                errors.append(error)  # raised again below, in the spec's thread

        with proxy.fault(fault):
            threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in range(writers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(120)
    if errors:
        raise errors[0]
    with implementation("sessions")(server.login_url(), deadline_s=10) as direct:
        turns = direct.read(handle)
    contents = [turn.content for turn in turns]
    wanted = {b"%d:%d" % (writer, number) for writer in range(writers) for number in range(each)}
    order_kept = all(
        [c for c in contents if c.startswith(b"%d:" % writer)]
        == sorted(
            (c for c in set(contents) if c.startswith(b"%d:" % writer)), key=lambda c: int(c.split(b":")[1])
        )
        for writer in range(writers)
    )
    numbers: Numbers = {
        "turns_appended": len(wanted),
        "turns_read": len(contents),
        "missing": len(wanted - set(contents)),
        "twice": len(contents) - len(set(contents)),
        "replies_lost": fault.acted,
        "appends_tried_again": sum(retried),
    }
    evidence.record(**numbers)
    ensure(fault.acted > 0 and sum(retried) > 0, f"no reply was lost, or none that mattered: {numbers}")
    check(
        set(contents) == wanted and len(contents) == len(wanted),
        expected=f"each of {len(wanted)} acknowledged turns exactly once",
        observed=f"{numbers['missing']} missing, {numbers['twice']} twice, {len(contents)} in all",
        evidence=numbers,
    )
    check(
        order_kept,
        expected="the turns of each writer in the order in which it appended them",
        observed="they came back in another order",
        evidence=numbers,
    )


def append_until_known(sessions: Any, handle: Any, writer: int, number: int, retried: list[int]) -> None:
    """Append one turn; after a lost reply, again with the same key."""
    end = time.monotonic() + 60
    while True:
        try:
            sessions.append(handle, b"%d:%d" % (writer, number), idempotency_key=f"{writer}:{number}")
            return
        except CacheUnavailable:
            retried[writer] += 1
            if time.monotonic() >= end:
                raise


@pytest.mark.cost_s(3)
@clause("SES-02", needs={"write", "config"})
def test_no_key_outlives_its_session(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """After each operation all keys of a session have the same deadline, the declared time from then; in the
    end none is left.
    """
    server = servers.scaled()
    ttl_s = 3
    seen_keys: set[bytes] = set()
    with (
        server.connect() as client,
        implementation("sessions")(client, ttl_s=ttl_s, deadline_s=5) as sessions,
    ):
        handle = sessions.create(("user", 1))
        operations: list[tuple[str, Callable[[], Any]]] = [
            ("append", lambda: sessions.append(handle, b"one", idempotency_key="1")),
            ("append again", lambda: sessions.append(handle, b"two", idempotency_key="2")),
            ("compare_and_set", lambda: sessions.compare_and_set(handle, b"state", 0)),
            ("read", lambda: sessions.read(handle)),
            ("append after state", lambda: sessions.append(handle, b"three", idempotency_key="3")),
            ("compare_and_set again", lambda: sessions.compare_and_set(handle, b"other", 1)),
            ("window", lambda: sessions.window(handle, last_turns=1)),
            ("touch", lambda: sessions.touch(handle)),
        ]
        for name, operate in operations:
            time.sleep(0.05)
            before = server_time_ms(client)
            operate()
            after = server_time_ms(client)
            keys = list(client.scan_iter(count=100))
            seen_keys.update(keys)
            deadlines = {key: int(client.execute_command("PEXPIRETIME", key)) for key in keys}
            off = {
                key: at
                for key, at in deadlines.items()
                if not before + ttl_s * 1000 <= at <= after + ttl_s * 1000
            }
            check(
                len(keys) > 0 and not off,
                expected=f"after {name} every key of the session expires {ttl_s} s from then",
                observed="; ".join(
                    f"{key!r:.80} " + ("never expires" if at == -1 else f"expires in {at - after} ms")
                    for key, at in off.items()
                )
                or "no key is there",
                evidence={"operation": name, "keys": len(keys), "keys_off": len(off)},
            )
        wait_for(
            lambda: server_time_ms(client) > max(deadlines.values()),
            what="the session's time to pass",
            deadline_s=30,
            poll_s=0.05,
        )
        left = [key for key in seen_keys if client.exists(key)]
    evidence.record(operations=len(operations), keys_of_the_session=len(seen_keys), keys_left=len(left))
    check(not left, expected="no key is left when the time has passed", observed=f"{left!r:.200} are left")


@clause("SES-03", needs={"write"})
def test_deleting_a_session_deletes_only_it(
    target: Target, contract: Contract, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """For ids full of glob characters, separators and anything else: the one is gone, all others are as
    before.
    """
    run = rng.randbytes(6).hex()
    deleted = itertools.count()
    siblings = [b"a", b"ab", b"a*", b"*", b"?", b"[ab]", b"a:b", b"{a}", b"a:turns", b"\\a"]
    with (
        target.connect(deadline_s=30) as client,
        implementation("sessions")(
            client,
            keyspace=target.namespace.keyspace(contract.workloads["sessions"]),
            ttl_s=600,
            deadline_s=20,
        ) as sessions,
    ):

        @against_a_server(max_examples=target.examples(12))
        @given(
            shuffled=st.permutations(siblings),
            more=st.lists(
                adversarial_parts().filter(lambda n: 0 < len(n) < 300 and n not in siblings),
                max_size=2,
                unique=True,
            ),
        )
        def delete_first(shuffled: list[bytes], more: list[bytes]) -> None:
            names = [*shuffled, *more]
            example = next(deleted)
            handles = {name: sessions.create((run, example, name)) for name in names}
            for name, handle in handles.items():
                sessions.append(handle, b"turn of " + name, idempotency_key="1")
                sessions.compare_and_set(handle, b"state of " + name, 0)
            first, *others = names
            sessions.delete(handles[first])
            try:
                gone = not sessions.exists(handles[first])
            except SessionError:
                gone = True
            whole = [
                [turn.content for turn in sessions.read(handles[name])] == [b"turn of " + name]
                and sessions.get_state(handles[name]).value == b"state of " + name
                for name in others
                if intact(sessions, handles[name])
            ]
            for name in others:
                sessions.delete((run, example, name))
            check(gone, expected="the deleted session is gone", observed=f"{first!r:.80} is still there")
            check(
                whole == [True] * len(others),
                expected=f"deleting {first!r:.80} leaves all other sessions whole",
                observed=f"{len(others) - sum(whole)} of {len(others)} others are gone or changed",
                evidence={"deleted": repr(first)[:80], "others_harmed": len(others) - sum(whole)},
            )

        delete_first()
    evidence.record(sessions_deleted=next(deleted))


def intact(sessions: Any, handle: Any) -> bool:
    """Whether a session can be read."""
    try:
        sessions.read(handle)
    except SessionError:
        return False
    return True


@clause("SES-04", needs={"write", "config"})
def test_all_keys_of_a_session_share_a_slot(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """A session can live on a cluster: whatever keys it has hash to one slot, for any id."""
    server = servers.scaled()
    sessions_seen, most = 0, 0
    with (
        server.connect(deadline_s=30) as client,
        implementation("sessions")(client, ttl_s=600, deadline_s=20) as sessions,
    ):

        @against_a_server(max_examples=40)
        @given(id=adversarial_parts().filter(lambda n: 0 < len(n) < 300))
        def one_slot(id: bytes) -> None:
            nonlocal sessions_seen, most
            empty(client)
            handle = sessions.create(("slots", id), replace=True)
            sessions.append(handle, b"turn", idempotency_key="1")
            sessions.compare_and_set(handle, b"state", 0)
            keys = list(client.scan_iter(count=100))
            slots = {slot_of(key) for key in keys}
            sessions_seen += 1
            most = max(most, len(keys))
            check(
                len(slots) == 1,
                expected="all keys of a session in one cluster slot",
                observed=f"{len(keys)} keys of session {id!r:.60} lie in {len(slots)} slots: "
                f"{sorted(keys)!r:.300}",
                evidence={"keys": len(keys), "slots": len(slots)},
            )

        one_slot()
    evidence.record(sessions=sessions_seen, keys_of_a_session=most)
    if most < 2:
        not_proven("sessions have a single key, which always has one slot")


@pytest.mark.cost_s(4)
@clause("SES-05", needs={"fill"})
def test_a_lost_session_is_told_from_a_new_one(
    servers: ServerFactory,
    contract: Contract,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
) -> None:
    """Under memory pressure, and with each combination of its keys gone, a session reads whole or raises
    SessionLost: never empty, never short.
    """
    server = servers.scaled(maxmemory_bytes=24 * 1024 * 1024, settings={"maxmemory-policy": "allkeys-lru"})
    maxmemory = effective_maxmemory(server)
    payloads = Payloads(rng)
    whole, lost, wrong = 0, 0, 0
    first_wrong = ""

    def judge(sessions: Any, handle: Any, wanted: list[bytes], how: str) -> None:
        nonlocal whole, lost, wrong, first_wrong
        try:
            turns = [turn.content for turn in sessions.read(handle, slide=False)]
        except SessionLost:
            lost += 1
            return
        if turns == wanted:
            whole += 1
        else:
            wrong += 1
            first_wrong = first_wrong or f"{how}: {len(turns)} of {len(wanted)} turns were read"

    with (
        server.connect(deadline_s=30) as client,
        implementation("sessions")(client, ttl_s=3600, deadline_s=20) as sessions,
    ):
        handles = []
        for number in range(150):
            handle = sessions.create(("evict", number))
            contents = [payloads.make(b"%d:%d" % (number, turn), 3000) for turn in range(8)]
            sessions.append_many(handle, contents, idempotency_key="turns")
            sessions.compare_and_set(handle, b"state", 0)
            handles.append((handle, contents))
        flood = workload_items(
            list(contract.workloads.values()), payloads, rng, total_bytes=maxmemory * 5 // 6, name="pressure"
        )
        store(client, flood)
        evicted_keys = int(require_info(client, "stats")["evicted_keys"])
        for handle, contents in handles:
            judge(sessions, handle, contents, "evicted")
        # Each part of a session gone by itself, however eviction happened to choose.
        empty(client)
        combinations = 0
        for number, subset in enumerate(subsets_of_keys(client, sessions)):
            handle = sessions.create(("part", number))
            contents = [b"turn %d" % turn for turn in range(5)]
            sessions.append_many(handle, contents, idempotency_key="turns")
            sessions.compare_and_set(handle, b"state", 0)
            names = sorted(client.scan_iter(match=b"*part*", count=1000))
            for position in subset:
                client.unlink(names[position])
            combinations += 1
            judge(sessions, handle, contents, f"keys {subset} of {len(names)} gone")
            empty(client)
    numbers: Numbers = {
        "sessions_read": whole + lost + wrong,
        "whole": whole,
        "lost_and_told": lost,
        "evicted_keys": evicted_keys,
        "key_combinations_tried": combinations,
        "wrong": wrong,
    }
    evidence.record(**numbers)
    ensure(evicted_keys > 0, f"nothing was evicted: {numbers}")
    check(
        wrong == 0,
        expected="a session reads whole, or raises SessionLost",
        observed=f"{wrong} sessions read short or empty without an error; first: {first_wrong}",
        evidence=numbers,
    )


def subsets_of_keys(client: Client, sessions: Any) -> list[tuple[int, ...]]:
    """Every non-empty combination of positions among the keys that a session has."""
    handle = sessions.create(("probe",))
    sessions.append(handle, b"turn", idempotency_key="1")
    sessions.compare_and_set(handle, b"state", 0)
    count = client.dbsize()
    empty(client)
    return [subset for size in range(1, count + 1) for subset in itertools.combinations(range(count), size)]


@clause("SES-06", needs={"write"})
def test_concurrent_updates_lose_nothing(
    target: Target, contract: Contract, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """Eight clients count up one state by compare-and-set, and append: no increment and no turn is lost."""
    clients, each = 8, 15
    keyspace = target.namespace.keyspace(contract.workloads["sessions"])
    id = ("updates", rng.randbytes(6).hex())
    conflicts = [0] * clients
    errors: list[BaseException] = []
    barrier = threading.Barrier(clients)

    def count_up(number: int, handle: Any) -> None:
        try:
            with (
                target.connect(deadline_s=30) as client,
                implementation("sessions")(client, keyspace=keyspace, ttl_s=600, deadline_s=20) as sessions,
            ):
                barrier.wait(30)
                for step in range(each):
                    while True:
                        state = sessions.get_state(handle)
                        value = int(state.value or b"0") + 1
                        # As long as others take to come between the look and the change.
                        time.sleep(0.001)
                        try:
                            sessions.compare_and_set(handle, b"%d" % value, state.version)
                            break
                        except SessionConflict:
                            conflicts[number] += 1
                    sessions.append(handle, b"%d:%d" % (number, step), idempotency_key=f"{number}:{step}")
        except Exception as error:
            errors.append(error)  # raised again below, in the spec's thread

    with (
        target.connect(deadline_s=30) as client,
        implementation("sessions")(client, keyspace=keyspace, ttl_s=600, deadline_s=20) as sessions,
    ):
        handle = sessions.create(id)
        threads = [threading.Thread(target=count_up, args=(n, handle), daemon=True) for n in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        if errors:
            raise errors[0]
        final = int(sessions.get_state(handle).value or b"0")
        turns = len({turn.content for turn in sessions.read(handle)})
        sessions.delete(handle)
    numbers: Numbers = {
        "clients": clients,
        "increments": clients * each,
        "final_value": final,
        "turns": turns,
        "conflicts": sum(conflicts),
    }
    evidence.record(**numbers)
    check(
        final == clients * each,
        expected=f"{clients * each} increments add up",
        observed=f"the state is {final}: {clients * each - final} updates were lost",
        evidence=numbers,
    )
    check(
        turns == clients * each,
        expected=f"{clients * each} turns",
        observed=f"{turns} are there",
        evidence=numbers,
    )
