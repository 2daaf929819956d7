"""OBS: alerts tell of what is wrong, and of nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fixtures.incidents.contention import Flooded, Unaccepted
from fixtures.incidents.failures import Crowded, Down, Lost, NearTheLimit, Unbounded, Unsaved, Unwatched
from fixtures.incidents.healthy import HotCache
from fixtures.incidents.incident import Stage
from fixtures.incidents.watched import EXPORTER_JOB, REDIS_JOB, Watched, rule_files, scaled_contract
from fixtures.observe import require_config, require_info
from fixtures.run_state import contract_option
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure
from inference_cache.contract import Contract

MIB = 1024 * 1024
# Large enough that the process itself does not count against the scaled memory limit.
MAXMEMORY_BYTES = 96 * MIB
TIME_FACTOR = 1 / 60
"""All windows of the rules are multiplied by this: an hour is a minute."""
DEADLINE_S = 60.0
"""Longest that an alert may take to fire or to resolve; the longest wait in the rules is a third of it."""
QUIET_S = 32.0
"""How long the healthy cache is watched: longer than any ``for`` of a critical alert or a warning but two."""
INCIDENTS = (NearTheLimit, Unbounded, Unsaved, Down, Lost, Crowded, Unwatched, Flooded, Unaccepted)

Rules = Callable[..., Mapping[str, str]]


@pytest.fixture
def stage(servers: ServerFactory, contract: Contract, pytestconfig: pytest.Config, tmp_path: Path) -> Stage:
    """What incidents are started on: the contract scaled down as its servers are."""
    return Stage(
        scaled_contract(contract, MAXMEMORY_BYTES),
        servers.scaled,
        contract_name=contract_option(pytestconfig),
        folder=tmp_path,
    )


@pytest.fixture
def rules(stage: Stage, implementation: Callable[[str], Any], tmp_path: Path) -> list[Path]:
    """The rules under judgment, made from the scaled contract with shortened windows."""
    files: Rules = implementation("alert_rules")
    return rule_files(files, stage.contract, time_factor=TIME_FACTOR, folder=tmp_path)


@pytest.mark.cost_s(50)
@clause("OBS-03", needs={"fill", "config", "restart", "crash", "prometheus"})
def test_each_alert_fires_on_its_cause_and_resolves_after_it(
    stage: Stage, rules: list[Path], evidence: Evidence
) -> None:
    """Memory near the limit and unbounded, failing saves, a kill, lost data, exhausted connections, absent
    exporters, a noisy neighbour and a gate that says no: each is told by its alerts, and no longer told once
    it is over.

    All at once, each on a server of its own, in one Prometheus with the rules as they are made, but for one
    factor of time.
    """
    with Watched([incident(stage) for incident in INCIDENTS], rules) as watched:
        watched.begin()
        for _ in watched.watch(deadline_s=DEADLINE_S):
            if not watched.unfired():
                break
        numbers: Numbers = {
            f"{alert}_fired_after_s": times.firing_s if times.firing_s is not None else "never"
            for (_, alert), times in watched.times.items()
        }
        evidence.record(time_factor=f"1/{1 / TIME_FACTOR:.0f}", **numbers)
        silent = [f"{alert} ({where})" for where, alert in watched.unfired()]
        check(
            not silent,
            expected="every alert fires while its cause lasts",
            observed=f"{len(silent)} of {len(watched.times)} alerts did not fire within {DEADLINE_S:g} s: "
            f"{', '.join(silent)}",
            evidence=numbers,
        )
        watched.end()
        for _ in watched.watch(deadline_s=DEADLINE_S):
            if not watched.unresolved():
                break
        lit = [f"{alert} ({where})" for where, alert in watched.unresolved()]
        check(
            not lit,
            expected="every alert resolves after its cause has ended",
            observed=f"{len(lit)} of {len(watched.times)} alerts still fired after {DEADLINE_S:g} s: "
            f"{', '.join(lit)}",
            evidence=numbers,
        )


@pytest.mark.cost_s(60)
@clause("OBS-03", needs={"fill", "prometheus"})
def test_a_healthy_full_cache_pages_nobody(stage: Stage, rules: list[Path], evidence: Evidence) -> None:
    """A hot cache at 100 % of maxmemory, evicting and with a good hit ratio, raises neither a critical alert
    nor a warning.
    """
    healthy = HotCache(stage)
    with Watched([healthy], rules) as watched:
        # What Prometheus took for absent before its first scrape is over.
        time.sleep(2.0)
        began = time.time()
        watched.begin()
        for _ in watched.watch(deadline_s=QUIET_S, poll_s=1.0):
            pass
        ended = time.time()
        with healthy.server.connect() as client:
            info = require_info(client, "stats", "memory")
            maxmemory = int(require_config(client, "maxmemory"))
        watched.end()
        hits, misses = int(info["keyspace_hits"]), int(info["keyspace_misses"])
        used, hit_ratio = int(info["used_memory"]) / maxmemory, hits / (hits + misses)
        evicted = int(info["evicted_keys"])
        numbers: Numbers = {
            "used_of_maxmemory": round(used, 3),
            "hit_ratio": round(hit_ratio, 3),
            "evicted_keys": evicted,
            "watched_s": round(ended - began, 1),
        }
        evidence.record(time_factor=f"1/{1 / TIME_FACTOR:.0f}", **numbers)
        ensure(used > 0.9 and evicted > 0, f"the cache is not full: {numbers}")
        ensure(hit_ratio > 0.9, f"the cache is not hot: {numbers}")
        lost = healthy.lost_only_copies()
        ensure(lost == 0, f"{lost} keys that were read all the time were evicted: not a healthy cache")
        series = watched.prometheus.query_range(
            'ALERTS{alertstate="firing", severity=~"critical|warning"}',
            start_s=began,
            end_s=ended,
            step_s=0.5,
        )
        raised = sorted({one.labels["alertname"] for one in series})
        for job in (REDIS_JOB, EXPORTER_JOB) if raised else ():
            missed = watched.prometheus.query_range(
                f'up{{job="{job}"}} == 0', start_s=began, end_s=ended, step_s=0.5
            )
            ensure(not missed, f"the machine was too busy to scrape {job}, which is an incident of its own")
        check(
            not raised,
            expected="no critical alert and no warning about a full cache that is hot",
            observed=f"{', '.join(raised)} fired",
            evidence=numbers,
        )
