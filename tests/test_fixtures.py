"""What specs stand on: values that prove themselves, audits, statistics, verdicts and mutants."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self, cast

import pytest
from _pytest._io import TerminalWriter
from hypothesis import given
from hypothesis import strategies as st

from fixtures.aof import base_file, command_offsets, log_file
from fixtures.engines import ENGINES
from fixtures.faults.catalog import faults_from_json
from fixtures.latency import Latencies
from fixtures.ledger import Audit, Ledger
from fixtures.load import Item, Payloads, batched, error_code, evictable_workloads, workload_items
from fixtures.observe import parse_output_buffer_limits, wait_for
from fixtures.plugin import find_violation
from fixtures.progress import Progress
from fixtures.spec import check, checks_made, clause
from fixtures.statistics import ProportionTest
from fixtures.targets import CAPABILITIES_BY_KIND
from fixtures.targets.base import read_info
from fixtures.targets.configuration import server_settings
from inference_cache.connection import Client
from inference_cache.contract import CAPABILITIES, Level, load
from inference_cache.errors import CommandRejected, ServerFull, Unreachable
from inference_cache.gate.findings import Finding, SpecResult, Violation
from inference_cache.gate.options import IMPLEMENTATIONS
from inference_cache.gate.spec_index import spec_index
from mutants.catalog import GOOD_SYSTEMS, MUTANTS
from mutants.costs import quick_choice
from mutants.environments import ENVIRONMENTS
from mutants.lifecycle import HOOKS, argument
from mutants.manifests import MANIFESTS
from mutants.matrix import track_record, write_matrix
from mutants.model import GoodSystem, Mutant, System, Way
from mutants.record import Record
from mutants.run import Judgment, Standing, _acted, _same_setting, _standing
from mutants.selftest import unkilled_clauses
from mutants.suite import SUITE_CHECKS
from mutants.suite_patches import PATCHES

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = load()
SPECS = spec_index(ROOT / "conformance")
PAYLOADS = Payloads(random.Random(1))


@contextmanager
def at_most(limit_s: int) -> Iterator[None]:
    """Ends code that loops for ever: it must not take the whole run with it."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still running after {limit_s} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- values -----------------------------------------------------------------------------------------

KEYS = st.binary(min_size=1, max_size=40)
SIZES = st.one_of(st.integers(0, 200), st.sampled_from([4096, 600_000, 1_200_000]))
VERSIONS = st.integers(0, 2**32 - 1)


