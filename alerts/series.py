"""Cases of unit tests, and series in promtool's notation, one value each interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from alerts.model import Case, Eval, Kind, Target, number

__all__ = ["COUNT", "RATE", "flat", "humanize1024", "level_cases", "missing", "ramp", "then"]

COUNT = '{{ printf "%.0f" $value }}'
"""Template of a number of events: increase() extrapolates, so there are fractions of them."""

RATE = '{{ printf "%.1f" $value }}'
"""Template of events a second, or of a factor."""

_AFTER = 40
"""Minutes that a level is held after it has lasted for the alert's ``for``."""


def flat(value: float, count: int) -> str:
    """The same value so many times."""
    return f"{number(value)}+0x{count - 1}"


def ramp(start: float, step: float, count: int) -> str:
    """So many values, each a step above the one before."""
    return f"{number(start)}{'-' if step < 0 else '+'}{number(abs(step))}x{count - 1}"


def missing(count: int) -> str:
    """So many scrapes in which the series was not there."""
    return f"_x{count}"


def then(*parts: str) -> str:
    """One part after the other."""
    return " ".join(parts)


def level_cases(
    *,
    for_s: float,
    bad: Mapping[str, float],
    good: Mapping[str, float],
    reads: str,
    bad_is: str,
    good_is: str,
    resolved_by: str,
    labels: Mapping[str, str] | None = None,
    target: Target = Target.REDIS,
) -> tuple[Case, ...]:
    """The three cases of an alert on levels: held bad, held just under, bad and then just under.

    ``bad`` and ``good`` map the same series to its level. ``reads`` is the description at the bad levels.
    """
    wait = round(for_s / 60)
    count = wait + _AFTER
    fires = Eval(at="", reads=reads, labels=labels or {}, target=target)
    before = () if wait == 0 else (Eval(at=f"{wait - 1}m"),)
    return (
        Case(
            kind=Kind.FIRES,
            what=bad_is,
            inputs={name: flat(level, count) for name, level in bad.items()},
            evals=(*before, replace(fires, at=f"{wait}m")),
        ),
        Case(
            kind=Kind.QUIET,
            what=good_is,
            inputs={name: flat(level, count) for name, level in good.items()},
            evals=(Eval(at=f"{wait}m"), Eval(at=f"{count - 1}m")),
        ),
        Case(
            kind=Kind.RESOLVES,
            what=resolved_by,
            inputs={name: then(flat(bad[name], wait + 10), flat(good[name], 30)) for name in bad},
            evals=(replace(fires, at=f"{wait + 9}m"), Eval(at=f"{wait + 10}m")),
        ),
    )


def humanize1024(value: float) -> str:
    """Prometheus' ``humanize1024``: four significant digits and a binary prefix."""
    for prefix in ("", "ki", "Mi", "Gi", "Ti"):
        if abs(value) < 1024:
            return f"{value:.4g}{prefix}"
        value /= 1024
    return f"{value:.4g}Pi"
