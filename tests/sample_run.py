"""A whole run, invented but in proportion: what the reports are tested with and looked at in a browser."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Mapping

from inference_cache.contract import Clause, Contract, DataClass, Deadlines, Instance, Level, Waiver, Workload
from inference_cache.gate.findings import Finding, Plot, Series, SpecResult
from inference_cache.gate.outcomes import Outcome
from inference_cache.gate.verdict import RunResult, TargetInfo, judge

__all__ = ["sample_contract", "sample_results", "sample_run", "sample_target"]

CATALOGUE = """
CFG-01 MUST read|`maxmemory` is above 0 and leaves headroom under the memory limit of the server.
CFG-02 MUST read|`maxmemory-policy` is the contract's, and behaves like it.
CFG-03 MUST read,host|AOF and snapshots are on as declared, their writes succeed, on the persistent volume.
CFG-04 MUST read|INFO names a declared server in a supported version.
CFG-05 SHOULD read|Limits of the protocol and of clients admit the largest values and all connections at once.
CFG-06 SHOULD read|Lazy freeing is on, so that freeing a 4 MiB block does not hold up another client's read.
CFG-07 MUST read|One address serves all four workloads, and nothing answers at a retired one.
CFG-08 SHOULD read,restart|After a restart CONFIG GET returns what it returned before.
CFG-09 MUST read|No only copy can be evicted unless the contract declares that, with a bound and a name.
ISO-01 MUST read|Every key starts with its workload's prefix, and no prefix is a prefix of another one.
ISO-02 MUST write|No operation of one workload changes a value, TTL, type or existence that another one reads.
ISO-03 MUST|Key building is injective: different parts never give the same key.
ISO-04 MUST write|Purging one workload removes all of it and nothing else, while others write.
ISO-05 SHOULD config|An ACL user per workload reaches only its own keys and no administrative command.
ISO-06 MUST read|No key lies outside the declared prefixes.
MEM-01 MUST fill|At `maxmemory` writes keep succeeding: a flood sees no OOM error.
MEM-02 MUST fill|Under pressure the keys used least recently go first: the policy behaves as LRU.
MEM-03 MUST fill|Nothing is evicted below `maxmemory`.
MEM-04 MUST fill|`used_memory` stays within `maxmemory` plus 10 % while several connections flood.
MEM-05 MUST fill|An evicted key is a clean miss: never an empty, short or stale value.
MEM-06 MUST write|TTLs are kept: there before, gone after, extended by a read only where that is declared.
MEM-07 SHOULD fill|Fragmentation stays under 1.5 through a churn of sizes from 512 B to 4 MiB.
MEM-08 MUST fill|Evicting big blocks does not hold up others beyond the contract's p99.
DUR-01 MUST restart|After a graceful restart every key, value and deadline is as before.
DUR-02 MUST crash|After SIGKILL nothing acknowledged before the loss window is missing, nothing is torn.
DUR-03 MUST crash|SIGKILL during a snapshot or an AOF rewrite loses nothing more.
DUR-04 MUST host,restart|A truncated AOF tail is recovered, a corrupt middle is refused loudly.
DUR-05 MUST restart|While loading, clients get LOADING, not misses that look like the truth.
DUR-06 MUST host|A full disk stops writes, INFO says so, and recovery needs no restart.
DUR-07 SHOULD restart|After a restart the hit rate is back within the declared time.
DUR-08 MUST restart|Keys that were evicted or expired before a restart stay gone.
KV-01 MUST write|A block stored and loaded is bit-identical, for every dtype and layout, up to 64 MiB.
KV-02 MUST vllm|Generation with blocks from Valkey equals generation without, token for token.
KV-03 MUST write|The key carries everything that changes the bytes: model, dtype, layout, rank, LoRA, salt.
KV-04 MUST vllm|Two processes with different hash seeds derive the same keys, or say loudly that they do not.
KV-05 MUST write|After the first missing block nothing later is used; ranks agree on the minimum.
KV-06 MUST fill|Found at lookup and gone at load means recompute: never a crash, never a wrong block.
KV-07 MUST net|A flipped, short or long value is a miss, and is counted.
KV-08 MUST crash,net|A block is visible only when it is complete.
KV-09 MUST write|After N acknowledged stores N blocks exist, with the contract's TTL and prefix.
KV-10 MUST net|With Valkey down, hanging, full or loading, requests go on by recomputing, within the deadline.
KV-11 SHOULD vllm|A warm prefix is faster than recomputing at the contract's prompt length.
KV-12 MUST|The ADR's configuration becomes vLLM's real one; a wrong one is refused with what to write.
EMB-01 MUST write|A vector comes back bit-exact, NaN payloads and subnormals included.
EMB-02 MUST|The key is injective in text, model, revision, dimension, dtype and task.
EMB-03 MUST write|Concurrent asks for a new text compute it once per process.
EMB-04 MUST write|A batch keeps its order and computes only the misses, in one round trip each way.
EMB-05 MUST write|A corrupt, foreign or wrong-shape entry is a miss.
EMB-06 MUST net|With the cache down the value is computed and returned within the deadline.
SES-01 MUST write,net|Turns come back in order, complete and once, with many writers and lost replies.
SES-02 MUST write|No key of a session outlives its root, and its TTL slides as declared.
SES-03 MUST write|Deleting one session deletes only it, whatever its id.
SES-04 MUST|All keys of a session share a hash slot.
SES-05 MUST fill|A session lost to eviction is told apart from a new one, by a typed error.
SES-06 MUST write|Two clients that update the same session lose nothing.
RAY-01 MUST ray|Objects spilled by a real Ray come back byte-identical.
RAY-02 MUST ray|Deleting references frees the keys, and shutdown frees the rest.
RAY-03 MUST ray,fill|A lost object gives a typed error or is rebuilt, in bounded time.
RAY-04 MUST ray,net|With Valkey full or down, Ray falls back or reports in bounded time.
RAY-05 MUST ray|Objects larger than `proto-max-bulk-len` spill in chunks.
RAY-06 MUST net|A short or corrupt value raises: never a short object.
RAY-07 MUST ray|Owner address and metadata come back unchanged.
RAY-08 MUST ray|Several nodes of one cluster restore each other's objects.
SHR-01 MUST fill|A flood of one workload does not make another's share vanish silently.
SHR-02 MUST fill|Session reads stay within their p99 while 4 MiB blocks are stored, loaded and evicted.
SHR-03 SHOULD read|The working sets fit: the hit rate predicted for this `maxmemory` meets the contract.
AVL-01 MUST net|Under each fault each adapter answers or raises its typed error before its deadline.
AVL-02 MUST net|After the fault each adapter works again within the declared time, without being rebuilt.
AVL-03 MUST net|Connections and file descriptors return to the level before.
OBS-01 MUST prometheus|The metrics that rules and dashboards name exist at the scrape target.
OBS-02 MUST prometheus,fill|They move: induced events change the right series by the right amount.
OBS-03 MUST prometheus,fill|Each alert fires on its real condition and resolves after it.
OBS-04 MUST prometheus|Every panel's query returns data on a live system.
OBS-05 MUST write|Memory and keys are attributed to prefixes within the stated error.
SEC-01 MUST read|The declared mode holds: without auth, only the cluster reaches the server.
SEC-02 SHOULD read|Where TLS is declared the certificate is verified and plain text refused.
SEC-03 SHOULD read|Administrative commands are out of the workloads' reach.
SEC-04 MUST|No secret appears in reports, logs or metrics.
"""

GATE = (
    "inference-cache gate --url valkey://valkey.ai-ml.svc.cluster.local:6379 --twin embedded --seed 20261124"
)


def _clause(line: str) -> Clause:
    head, statement = line.split("|", 1)
    clause_id, level, *needs = head.split()
    return Clause(
        id=clause_id,
        level=Level(level),
        group=clause_id.partition("-")[0],
        statement=statement,
        quote="One Valkey instance serves vLLM, embeddings, Ray and sessions.",
        needs=frozenset(needs[0].split(",") if needs else ()),
        remedy="Set `maxmemory-policy allkeys-lru` in valkey.conf, then CONFIG REWRITE.",
    )


def _workload(name: str, prefix: str, data_class: DataClass, ttl_s: int | None) -> Workload:
    only_copy = data_class is DataClass.ONLY_COPY
    return Workload(
        name=name,
        prefix=prefix,
        example=f"{prefix}abc123",
        data_class=data_class,
        ttl_s=ttl_s,
        sliding_ttl=name == "sessions",
        value_min_bytes=512,
        value_max_bytes=4 << 20,
        share=0.25,
        p99_s=0.05,
        connections=32,
        evictable=True,
        loss_bound=f"{name} not used for an hour while memory is full" if only_copy else None,
        accepted_by="ADR-0023 (shared resource contention)" if only_copy else None,
    )


def sample_contract() -> Contract:
    """All 78 clauses, four workloads of which two are evictable only copies, two waivers."""
    workloads = (
        _workload("vllm_kv", "vllm:kv:", DataClass.RECONSTRUCTIBLE, 3600),
        _workload("embeddings", "emb:", DataClass.RECONSTRUCTIBLE, 2_592_000),
        _workload("ray", "ray:", DataClass.ONLY_COPY, None),
        _workload("sessions", "session:", DataClass.ONLY_COPY, 86_400),
    )
    clauses = tuple(_clause(line) for line in CATALOGUE.strip().splitlines())
    return Contract(
        name="adr_0023",
        sha256="9f2c41d07be8a6350c1d5f7ae94b82136d0e7c58f1a94b3d2e60875acf193be4",
        instance=Instance(
            address="valkey.ai-ml.svc.cluster.local:6379",
            memory_request_bytes=512 << 20,
            memory_limit_bytes=2 << 30,
            maxmemory_bytes=1536 << 20,
            headroom_ratio=0.75,
            maxmemory_policy="allkeys-lru",
            maxmemory_tolerance=0.1,
            servers=("valkey",),
            supported_versions=("8", "9"),
            appendonly=True,
            appendfsync="everysec",
            save="3600 1 300 100 60 10000",
            loss_window_s=2.0,
            on_disk_full="stop-writes",
            volume_bytes=10 << 30,
            volume_path="/data",
            auth=False,
            tls=False,
            reach="cluster-internal",
            retired_addresses=("mlcache.ai-ml.svc.cluster.local:6379",),
            fragmentation_ratio=1.5,
        ),
        workloads={workload.name: workload for workload in workloads},
        deadlines=Deadlines(connect_s=1.0, call_s=0.5, recovery_s=5.0, warm_up_s=60.0, spill_s=60.0),
        clauses={clause.id: clause for clause in clauses},
        waivers=(
            Waiver(
                clause="ISO-06",
                reason="feast keys move out with the next release",
                issue="ML-4127",
                expires=dt.date(2027, 1, 31),
            ),
            Waiver(
                clause="SEC-03",
                reason="ACL users come with the operator",
                issue="ML-3990",
                expires=dt.date(2026, 12, 31),
            ),
        ),
    )


def sample_target() -> TargetInfo:
    """A live server, observed."""
    return TargetInfo(
        kind="live",
        address="valkey://valkey.ai-ml.svc.cluster.local:6379",
        server_name="Valkey",
        server_version="8.1.4",
        run_id="c7e1f9024ab6",
        config={
            "maxmemory": "1610612736",
            "maxmemory-policy": "allkeys-lru",
            "maxmemory-samples": "1",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "3600 1 300 100 60 10000",
            "dir": "/data",
            "maxclients": "100",
            "proto-max-bulk-len": "536870912",
            "lazyfree-lazy-eviction": "yes",
            "requirepass": "",
            "bind": "* -::*",
            "io-threads": "4",
        },
        capabilities=("read", "write"),
        notes=(
            "Destructive clauses ran on a twin: embedded Valkey 8.1.4, same configuration, memory 1:32.",
            "The audit found 41,207 foreign keys before and after; none was touched.",
        ),
    )


def _bar(title: str, x: tuple[str, ...], series: Mapping[str, tuple[float, ...]], **rest: object) -> Plot:
    return Plot(
        title=title,
        kind="bar",
        series=tuple(Series(name=name, x=x, y=y) for name, y in series.items()),
        **rest,  # type: ignore[arg-type]
    )


def _eviction_survival() -> Plot:
    return _bar(
        "Keys that survived the flood, by cohort",
        ("old, read often", "old, read once", "recent, read once", "recent, read often"),
        {"this server": (58.1, 57.4, 61.0, 60.2), "an LRU server": (3.2, 0.4, 97.8, 98.9)},
        x_label="cohort",
        y_label="survived (%)",
        note="An LRU server keeps what was used last. Here age makes no difference, as if at random.",
    )


def _crash_ledger() -> Plot:
    losses = (0.3, 0.8, 0.4, 1.1, 3.9, 0.6, 0.9, 4.6, 0.2, 0.7)
    return _bar(
        "Age of the newest lost write, by crash",
        tuple(str(n) for n in range(1, 11)),
        {"newest acknowledged write that was lost": losses},
        x_label="crash",
        y_label="before the kill (s)",
        limit=2.0,
        limit_label="loss window",
        note="A bar above the window is data that the server had promised to keep.",
    )


def _memory_over_the_flood() -> Plot:
    rng = random.Random(7)
    times = [n * 0.05 for n in range(900)]
    used = [min(48.0, 5 + 2.4 * t) + rng.uniform(-0.6, 2.4 if t > 17.9 else 0.1) for t in times]
    resident = [u * 1.11 + 3 for u in used]
    return Plot(
        title="Memory while four connections flood",
        kind="line",
        x_label="time (s)",
        y_label="memory (bytes)",
        series=(
            Series(name="used_memory", x=times, y=[u * 2**20 for u in used]),
            Series(name="used_memory_rss", x=times, y=[r * 2**20 for r in resident]),
        ),
        limit=48 * 1.1 * 2**20,
        limit_label="maxmemory + 10 %",
        note="Judged is `used_memory`. On the twin, `maxmemory` is 48 MiB.",
    )


def _latency_histogram() -> Plot:
    edges = [2.0**n * 1e-4 for n in range(12)]
    names = tuple(f"{edge * 1000:.3g}" for edge in edges)
    idle = tuple(round(42_000 * math.exp(-((n - 1.2) ** 2) / 0.9)) for n in range(12))
    evicting = tuple(round(30_000 * math.exp(-((n - 2.4) ** 2) / 2.2)) for n in range(12))
    return _bar(
        "Session reads by latency",
        names,
        {"idle": idle, "while 4 MiB blocks are evicted": evicting},
        x_label="up to (ms)",
        y_label="reads",
        note="The p99 under eviction is 1.9 ms, 3.2 times the idle one; the contract allows 50 ms.",
    )


def _share_matrix() -> Plot:
    return _bar(
        "What a flood of one workload leaves of the others",
        ("vllm_kv floods", "embeddings floods", "ray floods", "sessions floods"),
        {
            "vllm_kv": (100.0, 31.0, 12.0, 28.0),
            "embeddings": (22.0, 100.0, 18.0, 35.0),
            "ray": (9.0, 24.0, 100.0, 20.0),
            "sessions": (14.0, 41.0, 16.0, 100.0),
        },
        x_label="",
        y_label="share kept (%)",
        note="Every loss was attributed to its prefix, so nothing vanished silently.",
    )


def _warm_up() -> Plot:
    times = [float(n) for n in range(61)]
    return Plot(
        title="Hit rate after the restart",
        kind="line",
        x_label="after loading (s)",
        y_label="hit rate (%)",
        series=(Series(name="hit rate", x=times, y=[94 * (1 - math.exp(-t / 9)) for t in times]),),
        limit=90.0,
        limit_label="before the restart",
    )


def _lru_finding() -> Finding:
    return Finding(
        expected="recent keys survive a flood far more often than old ones: by 60 points or more",
        observed="recent and old keys survive alike: a difference of 2.9 points over 3 rounds",
        evidence={
            "recent_survived_ratio": 0.606,
            "old_survived_ratio": 0.5775,
            "keys_per_cohort": 12_000,
            "rounds": 3,
            "p_value_if_lru": 2.1e-16,
            "evicted_keys": 25_118,
            "maxmemory_bytes": 50_331_648,
            "maxmemory_samples": 1,
        },
        remedy="Set `maxmemory-samples 5` (the default) in valkey.conf; with 1 eviction is random.",
        reproduce=f"{GATE} --clause MEM-02",
    )


def _crash_finding() -> Finding:
    return Finding(
        expected="after SIGKILL nothing acknowledged more than 2 s before is missing",
        observed="2 of 10 crashes lost writes up to 4.6 s old: 1,391 acknowledged keys",
        evidence={
            "crashes": 10,
            "crashes_beyond_window": 2,
            "lost_keys": 1_391,
            "oldest_lost_s": 4.6,
            "loss_window_s": 2.0,
            "torn_values": 0,
            "aof_delayed_fsync": 17,
        },
        remedy="Put `/data` on a volume that keeps up with the AOF, and set `no-appendfsync-on-rewrite no`.",
        reproduce=f"{GATE} --clause DUR-02",
    )


def _clients_finding() -> Finding:
    return Finding(
        expected="`maxclients` is at least 128 + 32 in reserve, the sum of the workloads' connections",
        observed="`maxclients` is 100: the 101st connection is refused",
        evidence={"maxclients": 100, "connections_declared": 128, "connections_reserved": 32},
        remedy="Set `maxclients 10000` and raise the container's open file limit accordingly.",
        reproduce=f"{GATE} --clause CFG-05",
    )


_NO_VLLM = "needs vllm: vLLM is not installed; pip install 'inference-cache[vllm]'"
_NO_RAY = "needs ray: Ray is not installed; pip install 'inference-cache[ray]'"
_NO_PROMETHEUS = "needs prometheus: no Prometheus answers at localhost:9090"
_NO_HOST = "needs host: a live target does not show its data folder"
_ON_LIVE = frozenset({"read", "write"})


def _outcome(clause: Clause) -> tuple[Outcome, str]:
    match clause.id:
        case "MEM-02" | "DUR-02" | "CFG-05":
            return Outcome.FAILED, ""
        case "OBS-05":
            return Outcome.ERROR, "ConnectionResetError: the exporter closed its socket while it was scraped"
        case "ISO-06":
            return Outcome.WAIVED, "until 2027-01-31: feast keys move out with the next release (ML-4127)"
        case "SEC-03":
            return Outcome.WAIVED, "until 2026-12-31: ACL users come with the operator (ML-3990)"
    for need, reason in (
        ("vllm", _NO_VLLM),
        ("ray", _NO_RAY),
        ("prometheus", _NO_PROMETHEUS),
        ("host", _NO_HOST),
    ):
        if need in clause.needs:
            return Outcome.NOT_PROVEN, reason
    return Outcome.PASSED, ""


def sample_results(contract: Contract) -> list[SpecResult]:
    """One result per clause: three violations, an error, two waivers, what needs Ray or vLLM not proven."""
    rng = random.Random(20261124)
    findings = {"MEM-02": _lru_finding(), "DUR-02": _crash_finding(), "CFG-05": _clients_finding()}
    plots: dict[str, tuple[Plot, ...]] = {
        "MEM-02": (_eviction_survival(),),
        "MEM-04": (_memory_over_the_flood(),),
        "DUR-02": (_crash_ledger(),),
        "DUR-07": (_warm_up(),),
        "SHR-01": (_share_matrix(),),
        "SHR-02": (_latency_histogram(),),
    }
    measurements: dict[str, dict[str, float]] = {
        "MEM-04": {"used_memory_max_bytes": 52_841_472, "samples": 900, "over_maxmemory_ratio": 0.05},
        "SHR-02": {"p99_idle_s": 0.0006, "p99_evicting_s": 0.0019, "reads": 84_120},
        "DUR-07": {"load_s_per_gib": 6.4, "warm_up_s": 29.0},
    }
    results = []
    for clause in contract.clauses.values():
        outcome, reason = _outcome(clause)
        ran = outcome is not Outcome.NOT_PROVEN
        name = clause.id.lower().replace("-", "_")
        results.append(
            SpecResult(
                clause=clause.id,
                spec=f"conformance/test_{clause.group.lower()}.py::test_{name}",
                outcome=outcome.label,
                reason=reason,
                duration_s=round(rng.lognormvariate(-0.6, 1.3), 3) if ran else 0.0,
                findings=(findings[clause.id],) if clause.id in findings else (),
                measurements=measurements.get(clause.id, {}),
                plots=plots.get(clause.id, ()),
                proven_on=("live" if clause.needs <= _ON_LIVE else "twin (scale 1:32)") if ran else "",
            )
        )
    return results


def sample_run() -> RunResult:
    """The run as a gate would judge it: not conformant."""
    contract = sample_contract()
    return judge(
        contract=contract,
        results=sample_results(contract),
        selected=frozenset(contract.clauses),
        target=sample_target(),
        seed=20261124,
        strict=False,
        require_all=False,
        started_at="2026-11-24T17:55:27+00:00",
        duration_s=94.2,
        version="0.1.0",
    )
