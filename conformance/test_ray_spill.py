"""RAY: objects spill and come back.

Most of these specs stand on a real Ray that they share, whose store is smaller than what is put into it.
Those of the value path need no Ray: they hold the storage itself against a server, and a proxy that damages
values.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from fixtures.engines.ray_cluster import Answer, Made, RayCluster, RaySilent
from fixtures.engines.ray_pool import CHUNK_BYTES, MIB, RayPool, answers_by, object_keys, password_of
from fixtures.faults.catalog import BitFlip, BlackHole, ErrorReply, FlipOver, Truncate, TruncateOver
from fixtures.faults.fault import Fault
from fixtures.faults.proxy import FaultProxy
from fixtures.observe import wait_for
from fixtures.run_state import contract_option
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure
from fixtures.targets import Target
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.errors import BlobError, CacheError
from inference_cache.ray_spill import SpilledObject, SpillParams
from inference_cache.ray_spill._record import HEAD_BYTES

Implementation = Callable[[str], Any]

_QUICK_TO_SEE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""So that Ray's GCS need not wait half a minute before it takes a killed node for dead."""
_FREED_WITHIN_S = 20.0
_TIMES_SENT = 4.0
"""How often an object that cannot be spilled may reach the server."""
_ASKED_FOR_S = 12.0
"""How long Ray is left to ask for spills that cannot be."""
"""From dropping references to the last key: Ray collects them in batches, one a second."""


@pytest.fixture(scope="module")
def pool(target: Target, implementation: Implementation, pytestconfig: pytest.Config) -> Iterator[RayPool]:
    """The Ray cluster that specs share."""
    contract = contract_option(pytestconfig) or "adr_0023"
    with RayPool(target, implementation("ray_spill"), contract) as shared:
        yield shared


@pytest.fixture
def shared(pool: RayPool, evidence: Evidence) -> Iterator[RayCluster]:
    """That cluster, with no objects before and after."""
    cluster = pool.cluster()
    evidence.proven_on = f"{pool.proven_on}, Ray {cluster.version}"
    evidence.record(ray_version=cluster.version)
    yield cluster
    with pool.server.connect() as client:
        pool.tidy(client)


@contextmanager
def no_hang(pool: RayPool, what: str) -> Iterator[None]:
    """A Ray that does not answer in time is a finding."""
    try:
        yield
    except RaySilent as error:
        pool.discard()
        check(False, expected=f"{what} ends in time", observed=str(error).splitlines()[0])


def spilled_of(client: Client, cluster: RayCluster, ids: list[str]) -> dict[str, bytes]:
    """Main keys of those objects that are spilled, by id."""
    keys = {key.rpartition(b":")[2].decode(): key for key in object_keys(client, cluster.session)}
    return {object_id: keys[object_id] for object_id in ids if object_id in keys}


def all_right(answers: list[Answer], *, expected: str) -> None:
    check(
        all(answer.answer == "right" for answer in answers),
        expected=expected,
        observed=", ".join(f"{count} {answer}" for answer, count in answers_by(answers).items()),
        evidence={"reads": len(answers), "slowest_s": max(answer.took_s for answer in answers)},
    )


@pytest.mark.cost_s(20)
@clause("RAY-01", needs={"ray", "host"})
def test_spilled_objects_come_back_byte_for_byte(
    pool: RayPool, shared: RayCluster, evidence: Evidence, rng: random.Random
) -> None:
    """Three times what the object store holds, in objects small and large and of every kind that Ray encodes
    differently, reads back unchanged, in whatever order.
    """
    with no_hang(pool, "putting and reading more than the store holds"), pool.server.connect() as client:
        large = shared.put(18, 8_000_000, seed=rng.randrange(2**31))
        small = shared.put(300, 200_000, seed=rng.randrange(2**31))
        kinds = shared.ask("put_values", deadline_s=60)["numbers"]
        more = shared.put(6, 8_000_000, seed=rng.randrange(2**31))
        spilled = len(spilled_of(client, shared, large.ids + small.ids + more.ids))
        ensure(spilled > 20, f"objects were spilled, and not {spilled}")
        mortal = [key for key in object_keys(client, shared.session) if client.pttl(key) != -1]
        # A chunk of a value that is just being stored has a TTL until the last one is there.
        mortal = [key for key in mortal if b":~" not in key]
        check(
            not mortal,
            expected="no spilled object has a TTL: a reference may outlive any",
            observed=f"{len(mortal)} of {spilled} have one",
        )
        numbers = large.numbers + small.numbers + kinds + more.numbers
        rng.shuffle(numbers)
        answers = shared.get(numbers, timeout_s=30, together=True)
    evidence.record(objects=len(numbers), spilled_objects=spilled)
    all_right(answers, expected="every object reads back as it was put")


