"""The verdict as a badge: ``badge.json`` for a service that reads an endpoint, ``badge.svg`` as it is."""

from __future__ import annotations

import json
from xml.sax.saxutils import escape

from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import RunResult

__all__ = ["to_badge_json", "to_badge_svg"]

_COLORS = {
    Verdict.CONFORMANT: ("brightgreen", "#2f7d32"),
    Verdict.NOT_CONFORMANT: ("red", "#b3261e"),
    Verdict.BROKEN: ("lightgrey", "#5f6368"),
    Verdict.INCOMPLETE: ("yellow", "#8a6100"),
    Verdict.NOTHING_VERIFIED: ("lightgrey", "#5f6368"),
}
_CHARACTER_PX = 6.6
"""Width of a character of the badge's font, on average; textLength sets it exactly."""
_PADDING_PX = 8


def to_badge_json(run: RunResult) -> str:
    """The text of ``badge.json``: version 1 of the endpoint schema of shields.io.

    How many clauses were proven is told with the verdict: "conformant" alone would look the same for one
    clause and for all of them.
    """
    run = publishable(run)
    badge = {
        "schemaVersion": 1,
        "label": _label(run),
        "message": _message(run),
        "color": _COLORS[run.verdict][0],
        "isError": run.verdict is Verdict.BROKEN,
    }
    return json.dumps(badge, indent=2, ensure_ascii=False) + "\n"


def to_badge_svg(run: RunResult) -> str:
    """The text of ``badge.svg``, which needs no service."""
    run = publishable(run)
    label, message, color = _label(run), _message(run), _COLORS[run.verdict][1]
    left, right = (len(text) * _CHARACTER_PX + 2 * _PADDING_PX for text in (label, message))
    title = escape(f"{label}: {message}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right:.0f}" height="20" role="img" '
        f'aria-label="{title}">\n'
        f"  <title>{title}</title>\n"
        f'  <clipPath id="round"><rect width="{left + right:.0f}" height="20" rx="3"/></clipPath>\n'
        f'  <g clip-path="url(#round)">\n'
        f'    <rect width="{left:.0f}" height="20" fill="#3c4043"/>\n'
        f'    <rect x="{left:.0f}" width="{right:.0f}" height="20" fill="{color}"/>\n'
        "  </g>\n"
        '  <g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">\n'
        f"    {_text(label, _PADDING_PX)}\n"
        f"    {_text(message, left + _PADDING_PX)}\n"
        "  </g>\n"
        "</svg>\n"
    )


def _label(run: RunResult) -> str:
    return run.contract_name


def _message(run: RunResult) -> str:
    counts = run.counts
    proven = counts[Outcome.PASSED.label] + counts[Outcome.FAILED.label]
    return f"{run.verdict.value}, {proven} of {counts['total']} clauses proven"


def _text(text: str, x: float) -> str:
    width = len(text) * _CHARACTER_PX
    return f'<text x="{x:.0f}" y="14" textLength="{width:.0f}">{escape(text)}</text>'
