"""Memory limits by control groups: they kill, and they leave nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.targets.embedded import EmbeddedServer, resolve_executable
from fixtures.targets.memory_limit import MemoryGroup, NoMemoryLimit
from inference_cache.connection import Client
from inference_cache.errors import CacheUnavailable

MIB = 1024 * 1024


def why_no_limit() -> str:
    try:
        MemoryGroup(64 * MIB).close()
    except NoMemoryLimit as error:
        return str(error)
    return ""


needs_limit = pytest.mark.skipif(bool(why_no_limit()), reason=why_no_limit() or "limits can be set")


def overfill(client: Client) -> None:
    """Write more than any limit of these tests."""
    for number in range(64):
        client.set(f"emb:{number}", b"x" * (4 * MIB))


@needs_limit
def test_a_server_over_its_limit_is_killed_and_this_process_is_not() -> None:
    group = MemoryGroup(64 * MIB)
    with EmbeddedServer(resolve_executable(None), {"save": "", "maxmemory": "0"}) as bare:
        bare.stop()
        bare.launcher = group.launcher
        bare.start()
        with bare.connect() as client, pytest.raises(CacheUnavailable):
            overfill(client)
        assert bare.wait_exit(deadline_s=20) == -9
    group.close()
    assert not group.folder.exists()


@needs_limit
@pytest.mark.parametrize(
    ("instance", "outcome"),
    [
        pytest.param('maxmemory = "1536mb"', "passed", id="three-quarters"),
        pytest.param('maxmemory = "2gb"\nheadroom_ratio = 1.0', "failed", id="all-of-it"),
    ],
)
def test_headroom_is_proven_by_a_real_kill(tmp_path: Path, instance: str, outcome: str) -> None:
    contract = tmp_path / "contract.toml"
    contract.write_text(f"[instance]\n{instance}\n", "utf-8")
    subprocess.run(
        [
            *(sys.executable, "-m", "inference_cache", "gate", "--workers", "0", "--clause", "CFG-01"),
            *("--contract", str(contract), "--report-dir", str(tmp_path / "reports")),
        ],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    report = json.loads((tmp_path / "reports" / "report.json").read_text("utf-8"))
    judged = next(entry for entry in report["clauses"] if entry["id"] == "CFG-01")
    assert judged["outcome"] == outcome, judged["reason"]
    if outcome == "failed":
        assert "exit code 137" in judged["findings"][0]["observed"]
    else:
        assert "memory limit 192mb" in judged["proven_on"]
