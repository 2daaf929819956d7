"""The two exporters: redis_exporter for the server as a whole, ours for what lies below each prefix.

Both are Deployments of their own and no sidecars: a container that fails would take the server's pod out of
its Service.
"""

from __future__ import annotations

from typing import Any

from deploy._names import CONTRACT_FILE, CONTRACT_FOLDER, GATE_IMAGE, PASSWORD_FOLDER, PASSWORDS, Names
from deploy._valkey import CONTAINER_SECURITY, pod_security
from deploy._yaml import Manifest
from inference_cache import __version__
from inference_cache.acl import EXPORTER

__all__ = [
    "PREFIX_EXPORTER",
    "REDIS_EXPORTER",
    "contract_mount",
    "contract_volume",
    "exporters",
    "exporters_with_login",
    "gate_image",
    "password_mount",
    "password_volume",
    "prefix_arguments",
]

REDIS_EXPORTER = "inference-cache-redis-exporter"
"""Also the ``job`` label that alerts and dashboards ask for: Prometheus takes it from the Service."""
PREFIX_EXPORTER = "inference-cache-exporter"
_REDIS_EXPORTER_IMAGE = "oliver006/redis_exporter:v1.45.0"
"""The version whose metric names rules and dashboards were tried with."""
_NOBODY = 65532


def gate_image() -> str:
    """The image of this package, by the version that rendered the manifests."""
    return f"{GATE_IMAGE}:{__version__}"


def prefix_arguments() -> list[str]:
    """The command line of our exporter; the server's address stands in its environment."""
    return ["exporter", "--listen=0.0.0.0:9122", f"--contract={CONTRACT_FILE}"]


def contract_mount() -> dict[str, Any]:
    return {"name": "contract", "mountPath": CONTRACT_FOLDER, "readOnly": True}


def contract_volume(names: Names) -> dict[str, Any]:
    return {"name": "contract", "configMap": {"name": names.contract}}


def password_mount() -> dict[str, Any]:
    return {"name": "password", "mountPath": PASSWORD_FOLDER, "readOnly": True}


def password_volume(user: str) -> dict[str, Any]:
    """One user's password, and nobody else's."""
    return {
        "name": "password",
        "secret": {"secretName": PASSWORDS, "items": [{"key": user, "path": user}], "defaultMode": 0o440},
    }


def exporters(names: Names) -> tuple[Manifest, ...]:
    """Deployment and Service of each exporter.

    They find the server by its headless Service: while it loads, its metrics are most wanted.
    """
    redis = {
        "name": "exporter",
        "image": _REDIS_EXPORTER_IMAGE,
        "args": [
            f"--redis.addr=redis://{names.host(names.headless)}:{names.port}",
            "--web.listen-address=:9121",
            # Never --check-keys: it reads keys, which keeps them from being evicted and counts as hits.
        ],
        "ports": [{"name": "metrics", "containerPort": 9121}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "metrics"}},
        "livenessProbe": {"httpGet": {"path": "/health", "port": "metrics"}, "failureThreshold": 6},
        "resources": {"requests": {"memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": CONTAINER_SECURITY,
    }
    ours = {
        "name": "exporter",
        "image": gate_image(),
        "args": prefix_arguments(),
        "env": [{"name": "INFERENCE_CACHE_URL", "value": names.url(names.headless)}],
        "ports": [{"name": "metrics", "containerPort": 9122}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "metrics"}},
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "metrics"}, "failureThreshold": 6},
        "resources": {"requests": {"memory": "96Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [contract_mount()],
        "securityContext": CONTAINER_SECURITY,
    }
    return (
        _deployment(names, REDIS_EXPORTER, redis, []),
        _service(names, REDIS_EXPORTER, 9121),
        _deployment(names, PREFIX_EXPORTER, ours, [contract_volume(names)]),
        _service(names, PREFIX_EXPORTER, 9122),
    )


def exporters_with_login(names: Names) -> tuple[Manifest, Manifest]:
    """What the Deployments get on top where the server asks for a password."""
    redis = {
        "name": "exporter",
        "env": [
            {"name": "REDIS_USER", "value": EXPORTER},
            {
                "name": "REDIS_PASSWORD",
                "valueFrom": {"secretKeyRef": {"name": PASSWORDS, "key": EXPORTER}},
            },
        ],
    }
    ours = {
        "name": "exporter",
        "env": [{"name": "INFERENCE_CACHE_URL", "value": names.url(names.headless, user=EXPORTER)}],
        "volumeMounts": [password_mount()],
    }
    return (
        _patch(names, REDIS_EXPORTER, {"containers": [redis]}),
        _patch(names, PREFIX_EXPORTER, {"containers": [ours], "volumes": [password_volume(EXPORTER)]}),
    )


def _patch(names: Names, name: str, pod: dict[str, Any]) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": names.namespace},
        "spec": {"template": {"spec": pod}},
    }


def _deployment(
    names: Names, name: str, container: dict[str, Any], volumes: list[dict[str, Any]]
) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": names.metadata(name, "metrics"),
        "spec": {
            "replicas": 1,
            # Two of them would ask the server twice and count everything twice.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": names.selector(name)},
            "template": {
                "metadata": {"labels": names.labels(name, "metrics")},
                "spec": {
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security(_NOBODY),
                    "containers": [container],
                    **({"volumes": volumes} if volumes else {}),
                },
            },
        },
    }


def _service(names: Names, name: str, port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(name, "metrics"),
        "spec": {
            "selector": names.selector(name),
            "ports": [{"name": "metrics", "port": port, "targetPort": "metrics"}],
        },
    }
