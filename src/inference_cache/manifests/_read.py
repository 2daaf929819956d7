"""Finds the server's container among Kubernetes manifests of any make, and what they say about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path, PurePosixPath
from typing import Any, Final

from inference_cache.errors import MissingExtra, UsageError

__all__ = ["InstanceManifest", "parse_quantity", "read_manifest"]

_WORKLOADS: Final = ("StatefulSet", "Deployment", "ReplicaSet", "DaemonSet", "Pod", "Job")
_SERVER = re.compile(r"(^|[/\s])(valkey|redis)-server$")
_IMAGE = re.compile(r"(^|/)(valkey|redis|keydb)(-server|-stack-server)?(:|@|$)")
_EXTRA_FLAGS: Final = ("VALKEY_EXTRA_FLAGS", "REDIS_EXTRA_FLAGS")
_IMAGE_FOLDER: Final = "/data"
"""Working directory of the official images, where the server writes when it is not told where."""
_QUANTITY = re.compile(r"(?P<number>[0-9.]+(?:[eE][+-]?[0-9]+)?)(?P<unit>[A-Za-z]*)")
_UNITS: Final = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceManifest:
    """The server's container, as far as its manifests tell."""

    name: str
    """Kind and name of the workload, such as ``StatefulSet valkey``."""
    image: str
    arguments: Mapping[str, str]
    """Settings by name, from its configuration file where that is in the manifests, then its command line."""
    memory_limit_bytes: int | None
    memory_request_bytes: int | None
    data_dir: str
    """Where it writes: its ``dir``, or the folder that it starts in."""
    volume_path: str | None
    """Mount path of the volume that ``data_dir`` lies on, or None where no volume is mounted there."""
    volume_kind: str
    """``persistentVolumeClaim``, ``emptyDir`` or another kind of volume; ``""`` without one."""
    volume_bytes: int | None
    """What its claim asks for."""
    network_policy: bool
    """Whether a NetworkPolicy among the manifests says who may reach it."""

    @property
    def persistent(self) -> bool:
        """Whether what it writes outlives its pod."""
        return self.volume_kind in ("persistentVolumeClaim", "hostPath", "csi", "nfs", "iscsi", "fc", "local")


def read_manifest(path: Path) -> InstanceManifest:
    """The one Valkey in a file of manifests, or in the ``.yaml`` and ``.yml`` files of a folder.

    Raises:
        UsageError: it cannot be read, is no YAML, or holds no server or more than one.
        MissingExtra: PyYAML is not installed.
    """
    return instance_of(list(_documents(path)), str(path))


def instance_of(documents: Sequence[Mapping[str, Any]], place: str) -> InstanceManifest:
    """The one Valkey in documents that are already parsed, such as a Pod from the API; ``place`` is where
    they came from.

    Raises:
        UsageError: they hold no server or more than one.
    """
    found = [
        (document, pod, container)
        for document in documents
        if document.get("kind") in _WORKLOADS and isinstance(pod := _pod(document), Mapping)
        for container in pod.get("containers") or ()
        if _is_server(container)
    ]
    if not found:
        kinds = ", ".join(sorted({str(document.get("kind")) for document in documents})) or "nothing"
        raise UsageError(
            f"{place} holds {kinds}, and no workload with a valkey-server: give the rendered manifests, such "
            "as `helm template` or `kubectl kustomize` prints them"
        )
    if len(found) > 1:
        names = ", ".join(f"{d['kind']} {_name(d)}, container {c.get('name')}" for d, _, c in found)
        raise UsageError(f"{place} holds {len(found)} servers ({names}): give the manifests of one")
    document, pod, container = found[0]
    return _instance(document, pod, container, documents)


def parse_quantity(text: str | int | float) -> int:
    """Bytes of a Kubernetes quantity: ``1.5Gi``, ``512M``, ``1e9``, ``128974848``.

    Raises:
        UsageError: it is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is not None and match["unit"] in _UNITS:
        try:
            return int(Decimal(match["number"]) * _UNITS[match["unit"]])
        except InvalidOperation:
            pass
    raise UsageError(f"{text!r} is no quantity: write a number and a unit, such as 2Gi or 512Mi")


def _documents(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtra(module="yaml", extra="observability") from error
    try:
        files = (
            sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml")) if path.is_dir() else [path]
        )
        for file in files:
            for document in yaml.safe_load_all(file.read_text("utf-8")):
                if isinstance(document, Mapping):
                    yield from document.get("items") or [document]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: {getattr(error, 'strerror', None) or error}; name a file of Kubernetes manifests"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"{path} is no YAML{where}: {getattr(error, 'problem', error)}; give the rendered manifests, not "
            "their templates"
        ) from error


def _pod(document: Mapping[str, Any]) -> Any:
    spec = document.get("spec") or {}
    if document["kind"] == "Pod":
        return spec
    return (spec.get("template") or {}).get("spec")


def _name(document: Mapping[str, Any]) -> str:
    return str((document.get("metadata") or {}).get("name", ""))


def _is_server(container: Mapping[str, Any]) -> bool:
    words = _words(container)
    if any(_SERVER.search(word) for word in words):
        return True
    # The official image starts the server when it is told nothing, or only settings.
    return bool(_IMAGE.search(str(container.get("image", "")))) and (not words or words[0].startswith("-"))


def _words(container: Mapping[str, Any]) -> list[str]:
    """The words of its command line; a script's are those of the script."""
    words: list[str] = []
    for word in (*(container.get("command") or ()), *(container.get("args") or ())):
        text = str(word)
        if "\n" in text or ("-server" in text and " " in text.strip()):
            words += _script_words(text)
        else:
            words.append(text)
    return words


