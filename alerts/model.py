"""What an alert is: a rule, the words that an operator reads, and the cases that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from inference_cache.contract import Contract

__all__ = [
    "DASHBOARD_BASE_URL",
    "EXPORTER_JOB",
    "REDIS_JOB",
    "RUNBOOK_BASE_URL",
    "Alert",
    "Case",
    "Context",
    "Eval",
    "Kind",
    "Settings",
    "Severity",
    "Target",
    "duration",
    "number",
]

RUNBOOK_BASE_URL: Final = "https://github.com/inference-cache/inference-cache/blob/main/docs/runbooks"
"""Where the runbook of alert NAME is, as ``<base>/NAME.md``."""

DASHBOARD_BASE_URL: Final = "https://grafana.example.com/d"
"""Where the dashboard with uid UID is, as ``<base>/UID``; an organisation gives its own Grafana's."""


REDIS_JOB: Final = "inference-cache-redis-exporter"
"""``job`` label under which redis_exporter is scraped."""

EXPORTER_JOB: Final = "inference-cache-exporter"
"""``job`` label under which ``inference-cache exporter`` is scraped."""


class Severity(StrEnum):
    """What an alert asks of people."""

    CRITICAL = "critical"
    """Damage is being done, or will be by the next fork: wakes somebody up."""
    WARNING = "warning"
    """Somebody must look in working hours."""
    INFO = "info"
    """Notifies nobody: explains, and silences others."""


class Kind(StrEnum):
    """What a case of an alert's unit test shows; each alert has all three."""

    FIRES = "fires"
    QUIET = "stays quiet just under"
    RESOLVES = "resolves"


class Target(StrEnum):
    """Which labels of a scraped target are left on an alert."""

    REDIS = "redis_exporter"
    REDIS_JOB = "job of redis_exporter"
    EXPORTER = "exporter"
    EXPORTER_JOB = "job of exporter"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    """The alert looked at once: what it reads, or that it is silent."""

    at: str
    """Time since the start, in Prometheus' notation (``12m``)."""
    reads: str | None = None
    """Description of the alert as it fires, None when it must not fire."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the series beside those of the target."""
    target: Target = Target.REDIS
    """Whose labels the alert carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One promtool test: series as they were scraped, and what the alert makes of them.

    ``inputs`` maps a metric, with labels where it has its own, to promtool's notation of values at the
    interval; labels of the target are added.
    """

    kind: Kind
    what: str
    inputs: Mapping[str, str]
    evals: tuple[Eval, ...]
    interval: str = "1m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alerting rule.

    ``summary`` is one line without numbers, ``description`` is Prometheus' template with them. ``threshold``
    says in words which contract values decide, ``dashboard`` is a uid of :mod:`dashboards`.
    """

    name: str
    group: str
    severity: Severity
    expr: str
    for_s: float
    summary: str
    description: str
    threshold: str
    dashboard: str
    cases: tuple[Case, ...] = ()
    """Empty where another rule of the same name has them."""
    tested_every: str = "1m"
    """Evaluation interval of its unit tests; longer where windows of days would take them minutes."""
    keep_firing_s: float = 0.0
    workload: str = ""
    """The one workload that the rule is about, as a label; empty when it is about all of them."""
    inhibits: tuple[str, ...] = ()
    """Alerts that say nothing new while this one fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an organisation may choose that is no decision of the contract.

    ``time_factor`` multiplies every window, every ``for`` and every age in the rules, and nothing else: a
    live test uses one below 1 to see the same rules act sooner.
    """

    time_factor: float = 1.0
    runbook_base_url: str = RUNBOOK_BASE_URL
    dashboard_base_url: str = DASHBOARD_BASE_URL
    redis_job: str = REDIS_JOB
    exporter_job: str = EXPORTER_JOB
    gate_interval_s: float = 24 * 3600
    """How often the acceptance gate is run."""


def duration(seconds: float) -> str:
    """A length of time in Prometheus' notation, in its largest whole unit: ``1h``, ``90s``, ``250ms``.

    Raises:
        ValueError: it is less than a millisecond.
    """
    milliseconds = round(seconds * 1000)
    if milliseconds < 1:
        raise ValueError(f"a window of {seconds} s is less than Prometheus' millisecond")
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the rules are made from."""

    contract: Contract
    settings: Settings = field(default_factory=Settings)

    def window(self, seconds: float) -> str:
        """A length of time in PromQL, scaled."""
        return duration(seconds * self.settings.time_factor)

    def age(self, seconds: float) -> str:
        """A length of time as a number of seconds, scaled."""
        return number(seconds * self.settings.time_factor)

    def per_second(self, rate: float) -> str:
        """A rate in events per second, scaled inversely: the same events in the scaled time."""
        return number(rate / self.settings.time_factor)

    def redis(self, metric: str, labels: str = "") -> str:
        """A selector of redis_exporter's series of this instance."""
        return _selector(metric, f'job="{self.settings.redis_job}"', labels)

    def own(self, metric: str, labels: str = "") -> str:
        """A selector of the series of ``inference-cache exporter``."""
        return _selector(metric, f'job="{self.settings.exporter_job}"', labels)


def number(value: float) -> str:
    """A number as PromQL takes it, whole where it is."""
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def _selector(metric: str, *matchers: str) -> str:
    return f"{metric}{{{', '.join(matcher for matcher in matchers if matcher)}}}"
