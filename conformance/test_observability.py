"""OBS: what watches the cache tells the truth."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fixtures.engines.prometheus_exporters import RedisExporter
from fixtures.engines.prometheus_names import expressions_of_dashboards, expressions_of_rules, named
from fixtures.engines.prometheus_scrape import Scrape, scrape
from fixtures.engines.prometheus_server import PrometheusServer
from fixtures.load import Item, Payloads, error_code, evictable_workloads, present, store
from fixtures.machine import server_process
from fixtures.observe import require_config, require_info, wait_for
from fixtures.pacing import read_all, wait_seconds
from fixtures.servers import ServerFactory, effective_maxmemory
from fixtures.spec import Evidence, Numbers, check, clause, ensure, not_proven
from fixtures.targets.embedded import EmbeddedServer
from inference_cache.connection import Client
from inference_cache.contract import Contract
from inference_cache.errors import CacheError
from inference_cache.exporter import Settings
from inference_cache.metrics import Source, metric

MIB = 1024 * 1024
# Families that nothing in a spec brings about, or that another tool has.
_NOT_PROVOKED = frozenset(
    {
        "ALERTS",
        "ALERTS_FOR_STATE",
        "alertmanager_notifications_failed_total",
        "prometheus_rule_evaluation_failures_total",
        "prometheus_tsdb_head_series",
        "redis_latency_spike_duration_seconds",
        "redis_latency_spike_last",
    }
)
_AT_THE_TARGET = frozenset({Source.REDIS_EXPORTER, Source.EXPORTER, Source.PROMETHEUS})


def _groups(contract: Contract) -> str:
    """redis_exporter's flag for groups of keys, one for each prefix."""
    patterns = ",".join(f"^({w.prefix.removesuffix(':')}):.*" for w in contract.workloads.values())
    return f"-check-key-groups={patterns}"


@pytest.mark.cost_s(9)
@clause("OBS-01", needs={"prometheus", "fill"})
def test_every_named_metric_is_at_the_scrape_target(
    servers: ServerFactory, contract: Contract, evidence: Evidence, implementation: Callable[[str], Any]
) -> None:
    """Each metric that a rule or a dashboard names is in Prometheus after a scrape of both exporters, and
    both tell of this very server: its run id, and how many keys were just written to it, by prefix.

    What vLLM, Ray, Kubernetes, adapters and the gate expose is not at this target; of those the registry must
    know the name.
    """
    rules = list(expressions_of_rules(implementation("alert_rules")(contract)))
    panels = list(expressions_of_dashboards(implementation("dashboards")(contract)))
    ensure(bool(rules) and bool(panels), "rules and dashboards have expressions")
    wanted = named(*rules, *panels)
    families = {name: metric(name) for name in wanted}
    server = servers.scaled()
    counts = {w.prefix: 11 + 6 * number for number, w in enumerate(contract.workloads.values())}
    with server.connect() as client:
        _write_counts(client, contract, counts)
        run_id = require_info(client, "server").get("run_id", "")
    settings = Settings(budget_ops_s=2000, info_every_s=0.5, idle_keys=600, deadline_s=5)
    flags = (_groups(contract), "-include-system-metrics")
    with (
        RedisExporter(server, flags=flags) as redis_exporter,
        implementation("exporter")(server.login_url(), contract=contract, settings=settings) as exporter,
        PrometheusServer(
            scrape={"redis": [redis_exporter.address], "cache": [exporter.address]}, scrape_interval_s=2
        ) as prometheus,
    ):
        for job in ("redis", "cache"):
            _require_scraped(prometheus, job)
        here = prometheus.names('{job=~"redis|cache"}')
        told = {
            "redis_exporter": _labels(prometheus, "redis_instance_info", "run_id"),
            "exporter": _labels(prometheus, "inference_cache_server_info", "run_id"),
        }
        keys = {
            "redis_exporter": sum(s.value for s in prometheus.query("redis_db_keys")),
            "exporter": sum(s.value for s in prometheus.query("inference_cache_prefix_keys")),
        }
        by_prefix = {
            s.labels["prefix"]: s.value for s in prometheus.query("inference_cache_prefix_keys") if s.value
        }
    ours = [n for n, f in families.items() if f.source in _AT_THE_TARGET and n not in _NOT_PROVOKED]
    if not contract.instance.appendonly:
        ours = [name for name in ours if "appendonly" not in families[name].when]
    missing = {name: wanted[name] for name in ours if not here.intersection(families[name].series)}
    numbers: Numbers = {
        "expressions": len(rules) + len(panels),
        "metrics_named": len(wanted),
        "metrics_looked_for_here": len(ours),
        "series_names_here": len(here),
        "keys_written": sum(counts.values()),
    }
    evidence.record(**numbers)
    for which, run_ids in told.items():
        check(
            run_ids == {run_id},
            expected=f"{which} tells of the server under judgment, run id {run_id}",
            observed=f"it tells of {', '.join(sorted(run_ids)) or 'none'}",
            evidence=numbers,
        )
        check(
            keys[which] == sum(counts.values()),
            expected=f"{which} counts the {sum(counts.values())} keys that were written",
            observed=f"it counts {keys[which]:.0f}",
            evidence=numbers,
        )
    check(
        by_prefix == counts,
        expected=f"the exporter counts the keys by prefix: {counts}",
        observed=f"it counts {by_prefix}",
        evidence=numbers,
    )
    check(
        not missing,
        expected="each metric that a rule or a dashboard names is there after a scrape",
        observed="not there: " + "; ".join(f"{name} (in {where})" for name, where in sorted(missing.items())),
        evidence=numbers,
    )


