"""What differs between the overlays: the instance as decided, scaled up, and safe for only copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deploy._acl import ACL_FILE
from deploy._contract import contract_config
from deploy._names import Names
from deploy._probes import grace_period_s
from deploy._valkey import arguments, resources, server_arguments
from deploy._yaml import Manifest
from inference_cache.contract import Contract, load

__all__ = ["contract_patch", "safe", "scaled_up", "variant_patches", "with_login"]

_SCALE_UP_LIMIT_BYTES = 8 * 1024**3
"""ADR-0023: under pressure the pod scales to an 8Gi limit with --maxmemory 6gb."""


def scaled_up(contract: Contract) -> Contract | None:
    """The contract under pressure: the larger limit, and the same part of it as maxmemory. None where the
    contract starts with as much.
    """
    instance = contract.instance
    if instance.memory_limit_bytes >= _SCALE_UP_LIMIT_BYTES:
        return None
    return replace(
        contract,
        name=f"{contract.name}-8gi",
        instance=replace(
            instance,
            memory_limit_bytes=_SCALE_UP_LIMIT_BYTES,
            maxmemory_bytes=int(_SCALE_UP_LIMIT_BYTES * instance.headroom_ratio),
        ),
    )


def safe(contract: Contract) -> Contract | None:
    """The shipped contract that never evicts an only copy, for the contract that it changes."""
    return load("adr_0023_safe") if contract.name == "adr_0023" else None


def with_login(contract: Contract) -> Contract:
    """The contract of an instance that asks for passwords."""
    return replace(contract, name=f"{contract.name}-acl", instance=replace(contract.instance, auth=True))


def contract_patch(variant: Contract, names: Names) -> Manifest:
    """The contract's ConfigMap with another contract in it."""
    config = contract_config(variant, names)
    return {**config, "metadata": {"name": names.contract, "namespace": names.namespace}}


def variant_patches(variant: Contract, names: Names, *, login: bool) -> tuple[Manifest, Manifest]:
    """The StatefulSet and the contract's ConfigMap, as far as they differ for this contract."""
    settings = arguments(variant, names.port)
    if login:
        settings["aclfile"] = ACL_FILE
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": grace_period_s(variant),
        "containers": [
            {"name": "valkey", "args": server_arguments(settings), "resources": resources(variant)}
        ],
    }
    return (
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": names.server, "namespace": names.namespace},
            "spec": {"template": {"spec": pod}},
        },
        contract_patch(variant, names),
    )
