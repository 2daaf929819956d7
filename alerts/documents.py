"""What readers see of the alerts: a table of all, and the head of each runbook.

A runbook is written by hand below its head; the head is made here, so that it cannot contradict the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alerts.generate import all_alerts
from alerts.live import read
from alerts.model import Alert, Context, Kind, duration
from inference_cache.contract import Contract

__all__ = ["SECTIONS", "alert_table", "runbook", "runbook_head"]

SECTIONS = ("Meaning", "Impact", "Look at", "Do", "Prevent")
"""Headings that every runbook has, in this order."""

_BEGIN = "<!-- made by python -m alerts: -->"
_END = "<!-- /made -->"

_TABLE_HEAD = """\
# Alerts

Made by `python -m alerts` from the contract `{name}`, the rules in [`alerts/`](../alerts) and the last live
run ([`alerts/live_fire.json`](../alerts/live_fire.json)). Do not edit.

`critical` wakes somebody up, since damage is being done or is one save away. `warning` is for working hours.
`info` notifies nobody: it explains other alerts and silences some. A full LRU cache is what such a cache is
for, so its level is `info`.

**How each was proven.** *Unit*: promtool cases in [`alerts/generated/tests/`](../alerts/generated/tests): the
alert fires, stays quiet just under its threshold, resolves. *Live*: the same rules in a real Prometheus, with
a real redis_exporter and our exporter before real servers (`python benchmarks/live_fire.py`), and for offload
and spill a real vLLM and a real Ray (`python benchmarks/live_engines.py`), their condition really provoked;
every window, `for` and age in them multiplied by one factor, 1/60 unless the row says another, and nothing
else. Times are from the moment at which the condition was provoked: seconds in that run, and in brackets what
they stand for without the factor. That is an upper bound: a scrape a second, and a look at the alerts each
quarter of one, are part of them.
"""


def by_name(alerts: Iterable[Alert]) -> dict[str, list[Alert]]:
    """Rules by alert: some alerts have one for each workload."""
    grouped: dict[str, list[Alert]] = {}
    for alert in alerts:
        grouped.setdefault(alert.name, []).append(alert)
    return grouped


def alert_table(contract: Contract) -> str:
    """``docs/alerts.md``."""
    measured = read()
    lines = [_TABLE_HEAD.format(name=contract.name)]
    groups: dict[str, list[list[Alert]]] = {}
    for rules in by_name(all_alerts(Context(contract=contract))).values():
        groups.setdefault(rules[0].group, []).append(rules)
    count = sum(len(group) for group in groups.values())
    days = sorted({times["ran"] for times in measured.values()})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    fired = f"{len(measured)} of them were fired live ({when})"
    lines.append(f"{count} alerts; {fired}; the row of the others says `unit` only.\n")
    for group, alerts in groups.items():
        lines += [
            f"## {group.capitalize()}\n",
            "| alert | severity | fires when | threshold | proven by |",
            "|---|---|---|---|---|",
            *(_row(rules, measured.get(rules[0].name)) for rules in alerts),
            "",
        ]
    return "\n".join(lines)


def _row(rules: Sequence[Alert], times: Mapping[str, Any] | None) -> str:
    first = rules[0]
    severities = "/".join(dict.fromkeys(str(rule.severity) for rule in rules))
    summary = first.summary
    if len(rules) > 1:
        # The summaries of such rules differ in the prefix only.
        summary = " ".join(
            word if all(word in other.summary.split() for other in rules) else "a prefix"
            for word in first.summary.split()
        )
    thresholds = "; ".join(dict.fromkeys(rule.threshold for rule in rules))
    held = f", for {duration(first.for_s)}" if first.for_s else ""
    return (
        f"| [{first.name}](runbooks/{first.name}.md) | {severities} | {summary}{held} | {thresholds} | "
        f"{_proof(rules, times)} |"
    )


def _proof(rules: Sequence[Alert], times: Mapping[str, Any] | None) -> str:
    cases = [case for rule in rules for case in rule.cases]
    kinds = ", ".join(f"{sum(case.kind is kind for case in cases)} {word}" for kind, word in _KINDS.items())
    unit = f"unit: {kinds}"
    if times is None:
        why = _NOT_PROVOKED.get(rules[0].name)
        return f"{unit}; not live: {why}" if why else unit
    factor = float(times["time_factor"])
    told = ", ".join(
        f"{word} {times[key]:.0f} s ({_full(times[key] / factor)})"
        for key, word in (
            ("pending_s", "pending"),
            ("firing_s", "firing"),
            ("resolved_s", "resolved after its end"),
        )
        if key in times
    )
    scaled = "" if round(1 / factor) == _USUAL else f" (times / {1 / factor:.0f})"
    return f"{unit}; live{scaled}: {told}"


_NOT_PROVOKED = {
    "InferenceCacheSlowFork": "a fork takes about 10 ms for each gigabyte, so it needs a far larger server",
}
"""Why there is no live run of an alert."""
_USUAL = 60
"""By what live runs divide times unless their row says so."""
_KINDS = {Kind.FIRES: "fires", Kind.QUIET: "quiet", Kind.RESOLVES: "resolves"}


def _full(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def runbook_head(rules: Sequence[Alert]) -> str:
    """The part of a runbook that is made: title, facts and expression of the alert."""
    first = rules[0]
    facts = [
        f"| severity | {'/'.join(dict.fromkeys(f'`{rule.severity}`' for rule in rules))} |",
        f"| fires after | {duration(first.for_s) if first.for_s else 'at once'} |",
        *(f"| threshold | {threshold} |" for threshold in dict.fromkeys(rule.threshold for rule in rules)),
        f"| dashboard | `inference-cache-{first.dashboard}` |",
    ]
    silenced = ", ".join(f"`{name}`" for name in first.inhibits)
    if silenced:
        facts.append(f"| silences | {silenced} |")
    of = f" (of {first.workload}; the others alike)" if len(rules) > 1 else ""
    return "\n".join(
        (
            _BEGIN,
            f"# {first.name}",
            "",
            "| | |",
            "|---|---|",
            *facts,
            "",
            f"Rule{of}, from [`{first.group}.yaml`](../../alerts/generated/rules/{first.group}.yaml):",
            "",
            "```promql",
            first.expr,
            "```",
            _END,
        )
    )


def runbook(rules: Sequence[Alert], written: str) -> str:
    """The whole page: the head made anew above what was written by hand.

    An empty ``written`` gives a page with every heading and nothing below, which the checks refuse.
    """
    _, found, body = written.partition(_END)
    if not found:
        body = written or "\n\n" + "\n\n".join(f"## {section}" for section in SECTIONS) + "\n"
    return f"{runbook_head(rules)}\n\n{body.strip()}\n"
