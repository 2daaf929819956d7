"""SEC: nobody gets in who should not."""

from __future__ import annotations

import random
import secrets
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from fixtures.nested_gate import run_gate
from fixtures.observe import answers_at, require_info
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, not_proven
from fixtures.targets import DISAGREEMENT, ManifestTarget, Target
from fixtures.targets.base import read_config
from inference_cache.acl import render_acl
from inference_cache.connection import Client, ClusterClient, connect, parse_url
from inference_cache.contract import Contract
from inference_cache.errors import AccessDenied, CommandRejected, Unreachable
from inference_cache.gate.outcomes import ExitCode, Verdict
from inference_cache.gate.verdict import RunResult, TargetInfo


@clause("SEC-01", needs={"read"})
def test_declared_authentication_holds(target: Target, contract: Contract, evidence: Evidence) -> None:
    """With auth nothing is answered before it; without auth the reach is declared cluster-internal."""
    try:
        with target.connect(authenticated=False) as client:
            client.dbsize()
        open_to_all = True
    except AccessDenied:
        open_to_all = False
    instance = contract.instance
    evidence.record(auth_declared=instance.auth, answers_without_auth=open_to_all, reach=instance.reach)
    if instance.auth:
        check(
            not open_to_all,
            expected="NOAUTH for every command before authentication",
            observed="DBSIZE was answered to a client without credentials",
            evidence={"auth_declared": True, "answers_without_auth": True},
        )
    else:
        check(
            instance.reach == "cluster-internal",
            expected="an instance without auth is declared reachable from inside the cluster only",
            observed=f"its reach is declared as {instance.reach}",
            evidence={"auth_declared": False, "reach": instance.reach},
        )


@clause("SEC-01", needs={"read"}, only=("manifest",))
def test_manifests_confine_a_server_without_auth(
    target: Target, contract: Contract, evidence: Evidence
) -> None:
    """Without auth a NetworkPolicy among the manifests says who may reach the server."""
    assert isinstance(target, ManifestTarget)
    confined = target.instance.network_policy
    evidence.record(auth_declared=contract.instance.auth, network_policy=confined)
    check(
        contract.instance.auth or confined,
        expected="a NetworkPolicy that selects the server's pods, since the contract declares auth = false",
        observed=f"none selects {target.instance.name}: every pod of the cluster may reach it",
        evidence={"workload": target.instance.name, "network_policy": confined},
    )


@clause("SEC-02", needs={"read"})
def test_tls_is_kept_where_it_is_declared(target: Target, contract: Contract, evidence: Evidence) -> None:
    """The certificate verifies with checks on whatever the URL says, and no port answers plain text."""
    if not contract.instance.tls:
        not_proven("the contract declares no TLS (tls = false), so nothing is to be kept")
    evidence.proven_on = target.kind_in_words
    endpoint = parse_url(target.url)
    if not endpoint.tls:
        not_proven(f"{endpoint} is no address of a network: there is nothing to encrypt")
    reason = ""
    hosts = {host for host, _ in endpoint.hosts}
    doors = set(endpoint.hosts) if endpoint.kind == "tcp" else set()
    try:
        with connect(target.url, tls_verify=True, deadline_s=contract.deadlines.connect_s + 4) as client:
            if isinstance(client, ClusterClient):
                names = (name.rpartition(":") for name in client.ask_primaries("PING"))
                doors = {(host, int(port)) for host, _, port in names}
            elif endpoint.kind == "sentinel":
                with client.client() as single:
                    single.ping()
                    primary: Any = single.connection
                    doors = {(primary.host, primary.port)}
            else:
                client.ping()
    except AccessDenied:
        pass  # a word over TLS, whatever it says
    except Unreachable as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        reason = cause.verify_message
    with target.connect() as client:
        config = read_config(client, "port")
    hosts |= {host for host, _ in doors}
    told = "not told" if config is None else config.get("port", "not told")
    ports = {int(port) for port in told.split(DISAGREEMENT) if port.isdecimal()} - {0}
    doors |= {(host, port) for host in hosts for port in ports}
    answers = {
        f"{host}:{port}": answers_at(f"{host}:{port}", deadline_s=contract.deadlines.connect_s)
        for host, port in sorted(doors)
    }
    plain = {door: answer for door, answer in answers.items() if answer.startswith(("+", "-"))}
    numbers: Numbers = {
        "certificate_verifies": not reason,
        "plain_text_port_in_config": told,
        "doors_tried_in_plain_text": len(answers),
        "doors_that_answer_plain_text": len(plain),
    }
    evidence.record(**numbers)
    check(
        not reason,
        expected="a certificate that verifies against the authority given in the URL",
        observed=f"it does not: {reason}",
        evidence=numbers,
        remedy="Give the server a certificate for the name in the URL, signed by the authority in "
        "tls_ca_file, and leave tls_verify=no out.",
    )
    check(
        not plain,
        expected="no answer to a PING in plain text",
        observed="; ".join(f"{door} answers {answer[:40]!r}" for door, answer in plain.items()),
        evidence=numbers,
    )


