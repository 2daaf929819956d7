"""KV: the tier that an engine's blocks go through, judged without an engine.

What needs a real one is in ``test_kv_engine.py``; the value path below the tier in ``test_kv_offload.py``;
the tier's keys in ``test_kv_keys.py``, and what faults do to it in ``test_kv_faults.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from fixtures.kv_blocks import BlockRig, an_identity, block
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure
from inference_cache.contract import Contract
from inference_cache.keyspace import Keyspace
from inference_cache.kv_offload import Found

Implementation = Callable[[str], Any]

PREFIX = "vllm:kv:"


@clause("KV-05", needs={"write", "config"})
def test_ranks_use_the_shortest_prefix_without_a_hole(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """Three ranks, each with holes of its own, each count the blocks before the first hole; together they use
    the smallest count, and every rank can load that much, with its own bytes.
    """
    server = servers.scaled()
    make_tier = implementation("kv_offload")
    length, rounds = 10, 12
    blocks = [block(number) for number in range(length)]
    items = [(each, slot) for slot, each in enumerate(blocks)]
    rigs = [BlockRig(make_tier, server.login_url(), identity=an_identity(rank=rank)) for rank in range(3)]
    try:
        with server.connect() as client:
            for number in range(rounds):
                # Every place is the first hole of some rank in some round.
                holes = [(number + 4 * rank) % (length + 1) for rank in range(3)]
                for rig, hole in zip(rigs, holes, strict=True):
                    ensure(rig.store(items).ok, "the blocks of the proof were not stored")
                    gone = {hole, rng.randrange(hole, length)} if hole < length else set()
                    if gone:
                        client.unlink(*(rig.key(blocks[place]) for place in gone))
                lengths = [rig.tier.prefix_found(blocks) for rig in rigs]
                check(
                    lengths == holes,
                    expected=f"each rank counts up to its first hole: {holes}",
                    observed=f"they count {lengths}",
                    evidence={f"rank_{rank}": count for rank, count in enumerate(lengths)},
                )
                agreed = make_tier.agree(lengths)
                check(
                    agreed == min(holes),
                    expected=f"ranks that found {holes} blocks use {min(holes)}",
                    observed=f"they use {agreed}",
                    evidence={"agreed": agreed, "smallest": min(holes)},
                )
                for rig in rigs:
                    loaded = rig.load(items[:agreed])
                    check(
                        loaded.ok and not rig.wrong(items[:agreed], loaded),
                        expected="every rank loads the agreed prefix, with its own bytes",
                        observed=f"{sum(loaded.done)} of {agreed} loaded",
                    )
    finally:
        for rig in rigs:
            rig.tier.close()
    evidence.record(ranks=3, rounds=rounds, blocks=length)


@clause("KV-06", needs={"fill"})
def test_a_found_block_that_went_costs_only_itself(
    servers: ServerFactory, implementation: Implementation, rng: random.Random, evidence: Evidence
) -> None:
    """Of blocks that a lookup found, those that are gone at the load are misses and the others are there; a
    request that asks again is told that they are misses, so that it computes them and does not ask for ever.
    """
    server = servers.scaled()
    blocks = [block(number) for number in range(12)]
    items = [(each, slot) for slot, each in enumerate(blocks)]
    tried = 0
    with server.connect() as client, BlockRig(implementation("kv_offload"), server.login_url()) as rig:
        for gone in (set(range(12)), {0}, {11}, set(range(0, 12, 3)), {5, 6}):
            request = f"request {tried}"
            tried += 1
            ensure(rig.store(items).ok, "the blocks of the proof were not stored")
            answers = rig.look(blocks, request=request)
            check(
                answers == [Found.HIT] * 12,
                expected="a lookup finds the blocks that were stored",
                observed=f"{[each.value for each in answers]}",
            )
            client.unlink(*(rig.key(blocks[place]) for place in gone))
            try:
                loaded = rig.load(items)
            except TimeoutError as error:
                check(False, expected="a load of blocks that have gone ends", observed=str(error))
            check(
                list(loaded.done) == [place not in gone for place in range(12)],
                expected=f"of 12 found blocks those that went, {sorted(gone)}, are misses, the others loaded",
                observed=f"loaded: {[place for place, done in enumerate(loaded.done) if done]}",
                evidence={"gone": len(gone), "loaded": sum(loaded.done)},
            )
            check(
                rig.wrong(items, loaded) == 0,
                expected="what was loaded has the stored bytes",
                observed="it has others",
            )
            after = rig.look(blocks, request=request)
            repeated = [place for place in gone if after[place] is not Found.MISS]
            check(
                not repeated,
                expected="a block that could not be loaded is a miss when the request asks again",
                observed=f"blocks {repeated} are found again",
                evidence={"found_again": len(repeated)},
            )
            rig.tier.forget(request)
    evidence.record(patterns=tried)


@clause("KV-07", needs={"write", "config"})
def test_the_tier_counts_damage_and_heals_it(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """A block that was flipped, shortened, lengthened or swapped in the server is a miss, counted by reason;
    when its content is computed anew it is stored anew, although something lies there.
    """
    server = servers.scaled()
    names = ("flipped", "shortened", "lengthened", "swapped")
    blocks = [block(number) for number in range(len(names))]
    items = [(each, slot) for slot, each in enumerate(blocks)]
    with server.connect() as client, BlockRig(implementation("kv_offload"), server.login_url()) as rig:
        ensure(rig.store([*items, (block(99), 9)]).ok, "the blocks of the proof were not stored")
        keys = [rig.key(each) for each in blocks]
        values = [bytes(client.get(key) or b"") for key in keys]
        flipped = bytearray(values[0])
        flipped[len(flipped) // 2] ^= 1
        client.set(keys[0], bytes(flipped))
        client.set(keys[1], values[1][:-1])
        client.set(keys[2], values[2] + b"\x00")
        client.set(keys[3], bytes(client.get(rig.key(block(99))) or b""))
        before = dict(rig.tier.counters)
        loaded = rig.load(items)
        counted = {
            reason: count - before.get(("load", reason), 0)
            for (operation, reason), count in rig.tier.counters.items()
            if operation == "load" and count != before.get(("load", reason), 0)
        }
        check(
            not any(loaded.done),
            expected="no damaged block is loaded",
            observed=f"{[name for name, done in zip(names, loaded.done, strict=True) if done]} are",
            evidence={"loaded": sum(loaded.done)},
        )
        check(
            sum(counted.values()) == len(names) and "hit" not in counted,
            expected=f"{len(names)} damaged blocks are counted by reason",
            observed=f"counted: {counted}",
            evidence={f"counted_{reason}": count for reason, count in counted.items()},
        )
        rig.store(items)
        healed = rig.load(items)
        check(
            healed.ok and not rig.wrong(items, healed),
            expected="blocks that are computed anew replace the damaged ones",
            observed=f"{sum(healed.done)} of {len(names)} load afterwards",
            evidence={"healed": sum(healed.done)},
        )
    evidence.record(damages=", ".join(names), **{f"counted_{k}": v for k, v in counted.items()})


@clause("KV-09", needs={"write", "config"})
def test_stored_blocks_are_there_under_the_contract(
    servers: ServerFactory, contract: Contract, implementation: Implementation, evidence: Evidence
) -> None:
    """N blocks that the tier says are stored are N keys with the contract's prefix and time to live; the same
    blocks stored again are not written again; and the one other key is the run's record, which can be read
    and expires too.
    """
    server = servers.scaled()
    workload = next(w for w in contract.workloads.values() if w.prefix == PREFIX)
    ttl_s = float(workload.ttl_s or 3600)
    count = 60
    items = [(block(number), number) for number in range(count)]
    with (
        server.connect() as client,
        BlockRig(
            implementation("kv_offload"),
            server.login_url(),
            prefix=workload.prefix,
            ttl_s=ttl_s,
            sliding_ttl=workload.sliding_ttl,
        ) as rig,
    ):
        stored = rig.store(items)
        acknowledged = {rig.key(which) for (which, _), done in zip(items, stored.done, strict=True) if done}
        there = {bytes(name) for name in client.scan_iter(count=1000)}
        again = rig.store(items)
        left_s = {name: int(client.pttl(name)) / 1000 for name in there}
        record_name = Keyspace(workload.prefix).key(rig.identity.fingerprint, "config")
        record = client.get(record_name)
        written = rig.tier.counters.get(("store", "stored"), 0)
    numbers: Numbers = {
        "acknowledged": len(acknowledged),
        "missing": len(acknowledged - there),
        "other_keys": len(there - acknowledged - {record_name}),
        "without_the_ttl": sum(not ttl_s - 60 <= left_s.get(name, -1) <= ttl_s for name in acknowledged),
        "written": written,
        "ttl_s": ttl_s,
    }
    evidence.record(**numbers)
    check(
        len(acknowledged) == count and again.ok,
        expected=f"{count} stores are acknowledged, twice",
        observed=f"{len(acknowledged)} and {sum(again.done)} were",
        evidence=numbers,
    )
    check(
        not numbers["missing"] and not numbers["other_keys"],
        expected="as many blocks as were acknowledged, one record, and no other key",
        observed=f"{numbers['missing']} are missing, {numbers['other_keys']} other keys are there",
        evidence=numbers,
    )
    check(
        not numbers["without_the_ttl"],
        expected=f"each block expires {ttl_s:g} s after its store",
        observed=f"{numbers['without_the_ttl']} do not",
        evidence=numbers,
    )
    check(
        written == count,
        expected=f"{count} blocks are written once each",
        observed=f"{written} writes were made",
        evidence=numbers,
    )
    described = json.loads(record)["run"]["model"] if isinstance(record, bytes) else None
    check(
        described == rig.identity.model and left_s[record_name] > ttl_s,
        expected="a readable record says what the fingerprint stands for, and expires after the blocks",
        observed=f"it says {described!r}, and lives for {left_s.get(record_name)} s",
    )