class TestPayloads:
    @given(key=KEYS, size=SIZES, version=VERSIONS)
    def test_own_value_tells_its_version(self, key: bytes, size: int, version: int) -> None:
        value = PAYLOADS.make(key, size, version)
        assert len(value) == max(size, 16)
        assert PAYLOADS.version_of(key, value) == version

    @given(key=KEYS, size=SIZES, version=VERSIONS, data=st.data())
    def test_truncated_value_is_not_recognised(
        self, key: bytes, size: int, version: int, data: st.DataObject
    ) -> None:
        value = PAYLOADS.make(key, size, version)
        kept = data.draw(st.integers(0, len(value) - 1))
        assert PAYLOADS.version_of(key, value[:kept]) is None

    @given(key=KEYS, size=SIZES, version=VERSIONS, tail=st.binary(min_size=1, max_size=50))
    def test_extended_value_is_not_recognised(self, key: bytes, size: int, version: int, tail: bytes) -> None:
        assert PAYLOADS.version_of(key, PAYLOADS.make(key, size, version) + tail) is None

    @given(key=KEYS, size=st.integers(17, 5000), version=VERSIONS, data=st.data())
    def test_flipped_bit_of_the_body_is_noticed(
        self, key: bytes, size: int, version: int, data: st.DataObject
    ) -> None:
        value = bytearray(PAYLOADS.make(key, size, version))
        bit = data.draw(st.integers(128, size * 8 - 1))
        value[bit // 8] ^= 1 << (bit % 8)
        assert PAYLOADS.version_of(key, bytes(value)) is None

    @pytest.mark.parametrize("size", [16, 64, 5000])
    def test_every_bit_of_the_header_is_guarded(self, size: int) -> None:
        """Digest, version and length: a damaged version must not read as a whole copy of another one."""
        value = PAYLOADS.make(b"k", size, 7)
        unnoticed = []
        for bit in range(128):
            damaged = bytearray(value)
            damaged[bit // 8] ^= 1 << (bit % 8)
            if PAYLOADS.version_of(b"k", bytes(damaged)) is not None:
                unnoticed.append(bit)
        assert unnoticed == []

    @given(key=KEYS, other=KEYS, size=SIZES, version=VERSIONS)
    def test_foreign_value_is_not_recognised(self, key: bytes, other: bytes, size: int, version: int) -> None:
        recognised = PAYLOADS.version_of(key, PAYLOADS.make(other, size, version))
        assert recognised == (version if key == other else None)

    @given(key=KEYS, value=st.binary(max_size=100))
    def test_anything_else_is_not_recognised(self, key: bytes, value: bytes) -> None:
        """Empty ones and ones that claim to be gigabytes long too."""
        assert PAYLOADS.version_of(key, value) is None

    def test_versions_of_a_key_differ(self) -> None:
        assert len({PAYLOADS.make(b"k", 64, version) for version in range(1000)}) == 1000

    def test_randomness_decides_the_values(self) -> None:
        one, same, other = (Payloads(random.Random(seed)).make(b"k", 64) for seed in (7, 7, 8))
        assert one == same != other


class TestLoad:
    @given(
        sizes=st.lists(st.integers(0, 3000), max_size=80), limit=st.integers(1, 4000), most=st.integers(1, 9)
    )
    def test_batches_keep_their_limits_and_lose_nothing(
        self, sizes: list[int], limit: int, most: int
    ) -> None:
        """A batch is within both limits, or it is one item larger than the limit in bytes."""
        items = [Item(key=b"%d" % n, value=b"x" * size) for n, size in enumerate(sizes)]
        batches = list(batched(iter(items), batch_bytes=limit, batch_items=most))
        assert [item for batch in batches for item in batch] == items
        for batch in batches:
            assert 1 <= len(batch) <= most
            assert len(batch) == 1 or sum(len(item.value) for item in batch) <= limit

    def test_workload_items_carry_their_workloads_ttl(self) -> None:
        """In turn, distinct, recognisable, of the given sizes, and at most one item above the total."""
        workloads = list(CONTRACT.workloads.values())
        items = list(
            workload_items(
                workloads,
                PAYLOADS,
                random.Random(2),
                total_bytes=200_000,
                name="here",
                sizes_bytes=(100, 5000),
            )
        )
        assert len({item.key for item in items}) == len(items)
        for number, item in enumerate(items):
            workload = workloads[number % len(workloads)]
            assert item.key.startswith(f"{workload.prefix}here:".encode())
            assert item.ttl_ms == (None if workload.ttl_s is None else workload.ttl_s * 1000)
            assert PAYLOADS.version_of(item.key, item.value) == 0
        assert {len(item.value) for item in items} == {100, 5000}
        assert 200_000 <= sum(len(item.value) for item in items) < 205_000

    def test_workloads_without_a_ttl_are_evictable_under_allkeys_only(self) -> None:
        """Under the safe contract's volatile-lru only keys with a TTL may go."""
        safe = load("adr_0023_safe")
        assert safe.instance.maxmemory_policy == "volatile-lru"
        assert evictable_workloads(CONTRACT) == list(CONTRACT.workloads.values())
        assert {w.name for w in evictable_workloads(safe)} == {
            name for name, w in safe.workloads.items() if w.ttl_s is not None
        }

    def test_error_code_is_the_servers_word(self) -> None:
        """Also of an error that a typed one was made from; otherwise the name of the class."""
        full = ServerFull("the server is full")
        full.__cause__ = Exception("OOM command not allowed when used memory > 'maxmemory'.")
        assert error_code(full) == "OOM"
        assert error_code(CommandRejected("WRONGTYPE Operation against", code="WRONGTYPE")) == "WRONGTYPE"
        assert error_code(Unreachable("connection refused")) == "Unreachable"


# --- decisions --------------------------------------------------------------------------------------


class TestProportionTest:
    TEST = ProportionTest(low=0.65, high=0.95, error_rate=0.05)

    def simulate(self, rng: random.Random, proportion: float) -> str:
        successes = trials = 0
        decision = ""
        while not decision:
            trials += 1
            successes += rng.random() < proportion
            decision = self.TEST.decide(successes=successes, trials=trials)
        return decision

    @pytest.mark.parametrize(
        ("proportion", "right"), [(0.65, "low"), (0.95, "high"), (0.3, "low"), (1, "high")]
    )
    def test_wrong_decisions_stay_below_the_stated_rate(self, proportion: float, right: str) -> None:
        """At the hypotheses themselves, where deciding is hardest, and beyond them."""
        rng = random.Random(f"proportion {proportion}")
        runs = 4000
        wrong = sum(self.simulate(rng, proportion) != right for _ in range(runs))
        assert wrong <= self.TEST.error_rate * runs

    def test_undecided_until_the_evidence_suffices(self) -> None:
        """Nothing is decided without trials, and a smaller error rate takes more of them."""
        assert self.TEST.decide(successes=0, trials=0) == ""
        needed = []
        for rate in (0.05, 1e-3, 1e-6):
            test = ProportionTest(low=0.65, high=0.95, error_rate=rate)
            needed.append(next(n for n in range(1000) if test.decide(successes=n, trials=n)))
            assert test.decide(successes=needed[-1] - 1, trials=needed[-1] - 1) == ""
            assert test.decide(successes=0, trials=100) == "low"
        assert needed == sorted(set(needed))

    def test_in_between_can_stay_undecided(self) -> None:
        strict = ProportionTest(low=0.65, high=0.95, error_rate=1e-6)
        assert strict.decide(successes=33, trials=40) == ""


class TestLatencies:
    @pytest.mark.parametrize(
        ("count", "percent", "rank"),
        [
            *((1, 50, 1), (2, 50, 1), (3, 50, 2), (4, 50, 2), (10, 50, 5), (10, 90, 9), (10, 95, 10)),
            *((100, 99, 99), (100, 95, 95), (200, 99, 198), (1000, 99, 990), (1000, 99.9, 999)),
            *((100, 0, 1), (100, 100, 100), (101, 99, 100), (7, 25, 2)),
        ],
    )
    def test_percentile_is_the_nearest_rank(self, count: int, percent: float, rank: int) -> None:
        """The smallest latency that at least so many percent are not above."""
        shuffled = random.Random(count).sample(range(1, count + 1), count)
        latencies = Latencies([number / 1000 for number in shuffled])
        assert latencies.percentile_ms(percent) == rank

    def test_no_sample_is_zero(self) -> None:
        assert Latencies().percentile_ms(99) == 0.0
        assert len(Latencies()) == 0

    def test_curve_rises(self) -> None:
        curve = Latencies([random.Random(n).random() for n in range(500)]).curve("reads")
        assert list(curve.y) == sorted(curve.y)
        assert (curve.x[0], curve.x[-1]) == ("p0", "p100")


# --- the server's own words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "limits"),
    [
        (
            "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
            {"normal": 0, "slave": 268435456, "pubsub": 33554432},
        ),
        ("normal 1024 0 0", {"normal": 1024}),
        ("", {}),
        ("normal 0 0", {}),
    ],
)
def test_output_buffer_limits_are_read_by_class(setting: str, limits: dict[str, int]) -> None:
    assert parse_output_buffer_limits(setting) == limits


def test_info_is_read_as_text() -> None:
    """Numbers that look like fractions stay as they are, and values may hold colons."""

    class Told:
        def execute_command(self, *words: str) -> bytes:
            assert words == ("INFO server",)
            return b"# Server\r\nvalkey_version:9.10\r\n\r\nexecutable:/a:b\r\n"

    assert read_info(cast("Client", Told()), "server") == {"valkey_version": "9.10", "executable": "/a:b"}


def test_waiting_ends_with_what_was_waited_for() -> None:
    answers = iter([False, False, True])
    wait_for(lambda: next(answers), what="the third answer", deadline_s=30)
    with pytest.raises(TimeoutError, match=r"waited 0\.05 s for the moon"):
        wait_for(lambda: False, what="the moon", deadline_s=0.05)


def test_settings_of_a_server_are_the_contracts() -> None:
    """Scaling changes the size only, and a password is set only where there is one."""
    whole, scaled = server_settings(CONTRACT), server_settings(CONTRACT, maxmemory_bytes=5)
    assert whole["maxmemory"] == str(CONTRACT.instance.maxmemory_bytes)
    assert whole | {"maxmemory": "5"} == scaled
    assert "requirepass" not in whole
    assert server_settings(CONTRACT, password="p")["requirepass"] == "p"


def test_capabilities_are_of_the_contract() -> None:
    for kind, offered in CAPABILITIES_BY_KIND.items():
        assert offered <= CAPABILITIES, kind
    assert CAPABILITIES_BY_KIND["live"] == {"read"}


# --- append-only files ------------------------------------------------------------------------------

COMMANDS = st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=5), max_size=8)
STAMPS = st.booleans()


