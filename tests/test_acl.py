"""The ACL file: real servers load it, and it confines each workload to its own keys."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fixtures.targets.embedded import EmbeddedServer, StartupError, shipped_executables
from inference_cache.acl import EXPORTER, GATE, OPERATOR, render_acl
from inference_cache.connection import Client, connect
from inference_cache.contract import Contract, load
from inference_cache.errors import AccessDenied, CommandRejected, ContractError, UsageError
from inference_cache.keyspace import Keyspace, purge

CONTRACT = load()
WORKLOADS = tuple(CONTRACT.workloads)
USERS = (*WORKLOADS, EXPORTER, OPERATOR, GATE)
PASSWORDS = {name: f"clear-text-of-{name}" for name in (*USERS, "default")}

SCRIPT_SHA1 = hashlib.sha1(b"return(1)").hexdigest()

# A call of every command with a key that a workload's user has; KEY stands for the key.
ON_A_KEY = (
    "GET KEY", "MGET KEY", "GETRANGE KEY 0 1", "STRLEN KEY",
    "SET KEY v", "MSET KEY v", "SETEX KEY 60 v", "PSETEX KEY 60000 v", "GETEX KEY EX 60", "GETDEL KEY",
    "INCR KEY", "INCRBY KEY 2",
    "EXISTS KEY", "TYPE KEY", "TOUCH KEY", "DEL KEY", "UNLINK KEY",
    "TTL KEY", "PTTL KEY", "EXPIRETIME KEY", "PEXPIRETIME KEY",
    "EXPIRE KEY 60", "PEXPIRE KEY 60000", "EXPIREAT KEY 9999999999", "PEXPIREAT KEY 9999999999999",
    "PERSIST KEY",
    "HGET KEY f", "HMGET KEY f", "HGETALL KEY", "HEXISTS KEY f", "HLEN KEY",
    "HSET KEY f v", "HSETNX KEY f v", "HINCRBY KEY n 1", "HDEL KEY f",
    "LLEN KEY", "LINDEX KEY 0", "LRANGE KEY 0 -1", "LPUSH KEY v", "RPUSH KEY v", "LTRIM KEY 0 1",
    "SCARD KEY", "SISMEMBER KEY v", "SMEMBERS KEY", "SADD KEY v", "SREM KEY v",
    "ZCARD KEY", "ZSCORE KEY v", "ZRANGE KEY 0 -1", "ZADD KEY 1 v", "ZREM KEY v",
    "WATCH KEY", "EVAL return(1) 1 KEY", f"EVALSHA {SCRIPT_SHA1} 1 KEY",
)  # fmt: skip
WITHOUT_A_KEY = {
    "auth", "hello", "ping", "client|setinfo", "client|setname", "unwatch", "multi", "exec", "discard",
    "script|load", "script|exists", "time",
}  # fmt: skip
ADMINISTRATIVE = (
    "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "KEYS *", "RANDOMKEY", "DBSIZE", "SCAN 0",
    "CONFIG GET maxmemory", "CONFIG SET maxmemory 1", "CONFIG REWRITE", "CONFIG RESETSTAT",
    "DEBUG SLEEP 0", "SHUTDOWN NOSAVE", "SAVE", "BGSAVE", "BGREWRITEAOF", "LASTSAVE",
    "REPLICAOF NO ONE", "FAILOVER", "SYNC", "PSYNC ? -1", "MODULE LIST", "MONITOR",
    "ACL LIST", "ACL SETUSER x", "ACL WHOAMI", "CLIENT LIST", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1",
    "INFO", "SLOWLOG GET", "LATENCY LATEST", "MEMORY STATS",
    "PUBLISH c v", "SUBSCRIBE c", "SELECT 1", "FUNCTION LIST", "SCRIPT FLUSH", "SCRIPT KILL",
)  # fmt: skip


@pytest.fixture(scope="module", params=sorted(shipped_executables()))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """Each shipped server with the file loaded; everybody has a password but the default user."""
    path = tmp_path_factory.mktemp("acl") / "users.acl"
    passwords = {name: text for name, text in PASSWORDS.items() if name != "default"}
    path.write_text(render_acl(CONTRACT, passwords=passwords))
    with EmbeddedServer(shipped_executables()[request.param], settings(path)) as server:
        yield server


def settings(acl_file: Path) -> dict[str, str]:
    # Where DEBUG is switched off, the server refuses it before it asks who calls.
    return {"aclfile": str(acl_file), "save": "", "appendonly": "no", "enable-debug-command": "yes"}


@pytest.fixture
def admin(server: EmbeddedServer) -> Iterator[Client]:
    """The default user, on an empty server."""
    with server.connect() as client:
        client.flushall()
        yield client


def as_user(server: EmbeddedServer, name: str, *, protocol: Literal[2, 3] = 2) -> Client:
    return connect(server.url, username=name, password=PASSWORDS[name], protocol=protocol)


def call(client: Client, command: str, key: str = "") -> Any:
    return client.execute_command(*(key if word == "KEY" else word for word in command.split()))


def rights(text: str, user: str) -> list[str]:
    """The commands that a user of the file may run."""
    (line,) = [line for line in text.splitlines() if line.split()[1] == user]
    return [word[1:] for word in line.split() if word.startswith("+")]


def key_of(name: str) -> str:
    return f"{CONTRACT.workloads[name].prefix}k"


def others(name: str) -> list[str]:
    return [other for other in WORKLOADS if other != name]


class TestWorkloadUser:
    def test_the_examples_are_all_of_its_commands(self) -> None:
        named = {command.split()[0].lower() for command in ON_A_KEY} | WITHOUT_A_KEY

        assert set(rights(render_acl(CONTRACT), "ray")) == named

    @pytest.mark.parametrize("name", WORKLOADS)
    def test_does_everything_on_its_own_keys(self, server: EmbeddedServer, admin: Client, name: str) -> None:
        admin.script_load("return(1)")
        with as_user(server, name) as client:
            for command in ON_A_KEY:
                call(client, command, key_of(name))
                client.unlink(key_of(name))

    @pytest.mark.parametrize("name", WORKLOADS)
    @pytest.mark.parametrize("command", ON_A_KEY)
    def test_does_nothing_on_keys_of_others(
        self, server: EmbeddedServer, admin: Client, name: str, command: str
    ) -> None:
        with as_user(server, name) as client:
            for key in (*map(key_of, others(name)), "k", CONTRACT.workloads[name].prefix.rstrip(":")):
                with pytest.raises(AccessDenied, match=r"NOPERM|permission"):
                    call(client, command, key)

        assert admin.dbsize() == 0

    @pytest.mark.parametrize("command", ["MGET", "EXISTS", "TOUCH", "DEL", "UNLINK", "WATCH"])
    def test_one_foreign_key_among_own_ones_is_enough(
        self, server: EmbeddedServer, admin: Client, command: str
    ) -> None:
        admin.set("ray:k", b"v")
        with as_user(server, "sessions") as client, pytest.raises(AccessDenied):
            client.execute_command(command, "session:a", "ray:k", "session:b")

        assert admin.get("ray:k") == b"v"

    def test_a_transaction_with_a_foreign_key_is_discarded(
        self, server: EmbeddedServer, admin: Client
    ) -> None:
        with as_user(server, "sessions") as client:
            pipe = client.pipeline(transaction=True)
            pipe.set("session:a", b"v")
            pipe.set("ray:k", b"v")
            with pytest.raises((AccessDenied, CommandRejected)):
                pipe.execute()

            assert admin.dbsize() == 0
            own = client.pipeline(transaction=True)
            own.set("session:a", b"v")
            own.expire("session:a", 60)
            assert own.execute() == [True, True]

    def test_a_script_touches_declared_own_keys_only(self, server: EmbeddedServer, admin: Client) -> None:
        with as_user(server, "sessions") as client:
            append = client.register_script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
            undeclared = client.register_script("return redis.call('SET', ARGV[1], 'v')")

            assert append(keys=["session:{u}:turns"], args=["hello"]) == 1
            with pytest.raises(AccessDenied):
                append(keys=["ray:k"], args=["hello"])
            with pytest.raises((AccessDenied, CommandRejected), match="permission"):
                undeclared(args=["ray:k"])
            with pytest.raises((AccessDenied, CommandRejected), match=r"permission|ACL"):
                client.eval("return redis.call('FLUSHALL')", 0)
        assert admin.dbsize() == 1

    @pytest.mark.parametrize("name", WORKLOADS)
    @pytest.mark.parametrize("command", ADMINISTRATIVE)
    def test_may_not_administrate(
        self, server: EmbeddedServer, admin: Client, name: str, command: str
    ) -> None:
        with as_user(server, name) as client, pytest.raises(AccessDenied):
            call(client, command)

    @pytest.mark.parametrize(
        "command", ["RENAME KEY {0}", "COPY KEY {0}", "SORT KEY STORE {0}", "RESTORE KEY 0 x"]
    )
    def test_may_not_move_values_between_keys(
        self, server: EmbeddedServer, admin: Client, command: str
    ) -> None:
        with as_user(server, "sessions") as client, pytest.raises(AccessDenied):
            call(client, command.format("session:b"), "session:a")

    @pytest.mark.parametrize("name", WORKLOADS)
    def test_no_right_is_of_an_administrative_or_dangerous_category(self, admin: Client, name: str) -> None:
        forbidden = {
            command.decode()
            for category in ("admin", "dangerous", "blocking", "pubsub")
            for command in admin.execute_command("ACL", "CAT", category)
        }
        granted = rights(render_acl(CONTRACT), name)

        assert forbidden
        assert not forbidden.intersection(granted)

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_speaks_either_protocol(
        self, server: EmbeddedServer, admin: Client, protocol: Literal[2, 3]
    ) -> None:
        with as_user(server, "ray", protocol=protocol) as client:
            assert client.ping()
            assert client.set("ray:k", b"v", ex=60)

    def test_is_not_let_in_with_the_password_of_another(self, server: EmbeddedServer) -> None:
        with (
            connect(server.url, username="ray", password=PASSWORDS["sessions"]) as client,
            pytest.raises(AccessDenied),
        ):
            client.ping()


class TestExporter:
    def test_measures_every_key(self, server: EmbeddedServer, admin: Client) -> None:
        admin.set("emb:k", b"v" * 1000, ex=60)
        admin.set("stray", b"v")
        with as_user(server, EXPORTER) as client:
            assert set(client.scan_iter(count=100)) == {b"emb:k", b"stray"}
            assert call(client, "MEMORY USAGE emb:k") > 1000
            assert client.type("emb:k") == b"string"
            assert client.ttl("emb:k") > 0
            assert client.dbsize() == 2
            assert client.info("memory")["used_memory"] > 0
            for command in ("SLOWLOG LEN", "LATENCY LATEST", "LATENCY HISTORY fork", "LATENCY HISTOGRAM get"):
                call(client, command)

    @pytest.mark.parametrize(
        "command",
        [
            *("GET emb:k", "SET emb:k v", "UNLINK emb:k", "EXPIRE emb:k 1", "DUMP emb:k"),
            *("CONFIG GET *", "SLOWLOG GET", "CLIENT LIST", "MONITOR", "ACL LIST", "KEYS *", "FLUSHALL"),
            *("EVAL return(1) 0", "CONFIG SET maxmemory 1", "SHUTDOWN", "DEBUG SLEEP 0", "LATENCY RESET"),
        ],
    )
    def test_reads_no_value_and_changes_nothing(
        self, server: EmbeddedServer, admin: Client, command: str
    ) -> None:
        with as_user(server, EXPORTER) as client, pytest.raises(AccessDenied):
            call(client, command)


class TestOperator:
    def test_purges_a_workload(self, server: EmbeddedServer, admin: Client) -> None:
        admin.mset({"emb:a": b"v", "emb:b": b"v", "ray:k": b"v"})
        with as_user(server, OPERATOR) as client:
            report = purge(client, Keyspace("emb:"), deadline_s=10)

        assert report.removed == 2
        assert list(admin.scan_iter()) == [b"ray:k"]

    def test_sees_the_configuration_and_tries_rights_out(self, server: EmbeddedServer, admin: Client) -> None:
        with as_user(server, OPERATOR) as client:
            assert client.config_get("maxmemory-policy")
            assert b"no permissions" in client.execute_command("ACL DRYRUN", "ray", "FLUSHALL")
            for command in ("SLOWLOG GET", "CLIENT LIST", "MEMORY STATS", "MEMORY DOCTOR", "LATENCY DOCTOR"):
                call(client, command)

    @pytest.mark.parametrize(
        "command",
        [
            *("UNLINK stray", "GET emb:k", "SET emb:k v", "KEYS *", "FLUSHALL", "FLUSHDB", "SHUTDOWN"),
            *("CONFIG SET maxmemory 1", "CONFIG REWRITE", "ACL LIST", "ACL SETUSER x", "DEBUG SLEEP 0"),
        ],
    )
    def test_leaves_the_rest_alone(self, server: EmbeddedServer, admin: Client, command: str) -> None:
        with as_user(server, OPERATOR) as client, pytest.raises(AccessDenied):
            call(client, command)


class TestGate:
    def test_does_what_the_workloads_do(self, server: EmbeddedServer, admin: Client) -> None:
        """Below every declared prefix, and sees the configuration beside it."""
        with as_user(server, GATE) as client:
            for prefix in ("vllm:kv:", "emb:", "ray:", "session:"):
                assert client.set(f"{prefix}k", b"v", ex=60)
                assert client.get(f"{prefix}k") == b"v"
            assert client.config_get("maxmemory")
            assert client.info("memory")["used_memory"] > 0

    def test_sees_foreign_keys_and_not_their_values(self, server: EmbeddedServer, admin: Client) -> None:
        admin.set("stray", b"v")
        with as_user(server, GATE) as client:
            assert b"stray" in set(client.scan_iter(count=100))
            assert client.type("stray") == b"string"
            assert call(client, "MEMORY USAGE stray") > 0

    @pytest.mark.parametrize(
        "command",
        [
            *("GET stray", "SET stray v", "UNLINK stray", "EXPIRE stray 1", "KEYS *", "FLUSHALL", "SHUTDOWN"),
            *(
                "CONFIG SET maxmemory 1",
                "ACL SETUSER x",
                "DEBUG SLEEP 0",
                "EVAL return(1) 1 stray",
                "MONITOR",
            ),
        ],
    )
    def test_leaves_the_rest_alone(self, server: EmbeddedServer, admin: Client, command: str) -> None:
        admin.set("stray", b"v")
        with as_user(server, GATE) as client, pytest.raises(AccessDenied):
            call(client, command)


@pytest.fixture(params=sorted(shipped_executables()))
def executable(request: pytest.FixtureRequest) -> Path:
    return shipped_executables()[request.param]


class TestWaysIn:
    def test_the_default_user_keeps_everything(self, server: EmbeddedServer) -> None:
        with connect(server.url) as client:
            assert client.execute_command("ACL", "WHOAMI") == b"default"
            assert client.config_get("maxmemory")

    def test_the_default_user_can_be_shut_out(self, executable: Path, tmp_path: Path) -> None:
        path = tmp_path / "users.acl"
        path.write_text(render_acl(CONTRACT))
        with EmbeddedServer(executable, settings(path)) as server:
            # Loaded only now, because the server counts as up when it answers an anonymous PING.
            path.write_text(render_acl(CONTRACT, default_user="off"))
            with server.connect() as client:
                client.execute_command("ACL LOAD")
            with connect(server.url) as client, pytest.raises(AccessDenied):
                client.ping()
            with as_user(server, "ray") as client:
                assert client.ping()

    def test_the_default_user_can_have_a_password(self, executable: Path, tmp_path: Path) -> None:
        path = tmp_path / "users.acl"
        path.write_text(render_acl(CONTRACT, passwords=PASSWORDS))
        with EmbeddedServer(executable, {**settings(path), "requirepass": PASSWORDS["default"]}) as server:
            with connect(server.url) as client, pytest.raises(AccessDenied):
                client.ping()
            with server.connect() as client:
                assert client.config_get("maxmemory")

    def test_without_passwords_any_will_do(self, executable: Path, tmp_path: Path) -> None:
        path = tmp_path / "users.acl"
        path.write_text(render_acl(CONTRACT))
        with (
            EmbeddedServer(executable, settings(path)) as server,
            connect(server.url, username="ray", password="whatever") as client,
        ):
            assert client.set("ray:k", b"v")
            with pytest.raises(AccessDenied):
                client.set("emb:k", b"v")

    def test_staff_without_a_password_is_off(self, executable: Path, tmp_path: Path) -> None:
        path = tmp_path / "users.acl"
        path.write_text(render_acl(CONTRACT, passwords=dict.fromkeys(WORKLOADS, "x")))
        with EmbeddedServer(executable, settings(path)) as server:
            for name in (EXPORTER, OPERATOR, GATE):
                with connect(server.url, username=name, password="x") as client, pytest.raises(AccessDenied):
                    client.ping()

    def test_a_wrong_file_would_have_stopped_the_server(self, executable: Path, tmp_path: Path) -> None:
        path = tmp_path / "users.acl"
        path.write_text(render_acl(CONTRACT) + "user x on +nosuchcommand\n")
        with pytest.raises(StartupError, match=r"users\.acl"), EmbeddedServer(executable, settings(path)):
            pass


class TestText:
    def test_has_a_line_for_each_user(self) -> None:
        lines = render_acl(CONTRACT).splitlines()

        assert [line.split()[:2] for line in lines] == [["user", name] for name in USERS]

    def test_holds_digests_and_no_password(self) -> None:
        text = render_acl(CONTRACT, passwords=PASSWORDS)

        assert text.count(" on #") == len(PASSWORDS)
        assert "clear-text" not in text
        assert "nopass" not in text

    def test_each_line_names_its_prefix_once(self) -> None:
        lines = render_acl(CONTRACT).splitlines()
        for workload, line in zip(CONTRACT.workloads.values(), lines, strict=False):
            assert [word for word in line.split() if "~" in word] == [f"~{workload.prefix}*"]

    @pytest.mark.parametrize("name", ["vllm_kv", EXPORTER, "default"])
    def test_an_empty_password_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match=f"the password of '{name}' is empty"):
            render_acl(CONTRACT, passwords={**PASSWORDS, name: ""})

    def test_a_missing_password_is_refused(self) -> None:
        with pytest.raises(UsageError, match="no password for ray: give one for each workload"):
            render_acl(CONTRACT, passwords={name: "x" for name in WORKLOADS if name != "ray"})

    def test_a_password_of_nobody_is_refused(self) -> None:
        with pytest.raises(UsageError, match="'vllm', who is no user; there are vllm_kv, embeddings"):
            render_acl(CONTRACT, passwords={**PASSWORDS, "vllm": "x"})

    def test_a_password_for_a_default_user_that_is_off_is_refused(self) -> None:
        with pytest.raises(UsageError, match="'default', who is no user"):
            render_acl(CONTRACT, passwords=PASSWORDS, default_user="off")

    @pytest.mark.parametrize("name", ["exporter", "operator", "gate", "default"])
    def test_a_workload_cannot_take_the_place_of_another_user(self, name: str) -> None:
        workload = dataclasses.replace(CONTRACT.workloads["ray"], name=name)
        contract = dataclasses.replace(CONTRACT, workloads={name: workload})

        with pytest.raises(UsageError, match=f"cannot be named '{name}'"):
            render_acl(contract)


# Each example writes and reads a file, which takes as long as the disk likes.
FILES = hypothesis_settings(deadline=None)


def with_prefix(folder: Path, prefix: str) -> Contract:
    path = folder / "my.toml"
    text = json.dumps(prefix, ensure_ascii=True)
    example = json.dumps(f"{prefix}x", ensure_ascii=True)
    path.write_text(f"[workloads.ray]\nprefix = {text}\nexample = {example}\n")
    return load(path)


SPECIAL = st.sampled_from([*" \t\n\r\v\f\0\x7f*?[]^\\\"'()~%&#<>+@|!{}\u00a0\u00e9"])
WORD = st.from_regex(r"[A-Za-z0-9_.-]*", fullmatch=True)


class TestPrefixes:
    @FILES
    @given(WORD, SPECIAL, WORD)
    def test_one_that_is_special_to_an_acl_cannot_be_declared(
        self, tmp_path_factory: pytest.TempPathFactory, before: str, special: str, after: str
    ) -> None:
        with pytest.raises(ContractError, match=r"workloads\.ray\.prefix"):
            with_prefix(tmp_path_factory.mktemp("special"), f"{before}{special}{after}:")

    @FILES
    @given(st.from_regex(r"([A-Za-z0-9_.-]{1,8}:){1,3}", fullmatch=True).map(lambda text: f"ray2:{text}"))
    def test_one_that_can_be_declared_is_one_word_of_the_line(
        self, tmp_path_factory: pytest.TempPathFactory, prefix: str
    ) -> None:
        text = render_acl(with_prefix(tmp_path_factory.mktemp("declared"), prefix))

        assert f" resetkeys ~{prefix}* resetchannels " in text
        assert len(text.splitlines()) == len(USERS)
