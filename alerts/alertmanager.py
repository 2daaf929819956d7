"""Who is told what: an Alertmanager configuration to start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alerts.model import Alert, Severity

__all__ = ["alertmanager_config"]

_EQUAL = ("namespace",)
"""Labels in which an alert and what it silences agree: those of one installation. The exporters of one server
are targets of their own, so ``instance`` is not among them."""


def alertmanager_config(alerts: Sequence[Alert]) -> dict[str, Any]:
    """Routes by severity, and what an alert silences. Receivers are empty: an organisation fills them in."""
    inhibitors = {alert.name: alert.inhibits for alert in alerts if alert.inhibits}
    return {
        "route": {
            "receiver": "nobody",
            "routes": [
                {
                    "matchers": ['alertname=~"InferenceCache.+"'],
                    "group_by": ["namespace", "alertname"],
                    "receiver": "nobody",
                    "routes": [
                        {
                            "matchers": [f'severity="{Severity.CRITICAL}"'],
                            "receiver": "on-call",
                            "group_wait": "10s",
                            "group_interval": "1m",
                            "repeat_interval": "1h",
                        },
                        {
                            "matchers": [f'severity="{Severity.WARNING}"'],
                            "receiver": "tickets",
                            "group_wait": "1m",
                            "group_interval": "15m",
                            "repeat_interval": "1d",
                        },
                    ],
                }
            ],
        },
        "receivers": [{"name": "nobody"}, {"name": "on-call"}, {"name": "tickets"}],
        "inhibit_rules": [
            {
                "source_matchers": [f'alertname="{name}"'],
                "target_matchers": [f'alertname=~"{"|".join(targets)}"'],
                "equal": list(_EQUAL),
            }
            for name, targets in inhibitors.items()
        ],
    }
