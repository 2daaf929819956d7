"""State machines against something that lives: what was found once is found."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, rule

from fixtures.spec import check
from fixtures.strategies import run_machine
from inference_cache.gate.findings import Violation


def machine(*, fails_at: int, error: type[Exception] | None = None) -> type[RuleBasedStateMachine]:
    """One whose rule fails when it is called for that time, and never again."""
    calls = 0

    class Machine(RuleBasedStateMachine):
        @rule(number=st.integers(0, 3))
        def step(self, number: int) -> None:
            nonlocal calls
            calls += 1
            if calls == fails_at and error is not None:
                raise error("once")
            check(calls != fails_at, expected="no such call", observed=f"call {calls}")

    return Machine


def test_a_violation_that_does_not_come_again_is_a_violation() -> None:
    with pytest.raises(Violation) as raised:
        run_machine(machine(fails_at=60), max_examples=20, steps=10)
    assert raised.value.finding.observed == "call 60"
    assert isinstance(raised.value.__cause__, Flaky)


def test_an_error_that_does_not_come_again_is_no_verdict() -> None:
    with pytest.raises(Flaky):
        run_machine(machine(fails_at=60, error=OSError), max_examples=20, steps=10)


def test_a_machine_that_finds_nothing_passes() -> None:
    run_machine(machine(fails_at=-1), max_examples=20, steps=10)
