"""Manifests of any make: what they say is read, and held against the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference_cache.contract import load
from inference_cache.errors import UsageError
from inference_cache.manifests import InstanceManifest, parse_quantity, read_manifest, violations

ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = Path(__file__).parent / "data" / "manifests"
BASE = ROOT / "deploy" / "generated" / "base"
CONTRACT = load()
GI = 1024**3


def broken(instance: InstanceManifest) -> dict[str, list[str]]:
    """What was observed, by clause."""
    found: dict[str, list[str]] = {}
    for clause, finding in violations(instance, CONTRACT):
        found.setdefault(clause, []).append(finding.observed)
    return found


class TestReading:
    def test_own_base_says_what_the_contract_decides(self) -> None:
        instance = read_manifest(BASE)
        assert (instance.memory_limit_bytes, instance.memory_request_bytes) == (2 * GI, GI // 2)
        assert instance.arguments["maxmemory"] == "1536mb"
        assert (instance.data_dir, instance.volume_path, instance.volume_kind) == (
            *("/data", "/data"),
            "persistentVolumeClaim",
        )
        assert instance.volume_bytes == 10 * GI
        assert instance.network_policy
        assert instance.name == "StatefulSet valkey"

    def test_configuration_file_in_a_config_map_is_read(self) -> None:
        instance = read_manifest(MANIFESTS / "community-chart.yaml")
        assert instance.arguments == {
            "port": "6379",
            "protected-mode": "no",
            "bind": "* -::*",
            "dir": "/data",
        }
        assert instance.image == "docker.io/valkey/valkey:9.0.1"
        assert (instance.memory_limit_bytes, instance.memory_request_bytes) == (None, None)
        assert (instance.volume_path, instance.volume_kind, instance.persistent) == (
            "/data",
            "emptyDir",
            False,
        )
        assert not instance.network_policy

    def test_script_overrides_its_file_and_claims_are_followed(self) -> None:
        """One setting from the file stays, one is overridden; init containers and sidecars are no server."""
        instance = read_manifest(MANIFESTS / "script.yaml")
        assert instance.arguments == {
            "maxmemory": "6gb",
            "maxclients": "500",
            "maxmemory-policy": "allkeys-lru",
            "appendonly": "yes",
            "save": "",
            "dir": "/cache/data",
        }
        assert (instance.memory_limit_bytes, instance.memory_request_bytes) == (8 * GI, 10**9)
        assert (instance.volume_path, instance.volume_bytes) == ("/cache", 4 * GI)

    def test_several_save_lines_are_one_schedule(self, tmp_path: Path) -> None:
        text = (MANIFESTS / "script.yaml").read_text("utf-8").replace('--save ""', "")
        (tmp_path / "m.yaml").write_text(text, "utf-8")
        assert read_manifest(tmp_path / "m.yaml").arguments["save"] == "60 1 3600 10"

    def test_flags_in_the_environment_of_the_official_image_count(self, tmp_path: Path) -> None:
        """Its entry point adds them; a command in its place does not."""

        def add(document: dict[str, Any]) -> None:
            server(document)["env"] = [{"name": "VALKEY_EXTRA_FLAGS", "value": "--maxmemory 1gb"}]

        def add_for_entry_point(document: dict[str, Any]) -> None:
            add(document)
            del server(document)["command"]

        assert read_manifest(changed(tmp_path, add)).arguments["maxmemory"] == "1536mb"
        assert read_manifest(changed(tmp_path, add_for_entry_point)).arguments["maxmemory"] == "1gb"

    def test_network_policy_of_other_pods_is_none(self, tmp_path: Path) -> None:
        policy = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "other"},
            "spec": {"podSelector": {"matchLabels": {"app": "other"}}, "policyTypes": ["Ingress"]},
        }
        path = tmp_path / "m.yaml"
        literal = (MANIFESTS / "adr-literal.yaml").read_text("utf-8")
        path.write_text(f"{literal}\n---\n{yaml.safe_dump(policy)}", "utf-8")
        assert not read_manifest(path).network_policy
        policy["spec"] = {"podSelector": {}}
        path.write_text(f"{literal}\n---\n{yaml.safe_dump(policy)}", "utf-8")
        assert read_manifest(path).network_policy

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (None, "No such file or directory; name a file of Kubernetes manifests"),
            ("a: [", "is no YAML in line 1: .*not their templates"),
            ("{{- if .Values.x }}\nkind: {{ x }}\n{{- end }}", "is no YAML"),
            ("kind: ConfigMap\nmetadata: {name: x}", "holds ConfigMap, and no workload with a valkey-server"),
            ("", "holds nothing, and no workload"),
        ],
    )
    def test_file_without_a_server_is_told(self, tmp_path: Path, text: str | None, told: str) -> None:
        path = tmp_path / "m.yaml"
        if text is not None:
            path.write_text(text, "utf-8")
        with pytest.raises(UsageError, match=told):
            read_manifest(path)

    def test_two_servers_are_told_apart_by_name(self, tmp_path: Path) -> None:
        for name in ("adr-literal.yaml", "community-chart.yaml"):
            (tmp_path / name).write_text((MANIFESTS / name).read_text("utf-8"), "utf-8")
        with pytest.raises(
            UsageError, match=r"holds 2 servers \(StatefulSet valkey, .*Deployment cache-valkey"
        ):
            read_manifest(tmp_path)

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("2Gi", 2 * GI),
            ("1.5Gi", 3 * GI // 2),
            ("123Mi", 123 * 1024**2),
            ("512M", 512 * 10**6),
            ("1e9", 10**9),
            ("129e6", 129 * 10**6),
            ("128974848000m", 128974848),
            (128974848, 128974848),
        ],
    )
    def test_quantities_are_as_kubernetes_reads_them(self, text: str | int, size: int) -> None:
        assert parse_quantity(text) == size

    @pytest.mark.parametrize("text", ["2GB", "two", "", "1.2.3Gi", "-1Gi"])
    def test_what_is_no_quantity_is_told(self, text: str) -> None:
        with pytest.raises(UsageError, match="is no quantity"):
            parse_quantity(text)


def server(document: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = document["spec"]["template"]["spec"]["containers"][0]
    return container


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The own base's StatefulSet with one mistake in it."""
    document = yaml.safe_load((BASE / "statefulset.yaml").read_text("utf-8"))
    change(document)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


