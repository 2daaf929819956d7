"""Whether a server may hold what exists nowhere else."""

from __future__ import annotations

from inference_cache.connection import Client
from inference_cache.contract import Contract, format_size
from inference_cache.errors import AccessDenied as _AccessDenied
from inference_cache.errors import CommandRejected, UnsafeServer

__all__ = ["check_server"]


def check_server(client: Client, *, contract: Contract | None, reserve_bytes: int) -> None:
    """Refuses a server that may lose spilled objects, unless the contract declares that loss and its bound.

    Raises:
        UnsafeServer: the policy may evict keys without a TTL, or cannot be seen, or maxmemory leaves less
            than ``reserve_bytes`` for objects; the message says what to change.
        CacheError: the server gave no answer.
    """
    workload = None if contract is None else contract.workloads.get("ray")
    declared = workload is not None and workload.evictable and bool(workload.loss_bound)
    where = client.endpoint
    remedy = (
        "set maxmemory-policy volatile-lru and give every cached key a TTL, or spill to an instance of its "
        "own; or accept the loss with contract='adr_0023', or one of yours that declares the workload ray "
        "evictable with a loss_bound"
    )
    try:
        memory = client.info("memory")
    except (_AccessDenied, CommandRejected) as error:
        if declared and not reserve_bytes:
            return
        raise UnsafeServer(
            f"{where} does not tell its maxmemory-policy (INFO memory: {error}), so whether it evicts "
            f"spilled objects is unknown. Allow INFO to this user; or else {remedy}"
        ) from error
    policy = str(memory.get("maxmemory_policy", ""))
    maxmemory_bytes = int(memory.get("maxmemory", 0))
    if policy.startswith("allkeys-") and not declared:
        raise UnsafeServer(
            f"{where} evicts any key when it is full (maxmemory-policy {policy}), and a spilled object "
            f"exists nowhere else: {remedy}"
        )
    used_bytes = 0 if policy != "noeviction" else int(memory.get("used_memory", 0))
    if maxmemory_bytes and maxmemory_bytes - used_bytes < reserve_bytes:
        raise UnsafeServer(
            f"{where} has {format_size(max(maxmemory_bytes - used_bytes, 0))} for objects below maxmemory "
            f"{format_size(maxmemory_bytes)}, less than the {format_size(reserve_bytes)} of reserve_bytes: "
            "raise maxmemory, or lower reserve_bytes"
        )
