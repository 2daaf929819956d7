"""Fixtures that specs share."""

from __future__ import annotations

import functools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from fixtures.restart import LiveRestart, restart_live
from fixtures.run_state import EVIDENCE, SESSION, option
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, not_proven
from fixtures.targets import Target
from inference_cache.contract import Contract

pytest_plugins = ["fixtures.plugin"]

# What Hypothesis keeps for itself must not turn up in the folder that the suite was started from.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"inference-cache-hypothesis-{os.getuid()}")


@pytest.fixture(scope="session")
def contract(pytestconfig: pytest.Config) -> Contract:
    """The contract that the target is held against."""
    return pytestconfig.stash[SESSION].contract


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Iterator[Target]:
    """The server under judgment; specs share it, write only under their own names and never fill it."""
    with pytestconfig.stash[SESSION].open_target() as opened:
        yield opened


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Evidence:
    """Where a spec leaves its numbers and plots for the report."""
    found: Evidence = request.node.stash[EVIDENCE]
    return found


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Randomness that the run's seed and the spec's name decide, whatever ran before."""
    return random.Random(f"{option(request.config, 'seed')}:{request.node.nodeid.rpartition('/')[2]}")


@pytest.fixture
def servers(target: Target, evidence: Evidence) -> Iterator[ServerFactory]:
    """Disposable servers of the target's make; all are gone when the spec ends."""
    with ServerFactory(target, evidence) as factory:
        yield factory


@pytest.fixture(scope="session")
def live_restart(
    target: Target, contract: Contract, pytestconfig: pytest.Config
) -> Callable[[], LiveRestart]:
    """The one restart of the live server, made when it is first asked for; not proven without consent."""

    @functools.cache
    def restarted() -> LiveRestart:
        seed = f"{option(pytestconfig, 'seed')}:restart"
        return restart_live(target, contract, random.Random(seed))

    def consented() -> LiveRestart:
        if not target.disruption:
            not_proven(
                "needs a restart of the live server itself, which its operator allows with "
                f"--consent-disruption {target.address.partition('://')[2]}"
            )
        return restarted()

    return consented


@pytest.fixture(scope="session")
def implementation(pytestconfig: pytest.Config) -> Callable[[str], Any]:
    """The adapter under judgment by name: the shipped one, or what ``--implementation`` put in its place."""
    session = pytestconfig.stash[SESSION]
    return session.implementation


@pytest.fixture(scope="session")
def ray_address(pytestconfig: pytest.Config) -> str | None:
    """The Ray cluster whose workers make the load; None for processes on this machine."""
    address: str | None = option(pytestconfig, "ray_address")
    return address


@pytest.fixture(scope="session")
def make_keyspace(implementation: Callable[[str], Any]) -> Callable[[str], Any]:
    """The key builder under judgment: prefix in, keyspace out."""
    judged: Callable[[str], Any] = implementation("keyspace")
    return judged


@pytest.fixture(scope="session")
def purge(implementation: Callable[[str], Any]) -> Callable[..., Any]:
    """The purge under judgment."""
    judged: Callable[..., Any] = implementation("purge")
    return judged
