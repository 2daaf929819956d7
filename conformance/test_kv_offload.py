"""KV: blocks go out and come back the same.

These specs hold the value path that a tier stands on: what is stored under ``vllm:kv:``, found and loaded.
The tier itself is judged in ``test_kv_tier.py``, with a vLLM engine in ``test_kv_engine.py``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.faults.catalog import BitFlip, CutAtCommand, Truncate
from fixtures.faults.fault import Fault
from fixtures.faults.proxy import FaultProxy
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure
from fixtures.strategies import against_a_server
from inference_cache.blobs import Status
from inference_cache.contract import Contract
from inference_cache.keyspace import Keyspace

Implementation = Callable[[str], Any]

MIB = 1024 * 1024
PREFIX = "vllm:kv:"
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}


def open_store(implementation: Implementation, url: str, **options: Any) -> Any:
    """A store of blocks under the workload's prefix."""
    settings = {"keyspace": Keyspace(PREFIX), "deadline_s": 20.0, "ttl_s": 3600.0, **options}
    return implementation("blobs")(url, **settings)


@pytest.mark.cost_s(3)
@clause("KV-01", needs={"write", "config"})
def test_blocks_come_back_bit_by_bit(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """Blocks of each dtype's width and of any length up to 64 MiB load as they were stored, although the
    caller uses the buffer for something else as soon as the store has returned.
    """
    server = servers.scaled(maxmemory_bytes=256 * MIB)
    compared = 0
    with open_store(implementation, server.login_url()) as store:

        @against_a_server(max_examples=60)
        @given(
            elements=st.integers(1, 60_000),
            dtype=st.sampled_from(sorted(DTYPE_BYTES)),
            seed=st.integers(0, 2**32),
        )
        def small(elements: int, dtype: str, seed: int) -> None:
            nonlocal compared
            compared += 1
            round_trip(store, random.Random(seed).randbytes(elements * DTYPE_BYTES[dtype]), compared, dtype)

        small()
        for size in (1, 4 * MIB - 1, 4 * MIB, 16 * MIB + 7, 64 * MIB):
            compared += 1
            block = rng.randbytes(MIB) * -(-size // MIB)
            round_trip(store, block[:size], compared, f"{size} bytes")
    evidence.record(blocks_compared=compared, largest_block_bytes=64 * MIB)


def round_trip(store: Any, block: bytes, number: int, what: str) -> None:
    key = ("bits", number)
    buffer = bytearray(block)
    outcome = store.store(key, buffer)
    buffer[:] = bytes(len(buffer))
    check(
        outcome.status is Status.STORED,
        expected=f"a block of {len(block)} bytes is stored",
        observed=f"{what}: {outcome.status.value} ({outcome.reason})",
    )
    loaded = bytearray(len(block))
    outcome = store.load_into(key, loaded)
    check(
        outcome.status is Status.HIT and loaded == block,
        expected="a block loads with the bits that were stored",
        observed=f"{what}, {len(block)} bytes: {outcome.status.value} ({outcome.reason})"
        + ("" if outcome.status is not Status.HIT else ", with other bytes"),
        evidence={"bytes": len(block), "status": outcome.status.value, "reason": outcome.reason},
    )
    store.delete_many([key])


@clause("KV-05", needs={"write", "config"})
def test_a_hole_ends_the_usable_prefix(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """With one block of a prefix gone, wherever it is, a batch tells exactly which: what lies before it is
    usable, and each answer belongs to the key that was asked for.
    """
    server = servers.scaled()
    length = 12
    blocks = [rng.randbytes(4096) for _ in range(length)]
    keys = [("prefix", number) for number in range(length)]
    keyspace = Keyspace(PREFIX)
    with server.connect() as client, open_store(implementation, server.login_url()) as store:
        for hole in range(length):
            outcomes = store.store_many(zip(keys, blocks, strict=True))
            check(all(o.ok for o in outcomes), expected="all blocks are stored", observed=f"{outcomes}")
            client.unlink(keyspace.key(*keys[hole]))
            buffers = [bytearray(4096) for _ in keys]
            loaded = store.load_many_into(zip(keys, buffers, strict=True))
            usable = next(n for n, outcome in enumerate(loaded) if not outcome.ok)
            right = all(
                bytes(buffer) == block
                for outcome, buffer, block in zip(loaded, buffers, blocks, strict=True)
                if outcome.ok
            )
            check(
                usable == hole and right and sum(not o.ok for o in loaded) == 1,
                expected=f"with block {hole} gone the first {hole} are usable, and only {hole} is a miss",
                observed=f"the first {usable} are, misses: {[n for n, o in enumerate(loaded) if not o.ok]}",
                evidence={"hole": hole, "usable": usable},
            )
            raw = client.mget([keyspace.key(*key) for key in keys])
            check(
                [value is None for value in raw] == [number == hole for number in range(length)],
                expected=f"MGET answers each of {length} keys in its place, with nil at {hole}",
                observed=f"{len(raw)} answers, nil at {[n for n, v in enumerate(raw) if v is None]}",
                evidence={"hole": hole, "answers": len(raw)},
            )
    evidence.record(blocks=length, holes_tried=length)


@clause("KV-06", needs={"fill"})
def test_a_block_that_went_after_lookup_is_a_miss(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """A lookup finds what is there and nothing else; what is evicted before the load is a miss, and no
    error.
    """
    server = servers.scaled()
    keyspace = Keyspace(PREFIX)
    keys = [("lookup", number) for number in range(20)]
    with server.connect() as client, open_store(implementation, server.login_url()) as store:
        stored, never = keys[::2], keys[1::2]
        store.store_many((key, rng.randbytes(2000)) for key in stored)
        found = [outcome.status is Status.HIT for outcome in store.exists_many(keys)]
        check(
            found == [key in stored for key in keys],
            expected=f"a lookup finds the {len(stored)} blocks that were stored, none of {len(never)} others",
            observed=f"it found {[n for n, hit in enumerate(found) if hit]}",
            evidence={"stored": len(stored), "found": sum(found)},
        )
        client.unlink(*(keyspace.key(*key) for key in stored))
        buffers = [bytearray(2000) for _ in stored]
        try:
            outcomes = store.load_many_into(zip(stored, buffers, strict=True))
        except Exception as error:
            check(
                False,
                expected="a block that went after the lookup is a miss",
                observed=f"loading it raised {type(error).__name__}: {error}",
            )
        statuses = sorted({outcome.status.value for outcome in outcomes})
        check(
            statuses == [Status.MISS.value],
            expected="every block that went after the lookup is a miss",
            observed=f"outcomes: {', '.join(statuses)}",
            evidence={"outcomes": ", ".join(statuses)},
        )
    evidence.record(blocks_looked_up=len(keys), blocks_gone_before_load=len(stored))


@clause("KV-07", needs={"net", "config"})
def test_a_damaged_block_is_a_miss_and_is_counted(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """Undamaged blocks are hits; with bits flipped or bytes missing on the way back none is, and a counter
    says why.
    """
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    sizes = (100, 4096, 256 * 1024, 2 * MIB, 4 * MIB)
    blocks = {("damage", size): rng.randbytes(size) for size in sizes}
    faults: dict[str, Fault] = {
        "a bit flipped": BitFlip(over_bytes=90),
        "cut to 90 bytes": Truncate(over_bytes=90),
    }
    with (
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        open_store(implementation, server.login_url(proxy.port)) as store,
    ):
        store.store_many(blocks.items())
        healthy = load_all(store, blocks)
        check(
            set(healthy.values()) == {"hit"},
            expected="undamaged blocks of all sizes are hits",
            observed="; ".join(
                f"{size} bytes: {status}" for size, status in healthy.items() if status != "hit"
            ),
            evidence={f"{size}_bytes": status for size, status in healthy.items()},
        )
        for name, fault in faults.items():
            before = sum(store.counters.values()) - counted_hits(store)
            with proxy.fault(fault):
                damaged = load_all(store, blocks)
            ensure(fault.acted >= len(blocks), f"{name!r} acted {fault.acted} times on {len(blocks)} blocks")
            check(
                not {"hit", "wrong bytes"} & set(damaged.values()),
                expected=f"a block with {name} is no hit",
                observed="; ".join(f"{size} bytes: {status}" for size, status in damaged.items()),
                evidence={f"{size}_bytes": status for size, status in damaged.items()},
            )
            counted = sum(store.counters.values()) - counted_hits(store) - before
            check(
                counted == len(blocks),
                expected=f"{len(blocks)} damaged loads are counted by reason",
                observed=f"{counted} were: {dict(store.counters)}",
                evidence={"damaged": len(blocks), "counted": counted},
            )
        again = load_all(store, blocks)
        check(
            set(again.values()) == {"hit"},
            expected="the same blocks are hits again once the path is healthy",
            observed="; ".join(f"{size} bytes: {status}" for size, status in again.items()),
        )
    evidence.record(blocks=len(blocks), damages=", ".join(faults))


def load_all(store: Any, blocks: dict[tuple[str, int], bytes]) -> dict[int, str]:
    """Outcome of loading each block, by size; ``wrong bytes`` for a hit that is none."""
    statuses = {}
    for key, block in blocks.items():
        buffer = bytearray(len(block))
        outcome = store.load_into(key, buffer)
        wrong = outcome.ok and buffer != block
        statuses[len(block)] = "wrong bytes" if wrong else str(outcome.status.value)
    return statuses


def counted_hits(store: Any) -> int:
    """How many successes the store has counted."""
    return sum(count for (_, reason), count in store.counters.items() if reason in ("hit", "stored"))


@pytest.mark.cost_s(4)
@clause("KV-08", needs={"crash", "net"})
def test_a_block_is_seen_whole_or_not_at_all(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """A store, whole or in chunks, that is cut off at any of its commands leaves the old block, the new one,
    or none: never a part and never a mixture.
    """
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    cuts, seen = 0, {"old": 0, "new": 0, "none": 0}
    sizes = {"whole": 50_000, "in chunks": 300_000}
    with (
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        open_store(implementation, server.login_url(), chunk_bytes=64 * 1024) as reader,
    ):
        for how, size in sizes.items():
            for first in (True, False):
                for number in range(14):
                    key = ("cut", how, str(first), number)
                    old, new = rng.randbytes(size), rng.randbytes(size)
                    if not first:
                        reader.store(key, old)
                    fault = CutAtCommand(number=number)
                    with (
                        open_store(
                            implementation,
                            server.login_url(proxy.port),
                            chunk_bytes=64 * 1024,
                            deadline_s=0.25,
                        ) as writer,
                        proxy.fault(fault),
                    ):
                        acknowledged = writer.store(key, new).ok
                    cuts += fault.acted > 0
                    value = reader.load(key)
                    what = "none" if value is None else "old" if value == old else "new"
                    whole = value is None or bytes(value) in (old, new)
                    check(
                        whole and (what != "old" or not first),
                        expected=f"a block stored {how} and cut off is the old one, the new one, or absent",
                        observed=f"cut at command {number}: {len(value or b'')} bytes that are neither",
                        evidence={
                            "size_bytes": size,
                            "cut_at_command": number,
                            "seen_bytes": len(value or b""),
                        },
                    )
                    check(
                        not acknowledged or what == "new",
                        expected="an acknowledged store is there",
                        observed=f"cut at command {number}: it was acknowledged, and {what} is read",
                        evidence={"size_bytes": size, "cut_at_command": number},
                    )
                    check(
                        first or what != "none",
                        expected="a store that failed leaves the block of before",
                        observed=f"cut at command {number}: the old block is gone and no new one is there",
                        evidence={"size_bytes": size, "cut_at_command": number},
                    )
                    seen[what] += 1
    ensure(cuts > 10, f"stores were hardly ever cut off: {cuts} times")
    evidence.record(stores_cut_off=cuts, **{f"{what}_seen": count for what, count in seen.items()})


@clause("KV-09", needs={"write", "config"})
def test_every_acknowledged_block_is_there_with_its_ttl(
    servers: ServerFactory,
    contract: Contract,
    implementation: Implementation,
    rng: random.Random,
    evidence: Evidence,
) -> None:
    """N acknowledged stores make N blocks under the prefix, each with the contract's time to live, and no
    other key.
    """
    server = servers.scaled()
    workload = next(w for w in contract.workloads.values() if w.prefix == PREFIX)
    ttl_s = workload.ttl_s
    keyspace = Keyspace(PREFIX)
    keys = [("count", number) for number in range(200)]
    with server.connect() as client, open_store(implementation, server.login_url(), ttl_s=ttl_s) as store:
        outcomes = store.store_many((key, rng.randbytes(rng.randrange(100, 5000))) for key in keys)
        acknowledged = [keyspace.key(*k) for k, o in zip(keys, outcomes, strict=True) if o.ok]
        there = {bytes(name) for name in client.scan_iter(count=1000)}
        ttls_ms = [int(client.pttl(name)) for name in acknowledged if name in there]
    missing = [name for name in acknowledged if name not in there]
    stray = there - set(acknowledged)
    wanted_ms = -1 if ttl_s is None else ttl_s * 1000
    # A minute's grace for a slow machine between the store and the look.
    off = [ttl for ttl in ttls_ms if not (ttl == wanted_ms or wanted_ms - 60_000 <= ttl <= wanted_ms)]
    numbers: Numbers = {
        "acknowledged": len(acknowledged),
        "missing": len(missing),
        "keys_that_are_no_block": len(stray),
        "with_another_ttl": len(off),
        "ttl_s": ttl_s,
    }
    evidence.record(**numbers)
    check(
        len(acknowledged) == len(keys),
        expected=f"{len(keys)} stores are acknowledged",
        observed=f"{len(acknowledged)} were",
        evidence=numbers,
    )
    check(
        not missing and not stray,
        expected="as many blocks under the prefix as were acknowledged, and nothing else",
        observed=f"{len(missing)} acknowledged blocks are missing, {len(stray)} other keys are there",
        evidence=numbers,
    )
    check(
        not off,
        expected=f"each block expires {ttl_s} s after its store" if ttl_s else "no block expires",
        observed=f"{len(off)} do not, such as one in {off[0] if off else 0} ms",
        evidence=numbers,
    )
