"""Whose doing a busy machine is."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fixtures.machine import MachineUse

CPUS = os.cpu_count() or 1


def at(at_s: float, busy_s: float, own_s: float) -> MachineUse:
    return MachineUse(at_s=at_s, busy_s=busy_s, own_s=own_s)


class TestArithmetic:
    def test_others_have_what_was_used_and_is_not_ours(self) -> None:
        assert at(10, 6 * CPUS, 2 * CPUS).others_since(at(0, 0, 0)) == pytest.approx(0.4)

    def test_our_own_work_is_not_held_against_others(self) -> None:
        assert at(10, 10 * CPUS, 10 * CPUS).others_since(at(0, 0, 0)) == 0.0

    def test_stays_between_nothing_and_all(self) -> None:
        assert at(1, 5 * CPUS, 0).others_since(at(0, 0, 0)) == 1.0
        assert at(1, 0, 5).others_since(at(0, 0, 0)) == 0.0
        assert at(0, 1, 0).others_since(at(0, 0, 0)) == 0.0


def test_a_process_group_counts_as_ours_when_it_is_named() -> None:
    """A burner's processor time is found in its group, once it has used half a second."""
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        end = time.monotonic() + 60
        while MachineUse.now([burner.pid]).own_s - MachineUse.now().own_s < 0.5:
            assert time.monotonic() < end, "waited 60 s for the burner to use half a second"
            time.sleep(0.05)
    finally:
        burner.kill()
        burner.wait()
    assert MachineUse.now().busy_s > 0
