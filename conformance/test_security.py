"""SEC: nobody gets in who should not."""

from __future__ import annotations

import ssl
from typing import Any

from fixtures.observe import answers_at
from fixtures.spec import Evidence, Numbers, check, clause, not_proven
from fixtures.targets import DISAGREEMENT, Target
from fixtures.targets.base import read_config
from inference_cache.connection import ClusterClient, connect, parse_url
from inference_cache.contract import Contract
from inference_cache.errors import AccessDenied, Unreachable


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