@pytest.mark.cost_s(10)
@clause("RAY-02", needs={"ray", "host"})
def test_dropped_references_free_their_keys(
    pool: RayPool, shared: RayCluster, evidence: Evidence, rng: random.Random
) -> None:
    """Once the last reference to spilled objects is gone, so are their keys, while other objects stay."""
    with no_hang(pool, "putting more than the store holds"), pool.server.connect() as client:
        kept = shared.put(8, 6_000_000, seed=rng.randrange(2**31))
        dropped = shared.put(20, 6_000_000, seed=rng.randrange(2**31))
        before = len(spilled_of(client, shared, kept.ids + dropped.ids))
        ensure(before >= 10, f"objects were spilled, and not {before}")
        shared.drop(dropped.numbers)
        began = time.monotonic()
        gone = _eventually(lambda: not spilled_of(client, shared, dropped.ids), _FREED_WITHIN_S)
        took_s = time.monotonic() - began
        left = len(spilled_of(client, shared, dropped.ids))
        evidence.record(spilled_objects=before, freed_after_s=round(took_s, 2))
        check(
            gone,
            expected=f"no key of a dropped object is left after {_FREED_WITHIN_S:g} s",
            observed=f"{left} keys are",
            evidence={"keys_left": left, "spilled_objects": before},
        )
        all_right(shared.get(kept.numbers, timeout_s=30), expected="objects that are still referenced stay")
        shared.drop()
        gone = _eventually(lambda: not list(client.scan_iter(match="ray:*")), _FREED_WITHIN_S)
        check(
            gone,
            expected="nothing at all is left under ray: when no object is",
            observed=f"{sorted(client.scan_iter(match='ray:*'))[:3]} are left",
        )


@pytest.mark.cost_s(2)
@clause("RAY-02", needs={"ray", "host"})
def test_a_node_that_ends_takes_its_own_keys_and_no_others(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence, rng: random.Random
) -> None:
    """Destroying a node's storage, which Ray does when it is shut down, removes all keys of that node; the
    one that a starting head builds under a random id, and destroys, removes nothing.
    """
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    params = SpillParams(url=server.url, chunk_bytes=MIB, contract="adr_0023", **password_of(server))
    make = implementation("ray_spill")
    sizes = (1_000, 3_000_000)
    with (
        make(params, session="session_x", node="first") as first,
        make(params, session="session_x", node="second") as second,
        server.connect() as client,
    ):
        for storage in (first, second):
            items = [_object(rng, f"{number:056x}", size) for number, size in enumerate(sizes)]
            ensure(len(storage.spill(items)) == len(items), "every object was stored")
        before = set(client.scan_iter(match="ray:*", count=1000))
        with make(params, session="session_x", node="dummy") as dummy:
            dummy.destroy()
        after = set(client.scan_iter(match="ray:*", count=1000))
        check(
            after == before,
            expected="a head that starts removes nothing",
            observed=f"{len(before - after)} of {len(before)} keys are gone",
        )
        second.destroy()
        left = [key for key in object_keys(client) if b":second:" in key]
        check(not left, expected="nothing of the node that ended is left", observed=f"{len(left)} keys are")
        own = [key for key in before if b":first:" in key]
        gone = [key for key in own if not client.exists(key)]
        check(not gone, expected="the other node keeps all its keys", observed=f"{len(gone)} are gone")
    evidence.record(keys=len(before))