@pytest.mark.cost_s(14)
@clause("OBS-02", needs={"prometheus", "fill", "restart", "host"})
def test_series_move_by_the_right_amount(
    servers: ServerFactory,
    contract: Contract,
    evidence: Evidence,
    rng: random.Random,
    implementation: Callable[[str], Any],
) -> None:
    """Evictions, refused connections, failed saves and what they refuse, fragmentation, and a restart: each
    is made to happen, counted by its victims, and found again in the series of both exporters.

    Lost keys are counted by looking for them, refusals by the clients that met them, resident memory by the
    kernel: a server or an exporter that tells of yesterday does not agree with these.
    """
    server = servers.scaled(maxmemory_bytes=24 * MIB, settings={"maxclients": "60"})
    settings = Settings(budget_ops_s=20_000, full_pass_s=20, info_every_s=0.1, deadline_s=5)
    with (
        RedisExporter(server) as redis_exporter,
        implementation("exporter")(server.login_url(), contract=contract, settings=settings) as exporter,
    ):
        watched = _Watched(server, redis_exporter, exporter.address)
        _evictions(watched, contract, evidence, rng)
        _refused_connections(watched, evidence)
        _failed_save(watched, contract, evidence)
        _fragmentation(watched, contract, evidence, rng)
        _restart(watched, evidence)


class _Watched:
    """A server with both exporters before it."""

    def __init__(self, server: EmbeddedServer, redis_exporter: RedisExporter, address: str) -> None:
        self.server = server
        self.redis_exporter = redis_exporter
        self._address = address

    def redis(self) -> Scrape:
        return self.redis_exporter.scrape()

    def cache(self) -> Scrape:
        return scrape(self._address)

    def redis_value(self, name: str, **labels: str) -> float:
        """0 for a series that is not there: an error or a command that has not happened yet."""
        return self.redis().value(name, **labels) or 0.0

    def look_twice(self) -> None:
        """Wait until the exporter has looked at every key twice more."""
        for _ in range(2):
            began = time.monotonic()
            while True:
                seen = self.cache()
                age = seen.value("inference_cache_sample_age_seconds")
                waited = time.monotonic() - began
                if age is not None and age < waited:
                    break
                check(
                    waited < 20,
                    expected="the exporter looks at every key of a small server within 20 s",
                    observed=f"its sample is {age} s old",
                )
                time.sleep(0.05)

    def becomes_up(self, up: int) -> None:
        """Wait until the exporter says so of the server."""
        began = time.monotonic()
        while (seen := self.cache().value("inference_cache_up")) != up:
            check(
                time.monotonic() - began < 15,
                expected=f"inference_cache_up is {up} within 15 s of the server's {'start' if up else 'end'}",
                observed=f"it is {seen}",
            )
            time.sleep(0.05)


