"""KV: the tier that an engine's blocks go through, judged without an engine.

What needs a real one is in ``test_kv_engine.py``; the value path below the tier in ``test_kv_offload.py``.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from fixtures.availability import FAULTS
from fixtures.faults.fault import Context, End, Fault, OnCommand
from fixtures.faults.proxy import FaultProxy
from fixtures.faults.resp import Command
from fixtures.kv_blocks import BlockRig, an_identity, block, bytes_of
from fixtures.kv_configs import BAD_CONFIGS, GOOD_CONFIGS
from fixtures.kv_machine import TierHistory, tier_machine
from fixtures.kv_partition import PARTITIONS, Partition
from fixtures.observe import wait_for
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure
from fixtures.strategies import against_a_server
from inference_cache.contract import Contract
from inference_cache.errors import UsageError
from inference_cache.keyspace import Keyspace
from inference_cache.kv_offload import BlockId, Found, JobResult, RunIdentity

Implementation = Callable[[str], Any]

PREFIX = "vllm:kv:"
MIB = 1024 * 1024


def partitioned(make_tier: Any, row: Partition | None) -> tuple[RunIdentity, BlockId]:
    """Run and block of a row of the matrix; of the unchanged ones without a row."""
    identity = an_identity(**(row.run if row else {}))
    which = block(row.number if row else 0, group=row.group if row else 0)
    return identity, replace(which, scope=make_tier.scope_of(**(row.request if row else {})))


@clause("KV-03", needs={"write", "config"})
def test_blocks_share_a_key_only_when_all_is_equal(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """Whatever of a run, of a request or of a block differs, its key differs, under the workload's prefix;
    and a second process that describes the same run finds the first one's blocks, and one that describes
    another finds none.
    """
    make_tier = implementation("kv_offload")
    keyspace = Keyspace(PREFIX)
    keys = {"the same": make_tier.key_of(keyspace, *partitioned(make_tier, None))}
    for row in PARTITIONS:
        keys[row.name] = make_tier.key_of(keyspace, *partitioned(make_tier, row))
    for (one, first), (other, second) in itertools.combinations(keys.items(), 2):
        check(
            first != second,
            expected=f"blocks that differ in {one} / {other} have different keys",
            observed=f"both have {first!r}",
            evidence={"one": one, "other": other},
        )
    stray = [name for name, key in keys.items() if not key.startswith(PREFIX.encode())]
    check(
        not stray,
        expected=f"every key starts with {PREFIX}",
        observed=f"{stray[:3]} do not",
        evidence={"keys": len(keys), "outside_of_the_prefix": len(stray)},
    )
    again = make_tier.key_of(keyspace, *partitioned(make_tier, None))
    check(
        again == keys["the same"],
        expected="the same run, described anew, has the same keys",
        observed=f"{again!r} and {keys['the same']!r}",
    )
    server = servers.scaled()
    blocks = [block(number) for number in range(4)]
    items = [(each, slot) for slot, each in enumerate(blocks)]
    found: dict[str, int] = {}
    with BlockRig(make_tier, server.login_url()) as writer:
        stored = writer.store(items)
    ensure(stored.ok, f"nothing was stored to be found: {stored}")
    for name, identity in {
        "the same": an_identity(),
        "other weights": an_identity(weights="commit:2222"),
        "another dtype": an_identity(kv_dtype="fp8"),
        "another rank": an_identity(rank=1),
    }.items():
        with BlockRig(make_tier, server.login_url(), identity=identity) as reader:
            found[name] = reader.look(blocks, request="r").count(Found.HIT)
            wrong = reader.wrong(items, reader.load(items))
        wanted = len(blocks) if name == "the same" else 0
        check(
            found[name] == wanted and not wrong,
            expected=f"a process with {name} finds {wanted} of {len(blocks)} blocks",
            observed=f"it finds {found[name]}, and loads {wrong} with wrong bytes",
            evidence={"found": found[name], "wrong": wrong},
        )
    evidence.record(keys_compared=len(keys), pairs=len(keys) * (len(keys) - 1) // 2)


@clause("KV-04")
def test_the_tier_derives_the_same_keys_in_every_process(
    implementation: Implementation, evidence: Evidence
) -> None:
    """Processes with PYTHONHASHSEED 1, 2 and random derive the same keys for the same runs, requests and
    block hashes.
    """
    tier = implementation("kv_offload")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fixtures.kv_keys", f"{tier.__module__}:{tier.__qualname__}"],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
        )
        for seed in ("1", "2", "random")
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    ensure(not any(process.returncode for process in processes), "a process could not derive its keys")
    first, *others = [json.loads(output) for output in outputs]
    different = [name for name, key in first.items() if any(other[name] != key for other in others)]
    evidence.record(tier_processes_compared=len(processes), keys_compared=len(first))
    check(
        not different,
        expected="the same keys in each process",
        observed=f"{len(different)} of {len(first)} keys differ, such as that of {different[:1]}",
        evidence={"keys": len(first), "different": len(different)},
    )


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


@pytest.mark.cost_s(12)
@clause("KV-06", needs={"fill", "net"})
def test_no_interleaving_makes_a_wrong_block(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """Whatever order stores, loads, lookups, evictions, damage, faults and drains come in, a block that is
    said to be loaded has the bytes of its key, and each job has exactly one result.
    """
    server = servers.scaled()
    history = TierHistory()
    with (
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        server.connect() as direct,
    ):
        machine = tier_machine(
            implementation("kv_offload"), server.login_url(proxy.port), direct, proxy, history
        )
        run_state_machine_as_test(machine, settings=against_a_server(max_examples=30, steps=50))
    evidence.record(
        operations=history.operations,
        blocks_loaded=history.loaded,
        blocks_missed=history.missed,
        faults_acted=history.acted,
        blocks_recovered=history.recovered,
    )
    ensure(history.loaded + history.recovered > 100, f"the machine hardly loaded: {vars(history)}")
    ensure(history.missed > 10, f"hardly a load was a miss: {vars(history)}")
    ensure(history.acted > 0, "no fault acted")


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


class CutAtCommand(Fault):
    """The connection is lost when its n-th command arrives, before the server sees it; n counts from 0."""

    def __init__(self, number: int) -> None:
        self._left = number

    def on_command(self, ctx: Context, command: Command) -> OnCommand:
        if command.name in (b"HELLO", b"AUTH", b"CLIENT", b"SELECT", b"PING"):
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        self.act()
        return End.RESET


@pytest.mark.cost_s(4)
@clause("KV-08", needs={"crash", "net"})
def test_nothing_of_a_block_is_seen_without_the_rest(
    servers: ServerFactory, implementation: Implementation, evidence: Evidence
) -> None:
    """Wherever the writer is cut off, and whichever of the keys that a block is made of is evicted, a lookup
    that finds the block is followed by a load of all of it.
    """
    server = servers.scaled()
    make_tier = implementation("kv_offload")
    cuts = evicted = 0
    with (
        FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
        server.connect() as client,
        BlockRig(make_tier, server.login_url()) as reader,
    ):

        def judge(which: BlockId, what: str, number: int) -> None:
            request = f"{what} {number}"
            found = reader.look([which], request=request)[0]
            loaded = reader.load([(which, 0)])
            reader.tier.forget(request)
            check(
                (found is Found.HIT) == loaded.ok and not reader.wrong([(which, 0)], loaded),
                expected=f"{what}: a block is found and loads, or is neither",
                observed=f"it is {'found' if found is Found.HIT else 'not found'} and "
                f"{'loads' if loaded.ok else 'does not load'}",
                evidence={"number": number},
            )

        for number in range(8):
            which = block(100 + number)
            fault = CutAtCommand(number)
            with (
                proxy.fault(fault),
                BlockRig(make_tier, server.login_url(proxy.port), store_deadline_s=0.5) as writer,
            ):
                writer.store([(which, 0)])
            cuts += fault.acted > 0
            judge(which, "the writer was cut off at a command", number)
        which = block(200)
        ensure(reader.store([(which, 0)]).ok, "the block of the proof was not stored")
        # The prefix of a block's keys; whatever else stands under it belongs to the block.
        parts = [bytes(key) for key in client.scan_iter(match=reader.key(which) + b"*", count=1000)]
        check(
            len(parts) >= 1,
            expected="a stored block has its key",
            observed="it has none",
        )
        for number, part in enumerate(parts):
            kept: Any = client.dump(part)
            client.unlink(part)
            judge(which, "one key of a block was evicted", number)
            evicted += 1
            client.restore(part, 0, kept, replace=True)
    ensure(cuts > 1, f"writers were hardly ever cut off: {cuts} times")
    evidence.record(writers_cut_off=cuts, keys_of_a_block=len(parts), keys_evicted=evicted)


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


@pytest.mark.cost_s(15)
@clause("KV-10", needs={"net", "config"})
def test_no_fault_keeps_the_tier_from_answering(
    servers: ServerFactory, contract: Contract, implementation: Implementation, evidence: Evidence
) -> None:
    """Under each fault lookups become misses and jobs end, within the deadlines and without an exception; no
    call of the engine's thread waits for the server; and after the fault blocks are stored and loaded again,
    by the same tier, within the contract's time.
    """
    server = servers.scaled()
    slack_s = 2.0  # a busy machine may be late by that much
    worst_call_s = worst_recovery_s = 0.0
    for number, (name, make_fault) in enumerate(FAULTS.items()):
        with (
            FaultProxy(upstream=("127.0.0.1", server.port)) as proxy,
            BlockRig(
                implementation("kv_offload"),
                server.login_url(proxy.port),
                lookup_deadline_s=0.2,
                load_deadline_s=1.0,
                store_deadline_s=1.0,
            ) as rig,
        ):
            known, fresh = block(1000 + 2 * number), block(1001 + 2 * number)
            ensure(rig.store([(known, 0)]).ok, f"the server was not healthy before {name!r}")
            fault = make_fault()
            with proxy.fault(fault):
                began_s = time.monotonic()
                answer, load = ask_under_fault(rig, name, known, fresh)
                took_s = time.monotonic() - began_s
            ensure(fault.acted > 0, f"{name!r} did not act")
            check(
                answer is not Found.LATER and not rig.wrong([(known, 1)], load),
                expected=f"{name}: a lookup is answered, and nothing wrong is loaded",
                observed=f"{answer.value}, loaded: {load.ok}",
                evidence={"fault": name},
            )
            limit_s = 0.2 + 1.0 + 1.0 + slack_s
            check(
                took_s <= limit_s,
                expected=f"{name}: a lookup, a load and a store end within {limit_s:g} s",
                observed=f"they took {took_s:.2f} s",
                evidence={"fault": name, "took_s": round(took_s, 3)},
            )
            began_s = time.monotonic()
            works_again(rig, name, within_s=contract.deadlines.recovery_s)
            worst_recovery_s = max(worst_recovery_s, time.monotonic() - began_s)
            worst_call_s = max(worst_call_s, took_s)
    evidence.record(
        faults=len(FAULTS),
        longest_answer_s=round(worst_call_s, 3),
        longest_recovery_s=round(worst_recovery_s, 3),
    )


def ask_under_fault(rig: BlockRig, fault: str, known: BlockId, fresh: BlockId) -> tuple[Found, JobResult]:
    """A lookup, a load and a store: the answer and the result of the load."""
    try:
        answer = rig.look([known], request="r", within_s=10.0)[0]
        began_s = time.monotonic()
        jobs = [rig.submit_load([(known, 1)]), rig.submit_store([(fresh, 2)])]
        submitted_s = time.monotonic() - began_s
        load, _ = [rig.result(job, within_s=10.0) for job in jobs]
    except TimeoutError as error:
        check(
            False,
            expected=f"{fault}: lookups and jobs end within their deadlines",
            observed=str(error),
            evidence={"fault": fault},
        )
    except Exception as error:
        check(
            False,
            expected=f"{fault}: the engine sees misses, and no exception",
            observed=f"{type(error).__name__}: {error}",
            evidence={"fault": fault},
        )
    check(
        submitted_s <= 2.0,
        expected=f"{fault}: submitting jobs does not wait for the server",
        observed=f"it took {submitted_s:.2f} s",
        evidence={"fault": fault, "submitting_s": round(submitted_s, 3)},
    )
    return answer, load


def works_again(rig: BlockRig, fault: str, *, within_s: float) -> None:
    """Waits until a block is stored and loaded."""
    numbers = itertools.count(5000)
    try:
        wait_for(
            lambda: works(rig, block(next(numbers))),
            what="a block to be stored and loaded",
            deadline_s=within_s,
            poll_s=0.05,
        )
    except TimeoutError as error:
        check(
            False,
            expected=f"{fault}: the tier works again within {within_s:g} s",
            observed=str(error),
            evidence={"fault": fault},
        )


def works(rig: BlockRig, which: BlockId) -> bool:
    """Whether a new block can be stored and loaded."""
    if not rig.store([(which, 5)]).ok:
        return False
    loaded = rig.load([(which, 6)])
    return loaded.ok and rig.row(6) == bytes_of(rig.identity, which)


@clause("KV-12")
def test_the_configuration_is_translated_or_corrected(
    implementation: Implementation, evidence: Evidence
) -> None:
    """Each good configuration becomes the arguments of vLLM's tiered offloading, as plain JSON; each bad one
    is refused with a message that names the key and what to write.
    """
    translate = implementation("kv_config")
    for good in GOOD_CONFIGS:
        try:
            made = translate(good.config, vllm_version=good.vllm)
        except UsageError as error:
            check(False, expected=f"{good.name} is accepted", observed=str(error))
        extra = made["kv_connector_extra_config"]
        tier = extra["secondary_tiers"][0]
        seen = {"kv_role": made["kv_role"], **extra, **tier}
        missed = {name: seen.get(name) for name, value in good.becomes.items() if seen.get(name) != value}
        check(
            not missed,
            expected=f"{good.name} becomes {dict(good.becomes)}",
            observed=f"it becomes {missed}",
            evidence={"configuration": good.name},
        )
        check(
            json.loads(json.dumps(made)) == made,
            expected="the configuration is plain JSON",
            observed=f"{made}",
        )
    for bad in BAD_CONFIGS:
        try:
            made = translate(bad.config, vllm_version=bad.vllm)
        except UsageError as error:
            missing = [word for word in bad.says if word not in str(error)]
            check(
                not missing,
                expected=f"{bad.name}: the message says {list(bad.says)}",
                observed=f"it lacks {missing}: {error}",
                evidence={"configuration": bad.name},
            )
            continue
        check(
            False,
            expected=f"{bad.name} is refused",
            observed=f"it becomes {made}",
            evidence={"configuration": bad.name},
        )
    evidence.record(good=len(GOOD_CONFIGS), bad=len(BAD_CONFIGS))
