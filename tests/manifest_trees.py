"""Manifests as a cluster would see them: patches merged, kinds validated, and each name that one object
gives to another looked up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft7Validator

__all__ = ["build", "complaints", "pods"]

VERSION = "1.35"
DATA = Path(__file__).parent / "data"
_OPERATOR = json.loads((DATA / "prometheus-operator.schema.json").read_text("utf-8"))["definitions"]
_MERGE_KEYS = {"containers": "name", "initContainers": "name", "volumes": "name", "env": "name"} | {
    "volumeMounts": "mountPath"
}
"""Lists that a patch merges item by item, as Kubernetes does for these; any other list it replaces."""

Document = dict[str, Any]


def build(files: Mapping[str, str], path: str) -> list[Document]:
    """What ``kubectl kustomize`` makes of a folder: resources, then components, then patches."""
    return _build(files, path, [])


def _build(files: Mapping[str, str], path: str, base: list[Document]) -> list[Document]:
    made = yaml.safe_load(files[f"{path}/kustomization.yaml"])
    unknown = made.keys() - {"apiVersion", "kind", "resources", "components", "patches"}
    assert not unknown, f"{path}: {unknown} is not understood here"
    documents = list(base)
    for name in made.get("resources", []):
        place = _join(path, name)
        if f"{place}/kustomization.yaml" in files:
            documents += build(files, place)
        else:
            documents += yaml.safe_load_all(files[place])
    for name in made.get("components", []):
        documents = _build(files, _join(path, name), documents)
    for patch in made.get("patches", []):
        for document in yaml.safe_load_all(files[_join(path, patch["path"])]):
            [target] = [n for n, d in enumerate(documents) if _identity(d) == _identity(document)]
            documents[target] = _merge(documents[target], document)
    return documents


def _join(path: str, name: str) -> str:
    parts: list[str] = []
    for part in f"{path}/{name}".split("/"):
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _identity(document: Document) -> tuple[str, str, str, str]:
    metadata = document["metadata"]
    return (document["apiVersion"], document["kind"], metadata.get("namespace", ""), metadata["name"])


def _merge(old: Document, new: Document) -> Document:
    merged = dict(old)
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif key in _MERGE_KEYS and key in merged:
            merged[key] = _merge_lists(merged[key], value, _MERGE_KEYS[key])
        else:
            merged[key] = value
    return merged


def _merge_lists(old: list[Document], new: list[Document], key: str) -> list[Document]:
    by_key = {item[key]: item for item in old}
    for item in new:
        by_key[item[key]] = _merge(by_key[item[key]], item) if item[key] in by_key else item
    return list(by_key.values())


def complaints(documents: Sequence[Document], *, given: Iterable[str] = ()) -> list[str]:
    """Everything that is wrong; ``given`` are objects made by hand, as ``Secret/name``."""
    return [*_wrong_shapes(documents), *_dangling_names(documents, frozenset(given))]


def _wrong_shapes(documents: Sequence[Document]) -> Iterator[str]:
    for document in documents:
        where = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
        if str(document.get("apiVersion")).startswith("monitoring.coreos.com/"):
            schema = {"$ref": f"#/definitions/I{document['kind']}", "definitions": _OPERATOR}
            yield from (
                f"{where}: {error.message}" for error in Draft7Validator(schema).iter_errors(document)
            )
            continue
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{where}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{where}: no such kind in {document.get('apiVersion')}"


def pods(documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
    """Every pod template with the workload that it belongs to, as ``kind/name``."""
    for document in documents:
        spec = document.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template is not None:
            yield _called(document), template


def _dangling_names(documents: Sequence[Document], given: frozenset[str]) -> Iterator[str]:
    there = {_called(d) for d in documents} | given
    if len(there) < len(documents) + len(given):
        yield "two objects have the same kind and name"
    templates = {
        _called(d): {v["metadata"]["name"] for v in d["spec"]["volumeClaimTemplates"]}
        for d in documents
        if "volumeClaimTemplates" in d.get("spec", {})
    }
    for workload, template in pods(documents):
        yield from _dangling_in_pod(workload, template["spec"], templates.get(workload, set()), there)
    labels = [template["metadata"]["labels"] for _, template in pods(documents)]
    for document in documents:
        where, spec = _called(document), document.get("spec", {})
        match document["kind"]:
            case "Service" if not _some(labels, spec.get("selector", {})):
                yield f"{where}: selects no pod"
            case "NetworkPolicy" if not _some(labels, spec["podSelector"]["matchLabels"]):
                yield f"{where}: selects no pod"
            case "StatefulSet" | "Deployment" if not _some(
                [spec["template"]["metadata"]["labels"]], _selected(spec)
            ):
                yield f"{where}: does not select its own pods"
            case "StatefulSet" if f"Service/{spec['serviceName']}" not in there:
                yield f"{where}: serviceName {spec['serviceName']} is no Service"
            case "ServiceMonitor":
                services = [d["metadata"]["labels"] for d in documents if d["kind"] == "Service"]
                if not _some(services, _selected(spec)):
                    yield f"{where}: selects no Service"
            case "RoleBinding":
                names = [f"{document['roleRef']['kind']}/{document['roleRef']['name']}"]
                names += [f"{s['kind']}/{s['name']}" for s in document["subjects"]]
                yield from (f"{where}: there is no {name}" for name in names if name not in there)
    containers = [c for _, template in pods(documents) for c in template["spec"]["containers"]]
    ports = {port["name"] for container in containers for port in container.get("ports", [])}
    for document in documents:
        if document["kind"] == "Service":
            wanted = {port["targetPort"] for port in document["spec"]["ports"]}
            yield from (f"{_called(document)}: no container has a port {port}" for port in wanted - ports)


def _called(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def _selected(spec: Document) -> Mapping[str, str]:
    labels: Mapping[str, str] = spec.get("selector", {}).get("matchLabels", {})
    return labels


def _some(candidates: Iterable[Mapping[str, str]], wanted: Mapping[str, str]) -> bool:
    return any(wanted.items() <= labels.items() for labels in candidates)


def _dangling_in_pod(workload: str, pod: Document, claims: set[str], there: set[str]) -> Iterator[str]:
    if "serviceAccountName" in pod and f"ServiceAccount/{pod['serviceAccountName']}" not in there:
        yield f"{workload}: there is no ServiceAccount {pod['serviceAccountName']}"
    volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{workload}: container {container['name']} mounts {mount['name']}, which is no volume"
        for variable in container.get("env", []):
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret and f"Secret/{secret['name']}" not in there:
                yield f"{workload}: there is no Secret {secret['name']}"
    for volume in pod.get("volumes", []):
        for kind, key, name in (
            ("ConfigMap", "configMap", "name"),
            ("Secret", "secret", "secretName"),
            ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
        ):
            if key in volume and f"{kind}/{volume[key][name]}" not in there:
                yield f"{workload}: there is no {kind} {volume[key][name]}"
