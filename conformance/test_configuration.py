"""CFG: the instance is configured as decided."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import pytest

from fixtures.observe import (
    answers_at,
    parse_output_buffer_limits,
    require_config,
    require_info,
    settled_config,
    wait_for,
)
from fixtures.restart import LiveRestart
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure, not_proven
from fixtures.targets import DISAGREEMENT, ManifestTarget, Target
from fixtures.targets.memory_limit import OUT_OF_MEMORY_CODE
from inference_cache.connection import Client
from inference_cache.contract import Contract, Workload, format_size, may_evict
from inference_cache.errors import CacheUnavailable, ServerFull
from inference_cache.manifests import violations

MIB = 1024 * 1024

PLACE = frozenset({"port", "unixsocket", "pidfile", "logfile"})
"""Settings that say where a process is, which whoever starts it may choose anew."""

FSYNC_STRENGTH = ("no", "everysec", "always")


@clause("CFG-01", needs={"read"})
def test_maxmemory_leaves_headroom(target: Target, contract: Contract, evidence: Evidence) -> None:
    """maxmemory is set, and at most the contract's part of the memory limit."""
    with target.connect() as client:
        maxmemory = int(require_config(client, "maxmemory"))
    limit, limit_source = target.memory_limit_bytes
    allowed = int(limit * contract.instance.headroom_ratio)
    numbers: Numbers = {"maxmemory_bytes": maxmemory, "memory_limit_bytes": limit, "allowed_bytes": allowed}
    evidence.record(**numbers, memory_limit_source=limit_source)
    check(
        maxmemory > 0,
        expected=f"maxmemory between 1 byte and {format_size(allowed)}",
        observed="maxmemory is 0: the server grows until the kernel kills it",
        evidence=numbers,
    )
    check(
        maxmemory <= allowed,
        expected=f"maxmemory at most {format_size(allowed)} ({contract.instance.headroom_ratio:g} of the "
        f"{format_size(limit)} limit)",
        observed=f"maxmemory is {format_size(maxmemory)}, {maxmemory / limit:.0%} of the limit",
        evidence=numbers,
    )


