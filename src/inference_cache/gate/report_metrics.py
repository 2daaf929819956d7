"""``metrics.prom``: the run as OpenMetrics, so that a stale or red gate can raise an alert.

Every family is a gauge: such a file is read alike by OpenMetrics scrapers and by node_exporter's textfile
collector, which knows neither info nor state set.
"""

from __future__ import annotations

import datetime as dt

from inference_cache.errors import MissingExtra
from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import RunResult

try:
    from prometheus_client import CollectorRegistry, Gauge
    from prometheus_client.openmetrics.exposition import generate_latest
except ImportError as error:
    raise MissingExtra(module="prometheus_client", extra="gate") from error

__all__ = ["to_metrics"]


def to_metrics(run: RunResult) -> str:
    """The text of ``metrics.prom``.

    Raises:
        ValueError: ``started_at`` is not an ISO 8601 time.
    """
    run = publishable(run)
    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"inference_cache_gate_{name}", text, labels, registry=registry)

    verdicts = gauge("verdict", "1 for the verdict of the last run, 0 for the others.", "verdict")
    for verdict in Verdict:
        verdicts.labels(verdict.value).set(verdict is run.verdict)
    gauge("exit_code", "Exit code of the last run; 0 is conformant.").set(int(run.exit_code))
    clauses = gauge("clauses", "Clauses by outcome; they add up to the catalogue.", "outcome")
    for outcome in Outcome:
        clauses.labels(outcome.label).set(run.counts[outcome.label])
    by_clause = gauge(
        "clause_outcome",
        "1 for the outcome of the clause, 0 for the others.",
        "clause",
        "level",
        "group",
        "outcome",
    )
    for result in run.clauses:
        for outcome in Outcome:
            series = by_clause.labels(
                result.clause.id, result.clause.level.value, result.clause.group, outcome.label
            )
            series.set(result.outcome is outcome)
    gauge("accepted_risks", "Risks that the contract declares accepted.").set(len(run.accepted_risks))
    gauge("duration_seconds", "How long the last run took.").set(run.duration_s)
    gauge("timestamp_seconds", "Unix time at which the last run started.").set(_unix(run.started_at))
    info = {
        "version": run.version,
        "server_name": run.target.server_name,
        "server_version": run.target.server_version,
        "target": run.target.kind,
        "address": run.target.address,
        "contract": run.contract_name,
        "contract_sha256": run.contract_sha256,
    }
    gauge("info", "What was judged, by what and against what.", *info).labels(**info).set(1)
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call] # prometheus_client annotates only half
    return text.decode("utf-8")


def _unix(started_at: str) -> float:
    moment = dt.datetime.fromisoformat(started_at)
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