def argument(document: dict[str, Any], name: str, value: str) -> None:
    words = server(document)["args"]
    words[words.index(f"--{name}") + 1] = value


def _limit_at_maxmemory(document: dict[str, Any]) -> None:
    server(document)["resources"]["limits"]["memory"] = "1536Mi"


def _no_volume(document: dict[str, Any]) -> None:
    del server(document)["volumeMounts"]
    del document["spec"]["volumeClaimTemplates"]


def _empty_dir(document: dict[str, Any]) -> None:
    del document["spec"]["volumeClaimTemplates"]
    document["spec"]["template"]["spec"]["volumes"] = [{"name": "data", "emptyDir": {}}]


class TestViolations:
    def test_own_base_breaks_nothing(self) -> None:
        assert broken(read_manifest(BASE)) == {}

    def test_community_chart_is_told_what_to_change(self) -> None:
        """No bound, no limit, the default policy, and a volume that goes with the pod."""
        instance = read_manifest(MANIFESTS / "community-chart.yaml")
        found = broken(instance)
        assert set(found) == {"CFG-01", "CFG-02", "CFG-03"}
        assert found["CFG-01"] == [
            "resources.limits.memory is not set: the pod may take all of its node's memory",
            "maxmemory is not set: the server grows until the kernel kills it",
        ]
        assert found["CFG-02"] == ["maxmemory-policy noeviction, the server's default: it is not set"]
        assert found["CFG-03"] == ["it writes to /data: its emptyDir at /data goes with the pod"]
        remedies = " ".join(finding.remedy for _, finding in violations(instance, CONTRACT))
        for words in ("`--maxmemory 1536mb`", "`resources.limits.memory: 2Gi`", "10Gi PersistentVolumeClaim"):
            assert words in remedies

    def test_text_of_the_decision_taken_literally_breaks_the_bound(self) -> None:
        found = broken(read_manifest(MANIFESTS / "adr-literal.yaml"))
        assert found == {"CFG-01": ["maxmemory is not set: the server grows until the kernel kills it"]}

    def test_scale_up_is_held_against_its_own_limit(self) -> None:
        """6gb of 8Gi keeps the ratio, whatever the contract's limit is; the claim is too small."""
        found = broken(read_manifest(MANIFESTS / "script.yaml"))
        assert found == {"CFG-03": ["the claim asks for 4Gi"]}

    @pytest.mark.parametrize(
        ("change", "clause", "observed"),
        [
            (_limit_at_maxmemory, "CFG-01", "maxmemory is 1536mb, 100% of the limit"),
            (lambda d: argument(d, "maxmemory", "0"), "CFG-01", "maxmemory is not set"),
            (
                lambda d: argument(d, "maxmemory-policy", "noeviction"),
                "CFG-02",
                "maxmemory-policy noeviction",
            ),
            (lambda d: argument(d, "dir", "/tmp"), "CFG-03", "writes to /tmp: no volume is mounted there"),
            (lambda d: argument(d, "dir", "/database"), "CFG-03", "writes to /database: no volume"),
            (_no_volume, "CFG-03", "it writes to /data: no volume is mounted there"),
            (_empty_dir, "CFG-03", "its emptyDir at /data goes with the pod"),
            (lambda d: argument(d, "appendfsync", "no"), "CFG-03", "appendfsync no"),
        ],
    )
    def test_one_mistake_breaks_one_clause(
        self, tmp_path: Path, change: Callable[[dict[str, Any]], None], clause: str, observed: str
    ) -> None:
        found = broken(read_manifest(changed(tmp_path, change)))
        assert set(found) == {clause}
        assert observed in found[clause][0]

    def test_remedy_for_a_small_limit_names_one_that_is_enough(self, tmp_path: Path) -> None:
        [(_, finding)] = violations(read_manifest(changed(tmp_path, _limit_at_maxmemory)), CONTRACT)
        assert finding.remedy == "Lower it to `--maxmemory 1152mb`, or raise the memory limit to 2Gi."

    def test_folder_of_the_volume_below_its_mount_is_on_it(self, tmp_path: Path) -> None:
        assert broken(read_manifest(changed(tmp_path, lambda d: argument(d, "dir", "/data/valkey")))) == {}

    def test_neither_log_nor_snapshot_outlives_the_process(self, tmp_path: Path) -> None:
        def change(document: dict[str, Any]) -> None:
            argument(document, "appendonly", "no")
            argument(document, "save", "")

        found = broken(read_manifest(changed(tmp_path, change)))
        assert found == {"CFG-03": ["neither: nothing outlives the process"]}
