"""The gate against every way in which a cache is deployed, and against what it cannot judge."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fixtures.targets.configuration import server_settings
from fixtures.targets.embedded import EmbeddedServer
from fixtures.topologies import (
    Authority,
    TlsServer,
    cluster,
    least_privilege,
    replication,
    sentinels,
    server_side_tls,
    single,
    socket_only,
    tls_front,
)
from inference_cache.connection import connect
from inference_cache.contract import load
from inference_cache.errors import AccessDenied, ServerReadOnly

DECIDED = server_settings(load(None))
"""Settings under which the contract's CFG clauses hold."""
READ_ONLY = ("CFG-01", "CFG-02", "CFG-03", "CFG-04", "CFG-06", "ISO-06")
SECRET = "hunter2/Ünlikely?&"
GATE_S = 120.0

DEBIAN_SERVER = shutil.which("redis-server")
needs_debian_server = pytest.mark.skipif(
    DEBIAN_SERVER is None, reason="a server with TLS of its own is needed: apt-get install redis-server"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one gate did."""

    code: int
    output: str
    report: Mapping[str, Any]
    folder: Path

    def outcomes(self) -> dict[str, str]:
        return {clause["id"]: clause["outcome"] for clause in self.report["clauses"] if clause["selected"]}

    def reason(self, clause_id: str) -> str:
        clause = next(clause for clause in self.report["clauses"] if clause["id"] == clause_id)
        return f"{clause['reason']} {clause['findings']}"

    def everything_written(self) -> str:
        files = (
            path.read_text("utf-8", "replace") for path in sorted(self.folder.rglob("*")) if path.is_file()
        )
        return self.output + "".join(files)


@pytest.fixture
def gate(tmp_path: Path) -> Callable[..., Run]:
    """Runs the gate as a user does and gives its exit code, what it printed and its report."""

    def run(*arguments: str, clauses: Sequence[str] = READ_ONLY, environment: Mapping[str, str] = {}) -> Run:
        folder = tmp_path / "reports"
        shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.run(
            [
                *(sys.executable, "-m", "inference_cache", "gate", "--workers", "0"),
                *("--report-dir", str(folder), *arguments),
                *(f"--clause={clause}" for clause in clauses),
            ],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GATE_S,
            check=False,
        )
        file = folder / "report.json"
        report = json.loads(file.read_text("utf-8")) if file.exists() else {"clauses": []}
        return Run(code=process.returncode, output=process.stdout, report=report, folder=folder)

    return run


def url_of(server: EmbeddedServer) -> str:
    return server.login_url()


# --- what is judged


def test_a_primary_with_a_replica_is_judged(gate: Callable[..., Run]) -> None:
    with replication(DECIDED) as pair:
        run = gate("--url", pair.primary.url)
        with connect(pair.replica.url) as replica, pytest.raises(ServerReadOnly):
            replica.set("emb:topology", "x")
    assert (run.code, set(run.outcomes().values())) == (0, {"passed"}), run.output


def test_the_primary_that_sentinels_name_is_judged(gate: Callable[..., Run]) -> None:
    with sentinels(count=3) as watched:
        run = gate("--url", watched.url, clauses=["CFG-04", "ISO-06"])
    assert (run.code, set(run.outcomes().values())) == (0, {"passed"}), run.output
    assert run.report["target"]["server_name"] == "valkey"


def test_sentinels_that_know_no_such_service_are_unreachable(gate: Callable[..., Run]) -> None:
    with sentinels(count=1) as watched:
        run = gate("--url", watched.url.replace("/cache", "/cahce"))
    assert run.code == 3
    assert "knows no service 'cahce'" in run.output


def test_every_primary_of_a_cluster_is_judged(gate: Callable[..., Run]) -> None:
    with cluster(DECIDED) as whole:
        assert {run_id(node) for node in whole.nodes} == {run_id(node) for node in whole.nodes}
        run = gate("--url", whole.url)
        assert (run.code, set(run.outcomes().values())) == (0, {"passed"}), run.output

        with connect(whole.nodes[2].url) as last:
            last.config_set("maxmemory", "0")
        with connect(whole.url) as client:
            client.set("stray:1", "x")
        run = gate("--url", whole.url)
    assert run.code == 1
    assert {name for name, outcome in run.outcomes().items() if outcome == "failed"} == {"CFG-01", "ISO-06"}
    assert "all primaries of the cluster have the same maxmemory" in run.reason("CFG-01")
    assert "stray:* (1 keys" in run.reason("ISO-06")


def run_id(node: EmbeddedServer) -> str:
    with node.connect() as client:
        return str(client.info("server")["run_id"])


def test_a_user_without_config_and_info_gives_not_proven(gate: Callable[..., Run]) -> None:
    with least_privilege(DECIDED) as limited:
        with connect(limited.url) as client:
            for forbidden in (["CONFIG", "GET", "*"], ["INFO"], ["FLUSHALL"], ["ACL", "LIST"], ["KEYS", "*"]):
                with pytest.raises(AccessDenied):
                    client.execute_command(*forbidden)
        run = gate("--url", limited.url)
        assert run.code == 0, run.output
        assert run.outcomes() == {**dict.fromkeys(READ_ONLY, "not proven"), "ISO-06": "passed"}
        assert "CONFIG GET is not permitted" in run.reason("CFG-01")
        assert "INFO is not permitted" in run.reason("CFG-04")
        assert gate("--url", limited.url, clauses=["CFG-01", "CFG-04"]).code == 5
        assert gate("--url", limited.url, "--require-all").code == 4
    assert limited.password not in run.everything_written()


def test_a_server_on_a_unix_socket_only_is_judged(gate: Callable[..., Run]) -> None:
    with socket_only(DECIDED) as server:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        run = gate("--url", server.url)
    assert (run.code, set(run.outcomes().values())) == (0, {"passed"}), run.output


@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_password_stays_where_it_is_kept(gate: Callable[..., Run], tmp_path: Path, source: str) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\n", "utf-8")
    place = f"password_file={file}" if source == "file" else "password_env=CACHE_PASSWORD"
    environment = {} if source == "file" else {"CACHE_PASSWORD": SECRET}
    with single({**DECIDED, "requirepass": SECRET}) as server:
        run = gate("--url", f"{server.url}?{place}", environment=environment)
    assert (run.code, set(run.outcomes().values())) == (0, {"passed"}), run.output
    assert SECRET not in run.everything_written()
    assert "hunter2" not in run.everything_written()


# --- TLS


TLS = "[instance]\ntls = true\n"
ANY_SERVER = TLS + 'servers = ["valkey", "redis"]\nsupported_versions = ["7", "8", "9"]\n'


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with Authority() as made:
        yield made


@pytest.fixture
def contract_file(tmp_path: Path) -> Path:
    path = tmp_path / "tls.toml"
    path.write_text(ANY_SERVER, "utf-8")
    return path


def test_an_embedded_server_is_judged_behind_a_terminator(
    gate: Callable[..., Run], contract_file: Path
) -> None:
    run = gate("--contract", str(contract_file), clauses=["SEC-02", "CFG-04", "SEC-01"])
    assert (run.code, set(run.outcomes().values())) == (0, {"passed"}), run.output
    assert any("terminator" in note for note in run.report["target"]["notes"])
    assert "terminator" in next(c for c in run.report["clauses"] if c["id"] == "SEC-02")["proven_on"]


@contextmanager
def in_front(authority: Authority, **options: Any) -> Iterator[TlsServer]:
    with socket_only(DECIDED) as server, tls_front(server, authority, **options) as front:
        yield front


@contextmanager
def debian(authority: Authority, **options: Any) -> Iterator[TlsServer]:
    assert DEBIAN_SERVER is not None
    settings = {name: value for name, value in DECIDED.items() if name in ("maxmemory", "maxmemory-policy")}
    with server_side_tls(Path(DEBIAN_SERVER), authority, settings, **options) as server:
        yield server


TlsKind = Callable[..., AbstractContextManager[TlsServer]]
both_kinds = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(in_front, id="terminator"),
        pytest.param(debian, id="server-side", marks=needs_debian_server),
    ],
)


@both_kinds
def test_tls_with_client_certificates_is_judged(
    gate: Callable[..., Run], authority: Authority, contract_file: Path, kind: TlsKind
) -> None:
    chain, key = authority.issue("client", "client.example")
    with kind(authority, client_certificates=True) as server:
        url = server.url(tls_cert_file=chain, tls_key_file=key)
        run = gate("--url", url, "--contract", str(contract_file), clauses=["SEC-02", "CFG-04"])
        assert (run.code, set(run.outcomes().values())) == (0, {"passed"}), run.output

        without = gate("--url", server.url(), "--contract", str(contract_file))
    assert without.code == 3
    assert "certificate" in without.output


@both_kinds
def test_a_certificate_that_cannot_be_trusted_is_refused(
    gate: Callable[..., Run], authority: Authority, contract_file: Path, kind: TlsKind
) -> None:
    with ExitStack() as stack:
        other = stack.enter_context(Authority())
        good = stack.enter_context(kind(authority))
        expired = stack.enter_context(
            kind(authority, certificate=authority.issue("expired", "127.0.0.1", expired=True))
        )
        misnamed = stack.enter_context(kind(authority, certificate=authority.issue("other", "cache.example")))
        for url, words in (
            (good.url(tls_ca_file=other.ca_file), "is not trusted: give tls_ca_file"),
            (good.url(tls_ca_file=None), "is not trusted: give tls_ca_file"),
            (expired.url(), "certificate has expired"),
            (misnamed.url(), "not valid for '127.0.0.1'"),
        ):
            run = gate("--url", url, "--contract", str(contract_file))
            assert run.code == 3, run.output
            assert words in run.output
        # Whoever switches the checks off is told so: the clause checks all the same.
        run = gate(
            *("--url", expired.url(tls_verify="no"), "--contract", str(contract_file)), clauses=["SEC-02"]
        )
        assert run.outcomes() == {"SEC-02": "failed"}
        assert "certificate has expired" in run.reason("SEC-02")
        run = gate(
            *("--url", misnamed.url(tls_server_name="cache.example"), "--contract", str(contract_file)),
            clauses=["SEC-02"],
        )
        assert run.outcomes() == {"SEC-02": "passed"}


def test_plain_text_beside_tls_is_found(
    gate: Callable[..., Run], authority: Authority, contract_file: Path
) -> None:
    with single() as server, tls_front(server, authority) as front:
        run = gate("--url", front.url(), "--contract", str(contract_file), clauses=["SEC-02"])
    assert run.outcomes() == {"SEC-02": "failed"}
    assert f"127.0.0.1:{server.port} answers '+PONG'" in run.reason("SEC-02")


# --- what cannot be judged: one clear message and the right exit code


@contextmanager
def silent() -> Iterator[str]:
    """Accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"valkey://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def refused() -> Iterator[str]:
    """A port that nobody listens on while it is held."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"valkey://127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def guarded(user: str) -> Iterator[str]:
    with single({"requirepass": SECRET}) as server:
        yield f"valkey://{user}127.0.0.1:{server.port}"


@contextmanager
def wrong_authority() -> Iterator[str]:
    with Authority() as right, Authority() as wrong, single() as server, tls_front(server, right) as front:
        yield front.url(tls_ca_file=wrong.ca_file)


@contextmanager
def plain_on_tls() -> Iterator[str]:
    with Authority() as authority, single() as server, tls_front(server, authority) as front:
        yield f"valkey://127.0.0.1:{front.port}"


@contextmanager
def tls_on_plain() -> Iterator[str]:
    with single() as server:
        yield f"valkeys://127.0.0.1:{server.port}"


@contextmanager
def web_server() -> Iterator[str]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"valkey://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def holed_cluster() -> Iterator[str]:
    with cluster(unserved_slots=10) as holed:
        yield holed.url


@contextmanager
def replica() -> Iterator[str]:
    with replication() as pair:
        yield pair.replica.url


@contextmanager
def loading() -> Iterator[str]:
    """A server that needs minutes to load what it holds."""
    with single(
        {"rdbcompression": "no", "save": "3600 1", "loading-process-events-interval-bytes": "1024"}
    ) as server:
        with server.connect() as client:
            client.mset({f"emb:{number}": b"x" * 1500 for number in range(2000)})
        server.stop()
        server.settings["key-load-delay"] = "100000"
        server.start(wait_loaded=False)
        yield server.url


@contextmanager
def text(url: str) -> Iterator[str]:
    yield url


@pytest.mark.parametrize(
    ("place", "code", "words"),
    [
        pytest.param(lambda: text("valky://127.0.0.1:6379"), 2, "unknown scheme 'valky'", id="typo"),
        pytest.param(lambda: text("valkey://127.0.0.1:637x"), 2, "a port is a number", id="port-typo"),
        pytest.param(refused, 3, "nothing listens there", id="refused"),
        pytest.param(silent, 3, "did not answer", id="timeout"),
        pytest.param(lambda: guarded(":wrong@"), 3, "WRONGPASS", id="wrong-password"),
        pytest.param(lambda: guarded(""), 3, "NOAUTH", id="no-password"),
        pytest.param(wrong_authority, 3, "is not trusted: give tls_ca_file", id="wrong-authority"),
        pytest.param(plain_on_tls, 3, "write valkeys://", id="plain-on-tls"),
        pytest.param(tls_on_plain, 3, "write valkey://", id="tls-on-plain"),
        pytest.param(web_server, 3, "it is a web server", id="not-valkey"),
        pytest.param(holed_cluster, 3, "with 16374 of 16384 slots served", id="cluster-without-all-slots"),
        pytest.param(replica, 3, "is a read-only replica; judge its primary", id="replica"),
        pytest.param(loading, 3, "LOADING", id="loading"),
    ],
)
def test_what_cannot_be_judged_is_told_in_one_message(
    gate: Callable[..., Run], place: Callable[[], AbstractContextManager[str]], code: int, words: str
) -> None:
    with place() as url:
        run = gate("--url", url)
    assert run.code == code, run.output
    assert run.output.count(words) == 1
    assert len(run.output.strip().splitlines()) <= 3
    assert "passed" not in run.outcomes().values()
    assert SECRET not in run.everything_written()
    assert "wrong@" not in run.everything_written()


@pytest.mark.parametrize(
    ("contract", "words"),
    [
        pytest.param("[instance]\ntls = true\n", "declares TLS (tls = true)", id="tls-declared"),
        pytest.param('[instance]\nmaxmemory = "3gb"\n', "maxmemory", id="impossible"),
        pytest.param("[instance]\nmaxmemry = 1\n", "did you mean 'maxmemory'?", id="typo"),
    ],
)
def test_a_contract_that_does_not_go_with_the_url_is_wrong_usage(
    gate: Callable[..., Run], tmp_path: Path, contract: str, words: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(contract, "utf-8")
    with single() as server:
        run = gate("--url", server.url, "--contract", str(file))
    assert run.code == 2, run.output
    assert words in run.output
    assert "Traceback" not in run.output


def test_a_topology_leaves_nothing_behind() -> None:
    with cluster() as whole:
        folders = [node.folder for node in whole.nodes]
        pids = [node.pid for node in whole.nodes]
    assert not any(folder.exists() for folder in folders)
    for pid in pids:
        with suppress(FileNotFoundError):
            assert "valkey-server" not in Path(f"/proc/{pid}/cmdline").read_text("utf-8")
