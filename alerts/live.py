"""What live runs measured: when each alert was pending, firing and resolved, on its real cause."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["TIMES", "read", "record"]

_FILE: Final = Path(__file__).with_name("live_fire.json")

TIMES: Final = ("pending_s", "firing_s", "resolved_s")
"""Seconds since the condition began, and for the last since it ended."""


def read() -> Mapping[str, Mapping[str, Any]]:
    """By alert: its times, ``time_factor`` of the rules in that run, and the day on which it ``ran``."""
    measured: dict[str, dict[str, Any]] = json.loads(_FILE.read_text("utf-8"))
    return measured


def record(alert: str, times: Mapping[str, float], *, time_factor: float) -> None:
    """Put what a run has just measured in place of what was known of the alert."""
    measured = dict(read())
    measured[alert] = {
        **{name: times[name] for name in TIMES if name in times},
        "time_factor": time_factor,
        "ran": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
    }
    _FILE.write_text(json.dumps(dict(sorted(measured.items())), indent=1) + "\n", "utf-8")