def encoded(command: Sequence[bytes]) -> bytes:
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in command)
    return b"*%d\r\n%s" % (len(command), parts)


def written_log(commands: Sequence[Sequence[bytes]], *, stamped: bool) -> tuple[bytes, list[int]]:
    """A log, and where its commands begin and the last one ends."""
    raw, offsets = b"", []
    for number, command in enumerate(commands):
        if stamped:
            raw += b"#TS:%d\r\n" % (1_700_000_000 + number)
        offsets.append(len(raw))
        raw += encoded(command)
    return raw, [*offsets, len(raw)]


class TestAppendOnlyFiles:
    @given(commands=COMMANDS, stamped=STAMPS)
    def test_offsets_are_those_of_the_commands(self, commands: list[list[bytes]], stamped: bool) -> None:
        """Whatever the arguments hold: line ends, marks of commands, nothing."""
        raw, offsets = written_log(commands, stamped=stamped)
        assert command_offsets(raw) == offsets

    def test_arguments_that_look_like_commands_are_none(self) -> None:
        raw, offsets = written_log([[b"SET", encoded([b"DEL", b"k"])], [b"#TS:1\r\n", b""]], stamped=True)
        assert command_offsets(raw) == offsets

    @given(commands=COMMANDS.filter(bool), stamped=STAMPS, data=st.data())
    def test_cut_tail_is_told(self, commands: list[list[bytes]], stamped: bool, data: st.DataObject) -> None:
        """Every cut inside the last command, or inside the stamp before it."""
        raw, offsets = written_log(commands, stamped=stamped)
        cut = data.draw(st.integers(offsets[-2] + 1, len(raw) - 1))
        with pytest.raises(ValueError, match=r"\S"):
            command_offsets(raw[:cut])

    @pytest.mark.parametrize(
        "raw",
        [
            b"hello",
            b"REDIS0011\xfa",
            b"*x\r\n",
            b"*\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*1\r\n$\r\n\r\n",
            b"*1\r\nX4\r\nPING\r\n",
            b"*1\r\n$4\r\nPINGxx",
            b"*1\r\n$-1\r\n",
            b"*1\r\n$-12\r\n",
            b"*1\r\n$4\r\nPING\r\n\x00",
        ],
    )
    def test_garbage_is_told(self, raw: bytes) -> None:
        """Marks, counts, lengths and line ends are all looked at, and looking ends."""
        with at_most(5), pytest.raises(ValueError, match=r"\S"):
            command_offsets(raw)

    def test_newest_file_with_commands_is_found(self, tmp_path: Path) -> None:
        """By number, not by name: 10 comes after 9; an empty one holds no commands."""
        folder = tmp_path / "appendonlydir"
        folder.mkdir()
        with pytest.raises(FileNotFoundError, match="no append-only file"):
            log_file(tmp_path)
        with pytest.raises(FileNotFoundError, match="no snapshot"):
            base_file(tmp_path, append_only=True)
        for number in (9, 10, 11):
            (folder / f"appendonly.aof.{number}.incr.aof").write_bytes(b"*" if number < 11 else b"")
            (folder / f"appendonly.aof.{number}.base.rdb").write_bytes(b"")
        assert log_file(tmp_path).name == "appendonly.aof.10.incr.aof"
        assert base_file(tmp_path, append_only=True).name == "appendonly.aof.11.base.rdb"

    def test_dump_is_the_snapshot_of_a_server_without_a_log(self, tmp_path: Path) -> None:
        """And only of such a one: a server with a log does not load it."""
        (tmp_path / "dump.rdb").touch()
        assert base_file(tmp_path, append_only=False).name == "dump.rdb"
        with pytest.raises(FileNotFoundError, match="no snapshot"):
            base_file(tmp_path, append_only=True)