def _evictions(watched: _Watched, contract: Contract, evidence: Evidence, rng: random.Random) -> None:
    workloads = evictable_workloads(contract)
    if contract.instance.maxmemory_policy == "noeviction" or len(workloads) < 2:
        not_proven(f"nothing may be evicted under {contract.instance.maxmemory_policy}")
    payloads, size = Payloads(rng), 8192
    idle, busy = workloads[1], workloads[0]
    with watched.server.connect(deadline_s=30) as client:
        maxmemory = effective_maxmemory(watched.server)
        before = watched.redis()
        room = int(0.85 * maxmemory - int(require_info(client, "memory")["used_memory"]))
        each = room // 2 // (size + 200)
        items = {
            w.prefix: [
                Item(key=key, value=payloads.make(key, size), ttl_ms=86_400_000)
                for key in (f"{w.prefix}obs:{n}".encode() for n in range(each))
            ]
            for w in (idle, busy)
        }
        for written in items.values():
            ensure(not store(client, written).refused, "the first keys are written")
        wait_seconds(client, 2)  # LRU counts in seconds
        read_all(client, items[busy.prefix])
        watched.look_twice()
        flood = [
            Item(key=key, value=payloads.make(key, size), ttl_ms=86_400_000)
            for key in (f"{busy.prefix}flood:{n}".encode() for n in range(each))
        ]
        for start in range(0, len(flood), 100):
            ensure(not store(client, flood[start : start + 100]).refused, "the flood is written")
        watched.look_twice()
        seen_cache = watched.cache()
        # Looking takes memory too, and so evicts some more: the truth lies between two scrapes.
        scrapes = [watched.redis()]
        lost = {
            idle.prefix: _lost(client, items[idle.prefix]),
            busy.prefix: _lost(client, items[busy.prefix]) + _lost(client, flood),
        }
        scrapes.append(watched.redis())
    total = sum(lost.values())
    ensure(total >= 100, f"something was evicted ({total} keys)")
    least, most = (
        (after.value("redis_evicted_keys_total") or 0) - (before.value("redis_evicted_keys_total") or 0)
        for after in scrapes
    )
    by_prefix = seen_cache.by_label("inference_cache_prefix_evicted_keys_total", "prefix")
    numbers: Numbers = {
        "lost_keys": total,
        "evicted_keys_series_moved_at_least": least,
        "evicted_keys_series_moved_at_most": most,
        **{f"lost{prefix}": count for prefix, count in lost.items()},
        **{f"attributed{prefix}": round(by_prefix.get(prefix, 0.0), 1) for prefix in lost},
    }
    evidence.record(**numbers)
    check(
        least <= total <= most and most - least <= 0.05 * total,
        expected=f"redis_evicted_keys_total moves by the {total} keys that are gone",
        observed=f"it moved by {least:.0f} to {most:.0f}",
        evidence=numbers,
    )
    off = {prefix: abs(by_prefix.get(prefix, 0.0) - count) for prefix, count in lost.items()}
    allowed = 20 + 0.15 * total
    check(
        max(off.values()) <= allowed,
        expected="inference_cache_prefix_evicted_keys_total shares these out to the prefixes that lost them, "
        f"within {allowed:.0f} keys",
        observed="; ".join(
            f"{prefix} lost {count}, it says {by_prefix.get(prefix, 0.0):.0f}"
            for prefix, count in lost.items()
        ),
        evidence=numbers,
    )


