"""SEC: nobody gets in who should not."""

from __future__ import annotations

from fixtures.spec import Evidence, check, clause
from fixtures.targets import Target
from inference_cache.contract import Contract
from inference_cache.errors import AccessDenied


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
