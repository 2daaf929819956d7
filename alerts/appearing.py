"""Counters whose series begin with the first event, such as errors by kind."""

from __future__ import annotations

__all__ = ["appeared"]


def appeared(selector: str, *, window: str, kept: str, watched: str = "") -> str:
    """PromQL: how much a counter grew within the window, or its whole value where its series is new.

    ``increase`` needs two samples, so it does not see the event that creates a series; a burst of first
    errors would go unnoticed. ``watched`` is a condition on ``(namespace, job, instance)`` under which a new
    series counts, such as that the target was scraped before.
    """
    new = f"({selector} unless {selector} offset {window})"
    if watched:
        new = f"{new}\n  and on (namespace, job, instance) ({watched})"
    return f"sum by ({kept}) (increase({selector}[{window}])) > 0\nor sum by ({kept}) (\n  {new}\n) > 0"
