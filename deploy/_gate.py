"""The acceptance gate inside the cluster: a Job before a rollout, a CronJob after it.

It needs no right at the API server. Whoever wants the memory limit to come from the pod instead of from the
contract adds the component that lets it read that one pod.
"""

from __future__ import annotations

from typing import Any

from deploy._exporters import (
    PREFIX_EXPORTER,
    contract_mount,
    contract_volume,
    gate_image,
    password_mount,
    password_volume,
)
from deploy._names import CONTRACT_FILE, Names
from deploy._valkey import CONTAINER_SECURITY, pod_security
from deploy._yaml import Manifest
from inference_cache.acl import GATE as GATE_USER

__all__ = [
    "GATE",
    "RUN_SCRIPT",
    "cron_job",
    "gate_with_login",
    "job",
    "pod_patch",
    "pod_reader",
    "reports_claim",
    "reports_for_exporter",
    "service_account",
]

GATE = "inference-cache-gate"
_REPORTS = "/reports"
_UID = 65532
RUN_SCRIPT = (
    "if [ -f report.json ]; then\n"
    '  exec inference-cache "$@" --diff=report.json\n'
    "fi\n"
    'exec inference-cache "$@"\n'
)
"""Runs in the folder of reports: the last run's is what this one is compared with."""


def service_account(names: Names) -> Manifest:
    """An identity without a right."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.metadata(GATE, "gate"),
        "automountServiceAccountToken": False,
    }


def job(names: Names) -> Manifest:
    """One run; its reports go with the pod, its verdict is the exit code and stands in the log."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": names.metadata(GATE, "gate"),
        "spec": {
            "ttlSecondsAfterFinished": 7 * 24 * 3600,
            **_job(names, {"emptyDir": {"sizeLimit": "256Mi"}}),
        },
    }


def cron_job(names: Names) -> Manifest:
    """A run each night; its reports stay, so that the next one tells what changed and Prometheus its age."""
    spec = _job(names, {"persistentVolumeClaim": {"claimName": f"{GATE}-reports"}})
    # The exporter serves the verdict from the same volume, which only one node can mount at a time.
    spec["template"]["spec"]["affinity"] = {
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "labelSelector": {"matchLabels": names.selector(PREFIX_EXPORTER)},
                    "topologyKey": "kubernetes.io/hostname",
                }
            ]
        }
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": names.metadata(GATE, "gate"),
        "spec": {
            "schedule": "17 4 * * *",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {"spec": spec},
        },
    }


def reports_claim(names: Names) -> Manifest:
    """The volume that keeps the last reports."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": names.metadata(f"{GATE}-reports", "gate", of=GATE),
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def reports_for_exporter(names: Names, arguments: list[str]) -> Manifest:
    """What our exporter gets on top: the gate's last verdict among its metrics."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": PREFIX_EXPORTER, "namespace": names.namespace},
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "exporter",
                            "args": [*arguments, f"--gate-metrics={_REPORTS}/metrics.prom"],
                            "volumeMounts": [{"name": "reports", "mountPath": _REPORTS, "readOnly": True}],
                        }
                    ],
                    "volumes": [
                        {"name": "reports", "persistentVolumeClaim": {"claimName": f"{GATE}-reports"}}
                    ],
                }
            }
        },
    }


def pod_reader(names: Names) -> tuple[Manifest, Manifest]:
    """The one right that the gate can make use of: to read the server's pod, for its memory limit."""
    return (
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": names.metadata(GATE, "gate"),
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["pods"],
                    "resourceNames": [f"{names.server}-0"],
                    "verbs": ["get"],
                }
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": names.metadata(GATE, "gate"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": GATE},
            "subjects": [{"kind": "ServiceAccount", "name": GATE, "namespace": names.namespace}],
        },
    )


def gate_with_login(names: Names, kind: str) -> Manifest:
    """What the Job or CronJob gets on top where the server asks for a password."""
    pod = {
        "containers": [
            {"name": "gate", "args": _arguments(names, user=GATE_USER), "volumeMounts": [password_mount()]}
        ],
        "volumes": [password_volume(GATE_USER)],
    }
    return pod_patch(names, kind, pod)


def pod_patch(names: Names, kind: str, pod: dict[str, Any]) -> Manifest:
    """A patch of the pod of the Job or CronJob."""
    spec: dict[str, Any] = {"template": {"spec": pod}}
    return {
        "apiVersion": "batch/v1",
        "kind": kind,
        "metadata": {"name": GATE, "namespace": names.namespace},
        "spec": spec if kind == "Job" else {"jobTemplate": {"spec": spec}},
    }


def _arguments(names: Names, *, user: str = "") -> list[str]:
    return [
        "gate",
        f"--url={names.url(names.server, user=user)}",
        f"--contract={CONTRACT_FILE}",
        f"--report-dir={_REPORTS}",
    ]


def _job(names: Names, reports: dict[str, Any]) -> dict[str, Any]:
    container = {
        "name": "gate",
        "image": gate_image(),
        "command": ["sh", "-c", RUN_SCRIPT, "gate"],
        "args": _arguments(names),
        "workingDir": _REPORTS,
        # The twin and other disposable servers run in here, scaled down.
        "resources": {"requests": {"memory": "512Mi"}, "limits": {"memory": "1536Mi"}},
        "volumeMounts": [
            contract_mount(),
            {"name": "reports", "mountPath": _REPORTS},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
        "securityContext": CONTAINER_SECURITY,
    }
    return {
        # A verdict is a verdict: running again until it is green is how outages pass a gate.
        "backoffLimit": 0,
        "activeDeadlineSeconds": 900,
        "template": {
            "metadata": {"labels": names.labels(GATE, "gate")},
            "spec": {
                "serviceAccountName": GATE,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 60,
                "securityContext": pod_security(_UID),
                "containers": [container],
                "volumes": [
                    contract_volume(names),
                    {"name": "reports", **reports},
                    {"name": "scratch", "emptyDir": {"sizeLimit": "2Gi"}},
                ],
            },
        },
    }