def _lost(client: Client, items: list[Item]) -> int:
    return len(items) - sum(present(client, [item.key for item in items]))


def _refused_connections(watched: _Watched, evidence: Evidence) -> None:
    with watched.server.connect() as client:
        limit = int(require_config(client, "maxclients"))
    ensure(limit < 500, f"maxclients can be reached (it is {limit})")
    before = watched.redis_value("redis_rejected_connections_total")
    refused = 0
    with _sockets() as connect:
        for _ in range(limit + 25):
            refused += connect(watched.server.port)
    ensure(refused >= 10, f"connections were refused ({refused})")
    _until_admitted(watched.server)
    moved = watched.redis_value("redis_rejected_connections_total") - before
    evidence.record(refused_connections=refused, rejected_connections_series_moved=moved)
    check(
        moved == refused,
        expected=f"redis_rejected_connections_total moves by the {refused} connections that were refused",
        observed=f"it moved by {moved:.0f}",
    )


@contextmanager
def _sockets() -> Iterator[Callable[[int], bool]]:
    """Opens connections and keeps them; each call tells whether the server refused."""
    held: list[socket.socket] = []

    def connect(port: int) -> bool:
        sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        held.append(sock)
        try:
            sock.sendall(b"PING\r\n")
            answer = sock.recv(256)
        except ConnectionError:
            return True
        return answer == b"" or answer.startswith(b"-ERR max")

    try:
        yield connect
    finally:
        for sock in held:
            sock.close()


def _until_admitted(server: EmbeddedServer) -> None:
    """Wait until the server has noticed that the connections above are closed."""

    def admitted() -> bool:
        try:
            with server.connect(deadline_s=2) as client:
                return int(require_info(client, "clients")["connected_clients"]) < 20
        except CacheError:
            return False

    time.sleep(0.2)  # a look that is refused would itself count
    wait_for(admitted, what="the held connections to be gone", deadline_s=10, poll_s=0.2)


def _failed_save(watched: _Watched, contract: Contract, evidence: Evidence) -> None:
    with watched.server.connect(deadline_s=30) as client:
        snapshot = watched.server.data_dir / require_config(client, "dbfilename")
        before = watched.redis()
        with _directory_in_place_of(snapshot):
            _background_save(client)
            failed = watched.redis_value("redis_rdb_last_bgsave_status")
            stops = (
                require_config(client, "stop-writes-on-bgsave-error") == "yes"
                and require_config(client, "save") != ""
            )
            refused = _refused_writes(client, contract, 7) if stops else 0
            misconf = watched.redis_value("redis_errors_total", err="MISCONF") - (
                before.value("redis_errors_total", err="MISCONF") or 0
            )
        _background_save(client)
        after = watched.redis()
    good = after.value("redis_rdb_last_bgsave_status")
    saved_s = after.value("redis_rdb_last_save_timestamp_seconds") or 0.0
    numbers: Numbers = {
        "bgsave_status_after_a_failure": failed,
        "bgsave_status_after_a_success": good,
        "last_save_age_s": round(time.time() - saved_s, 1),
        "writes_refused": refused,
        "misconf_series_moved": misconf,
    }
    evidence.record(**numbers)
    check(
        failed == 0 and good == 1,
        expected="redis_rdb_last_bgsave_status is 0 after a save that failed, and 1 after one that succeeded",
        observed=f"it was {failed:g} and then {good}",
        evidence=numbers,
    )
    check(
        abs(time.time() - saved_s) < 30,
        expected="redis_rdb_last_save_timestamp_seconds is the time of the save that just succeeded",
        observed=f"it is {time.time() - saved_s:.0f} s old",
        evidence=numbers,
    )
    check(
        misconf == refused,
        expected=f"redis_errors_total of MISCONF moves by the {refused} writes that were refused",
        observed=f"it moved by {misconf:.0f}",
        evidence=numbers,
    )