# --- the ledger -------------------------------------------------------------------------------------


class StandIn:
    """A server in memory that takes writes until it is gone."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.gone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set(self, key: bytes, value: bytes) -> None:
        if self.gone:
            raise Unreachable("gone")
        self.values[key] = value

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def numbers(self, writer: int) -> list[int]:
        head = f"emb:ledger:{writer}:".encode()
        return sorted(int(key.removeprefix(head)) for key in self.values if key.startswith(head))

    def drop(self, writer: int, *numbers: int) -> None:
        for number in numbers:
            del self.values[f"emb:ledger:{writer}:{number}".encode()]


def ledger_of(server: StandIn, *, writers: int = 2) -> Ledger:
    return Ledger(lambda: cast("Client", server), "emb:", random.Random(3), writers=writers)


@pytest.fixture
def crashed() -> tuple[StandIn, Ledger]:
    """A server that went away while two connections wrote, each at least a dozen acknowledged."""
    server = StandIn()
    ledger = ledger_of(server)
    ledger.start()
    wait_for(
        lambda: all(len(server.numbers(writer)) >= 12 for writer in (0, 1)), what="the writers", deadline_s=30
    )
    server.gone = True
    ledger.finish()
    return server, ledger


def audited(server: StandIn, ledger: Ledger, *, age_s: float = 0, window_s: float = 3600) -> Audit:
    """The audit of a crash so long after the last acknowledgement."""
    return ledger.audit(cast("Client", server), crashed_at_s=time.monotonic() + age_s, window_s=window_s)


class TestLedger:
    def test_all_there(self, crashed: tuple[StandIn, Ledger]) -> None:
        server, ledger = crashed
        audit = audited(server, ledger)
        assert audit.acknowledged == len(server.values)
        assert (audit.missing, audit.damaged, audit.out_of_order, audit.oldest_loss_s) == (0, 0, 0, 0)
        assert audit.first_problem == ""

    def test_lost_at_the_end_within_the_window(self, crashed: tuple[StandIn, Ledger]) -> None:
        """The newest writes of a connection may go, and are owed no longer."""
        server, ledger = crashed
        total = len(server.values)
        server.drop(0, *server.numbers(0)[-3:])
        audit = audited(server, ledger)
        assert (audit.acknowledged, audit.missing) == (total, 3)
        assert (audit.missing_beyond_window, audit.out_of_order, audit.first_problem) == (0, 0, "")
        assert audit.oldest_loss_s >= 0
        again = audited(server, ledger)
        assert (again.acknowledged, again.missing) == (total - 3, 0)

    def test_lost_beyond_the_window(self, crashed: tuple[StandIn, Ledger]) -> None:
        """The same losses, at a crash long after: the oldest is told with its age."""
        server, ledger = crashed
        newest = server.numbers(1)[-1]
        server.drop(1, newest)
        audit = audited(server, ledger, age_s=100, window_s=2)
        assert (audit.missing, audit.missing_beyond_window, audit.out_of_order) == (1, 1, 0)
        assert 100 <= audit.oldest_loss_s < 160
        assert f"emb:ledger:1:{newest} is missing, acknowledged 1" in audit.first_problem

    def test_lost_out_of_order(self, crashed: tuple[StandIn, Ledger]) -> None:
        """What a later write of the same connection outlived; the other connection's writes say nothing."""
        server, ledger = crashed
        first, *_, last = server.numbers(0)
        server.drop(0, first, last)
        audit = audited(server, ledger)
        assert (audit.missing, audit.missing_beyond_window, audit.out_of_order) == (2, 0, 1)
        assert audit.first_problem == f"emb:ledger:0:{first} is missing, a later write is there"

    def test_whole_connection_lost_is_not_out_of_order(self, crashed: tuple[StandIn, Ledger]) -> None:
        server, ledger = crashed
        numbers = server.numbers(0)
        server.drop(0, *numbers)
        audit = audited(server, ledger)
        assert (audit.missing, audit.out_of_order) == (len(numbers), 0)

    @pytest.mark.parametrize(
        "damage",
        [lambda value: value[:-1], lambda value: value[:-1] + bytes([value[-1] ^ 1]), lambda value: b""],
        ids=["short", "flipped", "empty"],
    )
    def test_damaged(self, crashed: tuple[StandIn, Ledger], damage: Callable[[bytes], bytes]) -> None:
        """A value that is there and wrong is not missing: it is worse."""
        server, ledger = crashed
        key = b"emb:ledger:1:4"
        server.values[key] = damage(server.values[key])
        audit = audited(server, ledger)
        assert (audit.missing, audit.damaged) == (0, 1)
        assert audit.first_problem.startswith("emb:ledger:1:4 reads as ")

    def test_value_of_another_key_is_damage(self, crashed: tuple[StandIn, Ledger]) -> None:
        server, ledger = crashed
        server.values[b"emb:ledger:1:4"] = server.values[b"emb:ledger:1:5"]
        assert audited(server, ledger).damaged == 1

    def test_writing_goes_on_after_a_restart(self, crashed: tuple[StandIn, Ledger]) -> None:
        """Numbers go on, what was there stays owed."""
        server, ledger = crashed
        before = len(server.values)
        server.gone = False
        ledger.start()
        wait_for(lambda: len(server.values) > before + 4, what="new writes", deadline_s=30)
        ledger.finish()
        server.drop(0, server.numbers(0)[0])
        audit = audited(server, ledger)
        assert (audit.acknowledged, audit.missing, audit.out_of_order) == (len(server.values) + 1, 1, 1)

    def test_what_a_writer_ran_into_is_raised(self) -> None:
        """Losing the server is the point; anything else is a defect of the suite."""

        class Broken(StandIn):
            def set(self, key: bytes, value: bytes) -> None:
                raise LookupError("no such method")

        ledger = ledger_of(Broken(), writers=1)
        ledger.start()
        with pytest.raises(LookupError, match="no such method"):
            ledger.finish()


