"""What a spec says: findings when a clause is broken, measurements and plots either way.

Everything here is plain data that survives a round trip through JSON (``to_json`` / ``from_json``), because
specs may run in another process than the one that writes the reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Plot", "Series", "SpecResult", "Violation"]

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A clause that a target broke, told so that its reader can act."""

    expected: str
    observed: str
    evidence: Mapping[str, Scalar] = field(default_factory=dict)
    """The numbers, by name; units in the names."""
    remedy: str = ""
    reproduce: str = ""
    """The command that shows it again: seed, clause, target."""

    @property
    def dedup_key(self) -> tuple[str, str]:
        """Findings with the same expectation and remedy are one problem seen twice."""
        return (self.expected, self.remedy)


class Violation(AssertionError):
    """Raised by a spec when its clause is broken: the only failure that counts as a verdict."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        super().__init__(f"expected {finding.expected}; observed {finding.observed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One named run of points: ``x[i]`` belongs to ``y[i]``."""

    name: str
    x: Sequence[float | str]
    """Numbers for a line, category names for bars."""
    y: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture that the HTML report draws."""

    title: str
    kind: Literal["line", "bar"]
    x_label: str
    y_label: str
    series: Sequence[Series]
    limit: float | None = None
    """A horizontal line that the series is judged against."""
    limit_label: str = ""
    note: str = ""
    """One sentence that says how to read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecResult:
    """What one spec said about its clause."""

    clause: str
    spec: str
    """pytest node id."""
    outcome: str
    """A label of :class:`~inference_cache.gate.outcomes.Outcome`."""
    reason: str = ""
    duration_s: float = 0.0
    findings: Sequence[Finding] = ()
    measurements: Mapping[str, Scalar] = field(default_factory=dict)
    plots: Sequence[Plot] = ()
    proven_on: str = ""
    """Where it ran: ``embedded``, ``live``, ``twin (scale 1:32)``."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpecResult:
        return cls(
            **{
                **data,
                "findings": tuple(Finding(**f) for f in data["findings"]),
                "plots": tuple(
                    Plot(**{**p, "series": tuple(Series(**s) for s in p["series"])}) for p in data["plots"]
                ),
            }
        )
