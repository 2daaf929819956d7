"""MEM: memory pressure is survived by evicting the least recently used."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from fixtures.latency import Latencies, LatencySampler
from fixtures.load import (
    Item,
    Payloads,
    evictable_workloads,
    flood,
    present,
    read_back,
    store,
    workload_items,
)
from fixtures.machine import Onlooker
from fixtures.observe import require_config, require_info, server_time_ms, wait_for
from fixtures.pacing import big_blocks, cohort, read_all, wait_seconds, write_paced
from fixtures.servers import ServerFactory, effective_maxmemory
from fixtures.spec import Evidence, Numbers, check, clause, not_proven
from fixtures.statistics import ProportionTest
from fixtures.targets import Target
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.gate.findings import Plot, Series

MIB = 1024 * 1024


@clause("MEM-01", needs={"fill"})
def test_writes_succeed_at_maxmemory(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """Three times the memory is written without one refusal, and eviction is what made room."""
    server = servers.scaled()
    payloads = Payloads(rng)
    with server.connect() as client:
        maxmemory = effective_maxmemory(server)
        before = int(require_info(client, "stats").get("evicted_keys", "0"))
    workloads = evictable_workloads(contract)
    if contract.instance.maxmemory_policy.startswith("allkeys-"):
        # The hardest that the contract promises: not one key has a TTL.
        workloads = [dataclasses.replace(workload, ttl_s=None) for workload in workloads]
    result = flood(
        lambda: server.connect(deadline_s=30),
        [workload_items(workloads, payloads, rng, total_bytes=maxmemory, name=f"flood{n}") for n in range(3)],
    )
    with server.connect() as client:
        info = require_info(client, "stats", "memory")
        evicted = int(info.get("evicted_keys", "0")) - before
    numbers: Numbers = {
        "maxmemory_bytes": maxmemory,
        "bytes_written": result.bytes_written,
        "writes_acknowledged": result.acknowledged,
        "writes_refused": result.refused.total(),
        "refusals": ", ".join(f"{code} x{count}" for code, count in result.refused.items()) or "none",
        "evicted_keys": evicted,
    }
    evidence.record(**numbers)
    check(
        not result.refused,
        expected="every write acknowledged while three times maxmemory is written",
        observed=f"{result.refused.total()} writes refused, the first with: {result.first_refusal}",
        evidence=numbers,
    )
    check(
        evicted > 0,
        expected="evicted_keys rises while three times maxmemory is written",
        observed="evicted_keys did not move: nothing made room",
        evidence=numbers,
    )


@pytest.mark.cost_s(8)
@clause("MEM-02", needs={"fill"})
def test_least_recently_used_goes_first(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """Of two cohorts, the one read often but long ago is evicted before the one read once but lately.

    The younger cohort by insertion, and the one with the longer TTL, is the one that must go: so insertion
    order, frequency and TTL all point the other way, and only recency of reads explains the right losses.
    Losses are counted in rounds until a sequential test decides between "at least 19 of 20 losses are of the
    stale cohort" and "at most 13 of 20", each wrong with a probability of at most one in a million.
    """
    policy = contract.instance.maxmemory_policy
    if not policy.endswith("-lru"):
        not_proven(f"the contract's policy is {policy}, which is no LRU")
    prefix = next(w.prefix for w in evictable_workloads(contract) if not w.only_copy or w.evictable)
    server = servers.scaled(maxmemory_bytes=24 * MIB)
    payloads = Payloads(rng)
    size = 8192
    with server.connect(deadline_s=30) as client:
        maxmemory = effective_maxmemory(server)
        base = int(require_info(client, "memory")["used_memory"])
        each = int((0.80 * maxmemory - base) / (size * 1.07 + 150) / 2)
        recent = cohort(prefix, "recent", each, size, payloads, ttl_ms=3_600_000)
        stale = cohort(prefix, "stale", each, size, payloads, ttl_ms=7_200_000)
        seeded = store(client, recent)
        seeded.merge(store(client, stale))
        for _ in range(12):
            read_all(client, stale)
        wait_seconds(client, 2)
        read_all(client, recent)
        wait_seconds(client, 2)
        at_start = (
            sum(present(client, [i.key for i in stale])),
            sum(present(client, [i.key for i in recent])),
        )
        test = ProportionTest(low=0.65, high=0.95, error_rate=1e-6)
        decision, lost_stale, lost_recent, written = "", 0, 0, 0
        history: list[tuple[float, int, int]] = [(0.0, 0, 0)]
        refused = seeded
        while not decision and written < 2 * maxmemory and not refused.refused:
            chunk = cohort(prefix, f"flood{written}", 60, size, payloads, ttl_ms=3_600_000)
            refused = store(client, chunk)
            written += sum(len(item.value) for item in chunk)
            lost_stale = at_start[0] - sum(present(client, [i.key for i in stale]))
            lost_recent = at_start[1] - sum(present(client, [i.key for i in recent]))
            history.append((written / MIB, lost_stale, lost_recent))
            if lost_stale + lost_recent >= 40:
                decision = test.decide(successes=lost_stale, trials=lost_stale + lost_recent)
    lost = lost_stale + lost_recent
    numbers: Numbers = {
        "maxmemory_bytes": maxmemory,
        "keys_in_each_cohort": each,
        "lost_stale": lost_stale,
        "lost_recent": lost_recent,
        "stale_part_of_losses": round(lost_stale / lost, 3) if lost else None,
        "error_rate": test.error_rate,
        "writes_refused": refused.refused.total(),
    }
    evidence.record(**numbers)
    evidence.plot(
        Plot(
            title="Eviction by cohort",
            kind="line",
            x_label="MiB written in the flood",
            y_label="keys lost",
            series=(
                Series(name="read often, long ago", x=[h[0] for h in history], y=[h[1] for h in history]),
                Series(name="read once, lately", x=[h[0] for h in history], y=[h[2] for h in history]),
            ),
            note="Under LRU only the cohort read long ago loses keys; equal lines mean random eviction.",
        )
    )
    check(
        not refused.refused,
        expected="room is made by eviction",
        observed=f"writes refused: {refused.first_refusal}",
        evidence=numbers,
    )
    check(
        decision == "high",
        expected="at least 19 of 20 evicted cohort keys are of the one not read for longest",
        observed=f"{lost_stale} of the stale and {lost_recent} of the recent cohort were evicted"
        + ("" if decision else ": too few or too mixed to show LRU"),
        evidence=numbers,
    )


@clause("MEM-03", needs={"fill"})
def test_nothing_is_evicted_below_maxmemory(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """At 80 % of maxmemory every key written is there."""
    server = servers.scaled()
    payloads = Payloads(rng)
    with server.connect(deadline_s=30) as client:
        maxmemory = effective_maxmemory(server)
        base = int(require_info(client, "memory")["used_memory"])
        room = int((0.80 * maxmemory - base) / 1.25)
        written: list[Item] = []
        # The server rounds allocations up, so fill by what it says it uses rather than by what was sent.
        items = workload_items(
            evictable_workloads(contract),
            payloads,
            rng,
            total_bytes=room * 2,
            name="below",
            sizes_bytes=(4096, 16384),
        )
        for item in items:
            written.append(item)
            if len(written) % 100 == 0:
                store(client, written[-100:])
                if int(require_info(client, "memory")["used_memory"]) >= 0.79 * maxmemory:
                    break
        stored = written[: len(written) // 100 * 100]
        info = require_info(client, "memory", "stats")
        evicted = int(info.get("evicted_keys", "0"))
        missing = [key for key, value in read_back(client, [i.key for i in stored]) if value is None]
    numbers: Numbers = {
        "maxmemory_bytes": maxmemory,
        "used_memory_bytes": int(info["used_memory"]),
        "keys_written": len(stored),
        "evicted_keys": evicted,
        "keys_missing": len(missing),
    }
    evidence.record(**numbers)
    check(
        int(info["used_memory"]) < maxmemory,
        expected="used_memory below maxmemory after filling to 80 %",
        observed=f"used_memory is {info['used_memory']} of {maxmemory}",
        evidence=numbers,
    )
    check(
        evicted == 0 and not missing,
        expected=f"evicted_keys 0 and all {len(stored)} keys present below maxmemory",
        observed=f"evicted_keys {evicted}, {len(missing)} keys missing",
        evidence=numbers,
    )


@clause("MEM-04", needs={"fill"})
def test_memory_stays_bounded_under_a_flood(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """used_memory, sampled while several connections flood, keeps within maxmemory and its tolerance.

    What the server itself leaves out of maxmemory (the log's buffer, which a slow disk fills) is left out
    here too; the headroom of CFG-01 is for that.
    """
    server = servers.scaled()
    payloads = Payloads(rng)
    with server.connect() as client:
        maxmemory = effective_maxmemory(server)
    samples: list[tuple[float, int]] = []
    highest_total = 0
    stop = threading.Event()
    began = time.monotonic()

    def sample() -> None:
        nonlocal highest_total
        with server.connect(deadline_s=30) as watcher:
            while not stop.is_set():
                info = require_info(watcher, "memory")
                samples.append((time.monotonic() - began, evictable_memory(info)))
                highest_total = max(highest_total, int(info["used_memory"]))
                stop.wait(0.005)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    workloads = evictable_workloads(contract)
    try:
        flood(
            lambda: server.connect(deadline_s=30),
            [
                workload_items(workloads, payloads, rng, total_bytes=maxmemory, name=f"bound{n}")
                for n in range(4)
            ],
        )
    finally:
        stop.set()
        watcher.join()
    with server.connect() as client:
        samples.append((time.monotonic() - began, evictable_memory(require_info(client, "memory"))))
    allowed = int(maxmemory * (1 + contract.instance.maxmemory_tolerance))
    highest = max(used for _, used in samples)
    numbers: Numbers = {
        "maxmemory_bytes": maxmemory,
        "highest_used_memory_bytes": highest,
        "highest_with_buffers_bytes": highest_total,
        "allowed_bytes": allowed,
        "samples": len(samples),
        "excess_ratio": round(highest / maxmemory - 1, 4),
    }
    evidence.record(**numbers)
    evidence.plot(
        Plot(
            title="Memory over the flood",
            kind="line",
            x_label="seconds",
            y_label="used_memory (bytes)",
            series=(Series(name="used_memory", x=[t for t, _ in samples], y=[u for _, u in samples]),),
            limit=allowed,
            limit_label="maxmemory and tolerance",
        )
    )
    check(
        highest <= allowed,
        expected=f"used_memory at most {contract.instance.maxmemory_tolerance:.0%} above maxmemory",
        observed=f"used_memory reached {highest / maxmemory:.1%} of maxmemory",
        evidence=numbers,
    )


def evictable_memory(info: dict[str, str]) -> int:
    """used_memory without the buffers that the server does not count against maxmemory, in bytes."""
    return int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", "0"))


@clause("MEM-05", needs={"fill"})
def test_an_evicted_key_is_a_clean_miss(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """After a flood each key holds its newest acknowledged value whole, or nothing at all.

    A first version of some keys is written before the memory fills and a second one after it, so that a write
    that was acknowledged but not done shows as a stale value; and no more keys are missing than the server
    says it evicted.
    """
    server = servers.scaled()
    payloads = Payloads(rng)
    workloads = evictable_workloads(contract)
    latest: dict[bytes, int] = {}
    # Five times the size of the first version: an overwrite that memory pressure refuses cannot fit in its
    # place.
    small, large = 4096, 20480

    def versioned(number: int, version: int, size: int) -> Item:
        workload = workloads[number % len(workloads)]
        key = f"{workload.prefix}versioned:{number}".encode()
        ttl_ms = None if workload.ttl_s is None else workload.ttl_s * 1000
        return Item(key=key, value=payloads.make(key, size, version), ttl_ms=ttl_ms)

    with server.connect(deadline_s=30) as client:
        maxmemory = effective_maxmemory(server)
        count = maxmemory // (8 * small)

        def remember(version: int, items: list[Item]) -> None:
            store(client, items, on_acknowledged=lambda item: latest.__setitem__(item.key, version))

        remember(1, [versioned(n, 1, small) for n in range(count)])
        remember(
            0, list(workload_items(workloads, payloads, rng, total_bytes=2 * maxmemory, name="pressure"))
        )
        # Written back while the memory is full: the newest ones are the likeliest to stay.
        remember(2, [versioned(n, 2, large) for n in range(count)])
        info = require_info(client, "stats")
        evicted, expired = int(info["evicted_keys"]), int(info["expired_keys"])
        missing, damaged, stale, odd = 0, 0, 0, 0
        first_bad = ""
        keys = list(latest)
        for key, value in read_back(client, keys):
            if value is None:
                missing += 1
                continue
            version = payloads.version_of(key, value)
            if version == latest[key]:
                continue
            damaged += version is None
            stale += version is not None
            first_bad = first_bad or f"{key.decode()}: {len(value)} bytes, version {version}"
        some_missing = [key for key, value in read_back(client, keys[:2000]) if value is None][:200]
        for key in some_missing:
            # What GET calls a miss must be one for every other question too.
            if (
                client.exists(key)
                or client.strlen(key)
                or client.ttl(key) != -2
                or client.get(key) is not None
            ):
                odd += 1
                first_bad = first_bad or f"{key.decode()}: absent for MGET, present for another command"
    numbers: Numbers = {
        "keys_acknowledged": len(keys),
        "missing": missing,
        "evicted_keys": evicted,
        "damaged_values": damaged,
        "stale_values": stale,
        "half_absent_keys": odd,
    }
    evidence.record(**numbers)
    check(
        damaged == 0 and stale == 0 and odd == 0,
        expected="each key reads as its newest acknowledged value, or as a miss",
        observed=f"{damaged} damaged and {stale} stale values, {odd} half-absent keys; first: {first_bad}",
        evidence=numbers,
    )
    check(
        0 < missing <= evicted + expired,
        expected="keys are missing, and no more of them than were evicted",
        observed=f"{missing} acknowledged keys are missing, {evicted} were evicted and {expired} expired",
        evidence=numbers,
    )


@clause("MEM-06", needs={"write"})
def test_ttls_are_kept(target: Target, contract: Contract, evidence: Evidence, rng: random.Random) -> None:
    """However a TTL is set, the key is there before its deadline, gone after it, and a read does not move
    it.
    """
    namespace = f"{target.namespace.prefix(contract.workloads['embeddings'])}{rng.randbytes(4).hex()}:"
    ways: dict[str, Callable[[Any, bytes, int, int], object]] = {
        "SET PX": lambda c, k, ttl, at: c.set(k, b"v", px=ttl),
        "SET EX": lambda c, k, ttl, at: c.set(k, b"v", ex=-(-ttl // 1000)),
        "SET PXAT": lambda c, k, ttl, at: c.set(k, b"v", pxat=at),
        "PSETEX": lambda c, k, ttl, at: c.psetex(k, ttl, b"v"),
        "SETEX": lambda c, k, ttl, at: c.setex(k, -(-ttl // 1000), b"v"),
        "PEXPIRE": lambda c, k, ttl, at: (c.set(k, b"v"), c.pexpire(k, ttl)),
        "EXPIRE": lambda c, k, ttl, at: (c.set(k, b"v"), c.expire(k, -(-ttl // 1000))),
        "PEXPIREAT": lambda c, k, ttl, at: (c.set(k, b"v"), c.pexpireat(k, at)),
        "GETEX PX": lambda c, k, ttl, at: (c.set(k, b"v"), c.getex(k, px=ttl)),
        "HSET and PEXPIRE": lambda c, k, ttl, at: (c.hset(k, "f", b"v"), c.pexpire(k, ttl)),
        "RPUSH and PEXPIRE": lambda c, k, ttl, at: (c.rpush(k, b"v"), c.pexpire(k, ttl)),
        "SET KEEPTTL": lambda c, k, ttl, at: (c.set(k, b"u", px=ttl), c.set(k, b"v", keepttl=True)),
    }
    problems: list[str] = []
    with target.connect() as client:
        placed: list[tuple[str, bytes, int]] = []
        for round_number in range(3):
            for name, way in ways.items():
                key = f"{namespace}{round_number}:{name}".encode()
                ttl = rng.randrange(1500, 2500)
                before = server_time_ms(client)
                way(client, key, ttl, before + ttl)
                after = server_time_ms(client)
                # Ways that count in whole seconds round up.
                slack = 1000 if name in ("SET EX", "SETEX", "EXPIRE") else 0
                deadline = int(client.execute_command("PEXPIRETIME", key))
                if not before + ttl <= deadline <= after + ttl + slack:
                    problems.append(
                        f"{name}: deadline {deadline - before} ms after the write "
                        f"instead of {ttl} to {ttl + slack + after - before}"
                    )
                placed.append((name, key, deadline))
        moved = deadlines_moved_by_reads(client, placed)
        problems += [f"{name}: a read moved the deadline by {by} ms" for name, by in moved]
        for name, key, deadline in sorted(placed, key=lambda p: p[2]):
            # Only answers certain to lie before the deadline may be held against the server.
            there = bool(client.exists(key))
            if server_time_ms(client) < deadline and not there:
                problems.append(f"{name}: gone {deadline - server_time_ms(client)} ms early")
        last = max(deadline for _, _, deadline in placed)
        wait_for(
            lambda: server_time_ms(client) > last,
            what="the last TTL to pass on the server's clock",
            deadline_s=30,
            poll_s=0.05,
        )
        for name, key, _ in placed:
            kind = client.type(key)
            if client.exists(key) or kind != b"none" or client.pttl(key) != -2:
                problems.append(f"{name}: still there after its deadline ({kind.decode()})")
                client.unlink(key)
    evidence.record(keys_with_ttl=len(placed), ways_to_set_a_ttl=len(ways), problems=len(problems))
    check(
        not problems,
        expected="every key there before its deadline, gone after it, and no deadline moved by a read",
        observed=f"{len(problems)} problems; first: {problems[0] if problems else ''}",
        evidence={"keys_with_ttl": len(placed), "problems": len(problems)},
    )


def deadlines_moved_by_reads(client: Client, placed: list[tuple[str, bytes, int]]) -> list[tuple[str, int]]:
    """Read every key in each way that an adapter does, and say whose deadline moved and by how much."""
    moved = []
    for name, key, deadline in placed:
        kind = client.type(key)
        client.exists(key)
        client.ttl(key)
        if kind == b"string":
            client.get(key)
            client.mget([key])
            client.strlen(key)
            client.getrange(key, 0, 0)
        elif kind == b"hash":
            client.hgetall(key)
        elif kind == b"list":
            client.lrange(key, 0, -1)
        now = int(client.execute_command("PEXPIRETIME", key))
        # -2: it expired meanwhile, which is not the read's doing.
        if now not in (deadline, -2):
            moved.append((name, now - deadline))
    return moved


@pytest.mark.cost_s(4)
@clause("MEM-07", needs={"fill"})
def test_fragmentation_stays_low_through_a_churn(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """After writing and evicting mixed sizes for several times maxmemory, resident is near used memory.

    Judged on jemalloc builds; libc's malloc keeps freed memory, which says nothing about the server.
    """
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    payloads = Payloads(rng)
    maxmemory = effective_maxmemory(server)
    workloads = evictable_workloads(contract)
    ratios: list[tuple[float, float]] = []
    with server.connect(deadline_s=30) as client:
        largest = int(require_config(client, "proto-max-bulk-len")) // 2
        for number in range(5):
            store(
                client,
                workload_items(
                    workloads,
                    payloads,
                    rng,
                    total_bytes=maxmemory,
                    name=f"churn{number}",
                    sizes_bytes=[min(size, largest) for size in (512, 3072, 12288, 65536, 1 * MIB, 4 * MIB)],
                ),
            )
            info = require_info(client, "memory")
            used, resident = int(info["used_memory"]), int(info["used_memory_rss"])
            ratios.append((number + 1, resident / used))
        info = require_info(client, "memory")
    limit = contract.instance.fragmentation_ratio
    numbers: Numbers = {
        "used_memory_bytes": int(info["used_memory"]),
        "resident_bytes": int(info["used_memory_rss"]),
        "mem_fragmentation_ratio": float(info["mem_fragmentation_ratio"]),
        "allocator": info.get("mem_allocator", "unknown"),
        "resident_over_used": round(ratios[-1][1], 3),
    }
    evidence.record(**numbers)
    evidence.plot(
        Plot(
            title="Fragmentation through a churn",
            kind="line",
            x_label="times maxmemory written",
            y_label="resident over used memory",
            series=(Series(name="ratio", x=[r[0] for r in ratios], y=[round(r[1], 3) for r in ratios]),),
            limit=limit,
            limit_label="contract",
        )
    )
    if numbers["allocator"] == "libc":
        not_proven(
            "the server is built with libc's malloc, which keeps freed memory: resident was "
            f"{ratios[-1][1]:.2f} times used. Only a jemalloc build, as official images are, tells more"
        )
    check(
        ratios[-1][1] <= limit,
        expected=f"resident at most {limit:g} times used memory after the churn",
        observed=f"{ratios[-1][1]:.2f} times",
        evidence=numbers,
    )


@pytest.mark.cost_s(5)
@clause("MEM-08", needs={"fill"})
def test_evicting_big_blocks_does_not_stall_others(
    servers: ServerFactory, contract: Contract, evidence: Evidence, rng: random.Random
) -> None:
    """While 4 MiB blocks are written and evicted, reads of other workloads keep within their declared p99.

    A second, idle server is read at the same moments: what it suffers is the machine's doing and is added to
    the bound. A server at work waits for a processor more often than an idle one: what that explains is not
    held against it, and the clause is not proven then; nor where it waited longer than it ran. While the p99
    is above the bound, the sample grows, from 3 up to 12 s, so that one hiccup does not decide. Persistence
    is off: eviction is judged here, and a log on a busy disk stalls a server that evicts nothing just as
    much.
    """
    memory_only = {"appendonly": "no", "save": ""}
    server = servers.scaled(maxmemory_bytes=96 * MIB, settings=memory_only)
    idle_server = servers.scaled(maxmemory_bytes=96 * MIB, settings=memory_only)
    payloads = Payloads(rng)
    maxmemory = effective_maxmemory(server)
    reader = min(contract.workloads.values(), key=lambda w: w.p99_s)
    writer = max(evictable_workloads(contract), key=lambda w: w.value_max_bytes if not w.only_copy else 0)
    key = f"{reader.prefix}probe".encode()
    ttl_ms = None if reader.ttl_s is None else reader.ttl_s * 1000
    probe = Item(key=key, value=payloads.make(key, 2048), ttl_ms=ttl_ms)
    with server.connect() as client:
        # A smaller limit on values is CFG-05's finding; eviction is judged with the largest that it admits.
        block_bytes = min(4 * MIB, int(require_config(client, "proto-max-bulk-len")) // 2)
    blocks = big_blocks(writer, payloads, block_bytes)
    busy, control = Latencies(), Latencies()
    allowed_ms = 0.0
    with (
        server.connect(deadline_s=30) as client,
        idle_server.connect(deadline_s=30) as idle_client,
        LatencySampler(lambda: server.connect(deadline_s=30), key) as sampler,
        LatencySampler(lambda: idle_server.connect(deadline_s=30), key) as idle_sampler,
    ):
        store(client, [probe])
        store(idle_client, [probe])
        store(client, itertools.islice(blocks, maxmemory // block_bytes))
        before = int(require_info(client, "stats")["evicted_keys"])
        onlooker = Onlooker(server.pid, idle_server.pid)
        for _ in range(4):
            with sampler.recording() as window, idle_sampler.recording() as idle_window:
                write_paced(client, blocks, seconds=3.0)
            busy.seconds += window.seconds
            control.seconds += idle_window.seconds
            allowed_ms = round(reader.p99_s * 1000 + control.percentile_ms(99), 3)
            if busy.percentile_ms(99) <= allowed_ms:
                break
        blame = onlooker.blame()
        evicted = int(require_info(client, "stats")["evicted_keys"]) - before
    numbers: Numbers = {
        "reads_while_evicting": len(busy),
        "p50_while_evicting_ms": busy.percentile_ms(50),
        "p99_while_evicting_ms": busy.percentile_ms(99),
        "highest_while_evicting_ms": busy.percentile_ms(100),
        "p99_of_an_idle_server_ms": control.percentile_ms(99),
        "allowed_p99_ms": allowed_ms,
        "processors_used_by_others_ratio": round(blame.used_by_others, 3),
        "queue_longer_by_waiting_for_processors": round(blame.slowed, 2),
        "block_bytes": block_bytes,
        "blocks_evicted": evicted,
    }
    evidence.record(**numbers)
    evidence.plot(
        Plot(
            title="Read latency while big blocks are evicted",
            kind="line",
            x_label="percentile",
            y_label="milliseconds",
            series=(busy.curve("while evicting"), control.curve("an idle server meanwhile")),
            limit=allowed_ms,
            limit_label=f"p99 of {reader.name}",
        )
    )
    check(
        evicted > 0,
        expected="blocks are evicted while the reads are timed",
        observed="nothing was evicted",
        evidence=numbers,
    )
    p99_ms, idle_ms = busy.percentile_ms(99), control.percentile_ms(99)
    if p99_ms > allowed_ms and not blame.convicts(
        p99_ms, bound_ms=reader.p99_s * 1000, control_ms=idle_ms, same_clients=True
    ):
        not_proven(
            f"p99 was {p99_ms:g} ms, and {idle_ms:g} ms on an idle server; {blame}: judge it on a quieter one"
        )
    check(
        p99_ms <= allowed_ms,
        expected=f"p99 of {reader.name} reads at most {allowed_ms:g} ms while blocks of {block_bytes} bytes "
        f"are evicted ({reader.p99_s * 1000:g} ms and what an idle server suffers)",
        observed=f"p99 was {p99_ms:g} ms",
        evidence=numbers,
    )