@pytest.mark.cost_s(30)
@clause("RAY-02", needs={"ray", "crash"})
def test_keys_of_the_dead_are_swept_and_of_the_living_never(
    pool: RayPool, shared: RayCluster, evidence: Evidence, rng: random.Random
) -> None:
    """A cluster that is killed leaves keys, which the janitor removes, and never a key of a living node, also
    of one whose lease ran out.
    """
    with no_hang(pool, "a cluster beside the shared one"), pool.server.connect() as client:
        living = shared.put(15, 6_000_000, seed=rng.randrange(2**31))
        wait_for(
            lambda: len(object_keys(client, shared.session)) > 3, what="the living to spill", deadline_s=30
        )
        survivors = set(object_keys(client, shared.session))
        with pool.another() as other:
            other.put(15, 6_000_000, seed=rng.randrange(2**31))
            spilled = len(object_keys(client, other.session))
            ensure(spilled > 3, f"the other cluster spilled, and not {spilled}")
            how = rng.choice(("driver", "raylet and driver"))
            if how == "raylet and driver":
                other.kill_raylet()
            other.kill_driver()
            left = len(object_keys(client, other.session))
            dead_session = other.session
        ensure(left > 3, f"the killed cluster left keys, and not {left}")
        params = SpillParams(url=pool.server.url, **pool.params())
        with pool._storage(params, session="session_of_nobody", node="janitor") as janitor:
            wait_for(
                lambda: _aged(client, dead_session, params.lease_s),
                what="the lease to run out",
                deadline_s=20,
            )
            _make_stale(client, shared.session)
            report = janitor.sweep()
        still = set(object_keys(client, shared.session))
        evidence.record(
            killed=how, keys_left=left, objects_swept=report.removed, keys_of_the_living=len(survivors)
        )
        check(
            not object_keys(client, dead_session),
            expected=f"no key of the killed {how}'s cluster is left after a sweep",
            observed=f"{len(object_keys(client, dead_session))} of {left} are; the sweep says: {report}",
        )
        check(
            survivors <= still,
            expected="no key of the living cluster is gone, although its lease seemed to have run out",
            observed=f"{len(survivors - still)} of {len(survivors)} are gone; the sweep says: {report}",
        )
        all_right(
            shared.get(living.numbers, timeout_s=30), expected="the living cluster reads all its objects"
        )


