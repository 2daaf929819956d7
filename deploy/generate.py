"""From a contract to a Kustomize tree: a base, components to add to it, and overlays that are ready to apply.

::

    base/                          the server, its Services, its NetworkPolicy, the contract
    components/exporters           redis_exporter and the exporter by prefix
    components/monitoring          ServiceMonitors, PrometheusRule, dashboards for Grafana's sidecar
    components/gate                the acceptance gate each night
    components/gate-reads-limits   lets the gate read the memory limit of the server's pod
    components/acl                 a user for each workload, passwords from a Secret
    overlays/default               all of it but users and rights
    overlays/acl                   default, with users (for a contract with auth, default has them)
    overlays/scale-up              default, with the 8Gi limit of the ADR
    overlays/safe                  default, under the contract that never evicts an only copy
    gate-job/                      one run of the gate, before a rollout
    image/Dockerfile               of the gate and the exporter
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import alerts.generate
import dashboards.generate
from deploy import _acl, _exporters, _gate, _monitoring, _valkey, _variants
from deploy._contract import contract_config
from deploy._image import dockerfile
from deploy._names import CONTRACT_FILE, PASSWORDS, Names
from deploy._yaml import Manifest, to_yaml
from inference_cache.contract import Contract, format_size

__all__ = ["files"]

_RULES = "prometheusrule.yaml"
_DISK_PER_MEMORY = 3
"""Disk that one byte of memory needs while the AOF is rewritten: the old AOF, the new one, a snapshot."""


def files(contract: Contract) -> dict[str, str]:
    """Text of every file below ``deploy/generated`` by its relative path.

    Raises:
        UsageError: the contract's address names no Service, or it declares TLS, for which none are made.
    """
    tree = _Tree(contract)
    tree.base()
    tree.exporters()
    tree.monitoring()
    tree.gate()
    tree.acl()
    tree.overlays()
    tree.gate_job()
    return {"image/Dockerfile": dockerfile(), **tree.files}


class _Tree:
    def __init__(self, contract: Contract) -> None:
        self.files: dict[str, str] = {}
        self._contract = contract
        self._names = Names.of(contract)
        self._head = (
            f"Made by `inference-cache render` from the contract {contract.name}. "
            "Change deploy/*.py or the contract, not this file."
        )

    def base(self) -> None:
        contract, names = self._contract, self._names
        self._folder(
            "base",
            {
                "statefulset.yaml": [_valkey.statefulset(contract, names)],
                "services.yaml": _valkey.services(names),
                "networkpolicy.yaml": [_valkey.network_policy(contract, names)],
                "contract.yaml": [contract_config(contract, names)],
            },
        )

    def exporters(self) -> None:
        self._folder(
            "components/exporters", {"exporters.yaml": _exporters.exporters(self._names)}, component=True
        )

    def monitoring(self) -> None:
        contract, names = self._contract, self._names
        boards = _monitoring.dashboard_configs(dashboards.generate.files(contract), names)
        self._folder(
            "components/monitoring",
            {
                "servicemonitors.yaml": _monitoring.service_monitors(names),
                **{path: [config] for path, config in boards},
            },
            component=True,
            texts={_RULES: alerts.generate.files(contract)[_RULES]},
        )

    def gate(self) -> None:
        names = self._names
        self._folder(
            "components/gate",
            {
                "gate.yaml": [
                    _gate.service_account(names),
                    _gate.reports_claim(names),
                    _gate.cron_job(names),
                ]
            },
            component=True,
            patches={"exporter.yaml": [_gate.reports_for_exporter(names, _exporters.prefix_arguments())]},
            comment="Needs components/exporters beside it.",
        )
        self._folder(
            "components/gate-reads-limits",
            {"rbac.yaml": _gate.pod_reader(names)},
            component=True,
            patches={
                "gate.yaml": [
                    _gate.pod_patch(
                        names,
                        "CronJob",
                        {"automountServiceAccountToken": True},
                    )
                ]
            },
            comment="Needs components/gate beside it.",
        )

    def acl(self) -> None:
        contract, names = self._contract, self._names
        users = ", ".join(_acl.acl_users(contract))
        self._folder(
            "components/acl",
            {"acl-template.yaml": [_acl.template_config(contract, names)]},
            component=True,
            patches={
                "valkey.yaml": [_acl.patch(contract, names)],
                "exporters.yaml": _exporters.exporters_with_login(names),
                "gate.yaml": [_gate.gate_with_login(names, "CronJob")],
                "contract.yaml": [_variants.contract_patch(_variants.with_login(contract), names)],
            },
            comment="Needs components/exporters and components/gate beside it, and, made by hand, a Secret\n"
            f"{PASSWORDS} with a password under each of these keys: {users}.",
        )

    def overlays(self) -> None:
        contract, names = self._contract, self._names
        parts = ["exporters", "monitoring", "gate", *(["acl"] if contract.instance.auth else [])]
        self._kustomization(
            "overlays/default", resources=["../../base"], components=[f"../../components/{p}" for p in parts]
        )
        if not contract.instance.auth:
            self._kustomization("overlays/acl", resources=["../default"], components=["../../components/acl"])
        for name, variant in (
            ("scale-up", _variants.scaled_up(contract)),
            ("safe", _variants.safe(contract)),
        ):
            if variant is None:
                continue
            server, config = _variants.variant_patches(variant, names, login=contract.instance.auth)
            self._folder(
                f"overlays/{name}",
                {},
                resources=["../default"],
                patches={"valkey.yaml": [server], "contract.yaml": [config]},
                comment=_disk_warning(variant),
            )

    def gate_job(self) -> None:
        names = self._names
        login = {"job-login.yaml": [_gate.gate_with_login(names, "Job")]}
        self._folder(
            "gate-job",
            {"job.yaml": [_gate.service_account(names), _gate.job(names)]},
            patches=login if self._contract.instance.auth else {},
            comment=f"Judges the server that runs, by the contract in its ConfigMap ({CONTRACT_FILE}).\n"
            "A Job runs once: delete it before you apply it again.",
        )
        if not self._contract.instance.auth:
            self._folder("gate-job-acl", {}, resources=["../gate-job"], patches=login)

    def _folder(
        self,
        path: str,
        manifests: Mapping[str, Iterable[Manifest]],
        *,
        component: bool = False,
        texts: Mapping[str, str] | None = None,
        patches: Mapping[str, Iterable[Manifest]] | None = None,
        resources: Iterable[str] = (),
        comment: str = "",
    ) -> None:
        """A folder of manifests and patches with its kustomization."""
        texts, patches = texts or {}, patches or {}
        for name, documents in (*manifests.items(), *((f"patch-{n}", p) for n, p in patches.items())):
            self.files[f"{path}/{name}"] = to_yaml(*documents, comment=self._head)
        for name, text in texts.items():
            self.files[f"{path}/{name}"] = text
        self._kustomization(
            path,
            resources=[*resources, *manifests, *texts],
            patches=[f"patch-{name}" for name in patches],
            component=component,
            comment=comment,
        )

    def _kustomization(
        self,
        path: str,
        *,
        resources: Iterable[str],
        components: Iterable[str] = (),
        patches: Iterable[str] = (),
        component: bool = False,
        comment: str = "",
    ) -> None:
        version, kind = ("v1alpha1", "Component") if component else ("v1beta1", "Kustomization")
        made: dict[str, object] = {"apiVersion": f"kustomize.config.k8s.io/{version}", "kind": kind}
        for key, value in (
            ("resources", list(resources)),
            ("components", list(components)),
            ("patches", [{"path": patch} for patch in patches]),
        ):
            if value:
                made[key] = value
        text = "\n".join(filter(None, (self._head, comment)))
        self.files[f"{path}/kustomization.yaml"] = to_yaml(made, comment=text)


def _disk_warning(variant: Contract) -> str:
    """Said where the volume may be too small for what the memory holds."""
    instance = variant.instance
    needed = instance.maxmemory_bytes * _DISK_PER_MEMORY
    if not instance.appendonly or needed <= instance.volume_bytes:
        return ""
    return (
        f"Mind the volume: while the AOF is rewritten, {format_size(instance.maxmemory_bytes)} of data take\n"
        f"up to {format_size(needed, units='kubernetes')} of disk, and the claim is for "
        f"{format_size(instance.volume_bytes, units='kubernetes')}. With a full disk writes stop (DUR-06).\n"
        "Enlarge the claim data-NAME-0 first, where its storage class allows that."
    )
