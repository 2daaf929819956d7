"""What the cache on the pictures lived through."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fixtures.observe import wait_for
from fixtures.pressure import PressureRun
from fixtures.targets.embedded import EmbeddedServer
from inference_cache.connection import Client
from inference_cache.errors import CommandRejected

__all__ = ["STORY", "Scene", "live_through"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is done at its beginning, how long it lasts, and what is done at its end."""

    what: str
    seconds: float
    begin: Callable[[PressureRun, EmbeddedServer], None]
    end: Callable[[PressureRun, EmbeddedServer], None]


def _nothing(run: PressureRun, server: EmbeddedServer) -> None:
    """The load goes on."""


def _noisy(run: PressureRun, server: EmbeddedServer) -> None:
    run.pace["vllm_kv"] = 6.0


def _quiet(run: PressureRun, server: EmbeddedServer) -> None:
    run.pace["vllm_kv"] = 1.0


def _errors(run: PressureRun, server: EmbeddedServer) -> None:
    run.provoke_errors()


def _break_saves(run: PressureRun, server: EmbeddedServer) -> None:
    """A folder where the snapshot is to go fails every BGSAVE, also root's."""
    snapshot = server.data_dir / "dump.rdb"
    snapshot.unlink(missing_ok=True)
    snapshot.mkdir()
    _save(server, "err")


def _mend_saves(run: PressureRun, server: EmbeddedServer) -> None:
    (server.data_dir / "dump.rdb").rmdir()
    _save(server, "ok")


def _save(server: EmbeddedServer, wanted: str) -> None:
    with server.connect() as client:
        wait_for(
            lambda: _saved(client) == wanted, what=f"a snapshot to end as {wanted}", deadline_s=60, poll_s=1
        )


def _saved(client: Client) -> str:
    try:
        client.bgsave()
    except CommandRejected:
        time.sleep(0.2)  # a snapshot or a rewrite of the AOF is under way
    return str(client.info("persistence")["rdb_last_bgsave_status"])


def _restart(run: PressureRun, server: EmbeddedServer) -> None:
    server.restart()


STORY = (
    Scene(what="four workloads fill the memory", seconds=80, begin=_nothing, end=_errors),
    Scene(what="vllm:kv: writes six times as much", seconds=80, begin=_noisy, end=_quiet),
    Scene(what="it calms down", seconds=70, begin=_errors, end=_nothing),
    Scene(what="snapshots fail, writes are refused", seconds=45, begin=_break_saves, end=_mend_saves),
    Scene(what="it calms down", seconds=60, begin=_nothing, end=_nothing),
    Scene(what="a restart", seconds=60, begin=_restart, end=_errors),
    Scene(what="vllm:kv: writes six times as much again", seconds=60, begin=_noisy, end=_nothing),
)
"""Ends in trouble, so that the pictures show what an operator would see."""


def live_through(
    run: PressureRun, server: EmbeddedServer, *, speed: float, say: Callable[[str], None]
) -> None:
    """Each scene in turn; ``speed`` divides their lengths."""
    for scene in STORY:
        say(scene.what)
        scene.begin(run, server)
        time.sleep(scene.seconds / speed)
        scene.end(run, server)
        run.check_load()
