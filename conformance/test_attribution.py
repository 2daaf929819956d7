"""OBS-05: what the exporter says about each prefix agrees with a full count."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from fixtures.engines.prometheus_scrape import Scrape, scrape
from fixtures.load import Item, store
from fixtures.observe import require_config, require_info
from fixtures.pacing import wait_seconds
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.exporter import Settings

MIB = 1024 * 1024


@pytest.mark.cost_s(9)
@clause("OBS-05", needs={"write", "fill"})
def test_keys_and_bytes_are_attributed_within_the_stated_error(
    servers: ServerFactory,
    contract: Contract,
    evidence: Evidence,
    rng: random.Random,
    implementation: Callable[[str], Any],
) -> None:
    """Keys, bytes and share of each prefix agree with a full count, when every key is looked at and when a
    sample is, and looking leaves no trace.

    The exporter states half of a 95 % interval. Twice that is allowed here, so that a right exporter is
    wrongly rejected once in about two thousand runs; and it must be narrow enough to be of use, 5 points of
    share.
    Keys of strangers whose names begin nearly as a prefix does belong to "other".
    """
    server = servers.scaled(maxmemory_bytes=96 * MIB)
    with server.connect(deadline_s=30) as client:
        under_lfu = "lfu" in require_config(client, "maxmemory-policy")
        few = _write_sizes(client, contract, rng, total=1500, name="few")
        probes = few[:: max(1, len(few) // 60)]
        wait_seconds(client, 3)
        before = _staleness(client, probes, under_lfu=under_lfu)
        counted_before = _hits_and_misses(client)
        began = time.monotonic()
        make = implementation("exporter")
        whole = Settings(budget_ops_s=5000, full_pass_s=30, info_every_s=0.2)
        with make(server.login_url(), contract=contract, settings=whole) as exporter:
            seen = _until_sampled(exporter.address, keys=len(few), complete=True)
        elapsed_s = time.monotonic() - began
        counted_after = _hits_and_misses(client)
        after = _staleness(client, probes, under_lfu=under_lfu)
        _judge(seen, _truth(client, contract, few), evidence, how="whole")

        many = _write_sizes(client, contract, rng, total=20_000, name="many")
        sampled = Settings(budget_ops_s=5000, full_pass_s=1, window_s=60, recheck_s=2, info_every_s=0.2)
        with make(server.login_url(), contract=contract, settings=sampled) as exporter:
            seen = _until_sampled(exporter.address, keys=6000, complete=False)
        _judge(seen, _truth(client, contract, few + many), evidence, how="sampled")
    # An idle time, in whole seconds, grows with the clock; a frequency changes by a touch, or falls.
    grown = 0 if under_lfu else int(elapsed_s) - 1
    touched = sum(now < then + grown for then, now in zip(before, after, strict=True))
    moved = tuple(after - before for before, after in zip(counted_before, counted_after, strict=True))
    evidence.record(
        exporter_ran_s=round(elapsed_s, 1),
        keyspace_hits_moved=moved[0],
        keyspace_misses_moved=moved[1],
        keys_touched=touched,
        keys_probed=len(probes),
    )
    check(
        moved == (0, 0),
        expected="keyspace_hits and keyspace_misses do not move while the exporter looks at every key",
        observed=f"they moved by {moved[0]} and {moved[1]}",
    )
    check(
        touched == 0,
        expected="no key is touched by the exporter: idle times go on, frequencies under LFU do not rise",
        observed=f"{touched} of {len(probes)} keys were touched",
    )


def _write_sizes(
    client: Client, contract: Contract, rng: random.Random, *, total: int, name: str
) -> list[bytes]:
    """Keys of all workloads, and of strangers, with sizes that differ by prefix and within each."""
    prefixes = [w.prefix for w in contract.workloads.values()]
    strangers = sorted({f"{p.split(':')[0]}:other:" for p in prefixes} | {f"x{p}" for p in prefixes})
    strangers = [s for s in strangers if not any(s.startswith(p) for p in prefixes)]
    heads = [*prefixes, *strangers]
    weights = [max(1, 12 - 3 * n) for n in range(len(prefixes))] + [0.3] * len(strangers)
    typical = {head: 300 * (1 + number % 5) for number, head in enumerate(heads)}
    items = []
    for number in range(total):
        head = rng.choices(heads, weights)[0]
        size = min(20_000, int(rng.lognormvariate(0, 0.8) * typical[head]) + 1)
        key = f"{head}obs:{name}:{number}".encode()
        items.append(Item(key=key, value=b"v" * size, ttl_ms=86_400_000))
    ensure(not store(client, items).refused, "the keys are written")
    return [item.key for item in items]


def _truth(client: Client, contract: Contract, keys: list[bytes]) -> dict[str, tuple[int, int]]:
    """Keys and bytes by prefix: of every key that was written, its prefix by our own book, its size by the
    server.
    """
    prefixes = sorted((w.prefix for w in contract.workloads.values()), key=len, reverse=True)
    found = dict.fromkeys([*prefixes, "other"], (0, 0))
    for start in range(0, len(keys), 1000):
        chunk = keys[start : start + 1000]
        pipeline = client.pipeline(transaction=False)
        for key in chunk:
            pipeline.memory_usage(key)
        for key, size in zip(chunk, pipeline.execute(), strict=True):
            ensure(size is not None, "no key is lost below maxmemory")
            owner = next((p for p in prefixes if key.startswith(p.encode())), "other")
            count, total = found[owner]
            found[owner] = (count + 1, total + size)
    return found


def _until_sampled(address: str, *, keys: int, complete: bool) -> Scrape:
    """The first scrape that rests on so many keys, or the last within the deadline."""
    end = time.monotonic() + 20
    while True:
        seen = scrape(address)
        enough = (seen.value("inference_cache_sample_keys") or 0) >= keys
        if (enough and seen.value("inference_cache_sample_complete") == complete) or time.monotonic() > end:
            return seen
        time.sleep(0.1)


def _judge(seen: Scrape, truth: dict[str, tuple[int, int]], evidence: Evidence, *, how: str) -> None:
    total = sum(size for _, size in truth.values())
    stated = seen.value("inference_cache_sample_error_ratio")
    numbers: Numbers = {
        f"{how}_keys_looked_at": seen.value("inference_cache_sample_keys"),
        f"{how}_stated_error_of_share": stated,
        f"{how}_explained_part_of_the_dataset": seen.value("inference_cache_sample_explained_ratio"),
    }
    wrong = []
    worst = 0.0
    for prefix, (count, size) in truth.items():
        for what, true in (("keys", count), ("bytes", size)):
            told = seen.value(f"inference_cache_prefix_{what}", prefix=prefix)
            error = seen.value(f"inference_cache_prefix_{what}_error", prefix=prefix)
            if told is None or error is None or abs(told - true) > 2 * error + 1:
                wrong.append(f"{what} of {prefix}: {told} with an error of {error}, counted {true}")
        share = seen.value("inference_cache_prefix_share_ratio", prefix=prefix)
        if share is not None:
            worst = max(worst, abs(share - size / total))
    numbers[f"{how}_worst_error_of_share"] = round(worst, 4)
    evidence.record(**numbers)
    check(
        not wrong,
        expected=f"keys and bytes of each prefix within the stated error of a full count ({how})",
        observed="; ".join(wrong),
        evidence=numbers,
    )
    check(
        stated is not None and stated <= 0.05 and worst <= 2 * stated + 1e-9,
        expected=f"an error of each share that is stated, at most 5 points, and kept ({how})",
        observed=f"stated {stated}, and off by {worst:.4f}",
        evidence=numbers,
    )


def _staleness(client: Client, keys: list[bytes], *, under_lfu: bool) -> list[int]:
    """Of each key, what falls when it is touched: its idle time, or minus its frequency, which LFU keeps."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.execute_command("OBJECT FREQ" if under_lfu else "OBJECT IDLETIME", key)
    return [-int(reply) if under_lfu else int(reply) for reply in pipeline.execute()]


def _hits_and_misses(client: Client) -> tuple[int, int]:
    info = require_info(client, "stats")
    return int(info.get("keyspace_hits", "0")), int(info.get("keyspace_misses", "0"))
