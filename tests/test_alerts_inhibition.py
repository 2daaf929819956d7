"""The Alertmanager example at work: what fires beside its cause tells nobody, and who is told what."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from servers import eventually

from alerts.generate import all_alerts, files
from alerts.model import Alert, Context
from fixtures.engines.prometheus_alertmanager import Alertmanager
from fixtures.engines.prometheus_server import PrometheusServer
from inference_cache.contract import load

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("prometheus-alertmanager") is None,
    reason="needs Prometheus and Alertmanager: apt-get install prometheus prometheus-alertmanager",
)

CONTRACT = load()
ALERTS: Mapping[str, Alert] = {rule.name: rule for rule in all_alerts(Context(contract=CONTRACT))}
CONFIG = files(CONTRACT)["alertmanager.yaml"]
TARGETS = {
    name
    for name in ALERTS
    for rule in ALERTS.values()
    if any(re.fullmatch(target, name) for target in rule.inhibits)
}
"""Alerts that another one silences."""
ALONE = TARGETS - {rule.name for rule in ALERTS.values() if rule.inhibits}
"""Those of them that silence nothing themselves."""
BOTH, WITHOUT_CAUSE = "with-cause", "without-cause"
"""Two installations: in one every alert fires, in the other only those in ALONE."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """The alerts as a real Alertmanager has them, that a real Prometheus has sent to it."""
    folder = tmp_path_factory.mktemp("inhibition")
    config = folder / "alertmanager.yaml"
    config.write_text(CONFIG, "utf-8")
    rules = folder / "rules.yaml"
    fired = [(BOTH, name) for name in ALERTS] + [(WITHOUT_CAUSE, name) for name in sorted(ALONE)]
    always = [
        {
            "alert": name,
            "expr": "vector(1)",
            "labels": {"namespace": namespace, "severity": str(ALERTS[name].severity)},
        }
        for namespace, name in fired
    ]
    rules.write_text(json.dumps({"groups": [{"name": "always", "rules": always}]}), "utf-8")
    with (
        Alertmanager(config=config) as alertmanager,
        PrometheusServer(
            scrape={},
            rule_files=[rules],
            alertmanagers=[alertmanager.address],
            scrape_interval_s=0.5,
            # The first time it sends, it does not know yet whom to.
            flags=["--rules.alert.resend-delay=1s"],
        ),
    ):
        eventually(
            lambda: len(alertmanager.alerts()) == len(fired),
            f"all {len(fired)} alerts to arrive at Alertmanager",
            within_s=30,
        )
        yield alertmanager.alerts()


def states(told: list[dict[str, Any]], namespace: str) -> dict[str, str]:
    return {
        alert["labels"]["alertname"]: alert["status"]["state"]
        for alert in told
        if alert["labels"]["namespace"] == namespace
    }


def test_an_alert_is_silent_exactly_while_its_cause_fires(told: list[dict[str, Any]]) -> None:
    seen = states(told, BOTH)

    assert len(TARGETS) > 5
    assert {name for name, state in seen.items() if state == "suppressed"} == TARGETS
    assert {name for name, state in seen.items() if state == "active"} == set(ALERTS) - TARGETS


def test_a_cause_in_another_installation_silences_nothing(told: list[dict[str, Any]]) -> None:
    assert states(told, WITHOUT_CAUSE) == dict.fromkeys(ALONE, "active")


def test_who_is_silenced_is_silenced_by_an_alert_that_says_so(told: list[dict[str, Any]]) -> None:
    by_fingerprint = {alert["fingerprint"]: alert["labels"] for alert in told}
    for alert in told:
        for source in alert["status"]["inhibitedBy"]:
            rule = ALERTS[by_fingerprint[source]["alertname"]]
            assert any(re.fullmatch(target, alert["labels"]["alertname"]) for target in rule.inhibits)


def test_severity_decides_who_is_told(told: list[dict[str, Any]]) -> None:
    wanted = {"critical": "on-call", "warning": "tickets", "info": "nobody"}
    for alert in told:
        names = [receiver["name"] for receiver in alert["receivers"]]
        assert names == [wanted[alert["labels"]["severity"]]]


def test_the_example_names_every_receiver_that_it_uses() -> None:
    config = yaml.safe_load(CONFIG)
    (routes,) = config["route"]["routes"]
    used = {config["route"]["receiver"], *(route["receiver"] for route in routes["routes"])}
    assert used == {receiver["name"] for receiver in config["receivers"]}
