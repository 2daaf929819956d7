"""What happens around a start, in systems whose life cycle is wrong.

Each hook gets the server's arguments and a folder that is kept for the system, may change both, and returns
how often it acted.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fixtures.aof import command_offsets
from fixtures.targets.ports import reserve_port
from inference_cache.connection import Client, connect
from inference_cache.errors import CacheUnavailable

__all__ = ["HOOKS", "argument"]

Hook = Callable[[list[str], Path, str], int]


def argument(arguments: list[str], name: str) -> str:
    """The value of ``--name``; the last one counts, as for the server."""
    values = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word == f"--{name}"]
    return values[-1] if values else ""


def wipe_data(arguments: list[str], folder: Path, server: str) -> int:
    data = Path(argument(arguments, "dir"))
    entries = list(data.iterdir())
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return len(entries)


def restore_older_data(arguments: list[str], folder: Path, server: str) -> int:
    """The first start on data keeps a copy; later ones put it back."""
    data = Path(argument(arguments, "dir"))
    copy = folder / hashlib.sha256(str(data).encode()).hexdigest()[:16]
    if copy.exists():
        shutil.rmtree(data)
        shutil.copytree(copy, data)
        return 1
    if any(path.is_file() and path.stat().st_size > 500 for path in data.rglob("*")):
        shutil.copytree(data, copy)
    return 0


def halve_log(arguments: list[str], folder: Path, server: str) -> int:
    acted = 0
    for log in Path(argument(arguments, "dir")).rglob("*.incr.aof"):
        size = log.stat().st_size
        if size > 10_000:
            os.truncate(log, size // 2)
            acted += 1
    return acted


def cut_log_at_damage(arguments: list[str], folder: Path, server: str) -> int:
    acted = 0
    for log in Path(argument(arguments, "dir")).rglob("*.incr.aof"):
        raw = log.read_bytes()
        try:
            command_offsets(raw)
        except ValueError as error:
            found = re.search(r"offset (\d+)", str(error))
            if found:
                os.truncate(log, int(found[1]))
                acted += 1
    return acted


def forget_log_of_unfinished_save(arguments: list[str], folder: Path, server: str) -> int:
    data = Path(argument(arguments, "dir"))
    unfinished = list(data.rglob("temp-*"))
    if not unfinished:
        return 0
    for path in unfinished:
        path.unlink()
    for log in data.rglob("*.incr.aof"):
        os.truncate(log, 0)
    return 1


def append_only_at_run_time(arguments: list[str], folder: Path, server: str) -> int:
    """Started without AOF; somebody switches it on while the server runs, but only the first time."""
    data = Path(argument(arguments, "dir"))
    arguments += ["--appendonly", "no"]
    marker = folder / hashlib.sha256(str(data).encode()).hexdigest()[:16]
    if marker.exists():
        return 0
    marker.touch()
    # In a process of its own, which belongs to the server's group: this one becomes the server.
    if os.fork() == 0:
        when_up(int(argument(arguments, "port")), lambda client: client.config_set("appendonly", "yes"))
        os._exit(0)
    return 1


def acl_for_every_key(arguments: list[str], folder: Path, server: str) -> int:
    path = argument(arguments, "aclfile")
    if not path:
        return 0
    rules, changed = re.subn(r"(?<=\s)~\S+", "~*", Path(path).read_text("utf-8"))
    Path(path).write_text(rules, "utf-8")
    return changed


def acl_for_every_command(arguments: list[str], folder: Path, server: str) -> int:
    path = argument(arguments, "aclfile")
    if not path:
        return 0
    rules, changed = re.subn(r" -@all ", " +@all ", Path(path).read_text("utf-8"))
    Path(path).write_text(rules, "utf-8")
    return changed


def plain_port_beside(arguments: list[str], folder: Path, server: str) -> int:
    """A server that others reach over TLS only listens on a port of its own as well."""
    if argument(arguments, "port") != "0":
        return 0
    arguments += ["--port", str(reserve_port())]
    return 1


def foreign_keys(arguments: list[str], folder: Path, server: str) -> int:
    """An empty server gets keys of nobody's prefix before anybody else sees it."""
    if any(Path(argument(arguments, "dir")).iterdir()):
        return 0
    port = reserve_port()
    process = subprocess.Popen(
        [server, *arguments, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def write(client: Client) -> None:
        for number in range(50):
            client.set(f"mlcache:model:{number}", b"x" * 100)

    when_up(port, write)
    process.terminate()
    process.wait()
    return 50


def when_up(port: int, act: Callable[[Client], object]) -> None:
    """Do something once the server answers.

    Raises:
        TimeoutError: it did not within ten seconds.
    """
    end = time.monotonic() + 10
    while True:
        try:
            with connect(f"valkey://127.0.0.1:{port}", deadline_s=5) as client:
                act(client)
                return
        except CacheUnavailable as error:
            if time.monotonic() >= end:
                raise TimeoutError(f"no server on port {port}") from error
            time.sleep(0.01)


HOOKS: dict[str, Hook] = {
    hook.__name__: hook
    for hook in (
        wipe_data,
        restore_older_data,
        halve_log,
        cut_log_at_damage,
        forget_log_of_unfinished_save,
        append_only_at_run_time,
        acl_for_every_command,
        acl_for_every_key,
        foreign_keys,
        plain_port_beside,
    )
}