ADMINISTRATIVE: tuple[tuple[str, ...], ...] = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("DEBUG", "SLEEP", "0"),
    ("SHUTDOWN", "NOSAVE"),
    ("MODULE", "LIST"),
    ("REPLICAOF", "NO", "ONE"),
    ("SCRIPT", "FLUSH"),
    ("CLUSTER", "RESET"),
    ("SAVE",),
    ("ACL", "SETUSER", "x"),
    ("CLIENT", "KILL", "ID", "1"),
    ("MONITOR",),
)


@clause("SEC-03", needs={"config"}, only=("embedded", "container", "manifest"))
def test_users_of_the_contracts_acl_run_nothing_administrative(
    servers: ServerFactory, contract: Contract, evidence: Evidence
) -> None:
    """A server that loads the ACL file made from the contract refuses each workload's user every
    administrative command.
    """
    server = servers.scaled(start=False)
    acl_file = Path(server.folder) / "users.acl"
    keep_default = {"default": server.password} if server.password else {}
    passwords = {name: secrets.token_urlsafe(24) for name in contract.workloads}
    acl_file.write_text(render_acl(contract, passwords={**passwords, **keep_default}), "utf-8")
    server.settings["aclfile"] = str(acl_file)
    server.start()
    with server.connect() as client:
        judge_users(client, list(contract.workloads), evidence)


@clause("SEC-03", needs={"read"}, only=("live",))
def test_users_of_the_server_run_nothing_administrative(
    target: Target, contract: Contract, evidence: Evidence
) -> None:
    """Whoever the workloads connect as, on the server itself: users of their names where it has them, else
    the default user.
    """
    with target.connect() as client:
        try:
            known = {user.decode() for user in client.execute_command("ACL", "USERS")}
        except (AccessDenied, CommandRejected):
            not_proven("ACL USERS is not permitted to this user, or unknown to this server")
        judge_users(client, sorted(known & contract.workloads.keys()) or ["default"], evidence)


def judge_users(client: Client, users: list[str], evidence: Evidence) -> None:
    """ACL DRYRUN of every administrative command as each of these users."""
    open_to: dict[str, list[str]] = {}
    for user in users:
        for words in ADMINISTRATIVE:
            try:
                answer = client.execute_command("ACL", "DRYRUN", user, *words)
            except AccessDenied:
                not_proven("ACL DRYRUN is not permitted to this user")
            except CommandRejected:
                continue  # this version has no such command
            if answer in (b"OK", "OK", True):
                open_to.setdefault(user, []).append(" ".join(words[:2]))
    numbers: Numbers = {
        "users": ", ".join(users),
        "commands_tried": len(users) * len(ADMINISTRATIVE),
        "commands_permitted": sum(map(len, open_to.values())),
    }
    evidence.record(**numbers)
    check(
        not open_to,
        expected="no administrative command is permitted to whom workloads connect as",
        observed="; ".join(f"{user} may {', '.join(commands)}" for user, commands in open_to.items()),
        evidence=numbers,
    )


