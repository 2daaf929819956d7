"""The process of an engine: nothing of it is left, however it and its parent end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import eventually

from fixtures.targets.processes import group_members

# Stands for the engine's process: it starts a worker, as an engine split over several does, and answers.
ENGINE = """
import os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
for order in sys.stdin:
    print(f'{{"group": {os.getpgrp()}}}', flush=True)
os._exit(0)
"""
PARENT = """
import os, pathlib, sys
from fixtures.engines.vllm_process import VllmProcess
process = VllmProcess(model=pathlib.Path("none"), kv_transfer_config=None)
process._root = pathlib.Path(sys.argv[1])
with process:
    print(process.ask({"do": "say"})["group"], flush=True)
    sys.stdin.read()
print("ended", flush=True)
"""


@pytest.fixture
def parent(tmp_path: Path) -> subprocess.Popen[str]:
    folder = tmp_path / "fixtures" / "engines"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "vllm_serve.py").write_text(ENGINE, "utf-8")
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_ends_with_its_workers(parent: subprocess.Popen[str]) -> None:
    with parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert len(group_members(group)) == 2
        out, _ = parent.communicate(timeout=30)

    assert out == "ended\n"
    assert not group_members(group)


def test_is_killed_with_its_workers_when_its_parent_was(parent: subprocess.Popen[str]) -> None:
    with parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert group != os.getpgrp()
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        eventually(lambda: not group_members(group), "the group to be gone")
