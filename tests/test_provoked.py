"""Provocations: what is noted of an alert that comes and goes, and of one that does not."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fixtures.engines.prometheus_server import PrometheusServer
from fixtures.incidents.provoked import Provocation, provoke


class Installation:
    """Tells of its alerts one answer after the other, and of the last one again and again."""

    def __init__(self, *answers: dict[str, str]) -> None:
        self._answers = list(answers)
        self.calls: list[str] = []

    def alerts(self) -> list[dict[str, Any]]:
        states = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [{"labels": {"alertname": name}, "state": state} for name, state in states.items()]

    def provocation(self) -> Provocation:
        return Provocation(
            what="something",
            alerts=("A",),
            begin=lambda: self.calls.append("begin"),
            keep_up=lambda: self.calls.append("keep up"),
            end=lambda: self.calls.append("end"),
            recovers=lambda: self.calls.append("recovers"),
        )

    def provoke(self, deadline_s: float) -> Any:
        prometheus = cast(PrometheusServer, self)
        return provoke(prometheus, self.provocation(), deadline_s=deadline_s, poll_s=0.01)["A"]


def test_an_alert_that_comes_and_goes_has_all_its_times() -> None:
    place = Installation({}, {}, {"A": "pending"}, {"A": "firing"}, {"A": "firing"}, {})
    times = place.provoke(10)

    assert times.pending_s is not None
    assert times.firing_s is not None
    assert times.resolved_s is not None
    assert times.pending_s <= times.firing_s
    assert place.calls == ["begin", "keep up", "keep up", "keep up", "end", "recovers", "recovers"]


def test_an_alert_that_never_fires_is_given_up_and_ended() -> None:
    place = Installation({}, {"A": "pending"})
    times = place.provoke(0.1)

    assert (times.firing_s, times.resolved_s) == (None, None)
    assert times.pending_s is not None
    assert "end" in place.calls


def test_an_alert_that_stays_is_not_resolved() -> None:
    place = Installation({}, {"A": "firing"})
    times = place.provoke(0.1)

    assert times.firing_s is not None
    assert times.resolved_s is None


def test_nothing_is_provoked_while_its_alert_is_active() -> None:
    place = Installation({"A": "pending"})
    with pytest.raises(TimeoutError, match="A to be silent before the beginning"):
        place.provoke(0.1)

    assert place.calls == []
