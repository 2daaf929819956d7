"""Is it well, in one screen."""

from __future__ import annotations

from functools import partial

from dashboards._model import Board, Column, Kind, Panel, Query, Row, Step, Unit, ValueText
from dashboards._shared import (
    ALERTS,
    BAD,
    GOOD,
    HIT_RATIO,
    RATE,
    RISE,
    VERDICTS,
    commands_refused,
    evictions_by_prefix,
    memory_by_prefix,
    oom_kill_risk,
    size,
)
from inference_cache.contract import Contract

__all__ = ["overview"]

_sign = partial(Panel, kind=Kind.STAT, width=4, height=4)

_WORK = '{@, cmd!~"(client|config|info|ping|hello|latency|slowlog|command)(\\\\|.*)?"}'
"""Commands that are somebody's work."""


def overview(contract: Contract) -> Board:
    """The dashboard to start from."""
    return Board(
        uid="inference-cache-overview",
        title="Inference cache: Overview",
        description="Is the cache well, who uses it, and what fires. A full cache that evicts is normal; "
        "damage is a falling hit ratio, refused commands, a pending OOM kill, lost data.",
        rows=(
            Row(title="Is it well?", panels=_signs(contract)),
            Row(title="Who uses it", panels=(memory_by_prefix(contract), evictions_by_prefix(contract))),
            Row(title="How it answers", panels=_answers()),
            Row(title="What fires", panels=(_alerts(), commands_refused())),
        ),
    )


def _signs(contract: Contract) -> tuple[Panel, ...]:
    limit = size(contract.instance.memory_limit_bytes)
    return (
        _sign(
            title="Server",
            description="Whether redis_exporter gets answers from every chosen server (redis_up).",
            unit=Unit.NUMBER,
            queries=(Query(expr="min(redis_up{@})", legend="up"),),
            texts=(ValueText(value=1, text="up", color=GOOD), ValueText(value=0, text="DOWN", color=BAD)),
        ),
        _sign(
            title="Alerts firing",
            description="Our alerts that fire now, without those of severity info.",
            unit=Unit.COUNT,
            queries=(Query(expr=f'count({ALERTS.removesuffix("}")}, severity!="info"}})', legend="firing"),),
            steps=(Step(value=None, color=GOOD), Step(value=1, color=BAD)),
            empty_is_health="no alert fires.",
        ),
        _sign(
            title="Hit ratio",
            description="Look-ups that found their key, of all look-ups of all workloads. What counts is a "
            "change: see the baseline on the Memory dashboard.",
            unit=Unit.RATIO,
            queries=(Query(expr=HIT_RATIO, legend="hit ratio"),),
            not_a_number="no reads",
            maximum=1,
            decimals=1,
        ),
        _sign(
            title="Used of maxmemory",
            description="used_memory over maxmemory. Near 100 % is the normal state of an LRU cache, so it "
            "has no alarming colour.",
            unit=Unit.RATIO,
            queries=(
                Query(expr="sum(redis_memory_used_bytes{@}) / sum(redis_memory_max_bytes{@})", legend="used"),
            ),
            maximum=1,
            decimals=1,
            steps=(Step(value=None, color="blue"),),
        ),
        _sign(
            title="OOM-kill risk",
            description="Resident memory, and what the last snapshot and the last AOF rewrite copied on "
            f"top of it, over the contract's memory limit of {limit}. From 100 % on the next fork may get "
            "the server killed.",
            unit=Unit.RATIO,
            queries=(Query(expr=oom_kill_risk(contract), legend="of the limit"),),
            decimals=1,
            steps=RISE,
        ),
        _sign(
            title="Last gate verdict",
            description="Exit code of the last run of the acceptance gate, in words; details on the "
            "Conformance dashboard.",
            unit=Unit.NUMBER,
            queries=(Query(expr="max(inference_cache_gate_exit_code{@})", legend="verdict"),),
            texts=VERDICTS,
        ),
    )


def _answers() -> tuple[Panel, ...]:
    spent = f"sum(rate(redis_commands_duration_seconds_total{{@}}{RATE}))"
    return (
        Panel(
            title="Commands",
            description="Commands processed a second, the five most frequent ones, without those that only "
            "ask the server about itself. 'memory|usage' is our exporter's sample.",
            unit=Unit.COMMANDS_PER_S,
            queries=(
                Query(
                    expr=f"topk(5, sum by (cmd) (rate(redis_commands_total{_WORK}{RATE})) > 0)",
                    legend="{{cmd}}",
                ),
            ),
        ),
        Panel(
            title="Average time of a command in the server",
            description="Execution time inside the server, without network and queueing, averaged over all "
            "commands. Percentiles of redis_exporter count since the server's start, so they are not shown.",
            unit=Unit.SECONDS,
            queries=(Query(expr=f"{spent} / sum(rate(redis_commands_total{{@}}{RATE}))", legend="average"),),
        ),
        Panel(
            title="Network",
            description="Bytes a second that clients send to the server and get from it.",
            unit=Unit.BYTES_PER_S,
            queries=(
                Query(expr=f"sum(rate(redis_net_input_bytes_total{{@}}{RATE}))", legend="received"),
                Query(expr=f"sum(rate(redis_net_output_bytes_total{{@}}{RATE}))", legend="sent"),
            ),
        ),
    )


def _alerts() -> Panel:
    return Panel(
        title="Firing alerts",
        description="Our alerts that fire now; each alert's annotation links to its runbook.",
        unit=Unit.NUMBER,
        kind=Kind.TABLE,
        queries=(Query(expr=f"sum by (alertname, severity, workload, prefix) ({ALERTS})", legend=""),),
        columns=(
            Column(source="alertname", title="Alert"),
            Column(source="severity", title="Severity", width=100),
            Column(source="workload", title="Workload", width=120),
            Column(source="prefix", title="Prefix", width=120),
        ),
        empty_is_health="no alert fires.",
        width=12,
        height=8,
    )
