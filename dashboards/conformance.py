"""The acceptance gate's last verdict."""

from __future__ import annotations

from functools import partial

from dashboards._model import Board, Column, Kind, Panel, Query, Row, Step, Unit
from dashboards._shared import BAD, GOOD, VERDICTS, WARN
from inference_cache.contract import Contract

__all__ = ["conformance"]

_sign = partial(Panel, kind=Kind.STAT, width=6, height=4)


def conformance(contract: Contract) -> Board:
    """The dashboard for 'does it still keep ADR-0023'."""
    return Board(
        uid="inference-cache-conformance",
        title="Inference cache: Conformance",
        description=f"What the acceptance gate said in its last run, against {len(contract.clauses)} "
        "clauses, and how old that is.",
        rows=(
            Row(title="The verdict", panels=_verdict()),
            Row(title="Clauses", panels=_clauses()),
            Row(title="Over time", panels=_history()),
        ),
    )


def _verdict() -> tuple[Panel, ...]:
    return (
        _sign(
            title="Verdict",
            description="Exit code of the last run, in words.",
            unit=Unit.NUMBER,
            queries=(Query(expr="max(inference_cache_gate_exit_code{@})", legend="verdict"),),
            texts=VERDICTS,
        ),
        _sign(
            title="Age of the verdict",
            description="Time since the last run began. An old verdict says nothing about today's "
            "configuration.",
            unit=Unit.SECONDS,
            queries=(Query(expr="time() - max(inference_cache_gate_timestamp_seconds{@})", legend="age"),),
            decimals=0,
            steps=(
                Step(value=None, color=GOOD),
                Step(value=2 * 86_400, color=WARN),
                Step(value=7 * 86_400, color=BAD),
            ),
        ),
        _sign(
            title="Accepted risks",
            description="Risks that the contract declares accepted, such as the eviction of only copies.",
            unit=Unit.COUNT,
            queries=(Query(expr="max(inference_cache_gate_accepted_risks{@})", legend="risks"),),
        ),
        _sign(
            title="Length of the run",
            description="How long the last run of the gate took, from start to verdict.",
            unit=Unit.SECONDS,
            queries=(Query(expr="max(inference_cache_gate_duration_seconds{@})", legend="took"),),
        ),
    )


def _clauses() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Clauses by outcome",
            description="Clauses of the catalogue by what the last run made of them. 'not proven' is no "
            "pass.",
            unit=Unit.COUNT,
            kind=Kind.BARS,
            queries=(Query(expr="max by (outcome) (inference_cache_gate_clauses{@})", legend="{{outcome}}"),),
            colors=_COLORS,
            width=8,
            height=9,
        ),
        Panel(
            title="Violated clauses",
            description="Clauses that failed, or whose spec broke. `inference-cache clauses --explain ID` "
            "says what each asks for and what to do.",
            unit=Unit.NUMBER,
            kind=Kind.TABLE,
            queries=(Query(expr=_outcomes("failed|error"), legend=""),),
            columns=_CLAUSE_COLUMNS,
            empty_is_health="no clause is violated.",
            width=8,
            height=9,
        ),
        Panel(
            title="Not proven clauses",
            description="Clauses that the last run could not judge: what they need was not there.",
            unit=Unit.NUMBER,
            kind=Kind.TABLE,
            queries=(Query(expr=_outcomes("not.proven|waived"), legend=""),),
            columns=_CLAUSE_COLUMNS,
            empty_is_health="every clause was judged.",
            width=8,
            height=9,
        ),
    )


_COLORS = {"passed": GOOD, "failed": BAD, "error": BAD, "waived": WARN, "not proven": "#8e8e8e"}
_CLAUSE_COLUMNS = (
    Column(source="clause", title="Clause", width=100),
    Column(source="level", title="Level", width=90),
    Column(source="outcome", title="Outcome"),
)


def _outcomes(pattern: str) -> str:
    wanted = f'inference_cache_gate_clause_outcome{{@, outcome=~"{pattern}"}}'
    return f"max by (clause, level, outcome) ({wanted}) == 1"


def _history() -> tuple[Panel, ...]:
    return (
        Panel(
            title="Clauses by outcome over time",
            description="How the outcomes moved from run to run.",
            unit=Unit.COUNT,
            queries=(Query(expr="max by (outcome) (inference_cache_gate_clauses{@})", legend="{{outcome}}"),),
            colors=_COLORS,
            stacked=True,
            width=16,
        ),
        Panel(
            title="What was judged",
            description="The server that the last run judged, by which version of the suite and against "
            "which contract.",
            unit=Unit.NUMBER,
            kind=Kind.TABLE,
            queries=(
                Query(
                    expr="max by (server_name, server_version, version, contract) "
                    "(inference_cache_gate_info{@})",
                    legend="",
                ),
            ),
            columns=(
                Column(source="server_name", title="Server", width=90),
                Column(source="server_version", title="Version", width=90),
                Column(source="version", title="Suite", width=90),
                Column(source="contract", title="Contract"),
            ),
            width=8,
        ),
    )
