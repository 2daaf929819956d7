"""From a contract to files: rules, manifest, unit tests and an Alertmanager example."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alerts import availability, budget, contention, gate, memory, offload, persistence, spill
from alerts.alertmanager import alertmanager_config
from alerts.model import (
    DASHBOARD_BASE_URL,
    EXPORTER_JOB,
    REDIS_JOB,
    RUNBOOK_BASE_URL,
    Alert,
    Case,
    Context,
    Eval,
    Settings,
    Target,
    duration,
)
from inference_cache.contract import Contract
from inference_cache.errors import MissingExtra, UsageError
from inference_cache.metrics import metric, names_in

try:
    import yaml
except ImportError as error:
    raise MissingExtra(module="yaml", extra="observability") from error

__all__ = ["GROUPS", "all_alerts", "files", "rule", "rule_groups"]

GROUPS = (memory, contention, persistence, availability, budget, offload, spill, gate)
"""Modules of alerts, in the order in which operators read them."""

_HEAD = (
    "# Made by `inference-cache render` from the contract {name}. Change alerts/*.py or the contract, not "
    "this file.\n"
)
_METRIC_PREFIXES = re.compile(r"^[a-zA-Z_:][a-zA-Z0-9_:]*")


def files(
    contract: Contract,
    *,
    time_factor: float = 1.0,
    runbook_base_url: str = RUNBOOK_BASE_URL,
    dashboard_base_url: str = DASHBOARD_BASE_URL,
    redis_job: str = REDIS_JOB,
    exporter_job: str = EXPORTER_JOB,
) -> dict[str, str]:
    """Text of every file below ``alerts/generated/`` by its relative path.

    ``rules/<group>.yaml`` are plain Prometheus rules, ``prometheusrule.yaml`` the same as a manifest for the
    Prometheus operator, ``tests/<group>.yaml`` promtool's unit tests of them, ``alertmanager.yaml`` routes
    and inhibitions. Other factors of time than 1 leave the unit tests out: those are about the real windows.

    Raises:
        UsageError: an expression names a metric that the registry does not know; tells the nearest known one.
    """
    settings = Settings(
        time_factor=time_factor,
        runbook_base_url=runbook_base_url,
        dashboard_base_url=dashboard_base_url,
        redis_job=redis_job,
        exporter_job=exporter_job,
    )
    context = Context(contract=contract, settings=settings)
    alerts = all_alerts(context)
    head = _HEAD.format(name=contract.name)
    groups = rule_groups(alerts, settings)
    made = {
        f"rules/{group['name'].removeprefix('inference-cache-')}.yaml": head + _dump({"groups": [group]})
        for group in groups
    }
    made["prometheusrule.yaml"] = head + _dump(_manifest(contract, groups))
    made["alertmanager.yaml"] = head + _dump(alertmanager_config(alerts))
    if time_factor == 1:
        for group, every in dict.fromkeys((alert.group, alert.tested_every) for alert in alerts):
            mine = [one for one in alerts if (one.group, one.tested_every) == (group, every)]
            name = group if every == "1m" else f"{group}-{every}"
            made[f"tests/{name}.yaml"] = head + _dump(_unit_tests(group, mine, context))
    return made


def all_alerts(context: Context) -> tuple[Alert, ...]:
    """Every alert that the contract calls for.

    Raises:
        UsageError: as for :func:`files`.
    """
    alerts = tuple(alert for module in GROUPS for alert in module.alerts(context))
    for alert in alerts:
        for name in names_in(alert.expr):
            metric(name)
    return alerts


def rule(alert: Alert, settings: Settings) -> dict[str, Any]:
    """The alert as Prometheus reads it."""
    made: dict[str, Any] = {
        "alert": alert.name,
        "expr": alert.expr,
        "for": duration(alert.for_s * settings.time_factor) if alert.for_s else "0s",
    }
    if alert.keep_firing_s:
        made["keep_firing_for"] = duration(alert.keep_firing_s * settings.time_factor)
    made["labels"] = _labels(alert)
    made["annotations"] = _annotations(alert, settings, alert.description)
    return made


def rule_groups(alerts: Iterable[Alert], settings: Settings) -> list[dict[str, Any]]:
    """Rules by group, as ``groups`` of a rule file."""
    by_group: dict[str, list[dict[str, Any]]] = {}
    for alert in alerts:
        by_group.setdefault(alert.group, []).append(rule(alert, settings))
    return [{"name": f"inference-cache-{name}", "rules": rules} for name, rules in by_group.items()]


def _labels(alert: Alert) -> dict[str, str]:
    labels = {"severity": str(alert.severity)}
    if alert.workload:
        labels["workload"] = alert.workload
    return labels


def _annotations(alert: Alert, settings: Settings, description: str) -> dict[str, str]:
    return {
        "summary": alert.summary,
        "description": description,
        "runbook_url": f"{settings.runbook_base_url}/{alert.name}.md",
        "dashboard": f"{settings.dashboard_base_url}/inference-cache-{alert.dashboard}",
    }


def _manifest(contract: Contract, groups: list[dict[str, Any]]) -> dict[str, Any]:
    host = contract.instance.address.rpartition(":")[0].split(".")
    metadata: dict[str, Any] = {
        "name": "inference-cache",
        "labels": {
            "app.kubernetes.io/name": "inference-cache",
            "app.kubernetes.io/component": "alerts",
        },
    }
    # A service's address is NAME.NAMESPACE.svc...; any other names no namespace.
    if len(host) >= 3 and host[2] == "svc":
        metadata = {"name": metadata["name"], "namespace": host[1], "labels": metadata["labels"]}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata,
        "spec": {"groups": groups},
    }


def _unit_tests(group: str, alerts: Sequence[Alert], context: Context) -> dict[str, Any]:
    return {
        "rule_files": [f"../rules/{group}.yaml"],
        "evaluation_interval": alerts[0].tested_every,
        "tests": [_unit_test(alert, case, context) for alert in alerts for case in alert.cases],
    }


def _unit_test(alert: Alert, case: Case, context: Context) -> dict[str, Any]:
    return {
        "name": f"{alert.name} {case.kind}: {case.what}",
        "interval": case.interval,
        "input_series": [
            {"series": _series(name, context), "values": values} for name, values in case.inputs.items()
        ],
        "alert_rule_test": [_expected(alert, look, context) for look in case.evals],
    }


def _expected(alert: Alert, look: Eval, context: Context) -> dict[str, Any]:
    if look.reads is None:
        return {"eval_time": look.at, "alertname": alert.name, "exp_alerts": []}
    expected = {
        "exp_labels": {**_target_labels(look.target, context), **look.labels, **_labels(alert)},
        "exp_annotations": _annotations(alert, context.settings, look.reads),
    }
    return {"eval_time": look.at, "alertname": alert.name, "exp_alerts": [expected]}


def _series(name: str, context: Context) -> str:
    found = _METRIC_PREFIXES.match(name)
    if found is None:
        raise UsageError(f"{name!r} is no series: write a metric and its labels in braces")
    bare, own = found[0], name[found.end() :].strip("{}")
    target = Target.REDIS if bare.startswith("redis_") else Target.EXPORTER
    # `up` and series of applications say themselves which job they are of.
    labels = {} if "job=" in own else _target_labels(target, context)
    matchers = [f'{label}="{value}"' for label, value in labels.items()] + ([own] if own else [])
    return f"{bare}{{{', '.join(matchers)}}}"


def _target_labels(target: Target, context: Context) -> dict[str, str]:
    settings = context.settings
    return {
        Target.REDIS: {"job": settings.redis_job, "instance": "redis_exporter:9121"},
        Target.REDIS_JOB: {"job": settings.redis_job},
        Target.EXPORTER: {"job": settings.exporter_job, "instance": "exporter:9120"},
        Target.EXPORTER_JOB: {"job": settings.exporter_job},
        Target.NONE: {},
    }[target]


class _Dumper(yaml.SafeDumper):
    """Text of several lines stays readable, and nothing is folded."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _dump(document: Mapping[str, Any]) -> str:
    text: str = yaml.dump(
        document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000, default_flow_style=False
    )
    return text