def _script_words(script: str) -> list[str]:
    try:
        return shlex.split(script.replace("\\\n", " "), comments=True)
    except ValueError:
        return script.split()


def _instance(
    document: Mapping[str, Any],
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    documents: Sequence[Mapping[str, Any]],
) -> InstanceManifest:
    words = _words(container)
    starts = [n for n, word in enumerate(words) if _SERVER.search(word)]
    given = words[starts[0] + 1 :] if starts else words
    for variable in container.get("env") or ():
        if variable.get("name") in _EXTRA_FLAGS and not (starts and container.get("command")):
            given = [*given, *shlex.split(str(variable.get("value") or ""))]
    settings: dict[str, str] = {}
    if given and not given[0].startswith("-"):
        settings |= _directives(_file_text(given[0], pod, container, documents))
    settings |= _flags(given)
    data_dir = settings.get("dir") or str(container.get("workingDir") or _IMAGE_FOLDER)
    if not data_dir.startswith("/"):
        data_dir = str(PurePosixPath(_IMAGE_FOLDER, data_dir))
    mount = _mount_below(data_dir, container)
    kind, size = _volume(mount, document, pod, documents)
    resources = container.get("resources") or {}
    return InstanceManifest(
        name=f"{document['kind']} {_name(document)}",
        image=str(container.get("image", "")),
        arguments=settings,
        memory_limit_bytes=_memory(resources.get("limits")),
        memory_request_bytes=_memory(resources.get("requests")),
        data_dir=data_dir,
        volume_path=str(mount["mountPath"]) if mount else None,
        volume_kind=kind,
        volume_bytes=size,
        network_policy=any(_selects(policy, document) for policy in documents),
    )


def _memory(resources: Mapping[str, Any] | None) -> int | None:
    value = (resources or {}).get("memory")
    return None if value is None else parse_quantity(value)


def _flags(words: Iterable[str]) -> dict[str, str]:
    """``--name value ...``: a setting's value is all that stands before the next one."""
    settings: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in words:
        if word in ("&&", "||", ";", "|", "&"):
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = settings[name.lower()] = [value] if equals else []
        elif values is not None:
            values.append(word)
    return {name: " ".join(values) for name, values in settings.items()}


def _directives(text: str) -> dict[str, str]:
    """Settings of a valkey.conf; schedules in several ``save`` lines are one setting."""
    settings: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        name, value = name.lower(), " ".join(_script_words(value))
        settings[name] = f"{settings[name]} {value}" if name == "save" and settings.get(name) else value
    return settings


def _file_text(
    path: str,
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    documents: Iterable[Mapping[str, Any]],
) -> str:
    """The text of a file that a ConfigMap among the manifests puts at ``path``; nothing where none does."""
    mount = _mount_below(path, container)
    if mount is None:
        return ""
    volumes: list[Mapping[str, Any]] = pod.get("volumes") or []
    source = next((volume for volume in volumes if volume.get("name") == mount["name"]), {})
    wanted = (source.get("configMap") or {}).get("name")
    for document in documents:
        if document.get("kind") == "ConfigMap" and _name(document) == wanted:
            key = mount.get("subPath") or PurePosixPath(path).name
            return str((document.get("data") or {}).get(key, ""))
    return ""


def _mount_below(path: str, container: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The mount that ``path`` lies on: the one with the longest path."""
    mounts: list[Mapping[str, Any]] = [
        mount
        for mount in container.get("volumeMounts") or ()
        if PurePosixPath(path).is_relative_to(str(mount.get("mountPath")))
    ]
    return max(mounts, key=lambda mount: len(str(mount["mountPath"])), default=None)


def _volume(
    mount: Mapping[str, Any] | None,
    document: Mapping[str, Any],
    pod: Mapping[str, Any],
    documents: Iterable[Mapping[str, Any]],
) -> tuple[str, int | None]:
    """The kind of the volume, and what its claim asks for."""
    if mount is None:
        return "", None
    for claim in (document.get("spec") or {}).get("volumeClaimTemplates") or ():
        if _name(claim) == mount["name"]:
            return "persistentVolumeClaim", _claimed(claim)
    for volume in pod.get("volumes") or ():
        if volume.get("name") != mount["name"]:
            continue
        kind = next((key for key in volume if key != "name"), "")
        if kind != "persistentVolumeClaim":
            return kind, None
        wanted = (volume[kind] or {}).get("claimName")
        claims = (d for d in documents if d.get("kind") == "PersistentVolumeClaim" and _name(d) == wanted)
        return kind, next((_claimed(claim) for claim in claims), None)
    return "", None


def _claimed(claim: Mapping[str, Any]) -> int | None:
    requests = ((claim.get("spec") or {}).get("resources") or {}).get("requests") or {}
    return None if "storage" not in requests else parse_quantity(requests["storage"])


def _selects(policy: Mapping[str, Any], workload: Mapping[str, Any]) -> bool:
    """Whether the document is a NetworkPolicy that says who may reach the workload's pods."""
    if policy.get("kind") != "NetworkPolicy":
        return False
    spec = policy.get("spec") or {}
    template = (workload.get("spec") or {}).get("template") or workload
    labels = (template.get("metadata") or {}).get("labels") or {}
    wanted = (spec.get("podSelector") or {}).get("matchLabels") or {}
    return "Ingress" in (spec.get("policyTypes") or ["Ingress"]) and wanted.items() <= labels.items()