@pytest.mark.cost_s(6)
@clause("SEC-04", needs={"config"})
def test_no_secret_is_told(
    servers: ServerFactory,
    contract: Contract,
    implementation: Callable[[str], Any],
    rng: random.Random,
    tmp_path: Path,
    evidence: Evidence,
) -> None:
    """Passwords, prompts and values that are planted in a server are in no report, no log and no metric of a
    gate that judges it, be the password right or wrong.
    """
    password = f"pa$$/w%rd@{rng.randbytes(6).hex()}"
    wrong = f"wr0ng/{rng.randbytes(6).hex()}"
    prompt = f"my-prompt-{rng.randbytes(6).hex()}"
    server = servers.scaled(settings={"requirepass": password})
    with server.connect(deadline_s=30) as client:
        for workload in contract.workloads.values():
            client.set(workload.example.encode(), f"value {prompt}".encode())
        with implementation("sessions")(client, ttl_s=600, deadline_s=10) as sessions:
            handle = sessions.create(("user", "somebody"))
            sessions.append(handle, prompt.encode(), idempotency_key="1")
        names = require_info(client, "server")
    said: dict[str, str] = {}
    for name, secret in (("right", password), ("wrong", wrong)):
        url = f"valkey://:{quote(secret, safe='')}@127.0.0.1:{server.port}"
        chosen = ("--clause", "CFG-01", "--clause", "CFG-05", "--clause", "ISO-06")
        code, output = run_gate(tmp_path / name, "--url", url, "--no-twin", *chosen)
        said |= {f"{name} password: output": output, **files_below(tmp_path / name)}
        wanted = (ExitCode.BROKEN,) if secret == wrong else (ExitCode.CONFORMANT, ExitCode.NOT_CONFORMANT)
        if code not in wanted:
            raise RuntimeError(f"the gate inside ended with {code}: {output[-600:]}")
    implementation("reports")(planted_run(contract, password, server.port), tmp_path / "planted")
    said |= files_below(tmp_path / "planted")
    planted = {"password": password, "wrong password": wrong, "prompt": prompt}
    leaks = sorted(
        f"the {what} in {place}"
        for what, secret in planted.items()
        for place, text in said.items()
        if any(form in text for form in forms_of(secret))
    )
    numbers: Numbers = {
        "secrets_planted": len(planted),
        "outputs_searched": len(said),
        "bytes_searched": sum(map(len, said.values())),
        "leaks": len(leaks),
    }
    evidence.record(**numbers, server_run_id_seen=names.get("run_id", "") in "".join(said.values()))
    check(
        not leaks,
        expected="no planted secret in any output, as it is or percent-encoded",
        observed=f"{len(leaks)} leaks; first: {leaks[0] if leaks else ''}",
        evidence=numbers,
    )


def planted_run(contract: Contract, password: str, port: int) -> RunResult:
    """A run whose target gave away its password in its address, its configuration and its notes."""
    return RunResult(
        verdict=Verdict.BROKEN,
        exit_code=ExitCode.BROKEN,
        reason=f"valkey://:{password}@127.0.0.1:{port} could not be judged",
        target=TargetInfo(
            kind="live",
            address=f"valkey://:{quote(password, safe='')}@127.0.0.1:{port}",
            config={"requirepass": password, "masterauth": password},
            notes=(f"requirepass is {password}",),
        ),
        contract_name=contract.name,
        contract_sha256=contract.sha256,
        seed=1,
        strict=False,
        require_all=False,
        started_at="2026-01-01T00:00:00+00:00",
        duration_s=1.0,
        version="0",
        clauses=(),
        audit={"refused": f"AUTH {password}"},
    )


def files_below(folder: Path) -> dict[str, str]:
    """Text of every file, by its path from ``folder``'s parent."""
    return {
        str(path.relative_to(folder.parent)): path.read_text("utf-8", "replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def forms_of(secret: str) -> Iterable[str]:
    return {secret, quote(secret, safe=""), quote(secret)}
