"""What Kubernetes manifests say about a Valkey, before anything runs: its settings, memory limit and volume.

Reads what ``kubectl kustomize``, ``helm template`` or a person wrote, of any make::

    instance = read_manifest(Path("rendered.yaml"))
    for clause, finding in violations(instance, load()):
        print(clause, finding.observed)

Only what stands in the manifests is known: a setting that a start script or an operator adds is not.
"""

from __future__ import annotations

from inference_cache.manifests._judge import violations
from inference_cache.manifests._read import InstanceManifest, instance_of, parse_quantity, read_manifest

__all__ = ["InstanceManifest", "instance_of", "parse_quantity", "read_manifest", "violations"]
