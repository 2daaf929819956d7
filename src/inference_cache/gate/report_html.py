"""``report.html``: one file that opens anywhere, with no request to anybody.

What a server answered is data from outside: everything is escaped, and the page's own content security policy
lets nothing run but the script that is part of this package.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any

from inference_cache.errors import MissingExtra
from inference_cache.gate import _digest
from inference_cache.gate._quantity import duration, quantity
from inference_cache.gate._svg import PALETTE_SIZE, limit_text, plot_svg
from inference_cache.gate.outcomes import Outcome, Verdict
from inference_cache.gate.redact import publishable
from inference_cache.gate.verdict import RunResult

try:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup, escape
except ImportError as error:
    raise MissingExtra(module="jinja2", extra="gate") from error

__all__ = ["to_html"]

_TONES = {
    Verdict.CONFORMANT: "passed",
    Verdict.NOT_CONFORMANT: "failed",
    Verdict.BROKEN: "error",
    Verdict.INCOMPLETE: "waived",
    Verdict.NOTHING_VERIFIED: "open",
}
_CSS = {
    Outcome.PASSED: "passed",
    Outcome.FAILED: "failed",
    Outcome.ERROR: "error",
    Outcome.WAIVED: "waived",
    Outcome.NOT_PROVEN: "open",
}


def to_html(run: RunResult) -> str:
    """The text of ``report.html``."""
    run = publishable(run)
    script = _resource("report.js")
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        code=_code,
        linked=_linker(run),
        duration=duration,
        breakable=_breakable,
        words=_words,
        quantity=lambda value, name: quantity(name, value),
        titled=_digest.group_title,
    )
    return environment.get_template("report.html.j2").render(
        _context(run),
        style=Markup(_resource("report.css")),
        script=Markup(script),
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
    )


def _resource(name: str) -> str:
    return files("inference_cache.gate").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _context(run: RunResult) -> Mapping[str, Any]:
    findings = _digest.findings(run)
    told = {result.clause.id for result, _ in findings}
    return {
        "run": run,
        "counts": run.counts,
        "headline": _digest.headline(run),
        "since": _digest.since(run.difference) if run.difference else "",
        "tone": _TONES[run.verdict],
        "css": _CSS,
        "outcomes": list(reversed(Outcome)),
        "levels": list(dict.fromkeys(result.clause.level.value for result in run.clauses)),
        "groups": _digest.by_group(run),
        "findings": [(result, finding, _digest.decides(run, result)) for result, finding in findings],
        "errors": _digest.with_outcome(run, Outcome.ERROR),
        "waived": _digest.with_outcome(run, Outcome.WAIVED),
        "open_musts": _digest.open_musts(run),
        # The picture of a violation belongs to its finding; all others are measurements.
        "plotted": [result for result in run.clauses if result.plots and result.clause.id not in told],
        "palette_size": PALETTE_SIZE,
        "limit_text": limit_text,
        "svg": lambda plot, ident: Markup(plot_svg(plot, ident)),
    }


def _code(text: str) -> Markup:
    """Escaped text in which a pair of backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _breakable(name: str) -> Markup:
    """An escaped name that may break after its underscores, and not just anywhere."""
    return Markup("_<wbr>").join(name.split("_"))


def _words(command: str) -> Markup:
    """An escaped command that breaks between its words, never at a hyphen."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in command.split(" "))


def _linker(run: RunResult) -> Any:
    ids = {result.clause.id for result in run.clauses}

    def linked(text: str) -> Markup:
        """Escaped text in which clause ids lead to their clauses."""

        def link(match: re.Match[str]) -> str:
            word = match[0]
            return f'<a href="#{word}">{word}</a>' if word in ids else word

        return Markup(re.sub(r"\b[A-Z]+-\d+\b", link, str(escape(text))))

    return linked