# --- from a test to a verdict -----------------------------------------------------------------------


def violation(text: str = "seen") -> Violation:
    return Violation(Finding(expected="wanted", observed=text))


class TestFindingTheViolation:
    def test_itself(self) -> None:
        error = violation()
        assert find_violation(error) is error
        assert find_violation(None) is None
        assert find_violation(ValueError("x")) is None

    def test_in_a_group_of_groups(self) -> None:
        error = violation()
        inner = ExceptionGroup("inner", [ValueError("x"), error])
        assert find_violation(ExceptionGroup("outer", [KeyError("y"), inner])) is error

    def test_as_cause_and_as_context(self) -> None:
        """What the clean-up ran into does not hide the verdict."""
        error = violation()
        caused, beside = RuntimeError("teardown"), RuntimeError("teardown")
        caused.__cause__ = error
        beside.__context__ = error
        assert find_violation(caused) is error
        assert find_violation(beside) is error

    def test_errors_that_cause_each_other(self) -> None:
        one, other = ValueError("one"), ValueError("other")
        one.__cause__, other.__context__ = other, one
        with at_most(5):
            assert find_violation(one) is None


def test_check_judges_and_counts() -> None:
    before = checks_made()
    check(True, expected="e", observed="o")
    with pytest.raises(Violation) as raised:
        check(False, expected="e", observed="o", evidence={"n": 1}, remedy="r")
    assert checks_made() == before + 2
    assert raised.value.finding == Finding(expected="e", observed="o", evidence={"n": 1}, remedy="r")
    assert str(raised.value) == "expected e; observed o"


def test_unknown_need_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match=r"MEM-01: unknown needs \['fil'\]"):
        clause("MEM-01", needs={"fil"})


SUITE = """
import pytest
from hypothesis import given, strategies as st
from fixtures.spec import check, clause, not_proven

@clause("CFG-01")
def test_judges_nothing():
    pass

@clause("CFG-02")
def test_fails_in_two_ways():
    @given(st.integers())
    def example(number):
        check(number < 100, expected="below 100", observed="more", evidence={"number": number})
        check(number > -100, expected="above -100", observed="less", remedy="add")
    example()

@clause("CFG-03")
def test_breaks():
    raise RuntimeError("no disk today")

@clause("CFG-05")
def test_cannot_tell():
    not_proven("the server hides it")

@clause("CFG-06")
def test_holds(target):
    check(True, expected="", observed="")

@clause("CFG-06")
def test_holds_in_part():
    check(True, expected="", observed="")
    not_proven("the rest is hidden")

@pytest.fixture
def unsteady():
    yield
    raise OSError("clean-up failed")

@clause("CFG-07")
def test_cleans_up_badly(unsteady):
    check(True, expected="", observed="")

@clause("CFG-09", needs={"gpu"})
def test_needs_more_than_there_is():
    raise AssertionError("it must not run")
"""


