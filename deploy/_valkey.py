"""The instance itself: StatefulSet, Services, NetworkPolicy, as the contract decides."""

from __future__ import annotations

from typing import Any

from deploy._names import Names
from deploy._probes import grace_period_s, probes
from deploy._yaml import Manifest
from inference_cache.contract import Contract, format_size
from inference_cache.errors import UsageError

__all__ = [
    "CONTAINER_SECURITY",
    "arguments",
    "network_policy",
    "pod_security",
    "resources",
    "server_arguments",
    "services",
    "statefulset",
]

_SPARE_CONNECTIONS = 256
"""For probes, exporters, the gate and people."""
_UID = 999
"""User valkey of the official image."""
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def pod_security(uid: int) -> dict[str, Any]:
    """The security context of a pod whose volumes belong to ``uid``."""
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def arguments(contract: Contract, port: int) -> dict[str, str]:
    """Settings of the server by name: what the contract decides, and what its clauses ask for.

    Raises:
        UsageError: the contract declares TLS, for which no manifests are made.
    """
    instance = contract.instance
    if instance.tls:
        raise UsageError(
            f"contract {contract.name} declares tls = true, and no manifests are made for that: put the "
            "certificate's Secret and the tls-* arguments into an overlay of your own over a contract "
            "without it"
        )
    connections = sum(workload.connections for workload in contract.workloads.values())
    largest = max((w.value_max_bytes for w in contract.workloads.values()), default=0)
    return {
        "port": str(port),
        # The NetworkPolicy says who reaches the port; protected mode would shut out every other pod.
        "protected-mode": "no",
        "dir": instance.volume_path,
        "maxmemory": format_size(instance.maxmemory_bytes),
        "maxmemory-policy": instance.maxmemory_policy,
        "appendonly": "yes" if instance.appendonly else "no",
        "appendfsync": instance.appendfsync,
        "save": instance.save,
        "stop-writes-on-bgsave-error": "yes" if instance.on_disk_full == "stop-writes" else "no",
        "lazyfree-lazy-eviction": "yes",
        "lazyfree-lazy-expire": "yes",
        "lazyfree-lazy-server-del": "yes",
        # CFG-05: the largest value in one piece, or the largest chunk of one; 512mb is the server's default.
        "proto-max-bulk-len": format_size(max(512 * 1024**2, min(largest, instance.chunk_bytes))),
        "maxclients": str(max(10_000, connections + _SPARE_CONNECTIONS)),
        "timeout": "0",
        "tcp-keepalive": "300",
    }


def server_arguments(settings: dict[str, str]) -> list[str]:
    """Settings as the server's command line."""
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def resources(contract: Contract) -> dict[str, Any]:
    """Memory as decided. The contract says nothing of processors, so neither do the manifests."""
    return {
        "requests": {"memory": format_size(contract.instance.memory_request_bytes, units="kubernetes")},
        "limits": {"memory": format_size(contract.instance.memory_limit_bytes, units="kubernetes")},
    }


def image(contract: Contract) -> str:
    """The official image of the first server and version that the contract supports."""
    return f"valkey/valkey:{contract.instance.supported_versions[0]}"


def statefulset(contract: Contract, names: Names) -> Manifest:
    """One pod with one volume that outlives it."""
    name = names.server
    container = {
        "name": "valkey",
        "image": image(contract),
        "command": ["valkey-server"],
        "args": server_arguments(arguments(contract, names.port)),
        "ports": [{"name": "valkey", "containerPort": names.port}],
        "resources": resources(contract),
        "volumeMounts": [{"name": "data", "mountPath": contract.instance.volume_path}],
        **probes(contract, names.port),
        # SIGTERM closes the port at once: Services are given time to stop sending connections first. Then the
        # server writes its AOF and, with a schedule, a snapshot.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": names.metadata(name, "cache"),
        "spec": {
            "serviceName": names.headless,
            "replicas": 1,
            "selector": {"matchLabels": names.selector(name)},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            "template": {
                "metadata": {
                    "labels": names.labels(name, "cache"),
                    # The only copy of sessions and spilled objects: no autoscaler moves it to save a node.
                    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": grace_period_s(contract),
                    "securityContext": pod_security(_UID),
                    "containers": [container],
                },
            },
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "data", "labels": names.labels(name, "cache")},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {
                            "requests": {
                                "storage": format_size(contract.instance.volume_bytes, units="kubernetes")
                            }
                        },
                    },
                }
            ],
        },
    }


def services(names: Names) -> tuple[Manifest, Manifest]:
    """The contract's address, and a headless one that also finds a server that still loads."""
    port = {"name": "valkey", "port": names.port, "targetPort": "valkey", "appProtocol": "redis"}
    selector = names.selector(names.server)
    return (
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": names.metadata(names.server, "cache"),
            "spec": {"type": "ClusterIP", "selector": selector, "ports": [port]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": names.metadata(names.headless, "cache", of=names.server),
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": selector,
                "ports": [port],
            },
        },
    )


def network_policy(contract: Contract, names: Names) -> Manifest:
    """Who reaches the server: every pod of the cluster and nobody else, or anybody; it calls nobody."""
    rule: dict[str, Any] = {"ports": [{"protocol": "TCP", "port": "valkey"}]}
    if contract.instance.reach == "cluster-internal":
        rule = {"from": [{"namespaceSelector": {}}], **rule}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(names.server, "cache"),
        "spec": {
            "podSelector": {"matchLabels": names.selector(names.server)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [rule],
            "egress": [],
        },
    }