@pytest.mark.cost_s(15)
@clause("RAY-03", needs={"ray", "fill"})
def test_a_lost_object_is_a_typed_error_in_time(
    pool: RayPool, shared: RayCluster, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """Reading objects that were evicted, removed or damaged ends within the contract's spill_s, in Ray's
    ObjectLostError or in the right bytes; those beside them read as before.
    """
    limit_s = contract.deadlines.spill_s
    with no_hang(pool, "reading lost objects"), pool.server.connect() as client:
        made = shared.put(24, 6_000_000, seed=rng.randrange(2**31))
        spilled = spilled_of(client, shared, made.ids)
        ensure(len(spilled) >= 12, f"objects were spilled, and not {len(spilled)}")
        victims = sorted(spilled)[:4]
        for number, object_id in enumerate(victims):
            _damage(client, spilled[object_id], ("main key", "a chunk", "a byte", "the end")[number])
        numbers = dict(zip(made.ids, made.numbers, strict=True))
        broken = [numbers[object_id] for object_id in victims]
        answers = shared.get(broken, timeout_s=limit_s, together=True)
        _judge_losses(answers, limit_s, may_be_right=False)
        evidence.record(damaged=len(broken), slowest_answer_s=max(a.took_s for a in answers))
        others = [number for number in made.numbers if number not in broken]
        all_right(
            shared.get(others[:4], timeout_s=limit_s), expected="objects beside the lost ones are there"
        )
        if evicted := _flood(client):
            answers = shared.get(others, timeout_s=limit_s, together=True)
            evidence.record(evicted_keys=evicted, **_numbers(answers))
            _judge_losses(answers, limit_s, may_be_right=True)


@pytest.mark.cost_s(35)
@clause("RAY-04", needs={"ray", "net", "config", "crash"})
def test_a_server_that_is_full_or_away_costs_no_object(
    pool: RayPool, shared: RayCluster, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """While the server is full, hangs, or loads its data, puts go on within spill_s, and whatever was put
    before or meanwhile reads back right once it is well again. Nothing is sent over and over meanwhile.
    """
    limit_s = contract.deadlines.spill_s
    troubles: dict[str, Callable[[Client], Any]] = {
        "full": lambda client: _full(client),
        "hanging": lambda client: pool.proxy.fault(BlackHole()),
        "loading": lambda client: pool.proxy.fault(
            ErrorReply(code="LOADING", message="Valkey is loading the dataset in memory")
        ),
    }
    with no_hang(pool, "putting while the server is in trouble"), pool.server.connect() as client:
        for name, trouble in troubles.items():
            before = _put_until_spilled(client, shared, rng)
            with trouble(client):
                received = _received_bytes(client)
                began = time.monotonic()
                meanwhile = shared.put(10, 6_000_000, seed=rng.randrange(2**31), deadline_s=2 * limit_s)
                took_s = time.monotonic() - began

                def times_sent(since_bytes: int = received) -> float:
                    return (_received_bytes(client) - since_bytes) / (10 * 6_000_000)

                if name == "full":  # the others let nothing reach the server that could be counted
                    # Ray asks again for as long as the objects wait, at a pace that the machine decides.
                    _eventually(lambda: times_sent() > _TIMES_SENT, max(0.0, _ASKED_FOR_S - took_s))
                resent = times_sent()
            check(
                took_s <= limit_s,
                expected=f"ten puts end within {limit_s:g} s while the server is {name}",
                observed=f"they took {took_s:.1f} s",
                evidence={"took_s": round(took_s, 1)},
            )
            check(
                resent <= _TIMES_SENT,
                expected="objects that cannot be spilled are not sent over and over",
                observed=f"the server was sent {resent:.1f} times what was put while it was {name}",
                evidence={"times_sent": round(resent, 1)},
            )
            answers = shared.get(before.numbers + meanwhile.numbers, timeout_s=limit_s, together=True)
            all_right(answers, expected=f"no object is lost by a server that was {name}")
            evidence.record(
                **{f"puts_while_{name}_s": round(took_s, 2), f"times_sent_{name}": round(resent, 2)}
            )
            shared.drop()
            wait_for(
                lambda: not object_keys(client, shared.session), what="the objects to be freed", deadline_s=30
            )


@pytest.mark.cost_s(12)
@clause("RAY-05", needs={"ray", "host"})
def test_objects_larger_than_any_limit_spill(
    pool: RayPool, shared: RayCluster, evidence: Evidence, rng: random.Random
) -> None:
    """Objects above both the chunk size and the server's proto-max-bulk-len come back whole, and are removed
    with all their chunks.
    """
    size_bytes = 5 * CHUNK_BYTES + 12_345
    with no_hang(pool, "putting large objects"), pool.server.connect() as client:
        limit_bytes = int(client.config_get("proto-max-bulk-len")["proto-max-bulk-len"])
        ensure(size_bytes > limit_bytes, f"{size_bytes} bytes are more than {limit_bytes}")
        made = shared.put(8, size_bytes, seed=rng.randrange(2**31))
        spilled = spilled_of(client, shared, made.ids)
        ensure(len(spilled) >= 3, f"large objects were spilled, and not {len(spilled)}")
        chunks = len(object_keys(client, shared.session)) - len(spilled)
        evidence.record(object_bytes=size_bytes, proto_max_bulk_len=limit_bytes, chunk_keys=chunks)
        all_right(shared.get(made.numbers, timeout_s=30), expected="large objects read back as they were put")
        shared.drop()
        gone = _eventually(lambda: not object_keys(client, shared.session), _FREED_WITHIN_S)
        check(
            gone,
            expected="no chunk is left when the objects are dropped",
            observed=f"{len(object_keys(client, shared.session))} keys are",
        )


@pytest.mark.cost_s(5)
@clause("RAY-06", needs={"net"})
def test_damaged_values_are_never_handed_on(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence, rng: random.Random
) -> None:
    """A value that is cut, altered, empty, another object's or nobody's raises, and what was handed on before
    the damage was seen is marked as torn; whole values are handed on as they were stored.
    """
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    objects = [
        _object(rng, f"{number:056x}", size) for number, size in enumerate((1, 5_000, 300_000, 2_500_000))
    ]
    handed: list[bytes] = []
    faults: dict[str, Callable[[], Fault]] = {
        "replies are cut": lambda: Truncate(over_bytes=60),
        "a bit of replies is flipped": lambda: BitFlip(over_bytes=60),
    }
    with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy, server.connect() as client:
        params = SpillParams(
            url=f"valkey://127.0.0.1:{proxy.port}",
            chunk_bytes=MIB,
            restore_s=2.0,
            contract="adr_0023",
            **password_of(server),
        )
        with implementation("ray_spill")(params, session="session_x", node="node_x") as storage:
            urls = storage.spill(objects)
            check(
                len(urls) == len(objects),
                expected="a healthy server takes every object",
                observed=f"{len(urls)} of {len(objects)} were stored",
            )
            for item, url in zip(objects, urls, strict=True):
                check(
                    _restored(storage, url, handed) == "right" and handed.pop() == bytes(item.buffer),
                    expected="an undamaged value is handed on",
                    observed=f"{item.buffer.nbytes} bytes were not",
                )
            for name, fault in faults.items():
                with proxy.fault(fault()) as acting:
                    for item, url in zip(objects, urls, strict=True):
                        _judge_damage(storage, url, handed, f"{item.buffer.nbytes} bytes when {name}")
                ensure(acting.acted > 0, f"the fault acted: {name}")
            # What was damaged on the way in, or at rest, is as bad.
            for name, make in (("stored short", TruncateOver), ("stored altered", FlipOver)):
                with proxy.fault(make(over_bytes=60)) as acting:
                    again = storage.spill([_object(rng, f"{99:056x}", 400_000)])
                if acting.acted and again:
                    _judge_damage(storage, again[0], handed, f"what was {name}")
            keys = [url.partition(b"?")[0] for url in urls]
            first, second = client.get(keys[1]), client.get(keys[2])
            ensure(first is not None and second is not None, "values of one chunk lie under their keys")
            for what, value in (("nothing", b""), ("another object's", first), ("nobody's", b"x" * 300_000)):
                client.set(keys[2], value or b"")
                _judge_damage(storage, urls[2], handed, f"a value that is {what}")
            client.unlink(keys[2])
            _judge_damage(storage, urls[2], handed, "a value that is not there")
    evidence.record(objects=len(objects), handed_on_damaged=0)


@pytest.mark.cost_s(3)
@clause("RAY-07", needs={"ray", "host"})
def test_owner_and_metadata_come_back(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence, rng: random.Random
) -> None:
    """Owner's address and metadata of any length come back with the bytes, also where there are none."""
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    shapes = [(0, 0, 0), (0, 1, 0), (130, 6, 1), (130, 3, 70_000), (4_000, 200, 1_300_000), (1, 0, 1_048_576)]
    objects = [
        SpilledObject(
            id=f"{number:056x}",
            owner=rng.randbytes(owner),
            metadata=rng.randbytes(metadata),
            buffer=memoryview(rng.randbytes(size)),
        )
        for number, (owner, metadata, size) in enumerate(shapes)
    ]
    params = SpillParams(url=server.url, chunk_bytes=MIB, contract="adr_0023", **password_of(server))
    with implementation("ray_spill")(params, session="session_x", node="node_x") as storage:
        urls = storage.spill(objects)
        ensure(len(urls) == len(objects), "every object was stored")
        for item, url in zip(objects, urls, strict=True):
            got: list[tuple[bytes, bytes, int]] = []

            def deliver(owner: bytes, metadata: bytes, size: int, source: Any, got: Any = got) -> None:
                target = memoryview(bytearray(size))
                _read(source, target)
                got.append((owner, metadata, bytes(target) == bytes(item.buffer)))  # noqa: B023

            storage.restore(url, deliver)
            check(
                got == [(item.owner, item.metadata, True)],
                expected="owner, metadata and bytes as they were spilled",
                observed=f"an owner of {len(item.owner)} bytes came back "
                f"{'as it was' if got[0][0] == item.owner else 'altered'}, metadata of {len(item.metadata)} "
                f"{'as they were' if got[0][1] == item.metadata else 'altered'}",
                evidence={"owner_bytes": len(item.owner), "metadata_bytes": len(item.metadata)},
            )
        storage.delete(urls)
        with server.connect() as client:
            check(
                not list(client.scan_iter(match="ray:*")),
                expected="nothing is left when the objects are deleted",
                observed=f"{client.dbsize()} keys are left",
            )
    evidence.record(objects=len(objects))


@pytest.mark.cost_s(15)
@clause("RAY-07", needs={"ray", "host"})
def test_objects_of_a_dead_owner_are_released(
    pool: RayPool, shared: RayCluster, evidence: Evidence, rng: random.Random
) -> None:
    """What lies under the key names Ray's own owner, an object that was restored has the metadata it had, and
    when the owner dies its keys go.
    """
    with no_hang(pool, "an actor's objects"), pool.server.connect() as client:
        made = Made(**shared.ask("owned_by_actor", deadline_s=60, count=6, size_bytes=5_000_000))
        before = shared.ask("inspect", deadline_s=30, numbers=made.numbers[:2])
        filler = shared.put(20, 6_000_000, seed=rng.randrange(2**31))
        spilled = spilled_of(client, shared, made.ids)
        ensure(len(spilled) >= 3, f"the actor's objects were spilled, and not {len(spilled)}")
        told = shared.ask("inspect", deadline_s=60, numbers=made.numbers)
        check(
            told[:2] == before,
            expected="metadata and owner of an object are after its restore what they were before",
            observed=f"{told[:2]} after {before}",
        )
        owners = {object_id: entry["owner"] for object_id, entry in zip(made.ids, told, strict=True)}
        for object_id, key in spilled.items():
            check(
                _owner_in(client, key).hex() == owners[object_id],
                expected="the record names the worker that owns the object",
                observed="another owner's address",
            )
        shared.drop(made.numbers)
        shared.ask("kill_owner", deadline_s=10)
        gone = _eventually(lambda: not spilled_of(client, shared, made.ids), 30)
        check(
            gone,
            expected="no key of a dead owner's objects is left after 30 s",
            observed=f"{len(spilled_of(client, shared, made.ids))} are",
        )
        evidence.record(spilled_objects=len(spilled), filler_objects=len(filler.ids))


@pytest.mark.cost_s(30)
@clause("RAY-08", needs={"ray", "crash"})
def test_nodes_restore_each_others_objects(pool: RayPool, evidence: Evidence, rng: random.Random) -> None:
    """What one node of a cluster spilled another restores, also after the first was killed."""
    pool.cluster()
    with no_hang(pool, "a cluster of two nodes"), pool.server.connect() as client:
        with pool.another(nodes=2, ray_settings=_QUICK_TO_SEE) as cluster:
            evidence.proven_on = f"{pool.proven_on}, Ray {cluster.version}, two nodes"
            made = cluster.make(14, 8_000_000, seed=rng.randrange(2**31), node=1, max_retries=0)
            spilled = spilled_of(client, cluster, made.ids)
            # Nobody can make them anew: what is not restored is lost.
            own = [key for key in spilled.values() if cluster.nodes[1].encode() in key]
            ensure(len(own) >= 3, f"the second node spilled, and not {len(own)}")
            numbers = dict(zip(made.ids, made.numbers, strict=True))
            theirs = [numbers[object_id] for object_id in spilled]
            there = cluster.get_on(0, theirs[: len(theirs) // 2], timeout_s=30)
            check(
                set(there) == {"right"},
                expected="the first node reads what the second spilled",
                observed=", ".join(sorted(set(there))),
            )
            cluster.kill_raylet(1)
            answers = cluster.get(theirs, timeout_s=60, together=True)
            evidence.record(spilled_by_second_node=len(own), **_numbers(answers))
            all_right(answers, expected="what a killed node had spilled is still there")
        client.unlink(*object_keys(client, cluster.session))


# --- what the specs stand on


def _put_until_spilled(client: Client, cluster: RayCluster, rng: random.Random) -> Made:
    """Objects of which some were spilled. Where spilling is still held back, because of a trouble that has
    just ended, Ray maps files for what does not fit and never spills those: they are dropped, and others put.
    """
    end = time.monotonic() + 60
    while True:
        made = cluster.put(18, 6_000_000, seed=rng.randrange(2**31), deadline_s=60)
        with suppress(TimeoutError):
            wait_for(
                lambda ids=made.ids: bool(spilled_of(client, cluster, ids)),  # type: ignore[misc]
                what="objects to be spilled before the trouble",
                deadline_s=5,
            )
            return made
        ensure(time.monotonic() < end, "no object was spilled within 60 s of the last trouble")
        cluster.drop()


def _eventually(condition: Callable[[], bool], deadline_s: float) -> bool:
    try:
        wait_for(condition, what="it", deadline_s=deadline_s, poll_s=0.1)
    except TimeoutError:
        return False
    return True


def _numbers(answers: list[Answer]) -> Numbers:
    return {
        **{f"reads_{answer}": count for answer, count in answers_by(answers).items()},
        "slowest_read_s": max(answer.took_s for answer in answers),
    }


def _judge_losses(answers: list[Answer], limit_s: float, *, may_be_right: bool) -> None:
    allowed = {"ObjectLostError", "right"} if may_be_right else {"ObjectLostError"}
    check(
        {answer.answer for answer in answers} <= allowed,
        expected=f"a lost object reads as ObjectLostError within {limit_s:g} s"
        + (", and one that is not lost reads right" if may_be_right else ""),
        observed=", ".join(f"{count} {answer}" for answer, count in answers_by(answers).items()),
        evidence=_numbers(answers),
    )


def _damage(client: Client, key: bytes, what: str) -> None:
    """Makes a spilled object one that is lost, in one of four ways."""
    chunks = sorted(client.scan_iter(match=key + b":~*", count=1000))
    ensure(bool(chunks), "the object lies in chunks")
    if what == "main key":
        client.unlink(key, *chunks)
    elif what == "a chunk":
        client.unlink(chunks[0])
    elif what == "a byte":
        byte = client.getrange(chunks[0], 1000, 1000)
        client.execute_command("SETRANGE", chunks[0], 1000, bytes([byte[0] ^ 1]))
    else:
        client.set(chunks[0], client.getrange(chunks[0], 0, 999))


def _flood(client: Client) -> int:
    """Writes other keys until older ones are evicted, and counts those; 0 under a policy that evicts none."""
    if not client.config_get("maxmemory-policy")["maxmemory-policy"].startswith("allkeys-"):
        return 0
    before = int(client.info("stats")["evicted_keys"])
    maxmemory_bytes = int(client.config_get("maxmemory")["maxmemory"])
    names = []
    for number in range(maxmemory_bytes // MIB):
        names.append(f"emb:flood:{number}")
        client.set(names[-1], b"x" * MIB, px=600_000)
    evicted = int(client.info("stats")["evicted_keys"]) - before
    client.unlink(*names)
    ensure(evicted > 0, "the flood evicted keys")
    return evicted


@contextmanager
def _full(client: Client) -> Iterator[None]:
    """No room for more than two objects, and nothing that may be evicted."""
    before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy")}
    used_bytes = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", used_bytes + 12 * MIB)
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)


def _received_bytes(client: Client) -> int:
    return int(client.info("stats")["total_net_input_bytes"])


def _make_stale(client: Client, session: str) -> None:
    """The leases of a session's nodes look as if nobody had renewed them for an hour."""
    for field, value in client.hgetall(b"ray:nodes").items():
        if field.decode().startswith(session):
            renewed, _, facts = value.partition(b" ")
            aged = b"%d %b" % (int(renewed) - 3600, facts)
            client.execute_command("HSET", b"ray:nodes", field, aged)


def _aged(client: Client, session: str, lease_s: float) -> bool:
    """Whether the leases of a session have run out."""
    now_s = client.time()[0]
    ages = [
        now_s - int(value.partition(b" ")[0])
        for field, value in client.hgetall(b"ray:nodes").items()
        if field.decode().startswith(session)
    ]
    return bool(ages) and min(ages) > lease_s


def _owner_in(client: Client, key: bytes) -> bytes:
    """The owner's address in a record that lies in chunks."""
    first = client.getrange(min(client.scan_iter(match=key + b":~*:0", count=1000)), 0, 4096)
    fields = int.from_bytes(first[4:8], "little")
    return first[HEAD_BYTES : HEAD_BYTES + fields]


def _object(rng: random.Random, object_id: str, size_bytes: int) -> SpilledObject:
    return SpilledObject(
        id=object_id,
        owner=rng.randbytes(130),
        metadata=b"PYTHON",
        buffer=memoryview(rng.randbytes(size_bytes)),
    )


def _read(source: Any, target: memoryview) -> None:
    at = 0
    while at < len(target):
        at += source.readinto(target[at:])


def _restored(storage: Any, url: bytes, handed: list[bytes]) -> str:
    """How a restore ended: ``right``, its bytes then the last of ``handed``, or the name of the error."""

    def deliver(owner: bytes, metadata: bytes, size: int, source: Any) -> None:
        target = memoryview(bytearray(size))
        _read(source, target)
        handed.append(bytes(target))

    try:
        storage.restore(url, deliver)
    except (BlobError, CacheError) as error:
        return type(error).__name__
    except Exception as error:
        # Torn is what it is called when the damage shows late; anything else is the finding.
        return type(error).__name__
    return "right"


def _judge_damage(storage: Any, url: bytes, handed: list[bytes], what: str) -> None:
    answer = _restored(storage, url, handed)
    check(
        answer in ("BlobLost", "BlobCorrupt", "TornRestore", "Unreachable", "DeadlineExceeded", "NotValkey"),
        expected=f"{what}: raises an error of the storage, and hands nothing on as whole",
        observed=f"{what}: {answer}" + (f", {len(handed[-1])} bytes" if handed and answer == "right" else ""),
    )
    handed.clear()
