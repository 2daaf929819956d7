"""Nothing secret leaves: passwords are replaced before a run is written down.

Reports are made from :func:`publishable` data only. It hides what is known to be secret (the passwords in the
target's address, the secret settings of its configuration, what the caller hands over) wherever it turns up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from inference_cache.connection import redact_url
from inference_cache.gate.difference import ClauseChange, Difference, FactChange
from inference_cache.gate.findings import Finding, Plot, Scalar
from inference_cache.gate.verdict import AcceptedRisk, ClauseResult, RunResult, TargetInfo

__all__ = ["MASK", "publishable", "redact_config", "redact_text", "redact_url"]

MASK = "***"

_SECRET_SETTINGS = frozenset({"masteruser", "primaryuser"})
_SECRET_SETTING = re.compile(r"(pass|passwd|password|passphrase|auth|secret|token)$")
_SECRET_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:pass|passwd|password|passphrase|secret|token)=)[^&\s#]+")
# Unlike redact_url it finds URLs among other words. Greedy up to the last @ before the next one:
# a password that was typed without percent-encoding may hold @, / and #.
_USERINFO = re.compile(r"(?i)(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<userinfo>(?!/)(?:(?!://)\S)+)@")


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with every secret, as it is or percent-encoded, and the password of every URL in it hidden."""
    text = _SECRET_PARAMETER.sub(rf"\g<1>{MASK}", _USERINFO.sub(_without_password, text))
    forms = {form for secret in secrets for form in (secret, quote(secret, safe=""))} - {"", MASK}
    # The longest first: a secret may contain another one.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def _without_password(match: re.Match[str]) -> str:
    user, colon, password = match["userinfo"].partition(":")
    if not colon:
        # More often than a name, a lone user part is a password whose colon was forgotten.
        return f"{match['scheme']}{MASK}@"
    return f"{match['scheme']}{user}:{MASK if password else ''}@"


def redact_config(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration with the value of every secret setting replaced; an empty one stays empty."""
    return {
        name: MASK if value and _is_secret(name) else redact_text(value) for name, value in config.items()
    }


def publishable(run: RunResult, secrets: Iterable[str] = ()) -> RunResult:
    """The run as it may be written down: no secret in it, and no text that UTF-8 cannot hold."""
    known = frozenset(secrets).union(_secrets_of(run.target))
    hide = _Hide(known)
    return replace(
        run,
        reason=hide.text(run.reason),
        target=_target(run.target, hide),
        clauses=tuple(_clause(result, hide) for result in run.clauses),
        accepted_risks=tuple(
            AcceptedRisk(
                subject=risk.subject,
                statement=hide.text(risk.statement),
                bound=hide.text(risk.bound),
                accepted_by=hide.text(risk.accepted_by),
            )
            for risk in run.accepted_risks
        ),
        audit=hide.scalars(run.audit),
        difference=None if run.difference is None else _difference(run.difference, hide),
    )


class _Hide:
    """Replaces the known secrets in the shapes that data comes in."""

    def __init__(self, secrets: frozenset[str]) -> None:
        self._secrets = secrets

    def text(self, text: str) -> str:
        # Bytes that a server sent may have been decoded to lone surrogates.
        return redact_text(text, self._secrets).encode("utf-8", "backslashreplace").decode("utf-8")

    def texts(self, texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(self.text(text) for text in texts)

    def scalars(self, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        hidden: dict[str, Scalar] = {}
        for name, value in values.items():
            if value and _is_secret(name):
                value = MASK
            hidden[self.text(name)] = self.text(value) if isinstance(value, str) else value
        return hidden


def _is_secret(setting: str) -> bool:
    setting = setting.lower()
    return setting in _SECRET_SETTINGS or bool(_SECRET_SETTING.search(setting))


def _secrets_of(target: TargetInfo) -> Iterator[str]:
    yield from (value for name, value in target.config.items() if _is_secret(name) and value != MASK)
    for match in _USERINFO.finditer(target.address):
        user, colon, password = match["userinfo"].partition(":")
        secret = password if colon else user
        if secret != MASK:
            yield secret
            yield unquote(secret)
    try:
        query = urlsplit(target.address).query
    except ValueError:
        return
    yield from (value for name, value in parse_qsl(query) if _is_secret(name) and value != MASK)


def _target(target: TargetInfo, hide: _Hide) -> TargetInfo:
    return replace(
        target,
        address=hide.text(redact_url(target.address)),
        server_name=hide.text(target.server_name),
        server_version=hide.text(target.server_version),
        run_id=hide.text(target.run_id),
        config={name: hide.text(value) for name, value in redact_config(target.config).items()},
        notes=hide.texts(target.notes),
    )


def _clause(result: ClauseResult, hide: _Hide) -> ClauseResult:
    return replace(
        result,
        reason=hide.text(result.reason),
        findings=tuple(_finding(finding, hide) for finding in result.findings),
        measurements=hide.scalars(result.measurements),
        plots=tuple(_plot(plot, hide) for plot in result.plots),
        specs=hide.texts(result.specs),
        proven_on=hide.text(result.proven_on),
    )


def _difference(difference: Difference, hide: _Hide) -> Difference:
    """The earlier report came from a file: it may hold what this run knows to be secret."""
    return Difference(
        since=hide.text(difference.since),
        verdict_before=hide.text(difference.verdict_before),
        clauses=tuple(
            ClauseChange(
                clause=hide.text(change.clause),
                before=hide.text(change.before),
                after=change.after,
                reason=hide.text(change.reason),
            )
            for change in difference.clauses
        ),
        facts=tuple(
            FactChange(name=hide.text(fact.name), before=hide.text(fact.before), after=hide.text(fact.after))
            for fact in difference.facts
        ),
        still_failed=difference.still_failed,
        compared=difference.compared,
    )


def _finding(finding: Finding, hide: _Hide) -> Finding:
    return Finding(
        expected=hide.text(finding.expected),
        observed=hide.text(finding.observed),
        evidence=hide.scalars(finding.evidence),
        remedy=hide.text(finding.remedy),
        reproduce=hide.text(finding.reproduce),
    )


def _plot(plot: Plot, hide: _Hide) -> Plot:
    return replace(
        plot,
        title=hide.text(plot.title),
        note=hide.text(plot.note),
        limit_label=hide.text(plot.limit_label),
        x_label=hide.text(plot.x_label),
        y_label=hide.text(plot.y_label),
        series=tuple(
            replace(
                series,
                name=hide.text(series.name),
                x=tuple(hide.text(x) if isinstance(x, str) else x for x in series.x),
            )
            for series in plot.series
        ),
    )