def _refused_writes(client: Client, contract: Contract, count: int) -> int:
    prefix = next(iter(contract.workloads.values())).prefix
    refused = 0
    for number in range(count):
        try:
            client.set(f"{prefix}obs:refused:{number}", b"x", ex=60)
        except CacheError as error:
            refused += error_code(error) == "MISCONF"
    return refused


@contextmanager
def _directory_in_place_of(snapshot: Path) -> Iterator[None]:
    """While it lasts, a snapshot cannot be renamed to its name; no privilege is needed for this."""
    snapshot.unlink(missing_ok=True)
    snapshot.mkdir()
    try:
        yield
    finally:
        snapshot.rmdir()


def _background_save(client: Client) -> None:
    """One BGSAVE to its end, however it ends."""

    def idle() -> bool:
        return require_info(client, "persistence")["rdb_bgsave_in_progress"] == "0"

    wait_for(idle, what="an earlier save to end", deadline_s=30)
    began = time.monotonic()
    while True:
        try:
            client.execute_command("BGSAVE")
            break
        except CacheError as error:  # a rewrite of the AOF is under way
            if time.monotonic() - began > 20:
                raise TimeoutError(f"waited 20 s for BGSAVE to be admitted: {error}") from error
            time.sleep(0.2)
    wait_for(idle, what="BGSAVE to end", deadline_s=30)


def _fragmentation(watched: _Watched, contract: Contract, evidence: Evidence, rng: random.Random) -> None:
    prefix = evictable_workloads(contract)[0].prefix
    with watched.server.connect(deadline_s=30) as client:
        client.execute_command("FLUSHALL", "SYNC")
        maxmemory = effective_maxmemory(watched.server)
        count = maxmemory // 2 // 1200
        keys = [f"{prefix}frag:{number}".encode() for number in range(count)]
        store(client, (Item(key=key, value=rng.randbytes(1000), ttl_ms=86_400_000) for key in keys))
        before = watched.redis()
        # Eight of nine, at random: pages stay, with a value or two on each.
        gone = [key for key in keys if rng.random() < 8 / 9]
        for start in range(0, len(gone), 1000):
            client.unlink(*gone[start : start + 1000])
        wait_for(
            lambda: require_info(client, "memory").get("lazyfree_pending_objects", "0") == "0",
            what="freed values to be free",
            deadline_s=10,
        )
    ratio_before = before.value("redis_mem_fragmentation_ratio") or 0.0
    # The server takes this ratio, and its resident memory, now and then, not when it is asked.
    end = time.monotonic() + 5
    while True:
        after = watched.redis()
        resident = _resident_bytes(watched.server)
        ratio_after = after.value("redis_mem_fragmentation_ratio") or 0.0
        used_after = after.value("redis_memory_used_bytes") or 0.0
        expected = (resident or 0) / used_after if used_after else 0.0
        told = after.value("redis_memory_used_rss_bytes") or 0.0
        right = ratio_after >= 1.1 * ratio_before and abs(ratio_after - expected) <= 0.2 * expected
        counted = abs(told - (resident or 0)) <= 0.15 * (resident or 0) + MIB
        if (right and counted) or resident is None or time.monotonic() >= end:
            break
        time.sleep(0.1)
    used_before = before.value("redis_memory_used_bytes") or 0.0
    freed = len(gone) * 1000
    numbers: Numbers = {
        "fragmentation_ratio_before": ratio_before,
        "fragmentation_ratio_after": ratio_after,
        "resident_bytes_by_the_kernel": resident,
        "resident_bytes_in_the_series": told,
        "bytes_deleted": freed,
        "used_bytes_series_moved": used_before - used_after,
    }
    evidence.record(**numbers)
    check(
        freed <= used_before - used_after <= 2 * freed,
        expected=f"redis_memory_used_bytes falls by what was deleted, {freed} bytes of values and their keys",
        observed=f"it fell by {used_before - used_after:.0f}",
        evidence=numbers,
    )
    if resident is None:
        return
    check(
        counted,
        expected=f"redis_memory_used_rss_bytes is what the kernel counts, {resident}",
        observed=f"it is {told:.0f}",
        evidence=numbers,
    )
    check(
        right,
        expected=f"redis_mem_fragmentation_ratio rises to resident over used memory, {expected:.2f}",
        observed=f"it went from {ratio_before:.2f} to {ratio_after:.2f}",
        evidence=numbers,
    )


