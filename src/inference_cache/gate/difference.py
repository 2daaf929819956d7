"""What changed since an earlier run: ``inference-cache gate --diff old/report.json``.

A clause is compared only where both runs were asked about it, so that judging a part says nothing about the
rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from inference_cache.errors import UsageError
from inference_cache.gate.outcomes import Outcome

if TYPE_CHECKING:
    from inference_cache.gate.verdict import RunResult

__all__ = ["ABSENT", "ClauseChange", "Difference", "EarlierReport", "FactChange", "compare", "read_report"]

ABSENT = "absent"
"""Outcome of a clause in a run whose contract did not have it."""

_WANTED = "name the report.json of an earlier run of inference-cache gate"
# Where a server that is started for one run happens to live says nothing about it.
_OWN_PLACE = frozenset({"dir", "logfile", "pidfile", "port", "tls-port", "unixsocket", "bind", "aclfile"})


class _Part(BaseModel):
    """Part of an earlier report, as far as it is compared: what else stands there is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Target(_Part):
    kind: str
    address: str
    server_name: str
    server_version: str
    run_id: str
    config: Mapping[str, str]


class _Contract(_Part):
    name: str
    sha256: str


class _Clause(_Part):
    id: str
    outcome: str
    selected: bool


class EarlierReport(_Part):
    """The ``report.json`` of an earlier run, in one of the versions of its schema that can be compared."""

    schema_version: Literal[1, 2]
    verdict: str
    started_at: str
    version: str
    strict: bool
    require_all: bool
    target: _Target
    contract: _Contract
    clauses: tuple[_Clause, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClauseChange:
    """A clause with another outcome than before."""

    clause: str
    before: str
    """A label of :class:`~inference_cache.gate.outcomes.Outcome`, or :data:`ABSENT`."""
    after: str
    reason: str = ""
    """Why it is what it is now."""

    @property
    def kind(self) -> str:
        """What happened, in words: ``newly failed``, ``no longer proven``, ..."""
        if self.after == ABSENT:
            return "gone from the contract"
        if self.after == Outcome.NOT_PROVEN.label:
            return "new and not proven" if self.before == ABSENT else "no longer proven"
        return "newly broken" if self.after == Outcome.ERROR.label else f"newly {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChange:
    """Something about server, contract or gate that is not as it was."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """This run against an earlier one."""

    since: str
    """When the earlier run started: ISO 8601, UTC."""
    verdict_before: str
    clauses: Sequence[ClauseChange]
    """In catalogue order; clauses that went come last."""
    facts: Sequence[FactChange]
    still_failed: Sequence[str]
    """Clauses that failed then and now."""
    compared: int
    """How many clauses both runs were asked about."""

    def by_kind(self) -> dict[str, list[ClauseChange]]:
        """Changes by :attr:`ClauseChange.kind`, the gravest first."""
        gravest_first = [outcome.label for outcome in reversed(Outcome)] + [ABSENT]
        kinds: dict[str, list[ClauseChange]] = {}
        for change in sorted(self.clauses, key=lambda c: gravest_first.index(c.after)):
            kinds.setdefault(change.kind, []).append(change)
        return kinds


def read_report(path: Path) -> EarlierReport:
    """The ``report.json`` of an earlier run.

    Raises:
        UsageError: it cannot be read, is no report of the gate, or one of a version that is not known here.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--diff {path}: {getattr(error, 'strerror', None) or error}; {_WANTED}") from error
    try:
        return EarlierReport.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise UsageError(f"--diff {path}: {where}: {problem['msg']}; {_WANTED}") from error


def compare(earlier: EarlierReport, run: RunResult) -> Difference:
    """How ``run`` differs from the earlier report.

    ``run`` must be fit to be published: the configuration is compared, and a secret in it would be shown.
    """
    then = {clause.id: clause for clause in earlier.clauses}
    now = {result.clause.id for result in run.clauses}
    both = [
        ClauseChange(
            clause=result.clause.id,
            before=then[result.clause.id].outcome if result.clause.id in then else ABSENT,
            after=result.outcome.label,
            reason=result.reason,
        )
        for result in run.clauses
        if result.selected and (result.clause.id not in then or then[result.clause.id].selected)
    ]
    gone = [
        ClauseChange(clause=clause.id, before=clause.outcome, after=ABSENT)
        for clause in earlier.clauses
        if clause.id not in now
    ]
    failed = Outcome.FAILED.label
    return Difference(
        since=earlier.started_at,
        verdict_before=earlier.verdict,
        clauses=tuple(change for change in [*both, *gone] if change.before != change.after),
        facts=tuple(_facts(earlier, run)),
        still_failed=tuple(change.clause for change in both if change.before == change.after == failed),
        compared=len(both),
    )


def _facts(earlier: EarlierReport, run: RunResult) -> Iterator[FactChange]:
    then, now = earlier.target, run.target
    pairs = [
        ("verdict", earlier.verdict, run.verdict.value),
        ("target", then.kind, now.kind),
        (
            "server",
            _server(then.server_name, then.server_version),
            _server(now.server_name, now.server_version),
        ),
        ("contract", earlier.contract.name, run.contract_name),
        ("contract values", earlier.contract.sha256[:12], run.contract_sha256[:12]),
        ("inference-cache", earlier.version, run.version),
        ("strict", _yes(earlier.strict), _yes(run.strict)),
        ("require all", _yes(earlier.require_all), _yes(run.require_all)),
    ]
    started_for_the_run = "embedded" in (then.kind, now.kind)
    if not started_for_the_run:
        pairs += [("address", then.address, now.address), ("server's run_id", then.run_id, now.run_id)]
    # A configuration that was not observed, then or now, has no settings that changed.
    if then.config and now.config:
        pairs += [
            (f"setting {name}", then.config.get(name, ABSENT), now.config.get(name, ABSENT))
            for name in sorted({*then.config, *now.config})
            if not (started_for_the_run and name in _OWN_PLACE)
        ]
    for name, before, after in pairs:
        if before != after:
            yield FactChange(name=name, before=before or "empty", after=after or "empty")


def _server(name: str, version: str) -> str:
    return f"{name} {version}".strip() or "not observed"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
