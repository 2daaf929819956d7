"""Holds what manifests say against a contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from inference_cache.contract import Contract, format_size, parse_size
from inference_cache.errors import UsageError
from inference_cache.gate.findings import Finding, Scalar
from inference_cache.manifests._read import InstanceManifest

__all__ = ["violations"]

_FSYNC_STRENGTH: Final = ("no", "everysec", "always")
_MIB: Final = 1024**2


def violations(instance: InstanceManifest, contract: Contract) -> Iterator[tuple[str, Finding]]:
    """What the manifests break of CFG-01, CFG-02 and CFG-03, each with its clause; nothing where all is well.

    A limit that the manifests do not set is no limit, whatever the contract says.
    """
    yield from (("CFG-01", finding) for finding in _headroom(instance, contract))
    yield from (("CFG-02", finding) for finding in _policy(instance, contract))
    yield from (("CFG-03", finding) for finding in _persistence(instance, contract))


def _headroom(instance: InstanceManifest, contract: Contract) -> Iterator[Finding]:
    limit, ratio = instance.memory_limit_bytes, contract.instance.headroom_ratio
    maxmemory = _size(instance.arguments.get("maxmemory", "0"))
    numbers: dict[str, Scalar] = {
        "maxmemory_bytes": maxmemory,
        "memory_limit_bytes": limit,
        "workload": instance.name,
    }
    decided = contract.instance
    if limit is None:
        yield Finding(
            expected=f"a memory limit on the container: {_gi(decided.memory_limit_bytes)}",
            observed="resources.limits.memory is not set: the pod may take all of its node's memory",
            evidence=numbers,
            remedy=f"Set `resources.limits.memory: {_gi(decided.memory_limit_bytes)}` and "
            f"`resources.requests.memory: {_gi(decided.memory_request_bytes)}` on the server's container.",
        )
    if maxmemory == 0:
        yield Finding(
            expected=f"maxmemory above 0 and at most {ratio:g} of the memory limit",
            observed="maxmemory is not set: the server grows until the kernel kills it",
            evidence=numbers,
            remedy=f"Add the arguments `--maxmemory {_allowed(limit, contract)}`.",
        )
    elif limit is not None and maxmemory > limit * ratio:
        yield Finding(
            expected=f"maxmemory at most {_allowed(limit, contract)} ({ratio:g} of the {_gi(limit)} limit)",
            observed=f"maxmemory is {format_size(maxmemory)}, {maxmemory / limit:.0%} of the limit",
            evidence=numbers,
            remedy=f"Lower it to `--maxmemory {_allowed(limit, contract)}`, or raise the memory limit to "
            f"{_gi(_needed(maxmemory, ratio))}.",
        )


def _policy(instance: InstanceManifest, contract: Contract) -> Iterator[Finding]:
    wanted = contract.instance.maxmemory_policy
    policy = instance.arguments.get("maxmemory-policy", "noeviction")
    if policy != wanted:
        yield Finding(
            expected=f"maxmemory-policy {wanted}",
            observed=f"maxmemory-policy {policy}"
            + ("" if "maxmemory-policy" in instance.arguments else ", the server's default: it is not set"),
            evidence={"maxmemory_policy": policy, "workload": instance.name},
            remedy=f"Add the arguments `--maxmemory-policy {wanted}`.",
        )


def _persistence(instance: InstanceManifest, contract: Contract) -> Iterator[Finding]:
    decided, settings = contract.instance, instance.arguments
    appendonly, fsync = settings.get("appendonly", "no"), settings.get("appendfsync", "everysec")
    numbers: dict[str, Scalar] = {
        "appendonly": appendonly,
        "appendfsync": fsync,
        "save": settings.get("save"),
        "dir": instance.data_dir,
        "volume_path": instance.volume_path,
        "volume_kind": instance.volume_kind,
        "workload": instance.name,
    }
    if appendonly != "yes" and settings.get("save") == "":
        yield Finding(
            expected="appendonly yes, or a save schedule",
            observed="neither: nothing outlives the process",
            evidence=numbers,
            remedy="Add the arguments `--appendonly yes`.",
        )
    if (
        appendonly == "yes"
        and fsync in _FSYNC_STRENGTH
        and _FSYNC_STRENGTH.index(fsync) < _FSYNC_STRENGTH.index(decided.appendfsync)
    ):
        yield Finding(
            expected=f"appendfsync {decided.appendfsync} or stronger",
            observed=f"appendfsync {fsync}",
            evidence=numbers,
            remedy=f"Add the arguments `--appendfsync {decided.appendfsync}`.",
        )
    claim = f"a {_gi(decided.volume_bytes)} PersistentVolumeClaim"
    if not instance.persistent:
        where = (
            f"its {instance.volume_kind} at {instance.volume_path} goes with the pod"
            if instance.volume_path
            else "no volume is mounted there"
        )
        yield Finding(
            expected=f"the server writes to a volume that outlives its pod, at {decided.volume_path}",
            observed=f"it writes to {instance.data_dir}: {where}",
            evidence=numbers,
            remedy=f"Mount {claim} at {decided.volume_path} and set `--dir {decided.volume_path}`.",
        )
    elif instance.volume_bytes is not None and instance.volume_bytes < decided.volume_bytes:
        yield Finding(
            expected=f"{claim} at {decided.volume_path}",
            observed=f"the claim asks for {_gi(instance.volume_bytes)}",
            evidence={**numbers, "volume_bytes": instance.volume_bytes},
            remedy=f"Ask for `storage: {_gi(decided.volume_bytes)}`.",
        )


def _allowed(limit_bytes: int | None, contract: Contract) -> str:
    limit = contract.instance.memory_limit_bytes if limit_bytes is None else limit_bytes
    return format_size(int(limit * contract.instance.headroom_ratio))


def _needed(maxmemory_bytes: int, ratio: float) -> int:
    """The smallest limit, in whole MiB, under which this maxmemory leaves the headroom."""
    return -(-int(maxmemory_bytes / ratio) // _MIB) * _MIB


def _gi(size_bytes: int) -> str:
    return format_size(size_bytes, units="kubernetes")


def _size(text: str) -> int:
    """A size among the server's arguments; 0 for one that the server would refuse, as if it were not set."""
    try:
        return parse_size(text)
    except UsageError:
        return 0