def _resident_bytes(server: EmbeddedServer) -> int | None:
    """Resident memory of the server itself; None when it cannot be told."""
    pid = server_process(server.pid)
    try:
        return None if pid is None else 4096 * int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except OSError:
        return None  # it ended meanwhile


def _restart(watched: _Watched, evidence: Evidence) -> None:
    before_redis, before_cache = watched.redis(), watched.cache()
    watched.server.crash()
    watched.becomes_up(0)
    down = {
        "redis_up": watched.redis().value("redis_up"),
        "inference_cache_up": watched.cache().value("inference_cache_up"),
    }
    stale = watched.cache().has("inference_cache_prefix_keys")
    watched.server.start()
    started_s = time.time()
    watched.becomes_up(1)
    redis, cache = watched.redis(), watched.cache()
    uptime = redis.value("redis_uptime_in_seconds")
    with watched.server.connect() as client:
        run_id = require_info(client, "server").get("run_id", "")
    told = {
        "redis_exporter": redis.label("redis_instance_info", "run_id"),
        "exporter": cache.label("inference_cache_server_info", "run_id"),
    }
    earlier = {
        before_redis.label("redis_instance_info", "run_id"),
        before_cache.label("inference_cache_server_info", "run_id"),
    }
    numbers: Numbers = {
        **{f"{name}_while_down": value for name, value in down.items()},
        "uptime_s_after_the_restart": uptime,
        "redis_up_after_the_restart": redis.value("redis_up"),
        "start_time_moved_s": (redis.value("redis_start_time_seconds") or 0)
        - (before_redis.value("redis_start_time_seconds") or 0),
    }
    evidence.record(**numbers)
    check(
        set(down.values()) == {0} and redis.value("redis_up") == 1,
        expected="redis_up and inference_cache_up are 0 while the server is gone, and 1 again after it",
        observed=f"while gone: {down}; afterwards redis_up is {redis.value('redis_up')}",
        evidence=numbers,
    )
    check(
        not stale,
        expected="the exporter tells nothing of the keyspace while the server is gone",
        observed="it goes on telling what it knew before",
        evidence=numbers,
    )
    check(
        uptime is not None and uptime <= time.time() - started_s + 2,
        expected="redis_uptime_in_seconds begins anew with the restart",
        observed=f"it is {uptime} s, {time.time() - started_s:.1f} s after the restart",
        evidence=numbers,
    )
    check(
        set(told.values()) == {run_id} and run_id not in earlier,
        expected=f"both exporters tell of the new process, run id {run_id}",
        observed=f"they tell of {told}",
        evidence=numbers,
    )


def _write_counts(client: Client, contract: Contract, counts: dict[str, int]) -> None:
    for workload in contract.workloads.values():
        items = [
            Item(key=f"{workload.prefix}obs:{n}".encode(), value=b"x" * 64, ttl_ms=3_600_000)
            for n in range(counts[workload.prefix])
        ]
        ensure(not store(client, items).refused, "the keys are written")
    with pytest.raises(CacheError):
        client.execute_command("INFERENCE.CACHE.UNKNOWN")  # for the counters of errors
    client.get(f"{workload.prefix}obs:0")


def _require_scraped(prometheus: PrometheusServer, job: str) -> None:
    try:
        prometheus.wait_scraped(job, deadline_s=20)
    except TimeoutError as error:
        check(False, expected="a scrape of each exporter that Prometheus takes", observed=str(error))


def _labels(prometheus: PrometheusServer, name: str, label: str) -> set[str]:
    return {sample.labels.get(label, "") for sample in prometheus.query(name)}