@clause("CFG-01", needs={"fill", "crash", "host"})
@pytest.mark.cost_s(10)
def test_the_memory_limit_is_survived(
    target: Target, servers: ServerFactory, contract: Contract, evidence: Evidence
) -> None:
    """Full, and with a quarter of the headroom overwritten while a snapshot is taken, the server is not
    killed by its memory limit and the snapshot succeeds.
    """
    with target.connect() as client:
        maxmemory = int(require_config(client, "maxmemory"))
    if maxmemory == 0:
        not_proven("maxmemory is 0: nothing is to be kept under the limit")
    limit = 192 * MIB
    scaled = int(limit * maxmemory / contract.instance.memory_limit_bytes)
    server = servers.limited(maxmemory_bytes=scaled, memory_limit_bytes=limit)
    value = b"x" * (512 * 1024)
    churn = max(0, limit - scaled) // 4
    numbers: Numbers = {
        "scaled_maxmemory_bytes": scaled,
        "scaled_memory_limit_bytes": limit,
        "overwritten_during_snapshot_bytes": churn,
    }
    doing = "being filled"
    try:
        with server.connect(deadline_s=30) as client:
            keys = scaled * 5 // 4 // len(value)
            for number in range(keys):
                # Where nothing may be evicted, full is full.
                with suppress(ServerFull):
                    client.set(b"emb:limit:%d" % number, value, ex=3600)
                # Headroom for a snapshot is judged below, with as much overwritten as is said there.
                if number % 8 == 0:
                    wait_for(partial(_no_fork, client), what="a rewrite of the AOF to end", deadline_s=60)
            doing = "taking a snapshot"
            client.execute_command("BGSAVE", "SCHEDULE")
            for number in range(keys - 1, keys - 1 - churn // len(value), -1):
                with suppress(ServerFull):
                    client.set(b"emb:limit:%d" % number, value, ex=3600)
            wait_for(partial(_no_fork, client), what="the snapshot to end", deadline_s=60)
            info = require_info(client, "persistence", "memory")
    except CacheUnavailable:
        code = server.wait_exit(deadline_s=10)
        ensure(code is not None, "the server went silent and did not end")
        numbers["exit_code"] = OUT_OF_MEMORY_CODE if code == -signal.SIGKILL else code
        check(
            False,
            expected=f"a server with maxmemory {format_size(scaled)} that stays under {format_size(limit)}",
            observed=f"it was killed while {doing} (exit code {numbers['exit_code']})",
            evidence=numbers,
        )
    numbers |= {
        "used_memory_rss_bytes": int(info["used_memory_rss"]),
        "snapshot_copied_bytes": int(info.get("rdb_last_cow_size", "0")),
    }
    evidence.record(**numbers)
    check(
        info["rdb_last_bgsave_status"] == "ok",
        expected="the snapshot succeeds under the memory limit",
        observed=f"rdb_last_bgsave_status {info['rdb_last_bgsave_status']}: its process was killed",
        evidence=numbers,
    )


def _no_fork(client: Client) -> bool:
    info = require_info(client, "persistence")
    return info["rdb_bgsave_in_progress"] == info["aof_rewrite_in_progress"] == "0"


@clause("CFG-01", needs={"read"}, only=("manifest",))
def test_manifests_leave_headroom(target: Target, contract: Contract, evidence: Evidence) -> None:
    """The manifests set a memory limit, and a maxmemory that leaves headroom below it."""
    judge_manifests("CFG-01", target, contract, evidence)


@clause("CFG-02", needs={"read"}, only=("manifest",))
def test_manifests_set_the_contracts_policy(target: Target, contract: Contract, evidence: Evidence) -> None:
    """The manifests set maxmemory-policy to what the contract says."""
    judge_manifests("CFG-02", target, contract, evidence)


@clause("CFG-03", needs={"read"}, only=("manifest",))
def test_manifests_persist_to_a_volume(target: Target, contract: Contract, evidence: Evidence) -> None:
    """The manifests turn persistence on, and what is written lies on a volume that outlives the pod."""
    judge_manifests("CFG-03", target, contract, evidence)


def judge_manifests(clause_id: str, target: Target, contract: Contract, evidence: Evidence) -> None:
    """Hold what the manifests themselves say about one clause against the contract."""
    assert isinstance(target, ManifestTarget)
    broken = [finding for clause, finding in violations(target.instance, contract) if clause == clause_id]
    evidence.record(workload=target.instance.name, violations=len(broken))
    check(
        not broken,
        expected="; ".join(finding.expected for finding in broken),
        observed="; ".join(finding.observed for finding in broken),
        evidence={name: value for finding in broken for name, value in finding.evidence.items()},
        remedy=" ".join(finding.remedy for finding in broken),
    )


@clause("CFG-02", needs={"read"})
def test_policy_is_the_contracts(target: Target, contract: Contract) -> None:
    """maxmemory-policy is what the contract says; MEM-02 proves that it also acts so."""
    with target.connect() as client:
        policy = require_config(client, "maxmemory-policy")
    wanted = contract.instance.maxmemory_policy
    check(
        policy == wanted,
        expected=f"maxmemory-policy {wanted}",
        observed=f"maxmemory-policy {policy}",
        evidence={"maxmemory_policy": policy},
    )


@clause("CFG-03", needs={"read"})
def test_persistence_is_on_and_healthy(target: Target, contract: Contract, evidence: Evidence) -> None:
    """AOF or an RDB schedule is on, fsync is no weaker than decided, and the last writes went well."""
    with target.connect() as client:
        appendonly = require_config(client, "appendonly")
        appendfsync = require_config(client, "appendfsync")
        schedule = require_config(client, "save")
        info = require_info(client, "persistence")
    numbers: Numbers = {"appendonly": appendonly, "appendfsync": appendfsync, "save": schedule}
    evidence.record(**numbers)
    check(
        appendonly == "yes" or schedule != "",
        expected="appendonly yes, or a save schedule",
        observed="neither: nothing outlives the process",
        evidence=numbers,
    )
    wanted = contract.instance.appendfsync
    check(
        appendonly != "yes" or FSYNC_STRENGTH.index(appendfsync) >= FSYNC_STRENGTH.index(wanted),
        expected=f"appendfsync {wanted} or stronger",
        observed=f"appendfsync {appendfsync}: how much a power cut loses is up to the kernel",
        evidence=numbers,
        remedy=f"Set `appendfsync {wanted}` in valkey.conf; at run time: CONFIG SET appendfsync {wanted}, "
        "then CONFIG REWRITE.",
    )
    for field in ("rdb_last_bgsave_status", "aof_last_bgrewrite_status", "aof_last_write_status"):
        status = info.get(field, "absent")
        check(
            status == "ok",
            expected=f"{field} ok",
            observed=f"{field} {status}",
            evidence={field: status},
        )


@clause("CFG-03", needs={"read", "host", "config"}, twin=False)
def test_persistence_writes_to_its_volume(
    servers: ServerFactory, evidence: Evidence, rng: random.Random
) -> None:
    """What the server persists lands in the folder that was given to it as its volume."""
    server = servers.scaled()
    payload = rng.randbytes(256 * 1024)
    with server.connect() as client:
        folder = require_config(client, "dir")
        client.set(b"emb:volume-probe", payload)
        client.execute_command("BGSAVE")
        wait_for(
            lambda: require_info(client, "persistence").get("rdb_bgsave_in_progress") == "0",
            what="BGSAVE to end",
            deadline_s=20,
        )
        info = require_info(client, "persistence")
    files = sorted(p for p in server.data_dir.rglob("*") if p.is_file())
    held = sum(p.stat().st_size for p in files)
    numbers: Numbers = {
        "files_in_volume": len(files),
        "bytes_in_volume": held,
        "dir": folder.replace(str(server.folder), "<server folder>"),
        "rdb_last_bgsave_status": info.get("rdb_last_bgsave_status", "absent"),
    }
    evidence.record(**numbers)
    check(
        info.get("rdb_last_bgsave_status") == "ok",
        expected="a snapshot can be written: rdb_last_bgsave_status ok",
        observed=f"rdb_last_bgsave_status {info.get('rdb_last_bgsave_status')}",
        evidence=numbers,
    )
    check(
        held > len(payload),
        expected=f"more than {len(payload)} bytes of incompressible data persisted in the volume",
        observed=f"{held} bytes there; the server's dir is {numbers['dir']}",
        evidence=numbers,
        remedy="Set `dir` to the mount path of the PersistentVolumeClaim; "
        "another folder is lost with the pod.",
    )


@clause("CFG-04", needs={"read"})
def test_server_is_a_supported_valkey(target: Target, contract: Contract, evidence: Evidence) -> None:
    """INFO names an accepted server in a supported version."""
    with target.connect() as client:
        info = require_info(client, "server")
    name = info.get("server_name", "redis" if "redis_version" in info else "unknown").lower()
    version = info.get(f"{name}_version", "")
    # The primaries of a cluster may run different ones.
    versions = version.split(DISAGREEMENT)
    numbers: Numbers = {"server_name": name, "server_version": version}
    evidence.record(**numbers)
    check(
        name in contract.instance.servers,
        expected=f"a server named {' or '.join(contract.instance.servers)}",
        observed=f"INFO server tells {name} {version}",
        evidence=numbers,
    )
    check(
        all(
            any(version == v or version.startswith(f"{v}.") for v in contract.instance.supported_versions)
            for version in versions
        ),
        expected=f"version {' or '.join(contract.instance.supported_versions)}",
        observed=f"version {version or 'not told'}",
        evidence=numbers,
    )


@clause("CFG-05", needs={"read"})
def test_limits_admit_the_workloads(target: Target, contract: Contract, evidence: Evidence) -> None:
    """Protocol, buffer and connection limits let the largest values and all clients through."""
    largest = min(max(w.value_max_bytes for w in contract.workloads.values()), contract.instance.chunk_bytes)
    connections = sum(w.connections for w in contract.workloads.values())
    with target.connect() as client:
        bulk = int(require_config(client, "proto-max-bulk-len"))
        maxclients = int(require_config(client, "maxclients"))
        timeout_s = int(require_config(client, "timeout"))
        keepalive_s = int(require_config(client, "tcp-keepalive"))
        buffers = parse_output_buffer_limits(require_config(client, "client-output-buffer-limit"))
    normal = buffers.get("normal", 0)
    numbers: Numbers = {
        "proto_max_bulk_len_bytes": bulk,
        "largest_value_bytes": largest,
        "maxclients": maxclients,
        "connections_declared": connections,
        "timeout_s": timeout_s,
        "tcp_keepalive_s": keepalive_s,
        "output_buffer_hard_limit_bytes": normal,
    }
    evidence.record(**numbers)
    problems = []
    if bulk < largest:
        problems.append(f"proto-max-bulk-len {format_size(bulk)} refuses values of {format_size(largest)}")
    if maxclients < connections:
        problems.append(f"maxclients {maxclients} is below the {connections} connections declared")
    if 0 < timeout_s < 60:
        problems.append(f"timeout {timeout_s} s cuts idle connections between requests")
    if keepalive_s == 0:
        problems.append("tcp-keepalive 0 keeps connections of vanished clients for ever")
    if 0 < normal < largest:
        problems.append(f"client-output-buffer-limit cuts replies over {format_size(normal)}")
    check(
        not problems,
        expected=f"room for values of {format_size(largest)} and {connections} connections",
        observed="; ".join(problems),
        evidence=numbers,
    )


@clause("CFG-06", needs={"read"})
def test_big_values_are_freed_in_the_background(target: Target, evidence: Evidence) -> None:
    """The lazyfree settings that keep a big eviction from stalling others are on."""
    names = ("lazyfree-lazy-eviction", "lazyfree-lazy-expire", "lazyfree-lazy-server-del")
    with target.connect() as client:
        values = {name: require_config(client, name) for name in names}
    evidence.record(**values)
    off = [name for name, value in values.items() if value != "yes"]
    check(
        not off,
        expected="lazy freeing on eviction, expiry and implicit deletes",
        observed=f"off: {', '.join(off)}",
        evidence=values,
    )


@clause("CFG-07", needs={"read"})
def test_no_retired_cache_answers(target: Target, contract: Contract, evidence: Evidence) -> None:
    """One instance serves everything: whoever was to be retired no longer answers."""
    with target.connect() as client:
        alive = bool(client.ping())
    check(alive, expected="the one instance answers PING", observed="it does not")
    for address in contract.instance.retired_addresses:
        answer = answers_at(address, deadline_s=contract.deadlines.connect_s)
        evidence.record(**{f"answer_at_{address}": answer or "nobody"})
        check(
            not answer,
            expected=f"nobody answers at the retired address {address}",
            observed=f"it answers PING with {answer[:60]!r}",
            evidence={"address": address, "answer": answer[:60]},
        )


@clause("CFG-08", needs={"read", "restart"}, only=("embedded", "container", "manifest"))
def test_configuration_survives_a_restart(servers: ServerFactory, evidence: Evidence) -> None:
    """Whatever CONFIG GET says now is what the next start loads."""
    server = servers.scaled()
    with server.connect() as client:
        before = settled_config(client)
    server.restart()
    with server.connect() as client:
        after = settled_config(client)
    judge_configurations(before, after, evidence)


@clause("CFG-08", needs={"write"}, only=("live",))
def test_configuration_of_the_live_server_survives_its_restart(
    live_restart: Callable[[], LiveRestart], evidence: Evidence
) -> None:
    """With its operator's consent: what CONFIG GET says now is what the live server is started with again."""
    seen = live_restart()
    judge_configurations(seen.config_before, seen.config_after, evidence)


def judge_configurations(before: Mapping[str, str], after: Mapping[str, str], evidence: Evidence) -> None:
    """Before and after a restart they are the same, but for where the server is."""
    changed = {
        name: (before.get(name, "(absent)"), after.get(name, "(absent)"))
        for name in sorted((before.keys() | after.keys()) - PLACE)
        if before.get(name) != after.get(name)
    }
    evidence.record(settings_compared=len(before), settings_changed=len(changed))
    check(
        not changed,
        expected="the same CONFIG GET * after a restart",
        observed="; ".join(f"{name}: {old!r} became {new!r}" for name, (old, new) in changed.items()),
        evidence={name: f"{old} -> {new}" for name, (old, new) in changed.items()},
    )


@clause("CFG-09", needs={"read"})
def test_only_copies_are_not_evictable_unless_accepted(
    target: Target, contract: Contract, evidence: Evidence
) -> None:
    """A workload whose data is nowhere else is safe from eviction, or its loss was declared and accepted."""
    with target.connect() as client:
        policy = require_config(client, "maxmemory-policy")
    endangered = [
        w
        for w in contract.workloads.values()
        if w.only_copy and may_evict(policy, has_ttl=w.ttl_s is not None)
    ]
    accepted = [w for w in endangered if w.evictable and w.loss_bound and w.accepted_by]
    evidence.record(
        maxmemory_policy=policy,
        only_copy_workloads_evictable=", ".join(w.name for w in endangered) or "none",
        accepted=", ".join(f"{w.name} by {w.accepted_by}" for w in accepted) or "none",
    )
    undeclared = [w for w in endangered if w not in accepted]
    names = ", ".join(f"{w.name} ({w.prefix}*{missing_acceptance(w)})" for w in undeclared)
    check(
        not undeclared,
        expected="no only-copy workload under a policy that may evict it, unless the contract declares "
        "`evictable = true` with a loss bound and who accepted it",
        observed=f"{policy} may evict the only copy of: {names}",
        evidence={"maxmemory_policy": policy, "workloads": names},
        remedy="Decide one of: (1) set `maxmemory-policy volatile-lru`, give every reconstructible key a TTL "
        "and these none; (2) move these workloads to an instance of their own with `noeviction`; (3) declare "
        "`evictable = true`, `loss_bound` and `accepted_by` for them in the contract, and live with the "
        "loss.",
    )


def missing_acceptance(workload: Workload) -> str:
    """For a workload declared evictable: what the contract leaves out of the acceptance."""
    if not workload.evictable:
        return ""
    declared = {"loss_bound": workload.loss_bound, "accepted_by": workload.accepted_by}
    missing = " and ".join(key for key, text in declared.items() if not text)
    return f", evictable = true without {missing}"
