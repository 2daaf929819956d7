"""OBS: every panel of the generated dashboards shows something."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fixtures.pressure import WATCHED, PressureRun, judged
from fixtures.servers import ServerFactory
from fixtures.shown import VARIABLES, shown_values
from fixtures.spec import Evidence, check, clause
from inference_cache.contract import Contract
from inference_cache.errors import UsageError
from inference_cache.metrics import metric, names_in
from inference_cache.panels import ShownPanel, ShownQuery, read_panels, substitute

DEADLINE_S = 25.0
SCRAPE_INTERVAL_S = 0.5
# The exporter of the pressure run reads idle times, which it does not unless told to.
IDLE_TIMES = frozenset(
    {"inference_cache_prefix_median_idle_seconds", "inference_cache_prefix_oldest_idle_seconds"}
)
# A ratio that is shown as percent although it is none reads as less than this, in percent.
TOO_SMALL_FOR_PERCENT = 1.5
# A number of percent that is shown as a ratio reads as more than this, in ratio.
TOO_LARGE_FOR_RATIO = 50.0


@dataclass(slots=True)
class Asked:
    """One query of a panel, and what came of it."""

    panel: ShownPanel
    query: ShownQuery
    absent: Sequence[str]
    """Engines whose metrics it reads, and which are not here."""
    may_be_empty: bool = False
    """Whether no data from this run is good news, as its panel says."""
    values: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.panel.name} ({self.query.ref})"


@pytest.mark.cost_s(28)
@clause("OBS-04", needs={"prometheus", "fill"})
def test_every_panel_shows_something(
    servers: ServerFactory,
    contract: Contract,
    evidence: Evidence,
    implementation: Callable[[str], Any],
    rng: random.Random,
    tmp_path: Path,
) -> None:
    """Under a pressure run each query of each panel, sent to the Prometheus that the viewer chose, returns
    numbers that its unit fits, or its panel says that no data means health. Panels about engines that are not
    here (vLLM, Ray, Kubernetes) are told apart by the sources of their metrics, and reported as not shown.
    """
    panels = read_panels(implementation("dashboards")(contract))
    asked = [
        Asked(
            panel=panel,
            query=query,
            absent=_absent(panel, query),
            may_be_empty=bool(panel.empty_is_health) and not _shows_idle_times(query, contract),
        )
        for panel in panels
        for query in panel.queries
    ]
    check(len(asked) > 0, expected="dashboards with panels", observed="not one panel")
    _check_datasource(asked, chosen=f"uid-{rng.randrange(2**32):08x}")
    verdict = judged(tmp_path, "--clause", "CFG-02", "--clause", "CFG-04")
    with PressureRun(
        servers.scaled(maxmemory_bytes=24 * 1024 * 1024),
        contract,
        rng=rng,
        gate_metrics=verdict,
        scrape_interval_s=SCRAPE_INTERVAL_S,
    ) as run:
        run.prometheus.wait_for("redis_evicted_keys_total > 0", what="evictions", deadline_s=60)
        _ask_until_answered(asked, run)
        run.check_load()
    blank = [one for one in asked if not one.values and not one.absent and not one.may_be_empty]
    evidence.record(
        panels=len(panels),
        queries=len(asked),
        queries_with_data=sum(bool(one.values) for one in asked),
        queries_empty_and_well=sum(not one.values and not one.absent for one in asked) - len(blank),
        queries_not_shown=sum(not one.values and bool(one.absent) for one in asked),
        sources_not_here=", ".join(sorted({name for one in asked if not one.values for name in one.absent})),
    )
    check(
        not blank,
        expected="each query returns data, or its panel says that no data means health",
        observed=f"{len(blank)} of {len(asked)} queries returned nothing: " + _listed(blank),
        evidence={"first_query": blank[0].query.expr} if blank else {},
    )
    misread = [one for one in asked if _is_misread(one)]
    check(
        not misread,
        expected="ratios in percentunit (0 to 1), and percent only for numbers of percent",
        observed=_listed(misread)
        + f" has unit {misread[0].panel.unit if misread else ''}, and values about "
        + f"{statistics.median(misread[0].values) if misread else 0:.3g}",
    )


def _absent(panel: ShownPanel, query: ShownQuery) -> Sequence[str]:
    """Sources of the query's metrics that are not here; judges that each metric is known at all."""
    try:
        sources = {metric(name).source for name in names_in(substitute(query.expr, VARIABLES))}
    except UsageError as error:
        check(
            False,
            expected="each panel asks for metrics that somebody exposes, in PromQL",
            observed=f"{panel.name} ({query.ref}): {error}",
            evidence={"query": query.expr},
        )
        raise
    return sorted(source.value for source in sources - WATCHED)


def _shows_idle_times(query: ShownQuery, contract: Contract) -> bool:
    """Whether it asks for idle times, and servers keep them: under LFU they do not."""
    named = names_in(substitute(query.expr, VARIABLES))
    return not IDLE_TIMES.isdisjoint(named) and "lfu" not in contract.instance.maxmemory_policy


def _check_datasource(asked: Sequence[Asked], *, chosen: str) -> None:
    """A query that names a data source of its own is sent to nobody in any other Grafana."""
    elsewhere = [one for one in asked if substitute(one.query.datasource, {"datasource": chosen}) != chosen]
    check(
        not elsewhere,
        expected="each query goes to the data source that the viewer chose (${datasource})",
        observed=f"{len(elsewhere)} queries go to another: "
        + ", ".join(f"{one.name} to {one.query.datasource or 'the default one'}" for one in elsewhere[:3]),
    )


def _ask_until_answered(asked: Sequence[Asked], run: PressureRun) -> None:
    """Ask what has not been answered again and again, until all that must answer did, or the deadline.

    Errors are provoked at each turn, and the neighbours change: what says that no data means health should be
    seen with data too.
    """
    end = time.monotonic() + DEADLINE_S
    while True:
        run.provoke_errors()
        for one in asked:
            if not one.values:
                one.values = shown_values(
                    run.prometheus, one.query, began_s=run.began_s, step_s=SCRAPE_INTERVAL_S
                )
        waiting = [one for one in asked if not one.values and not one.absent]
        if all(one.may_be_empty for one in waiting) or time.monotonic() >= end:
            return
        time.sleep(SCRAPE_INTERVAL_S)


def _is_misread(one: Asked) -> bool:
    """Whether the panel's unit makes another number of what Prometheus said."""
    if not one.values:
        return False
    if one.panel.unit == "percent":
        of_percent = "* 100" in one.query.expr or "100 *" in one.query.expr or "percent" in one.query.expr
        return 0 < max(one.values) <= TOO_SMALL_FOR_PERCENT and not of_percent
    # The usual number, not the largest: a quotient of two readings may leap for a moment as a server fills.
    return one.panel.unit == "percentunit" and statistics.median(one.values) > TOO_LARGE_FOR_RATIO


def _listed(asked: Sequence[Asked]) -> str:
    names = [one.name for one in asked[:5]]
    return ", ".join(names) + (f" and {len(asked) - 5} more" if len(asked) > 5 else "")