def run_suite(folder: Path, source: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and report of specs of one's own."""
    (folder / "test_own.py").write_text(source, "utf-8")
    ended = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "fixtures.plugin",
                "-c",
                ROOT / "conformance" / "pytest.ini",
            ),
            *("--rootdir", folder, folder / "test_own.py", "--report-dir", folder / "reports", "-q"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    file = folder / "reports" / "report.json"
    return ended.returncode, ended.stdout, json.loads(file.read_text("utf-8")) if file.exists() else {}


class TestOwnSpecs:
    @pytest.fixture
    def conftest(self, tmp_path: Path) -> Path:
        """The fixtures of the suite, for specs outside of it."""
        names = "contract, evidence, rng, servers, target"
        (tmp_path / "conftest.py").write_text(f"from conformance.conftest import {names}\n", "utf-8")
        return tmp_path

    def test_every_way_a_spec_ends_is_told_apart(self, conftest: Path) -> None:
        code, output, report = run_suite(conftest, SUITE)
        assert code == 1, output
        clauses = {c["id"]: c for c in report["clauses"]}
        outcomes = {
            clause_id: clauses[clause_id]["outcome"] for clause_id in clauses if clauses[clause_id]["specs"]
        }
        assert outcomes == {
            "CFG-01": "error",
            "CFG-02": "failed",
            "CFG-03": "error",
            "CFG-05": "not proven",
            "CFG-06": "passed",
            "CFG-07": "error",
            "CFG-09": "not proven",
        }
        reasons = {clause_id: clauses[clause_id]["reason"] for clause_id in outcomes}
        assert "ended without judging anything: it must call check() or not_proven()" in reasons["CFG-01"]
        assert reasons["CFG-03"] == "RuntimeError in call: no disk today"
        assert reasons["CFG-05"] == "the server hides it"
        assert reasons["CFG-06"] == "test_holds_in_part: not proven: the rest is hidden"
        assert reasons["CFG-07"] == "OSError in teardown: clean-up failed"
        assert "needs gpu, which is not here" in reasons["CFG-09"]
        (finding,) = clauses["CFG-02"]["findings"]
        assert finding["expected"] in ("below 100", "above -100")
        assert finding["remedy"] in (CONTRACT.clauses["CFG-02"].remedy, "add")

    @pytest.mark.parametrize(
        ("source", "told"),
        [
            ("def test_unmarked():\n    pass\n", "names no clause; mark it with @clause(...)"),
            ("import no_such_module\n", "no_such_module"),
            (
                "from fixtures.spec import clause\n@clause('CFG-77')\ndef test_one():\n    pass\n",
                "names CFG-77, which is not in the catalogue",
            ),
        ],
        ids=["unmarked", "not_importable", "unknown_clause"],
    )
    def test_suite_that_is_wrong_is_broken(self, tmp_path: Path, source: str, told: str) -> None:
        """3, not a verdict: 4 would read as "not proven"."""
        code, output, report = run_suite(tmp_path, source)
        assert told in output
        assert code == 3, output
        assert report["verdict"] == "broken"


def test_group_is_told_once_all_of_it_has_run() -> None:
    """Its tally, its time, and the clauses that did not hold, each once."""
    screen = io.StringIO()
    progress = Progress(writer=TerminalWriter(screen), totals={"CFG": 3}, live=False)
    progress.start("headline")
    for spec, outcome in (("a", "passed"), ("b", "failed"), ("c", "failed")):
        result = SpecResult(clause="CFG-01", spec=spec, outcome=outcome, duration_s=0.5)
        progress.finished(result, CONTRACT.clauses["CFG-01"])
    progress.close()
    assert screen.getvalue() == "headline\nCFG  3/3 specs  2 failed, 1 passed  1.5 s  [CFG-01 failed]\n"


def test_specs_are_indexed_by_clause_without_importing_them(tmp_path: Path) -> None:
    """Whatever other decorators a spec has; helpers and other files are none."""
    (tmp_path / "test_a.py").write_text(
        "import no_such_module\n@clause('X-01', needs={'read'})\n@other\ndef test_one(): ...\n"
        "@given(x=1)\n@clause('X-02')\ndef test_two(): ...\ndef helper(): ...\n",
        "utf-8",
    )
    (tmp_path / "test_b.py").write_text("@clause('X-01')\ndef test_three(): ...\n", "utf-8")
    (tmp_path / "conftest.py").write_text("@clause('X-03')\ndef test_four(): ...\n", "utf-8")
    assert spec_index(tmp_path) == {
        "X-01": ["test_a.py::test_one", "test_b.py::test_three"],
        "X-02": ["test_a.py::test_two"],
    }


# --- mutants ----------------------------------------------------------------------------------------

MUTANT = Mutant(id="T", title="t", way=Way.CONFIGURATION, clause="CFG-02", settings={"maxmemory-policy": "x"})
GOOD = GoodSystem(id="G", title="g")


def judged(clause_id: str, outcome: str, *, finding: bool = False, selected: bool = True) -> dict[str, Any]:
    return {
        "id": clause_id,
        "level": str(CONTRACT.clauses[clause_id].level),
        "outcome": outcome,
        "reason": f"because of {outcome}",
        "selected": selected,
        "findings": [{"observed": "policy x"}] if finding else [],
    }


def standing_of(system: System, *clauses: dict[str, Any], acted: int = 1) -> tuple[Standing, str]:
    return _standing(system, {"clauses": list(clauses), "reason": "the whole reason"}, acted)


class TestStanding:
    def test_killed_by_its_own_clause_with_a_finding(self) -> None:
        assert standing_of(MUTANT, judged("CFG-02", "failed", finding=True)) == (Standing.KILLED, "policy x")

    def test_survived_when_its_clause_passed(self) -> None:
        """Another clause that fails does not save the suite from having missed it."""
        others = judged("CFG-01", "failed", finding=True)
        assert standing_of(MUTANT, others, judged("CFG-02", "passed"))[0] is Standing.SURVIVED

    @pytest.mark.parametrize("outcome", ["error", "not proven", "waived"])
    def test_anything_but_a_verdict_is_the_wrong_reason(self, outcome: str) -> None:
        standing, detail = standing_of(MUTANT, judged("CFG-02", outcome))
        assert standing is Standing.WRONG_REASON
        assert f"because of {outcome}" in detail

    def test_failed_without_a_finding_is_the_wrong_reason(self) -> None:
        assert standing_of(MUTANT, judged("CFG-02", "failed"))[0] is Standing.WRONG_REASON

    def test_no_report_is_the_wrong_reason(self) -> None:
        standing, detail = standing_of(MUTANT)
        assert standing is Standing.WRONG_REASON
        assert "the whole reason" in detail

    @pytest.mark.parametrize("outcome", ["failed", "passed"])
    def test_one_that_never_acted_is_broken_whatever_was_judged(self, outcome: str) -> None:
        report = judged("CFG-02", outcome, finding=outcome == "failed")
        assert standing_of(MUTANT, report, acted=0)[0] is Standing.BROKEN

    def test_good_system_is_accepted(self) -> None:
        """A SHOULD clause may fail: it is a finding, not a rejection."""
        clauses = (judged("CFG-01", "passed"), judged("CFG-06", "failed", finding=True))
        assert standing_of(GOOD, *clauses, acted=0) == (Standing.ACCEPTED, "1 clauses passed")

    @pytest.mark.parametrize("outcome", ["failed", "error"])
    def test_must_clause_against_a_good_system_is_a_false_alarm(self, outcome: str) -> None:
        standing, detail = standing_of(GOOD, judged("CFG-01", "passed"), judged("CFG-02", outcome))
        assert standing is Standing.FALSE_ALARM
        assert f"CFG-02 {outcome}" in detail

    def test_good_system_of_which_nothing_was_proven_is_a_false_alarm(self) -> None:
        """Silence is not acceptance; clauses that were not selected do not count."""
        clauses = (judged("CFG-01", "not proven"), judged("CFG-02", "passed", selected=False))
        assert standing_of(GOOD, *clauses)[0] is Standing.FALSE_ALARM
        assert standing_of(GOOD)[0] is Standing.FALSE_ALARM

    def test_only_killed_and_accepted_are_good(self) -> None:
        assert {s for s in Standing if s.good} == {Standing.KILLED, Standing.ACCEPTED}
        assert not Standing.NOT_JUDGED.bad

    def test_settings_act_where_the_server_tells_them(self, tmp_path: Path) -> None:
        """Sizes are compared as sizes; a setting that did not arrive is not counted."""
        mutant = Mutant(
            id="T", title="t", way=Way.CONFIGURATION, clause="CFG-01", settings={"maxmemory": "160mb"}
        )
        for told, acted in (("167772160", 1), ("160mb", 1), ("0", 0), (None, 0)):
            config = {} if told is None else {"maxmemory": told}
            assert _acted(mutant, {"target": {"config": config}}, tmp_path / "none.json", {}) == acted
        assert not _same_setting("yes", "no")
        assert _same_setting("", "")

    def test_must_clause_without_a_killer_is_named(self) -> None:
        """A mutant that survives kills nothing."""
        everything = [judgment(m, Standing.KILLED) for m in MUTANTS]
        assert unkilled_clauses(everything) == []
        without = [
            judgment(m, Standing.SURVIVED if m.clause == "MEM-01" else Standing.KILLED) for m in MUTANTS
        ]
        assert unkilled_clauses(without) == ["MEM-01"]


def judgment(system: System, standing: Standing) -> Judgment:
    return Judgment(system=system, standing=standing, detail="", outcomes={}, acted=1, duration_s=0)


class TestCatalogOfSystems:
    SYSTEMS: tuple[System, ...] = (*MUTANTS, *GOOD_SYSTEMS)

    def test_ids_are_unique(self) -> None:
        ids = [system.id for system in self.SYSTEMS]
        assert sorted(ids) == sorted(set(ids))

    @pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.id)
    def test_mutant_names_a_clause_that_has_a_spec(self, mutant: Mutant) -> None:
        if mutant.way is Way.SUITE and mutant.clause not in CONTRACT.clauses:
            assert mutant.clause in ("exit codes", "live safety")
        else:
            assert mutant.clause in SPECS

    @pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.id)
    def test_what_a_system_is_made_of_exists(self, system: System, tmp_path: Path) -> None:
        """Hook, environment, faults, adapters and contract."""
        assert not system.hook or system.hook in HOOKS
        assert not system.environment or system.environment in ENVIRONMENTS
        assert not system.manifests or system.manifests in MANIFESTS
        assert set(system.suite_checks) <= SUITE_CHECKS.keys()
        assert set(system.groups) <= set(CONTRACT.groups())
        assert len(faults_from_json(json.dumps(list(system.faults)))) == len(system.faults)
        for name, path in system.implementation.items():
            assert name in IMPLEMENTATIONS
            module, _, attribute = path.partition(":")
            assert hasattr(__import__(module, fromlist=[attribute]), attribute)
        if system.contract:
            file = tmp_path / "contract.toml"
            file.write_text(system.contract.format_map({"folder": str(tmp_path), "port": "1"}), "utf-8")
            load(file)

    @pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.id)
    def test_mutant_differs_in_the_way_it_says(self, mutant: Mutant) -> None:
        """And in some way at all."""
        made_of = {
            Way.CONFIGURATION: mutant.settings,
            Way.PROXY: mutant.faults,
            Way.ADAPTER: mutant.implementation,
            Way.LIFECYCLE: mutant.hook,
            Way.CONTRACT: mutant.contract or mutant.manifests,
            Way.SUITE: mutant.patch in PATCHES and mutant.suite_checks,
            Way.ENVIRONMENT: mutant.environment,
        }
        assert made_of[mutant.way]

    def test_each_must_clause_with_specs_has_a_mutant(self) -> None:
        """A clause that no bad system was held against may be one that accepts everything."""
        named = {mutant.clause for mutant in MUTANTS}
        assert [i for i in SPECS if CONTRACT.clauses[i].level is Level.MUST and i not in named] == []

    def test_track_record_is_the_catalogues(self) -> None:
        """docs/TRACK_RECORD.md is what `inference-cache selftest --track-record` prints."""
        assert (ROOT / "docs" / "TRACK_RECORD.md").read_text("utf-8") == track_record()

    def test_quick_choice_has_one_mutant_for_each_clause_without_an_engine(self) -> None:
        clauses = [i for i in SPECS if CONTRACT.clauses[i].level is Level.MUST]
        ids, left_out = quick_choice(clauses)
        chosen = [mutant for mutant in MUTANTS if mutant.id in ids]
        assert sorted({mutant.clause for mutant in chosen} | set(left_out)) == sorted(clauses)
        assert len(chosen) == len(clauses) - len(left_out)
        assert all(CONTRACT.clauses[clause].needs & ENGINES.keys() for clause in left_out)

    def test_record_gives_back_what_stands(self, tmp_path: Path) -> None:
        """Good judgments of the same suite; not those that went wrong, and none of a suite since changed."""
        suite = tmp_path / "suite"
        (suite / "fixtures").mkdir(parents=True)
        (suite / "fixtures" / "a.py").write_text("1", "utf-8")
        record = Record(tmp_path / "reports", suite)
        one, other = judgment(MUTANTS[0], Standing.KILLED), judgment(MUTANTS[1], Standing.SURVIVED)
        assert record.earlier(MUTANTS) == []
        record.write([one, other], [], {})
        assert record.earlier(MUTANTS) == [one]
        assert Record(tmp_path / "reports", suite).earlier(MUTANTS[1:]) == []
        (suite / "fixtures" / "a.py").write_text("2", "utf-8")
        assert Record(tmp_path / "reports", suite).earlier(MUTANTS) == []

    def test_matrix_shows_what_went_wrong(self, tmp_path: Path) -> None:
        """A survivor, a false alarm and a clause without a killer stand on the page, escaped."""
        survivor = replace(judgment(MUTANTS[0], Standing.SURVIVED), detail="<b>passed</b>")
        alarm = replace(judgment(GOOD, Standing.FALSE_ALARM), outcomes={"MEM-02": "failed"})
        write_matrix(tmp_path / "matrix.html", [survivor, alarm], ["DUR-01"], ["RAY-01"])
        page = (tmp_path / "matrix.html").read_text("utf-8")
        for words in (
            "&lt;b&gt;passed",
            "false alarm",
            "MEM-02 failed",
            "killer: DUR-01",
            "RAY-01",
        ):
            assert words in page
        assert "<b>passed" not in page

    def test_last_value_of_an_argument_counts(self) -> None:
        """As for the server, whose command line overrides are appended to."""
        assert argument(["--dir", "a", "--port", "1", "--dir", "b"], "dir") == "b"
        assert argument(["--dir"], "dir") == argument([], "dir") == ""
