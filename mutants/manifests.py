"""Kubernetes manifests that are wrong in one way: the shipped base with one change, or somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from inference_cache.gate.suite import suite_folder

__all__ = ["MANIFESTS", "write_manifests"]

Tree = dict[str, str]

_CHART = """\
# What a popular chart's default values come to: an image, a port, probes, and nothing about memory or disks.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: cache-valkey
spec:
  selector:
    matchLabels: {app: valkey}
  template:
    metadata:
      labels: {app: valkey}
    spec:
      containers:
        - name: valkey
          image: valkey/valkey:8
          command: [valkey-server]
          args: [--dir, /data]
          volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, emptyDir: {}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: cache-valkey
spec:
  podSelector:
    matchLabels: {app: valkey}
  ingress: [{ports: [{port: 6379}]}]
"""


def unchanged(tree: Tree) -> int:
    return 0


def limit_equals_maxmemory(tree: Tree) -> int:
    return _replace(tree, "memory: 2Gi", "memory: 1536Mi")


def no_memory_limit(tree: Tree) -> int:
    return _replace(tree, "            limits:\n              memory: 2Gi\n", "")


def data_beside_the_mount(tree: Tree) -> int:
    return _replace(tree, "mountPath: /data", "mountPath: /var/lib/valkey")


def no_network_policy(tree: Tree) -> int:
    return int(tree.pop("networkpolicy.yaml", None) is not None)


def chart_defaults(tree: Tree) -> int:
    tree.clear()
    tree["chart.yaml"] = _CHART
    return 1


def write_manifests(name: str, folder: Path) -> int:
    """Write what is wrong in the way of that name into the folder; returns how often the way acted."""
    base = suite_folder() / "deploy" / "generated" / "base"
    tree = {path.name: path.read_text("utf-8") for path in base.glob("*.yaml")}
    acted = MANIFESTS[name](tree)
    folder.mkdir()
    for file, text in tree.items():
        (folder / file).write_text(text, "utf-8")
    return acted


def _replace(tree: Tree, old: str, new: str) -> int:
    acted = sum(text.count(old) for text in tree.values())
    for file, text in tree.items():
        tree[file] = text.replace(old, new)
    return acted


MANIFESTS: Mapping[str, Callable[[Tree], int]] = {
    change.__name__: change
    for change in (
        unchanged,
        limit_equals_maxmemory,
        no_memory_limit,
        data_beside_the_mount,
        no_network_policy,
        chart_defaults,
    )
}
