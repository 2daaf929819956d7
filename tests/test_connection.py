"""Clients: where they connect to, when they give up, what they say then, and what they never do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
import valkey.exceptions
from hypothesis import given
from hypothesis import strategies as st
from servers import (
    START_S,
    Handler,
    Server,
    answering,
    cluster,
    commands,
    eventually,
    fake,
    free_port,
    tls_in_front_of,
    valkey_server,
)
from valkey.crc import key_slot

from inference_cache.connection import (
    AsyncClient,
    Client,
    ClusterClient,
    Endpoint,
    RetryPolicy,
    connect,
    connect_async,
    deadline,
    parse_url,
    redact_url,
    remaining_s,
)
from inference_cache.errors import (
    AccessDenied,
    CacheError,
    CacheUnavailable,
    ClusterUnavailable,
    CommandRejected,
    DeadlineExceeded,
    NotValkey,
    PersistenceFailed,
    ServerBusy,
    ServerFull,
    ServerLoading,
    ServerReadOnly,
    Unreachable,
    UsageError,
    WriteRefused,
)

SHORT_S = 0.1
"""A deadline that is meant to pass."""
GENEROUS_S = 5.0
"""No call with SHORT_S may take this long, on the slowest machine."""
SECRET = "hunter2-Ünlikely"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with valkey_server(tmp_path_factory.mktemp("connection")) as running:
        yield running


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    with connect(server.url, protocol=request.param) as connected:
        yield connected
        connected.flushall()


def gives_up_in_time(call: Callable[[], object], error: type[CacheError] = DeadlineExceeded) -> CacheError:
    began_s = time.monotonic()
    with pytest.raises(error) as caught:
        call()
    assert time.monotonic() - began_s < GENEROUS_S
    return caught.value


def ping(url: str, *, is_async: bool, **options: Any) -> None:
    """Opens a connection, asks, and closes it, with the one or the other client."""

    async def ask() -> None:
        async with connect_async(url, **options) as client:
            await client.ping()

    if is_async:
        asyncio.run(ask())
    else:
        with connect(url, **options) as client:
            client.ping()


# --- URLs


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("valkey://h", Endpoint(kind="tcp", hosts=(("h", 6379),))),
        ("redis://h:1/2", Endpoint(kind="tcp", hosts=(("h", 1),), db=2)),
        ("valkey://h:1?db=2", Endpoint(kind="tcp", hosts=(("h", 1),), db=2)),
        ("valkey://h/", Endpoint(kind="tcp", hosts=(("h", 6379),))),
        ("rediss://h", Endpoint(kind="tcp", tls=True, hosts=(("h", 6379),))),
        ("VALKEYS://h", Endpoint(kind="tcp", tls=True, hosts=(("h", 6379),))),
        ("valkey://[::1]:7", Endpoint(kind="tcp", hosts=(("::1", 7),))),
        ("valkey://u:p%40%2F@h", Endpoint(kind="tcp", hosts=(("h", 6379),), username="u", password="p@/")),
        ("valkey://:p@h", Endpoint(kind="tcp", hosts=(("h", 6379),), password="p")),
        ("unix:///a%20b?db=3", Endpoint(kind="unix", path="/a b", db=3)),
        ("unix://u:p@/a@b", Endpoint(kind="unix", path="/a@b", username="u", password="p")),
        ("valkey+unix:///a", Endpoint(kind="unix", path="/a")),
        ("redis-socket:///a", Endpoint(kind="unix", path="/a")),
        (
            "valkey+sentinel://u:p@a,b:2/svc/4",
            Endpoint(
                kind="sentinel",
                hosts=(("a", 26379), ("b", 2)),
                service="svc",
                db=4,
                username="u",
                password="p",
            ),
        ),
        ("valkeys+cluster://a,b:2", Endpoint(kind="cluster", tls=True, hosts=(("a", 6379), ("b", 2)))),
        (
            "valkeys://h?tls_ca_file=/ca&protocol=3",
            Endpoint(
                kind="tcp",
                tls=True,
                hosts=(("h", 6379),),
                parameters={"tls_ca_file": "/ca", "protocol": "3"},
            ),
        ),
    ],
)
def test_urls_are_read(url: str, endpoint: Endpoint) -> None:
    assert parse_url(url) == endpoint


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("h:6379", "write valkey://host:port"),
        ("http://h", "unknown scheme 'http'; write one of"),
        ("valkey://", "host is missing"),
        ("valkey://:6379", "host is missing"),
        ("valkey://a b", "no host name"),
        ("valkey://h:0", "from 1 to 65535"),
        ("valkey://h:65536", "from 1 to 65535"),
        ("valkey://h:x", "from 1 to 65535"),
        ("valkey://::1:6379", "as [::1]:6379"),
        ("valkey://h/x", "a number from 0 up"),
        ("valkey://h/-1", "a number from 0 up"),
        ("valkey://h/1?db=1", "write it once"),
        ("valkey://h?nope=1", "unknown parameter 'nope'; known are client_name, db"),
        ("valkey://h?db=1&db=1", "twice"),
        ("valkey://h?client_name=", "has no value"),
        ("valkey://h?protocol=4", "protocol is 2 or 3"),
        ("valkey://h?tls_verify=no", "write valkeys://"),
        ("valkeys://h?tls_verify=perhaps", "yes or no"),
        ("valkey://a,b", "+cluster:// or"),
        ("valkey://h#x", "%23"),
        ("unix://a/b", "write unix:///a/b"),
        ("unix://", "no path"),
        ("valkey+sentinel://a", "no service name"),
        ("valkey+cluster://a/1", "only database 0"),
    ],
)
def test_a_wrong_url_is_told_what_to_write(url: str, advice: str) -> None:
    with pytest.raises(UsageError) as caught:
        connect(url)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"valkey://user:{SECRET}@h:x",
        f"valkey://user:{SECRET}/{SECRET}@h",
        f"valkey://user:{SECRET}?{SECRET}@h",
        f"valkey://user:{SECRET}#{SECRET}@h",
        f"valkey://user:{SECRET}",
        f"valkey://:{SECRET}@h/x",
        f"nope://{SECRET}@h",
        f"valkey://h?password={SECRET}",
        f"{SECRET}@h",
    ],
)
def test_no_message_about_a_url_holds_its_password(url: str) -> None:
    assert SECRET not in redact_url(url)
    with pytest.raises(UsageError) as caught:
        connect(url)
    assert SECRET not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_a_usage_error(text: str) -> None:
    redact_url(text)
    with suppress(UsageError):
        parse_url("valkey://" + text)


def test_an_endpoint_is_written_without_its_secrets() -> None:
    url = "valkey+sentinel://u:p@a,b:2/svc/4?client_name=me"
    assert str(parse_url(url)) == "valkey+sentinel://a:26379,b:2/svc/4"
    assert str(parse_url("valkey://[::1]/1")) == "valkey://[::1]:6379/1"
    assert "hunter" not in repr(parse_url("valkey://u:hunter@h"))


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"deadline_s": 0}, "positive"),
        ({"connect_deadline_s": float("nan")}, "positive"),
        ({"max_connections": 0}, "at least 1"),
        ({"protocol": 4}, "2 or 3"),
        ({"client_name": "a b"}, "without blanks"),
        ({"tls_ca_file": "/ca"}, "valkeys://"),
        ({"sentinel_password": "x"}, "sentinel URL"),
        ({"username": "u"}, "has no password"),
        ({"password": "x", "password_file": "/y"}, "give one of them"),
        ({"password_file": "/does/not/exist"}, "cannot read the password file"),
        ({"password_env": "SURELY_NOT_SET"}, "is not set"),
    ],
)
def test_a_wrong_option_is_told_what_is_wrong(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        connect("valkey://h", **options)


def test_a_password_in_two_places_is_refused() -> None:
    with pytest.raises(UsageError, match="the URL and from password"):
        connect("valkey://:a@h", password="b")


# --- talking to a real server


def test_bytes_go_in_and_come_out(client: Client) -> None:
    value = bytes(range(256))
    assert client.set(value, value)
    assert client.get(value) == value
    assert client.mget([value, b"none"]) == [value, None]
    assert list(client.scan_iter()) == [value]
    assert client.config_get("maxmemory") == {"maxmemory": "0"}
    assert client.info("server")["server_name"] == "valkey"


def test_views_of_any_format_are_sent_as_their_bytes(client: Client) -> None:
    block = memoryview(bytes(8000)).cast("f")
    client.set(b"block", block)
    client.set(b"array", bytearray(b"abc"))
    assert client.strlen(b"block") == 8000
    assert client.get(b"array") == b"abc"


def test_the_socket_file_is_spoken_to(server: Server) -> None:
    with connect(f"unix://{server.unix_path}?db=1", client_name="by-file") as client:
        assert client.ping()
        assert client.client_getname() in ("by-file", b"by-file")
        assert client.client_info()["db"] == 1


def test_pipelines_give_replies_in_order_and_errors_in_place(client: Client) -> None:
    with client.pipeline(transaction=False) as pipe:
        pipe.set(b"a", b"1").lpush(b"a", b"x").get(b"a")
        replies = pipe.execute(raise_on_error=False)
    assert replies[::2] == [True, b"1"]
    assert isinstance(replies[1], CommandRejected)
    assert replies[1].code == "WRONGTYPE"


@pytest.mark.parametrize("transaction", [True, False])
def test_the_error_of_a_pipeline_names_the_command_but_not_its_arguments(
    client: Client, transaction: bool
) -> None:
    client.set(b"a", b"1")
    with client.pipeline(transaction=transaction) as pipe, pytest.raises(CommandRejected) as caught:
        pipe.get(b"a").lpush(b"a", SECRET).execute()
    assert "command 2 of the pipeline (LPUSH)" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_arguments_of_an_unknown_command_are_not_repeated(client: Client) -> None:
    with pytest.raises(CommandRejected) as caught:
        client.execute_command("NOPE", SECRET)
    assert caught.value.code == "ERR"
    assert SECRET not in str(caught.value)


def test_a_watched_key_that_changed_is_valkeys_own_watch_error(client: Client) -> None:
    with client.pipeline() as pipe:
        pipe.watch(b"a")
        client.set(b"a", b"1")
        pipe.multi()
        pipe.set(b"b", b"1")
        with pytest.raises(valkey.exceptions.WatchError):
            pipe.execute()


def test_a_transaction_is_tried_until_nobody_interferes(client: Client) -> None:
    tries = 0

    def increment(pipe: Any) -> None:
        nonlocal tries
        tries += 1
        number = int(pipe.get(b"n") or 0)
        if tries < 3:
            client.set(b"n", number + 10)
        pipe.multi()
        pipe.set(b"n", number + 1)

    client.transaction(increment, b"n")
    assert client.get(b"n") == b"21"


def test_a_transaction_that_always_loses_ends_with_the_deadline(client: Client) -> None:
    def interfere(pipe: Any) -> None:
        client.incr(b"n")
        pipe.multi()
        pipe.set(b"n", 0)

    gives_up_in_time(lambda: client.with_deadline(SHORT_S).transaction(interfere, b"n"))


def test_a_script_is_loaded_when_the_server_does_not_know_it(client: Client) -> None:
    script = client.register_script("return ARGV[1]")
    client.script_flush()
    assert script(args=[b"x"]) == b"x"
    client.script_flush()
    with client.pipeline() as pipe:
        script(args=[b"y"], client=pipe)
        assert pipe.execute() == [b"y"]


def test_messages_are_received_and_waiting_for_one_is_bounded(client: Client) -> None:
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("c")
        assert pubsub.get_message(timeout=GENEROUS_S) is None  # the confirmation
        assert pubsub.get_message(timeout=0.01) is None
        client.publish("c", b"hello")
        message = pubsub.get_message(timeout=GENEROUS_S)
        assert message is not None
        assert message["data"] == b"hello"

        def next_message() -> object:
            with deadline(SHORT_S):
                return next(pubsub.listen())

        gives_up_in_time(next_message)


def test_a_client_of_one_connection_keeps_it(client: Client) -> None:
    with client.client() as own:
        assert own.client_id() == own.client_id()


def test_a_longer_deadline_can_be_had_for_one_command(client: Client) -> None:
    short = client.with_deadline(SHORT_S)
    gives_up_in_time(lambda: short.blpop(b"none", timeout=1))
    assert client.with_deadline(20).blpop(b"none", timeout=0.2) is None


def test_an_argument_that_cannot_be_sent_is_a_usage_error(client: Client) -> None:
    with pytest.raises(UsageError):
        client.set(b"a", {"a": 1})  # type: ignore[arg-type]


def test_a_client_works_on_both_sides_of_a_fork(server: Server) -> None:
    with connect(server.url) as client:
        parent = client.client_id()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os.write(write, str(client.client_id()).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert int(os.read(read, 20)) != parent
        assert client.client_id() == parent
        os.close(read)
        os.close(write)


# --- deadlines


def test_scopes_of_deadlines_only_tighten() -> None:
    assert remaining_s() is None
    with deadline(100):
        outer_s = remaining_s()
        assert outer_s is not None
        with deadline(1000):
            inner_s = remaining_s()
            assert inner_s is not None
            assert inner_s <= outer_s
        with deadline(1):
            inner_s = remaining_s()
            assert inner_s is not None
            assert inner_s <= 1
    assert remaining_s() is None


@pytest.mark.parametrize("limit_s", [0, -1, float("inf"), float("nan")])
def test_a_deadline_is_a_positive_number(limit_s: float) -> None:
    with pytest.raises(UsageError), deadline(limit_s):
        pass


def hang(connection: socket.socket) -> None:
    connection.recv(65536)
    while connection.recv(65536):
        pass


def drip(reply: bytes) -> Handler:
    """Answers everything with ``reply``, one byte at a time, and each in time for a timeout per read."""

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        for byte in reply:
            connection.sendall(bytes([byte]))
            time.sleep(SHORT_S / 5)

    return handle


DRIPPING = drip(b"$1000\r\n" + b"x" * 1002)


def calls(client: Client) -> dict[str, Callable[[], object]]:
    def watch() -> None:
        with client.pipeline() as pipe:
            pipe.watch(b"a")

    def subscribe() -> object:
        pubsub = client.pubsub()
        try:
            pubsub.subscribe("c")
            return pubsub.get_message(timeout=None)
        finally:
            pubsub.close()

    return {
        "command": lambda: client.get(b"a"),
        "pipeline": lambda: client.pipeline(transaction=False).get(b"a").execute(),
        "transaction": lambda: client.pipeline().get(b"a").execute(),
        "watch": watch,
        "pubsub": subscribe,
        "own connection": lambda: client.client().ping(),
    }


@pytest.mark.parametrize("call", calls(connect("valkey://h")))
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("handler", [hang, DRIPPING], ids=["hanging", "dripping"])
def test_no_server_outlives_the_deadline(handler: Handler, protocol: Any, call: str) -> None:
    with (
        fake(handler) as server,
        connect(server.url, deadline_s=SHORT_S, protocol=protocol, password="x") as client,
    ):
        error = gives_up_in_time(calls(client)[call])
    assert server.url in str(error)


def test_a_dripped_value_is_cut_by_a_scope(server: Server) -> None:
    dripping = answering(lambda _: b"$1000\r\nxx")
    with fake(dripping) as slow, connect(slow.url, deadline_s=60) as client:

        def read() -> None:
            with deadline(60), deadline(SHORT_S):
                client.get(b"a")

        gives_up_in_time(read)


def test_a_server_that_does_not_read_does_not_outlive_the_deadline() -> None:
    stop = threading.Event()

    def deaf(connection: socket.socket) -> None:
        for command in commands(connection):
            connection.sendall(b"+OK\r\n")
            if b"LIB-VER" in command:
                break
        stop.wait(20)

    with fake(deaf) as server, connect(server.url, deadline_s=SHORT_S) as client:
        gives_up_in_time(lambda: client.set(b"a", bytes(64 << 20)))
        stop.set()


def test_connecting_is_bounded_where_nothing_answers() -> None:
    # A full backlog: the kernel neither accepts nor refuses.
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        with connect(f"valkey://127.0.0.1:{port}", connect_deadline_s=SHORT_S) as client:
            gives_up_in_time(client.ping)


def test_resolving_a_name_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, done = socket.getaddrinfo, threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        done.wait(20)
        return resolve("127.0.0.1", 1)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with connect("valkey://slow.invalid", deadline_s=SHORT_S) as client:
        error = gives_up_in_time(client.ping)
    done.set()
    assert "slow.invalid" in str(error)


def test_waiting_for_a_connection_is_bounded_and_says_so(server: Server) -> None:
    with connect(server.url, deadline_s=SHORT_S, max_connections=1) as client, client.client() as held:
        error = gives_up_in_time(client.ping)
        assert "max_connections" in str(error)
        assert held.ping()


def test_a_connection_that_comes_free_is_used(server: Server) -> None:
    with connect(server.url, deadline_s=20, max_connections=1) as client:
        held = client.client()
        waiting = threading.Thread(target=client.set, args=(b"waited", b"yes"))
        waiting.start()
        held.close()
        waiting.join(20)
        assert client.get(b"waited") == b"yes"


# --- no caller reads the reply of another


def late(connection: socket.socket) -> None:
    """Answers each GET with the name it asked for, but ``late`` only once another command has come after it.

    So a connection that is used again with the reply to ``late`` outstanding gives it to the wrong caller,
    and looking for bytes that wait to be read would not help.
    """
    held = b""
    for command in commands(connection):
        if command[0] in (b"AUTH", b"MULTI", b"CLIENT"):
            connection.sendall(held + b"+OK\r\n")
        elif command[1:] == [b"late"]:
            held += b"$4\r\nlate\r\n"
            continue
        else:
            connection.sendall(held + b"$%d\r\n%s\r\n" % (len(command[1]), command[1]))
        held = b""


@pytest.fixture
def single() -> Iterator[Client]:
    """A client with one connection to the server with late replies."""
    with fake(late) as server, connect(server.url, max_connections=1) as client:
        assert client.get(b"first") == b"first"
        yield client


def test_a_late_reply_is_never_read_by_the_next_caller(single: Client) -> None:
    gives_up_in_time(lambda: single.with_deadline(SHORT_S).get(b"late"))
    assert single.get(b"next") == b"next"
    gives_up_in_time(lambda: single.with_deadline(SHORT_S).pipeline(False).get(b"a").get(b"late").execute())
    assert single.get(b"next") == b"next"


def test_an_interrupt_between_sending_and_reading_leaves_no_reply_behind(
    single: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(single, "parse_response", interrupt)
        with pytest.raises(KeyboardInterrupt):
            single.get(b"late")
    assert single.get(b"next") == b"next"


def test_a_pipeline_that_fails_between_replies_leaves_none_behind(single: Client) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    failing = single.with_deadline(5)
    failing.set_response_callback("GET", fail)
    with pytest.raises(ZeroDivisionError):
        failing.pipeline(False).get(b"a").get(b"late").execute()
    assert single.get(b"next") == b"next"


def test_bytes_that_nobody_asked_for_are_thrown_away() -> None:
    def chatty(command: list[bytes]) -> bytes:
        return b"$1\r\n1\r\n$1\r\n2\r\n"

    with fake(answering(chatty)) as server, connect(server.url, max_connections=1) as client:
        assert [client.get(b"a") for _ in range(3)] == [b"1"] * 3


def test_taking_a_connection_back_twice_gives_it_out_once(server: Server) -> None:
    with connect(server.url, max_connections=2) as client:
        pool = client.connection_pool
        one = pool.get_connection("_")
        pool.release(one)
        pool.release(one)
        assert pool.get_connection("_") is not pool.get_connection("_")


# --- trying again


class Dying:
    """Ends the connection at the given commands, counted over all connections; answers the others."""

    def __init__(self, *deadly: int) -> None:
        self.deadly = deadly
        self.seen: list[bytes] = []

    def __call__(self, command: list[bytes]) -> bytes | None:
        self.seen.append(command[0].upper())
        return None if len(self.seen) in self.deadly else b"+PONG\r\n"


def test_a_write_whose_reply_was_lost_is_not_sent_again() -> None:
    dying = Dying(2)
    with fake(answering(dying)) as server, connect(server.url) as client:
        client.ping()
        with pytest.raises(Unreachable, match="may have been carried out"):
            client.execute_command("INCR", b"a")
        assert dying.seen == [b"PING", b"INCR"]


def test_a_read_on_a_stale_connection_is_sent_once_more() -> None:
    dying = Dying(2)
    with fake(answering(dying)) as server, connect(server.url) as client:
        client.ping()
        assert client.get(b"a") == b"PONG"
        assert dying.seen == [b"PING", b"GET", b"GET"]


@pytest.mark.parametrize(
    ("dying", "retry"),
    [(Dying(1), RetryPolicy()), (Dying(2), RetryPolicy(reads=False)), (Dying(2, 3), RetryPolicy())],
    ids=["fresh connection", "switched off", "twice"],
)
def test_a_read_is_not_sent_again_when(dying: Dying, retry: RetryPolicy) -> None:
    with fake(answering(dying)) as server, connect(server.url, retry=retry) as client:
        with suppress(Unreachable):
            client.ping()
            dying_before = len(dying.seen)
            assert dying_before
        if len(dying.seen) not in dying.deadly:
            with pytest.raises(Unreachable):
                client.get(b"a")
        assert len(dying.seen) <= max(dying.deadly)


def test_a_transaction_whose_reply_was_lost_is_not_carried_out_twice() -> None:
    executed: list[bytes] = []

    def lose_exec(connection: socket.socket) -> None:
        for command in commands(connection):
            if command[0] == b"EXEC":
                executed.append(b"EXEC")
                return
            connection.sendall(b"+QUEUED\r\n" if command[0] == b"SET" else b"+OK\r\n")

    def change(pipe: Any) -> None:
        pipe.multi()
        pipe.set(b"a", b"1")

    with fake(lose_exec) as server, connect(server.url) as client, pytest.raises(Unreachable):
        client.transaction(change, b"a")
    assert executed == [b"EXEC"]


def test_an_idle_connection_that_the_server_closed_is_replaced_unnoticed(client: Client) -> None:
    other = client.with_deadline(5)
    client.incr(b"n")
    with client.client() as own:
        for connection in own.client_list():
            if connection["id"] != str(own.client_id()):
                own.client_kill_filter(_id=connection["id"])
    assert other.incr(b"n") == 2


def test_a_server_that_comes_up_meanwhile_is_reached(tmp_path: Path) -> None:
    port = free_port()
    retry = RetryPolicy(connect_attempts=10_000, backoff_s=0.01, backoff_max_s=0.01)
    with connect(f"valkey://127.0.0.1:{port}", deadline_s=20, connect_deadline_s=20, retry=retry) as client:
        answers: list[bool] = []
        waiting = threading.Thread(target=lambda: answers.append(client.ping()))
        waiting.start()
        with valkey_server(tmp_path, port=port):
            waiting.join(20)
    assert answers == [True]


def test_a_retry_policy_needs_sense() -> None:
    with pytest.raises(UsageError):
        RetryPolicy(connect_attempts=0)


# --- typed errors

REPLIES = {
    "LOADING Valkey is loading the dataset in memory": ServerLoading,
    "OOM command not allowed when used memory > 'maxmemory'.": ServerFull,
    "READONLY You can't write against a read only replica.": ServerReadOnly,
    "MISCONF Valkey is configured to save RDB snapshots, but ...": PersistenceFailed,
    "NOREPLICAS Not enough good replicas to write.": WriteRefused,
    "NOAUTH Authentication required.": AccessDenied,
    "WRONGPASS invalid username-password pair or user is disabled.": AccessDenied,
    "NOPERM User u has no permissions to run the 'get' command": AccessDenied,
    "DENIED Valkey is running in protected mode": AccessDenied,
    "BUSY Valkey is busy running a script.": ServerBusy,
    "ERR max number of clients reached": ServerBusy,
    "CLUSTERDOWN Hash slot not served": ClusterUnavailable,
    "MASTERDOWN Link with MASTER is down": ClusterUnavailable,
    "TRYAGAIN Multiple keys request during rehashing of slot": ClusterUnavailable,
    "MOVED 1 127.0.0.1:1": CommandRejected,
    "WRONGTYPE Operation against a key": CommandRejected,
    "NOSCRIPT No matching script.": CommandRejected,
    "ERR DB index is out of range": CommandRejected,
}


@pytest.mark.parametrize("at", ["handshake", "command", "pipeline", "transaction"])
@pytest.mark.parametrize("reply", REPLIES)
def test_error_replies_are_typed(reply: str, at: str) -> None:
    refusal = b"-" + reply.encode() + b"\r\n"

    def handle(connection: socket.socket) -> None:
        for _ in commands(connection):
            connection.sendall(refusal)

    handler = handle if at == "handshake" else answering(lambda _: refusal)
    options: Any = {"password": "x"} if at == "handshake" else {}
    with fake(handler) as server, connect(server.url, **options) as client:
        call = calls(client)["command" if at == "handshake" else at]
        with pytest.raises(REPLIES[reply]) as caught:
            call()
    assert type(caught.value).__mro__.index(REPLIES[reply]) <= 1
    assert server.url in str(caught.value)
    assert reply.split("'")[0] in str(caught.value)
    assert isinstance(caught.value.__cause__, valkey.exceptions.ValkeyError)
    if isinstance(caught.value, CommandRejected):
        assert caught.value.code == reply.split()[0]


@pytest.mark.parametrize(
    ("greeting", "hint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "web server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "another service"),
        (b"\x15\x03\x03\x00\x02\x02\x0a", "valkeys://"),
        (b"<!DOCTYPE HTML>\n<html>\n", "web server"),
        (b":twelve\r\n", "cannot be read"),
        (b"$many\r\n", "cannot be read"),
        (b"*1\r\n" * 100_000, "cannot be read"),
    ],
    ids=["HTTP", "SSH", "TLS", "HTML", "bad number", "bad length", "bottomless"],
)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_is_no_valkey_is_told_so(greeting: bytes, hint: str, is_async: bool) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(greeting)
        hang(connection)

    with fake(handle) as server, pytest.raises(NotValkey, match=hint):
        ping(server.url, is_async=is_async, password="x")


@pytest.mark.parametrize(
    ("options", "error"), [({"protocol": 3}, NotValkey), ({"password": "x"}, AccessDenied)]
)
def test_a_handshake_that_makes_no_sense_is_an_error(options: Any, error: type[CacheError]) -> None:
    with (
        fake(answering(lambda _: b":1\r\n")) as server,
        connect(server.url, **options) as client,
        pytest.raises(error),
    ):
        client.get(b"a")


def test_a_refused_connection_says_what_was_tried(tmp_path: Path) -> None:
    port = free_port()
    with connect(f"valkey://user:{SECRET}@127.0.0.1:{port}") as client, pytest.raises(Unreachable) as caught:
        client.get(b"a")
    message = str(caught.value)
    assert f"valkey://127.0.0.1:{port}" in message
    assert "GET" in message
    assert "refused" in message
    assert "is the server running" in message
    assert SECRET not in message + repr(client)
    with connect(f"unix://{tmp_path}/none") as client, pytest.raises(Unreachable, match="no such socket"):
        client.get(b"a")
    with connect("valkey://nowhere.invalid") as client, pytest.raises(Unreachable, match="does not resolve"):
        client.get(b"a")


def test_a_connection_cut_in_a_reply_is_unreachable() -> None:
    def cut(connection: socket.socket) -> None:
        for command in commands(connection):
            if command[0] == b"GET":
                connection.sendall(b"$100\r\nabc")
                return
            connection.sendall(b"+OK\r\n")

    with fake(cut) as server, connect(server.url) as client:
        with pytest.raises(Unreachable):
            client.get(b"a")
        with pytest.raises(Unreachable):
            client.pipeline().get(b"a").execute()


def test_a_call_that_another_thread_closes_is_unreachable() -> None:
    asked = threading.Event()

    def wait(command: list[bytes]) -> bytes:
        asked.set()
        time.sleep(SHORT_S)
        return b"+OK\r\n"

    errors: list[BaseException] = []

    def call(client: Client) -> None:
        try:
            client.set(b"a", b"1")
        except CacheError as error:
            errors.append(error)

    with fake(answering(wait)) as server, connect(server.url, deadline_s=20) as client:
        thread = threading.Thread(target=call, args=(client,))
        thread.start()
        assert asked.wait(20)
        client.close()
        thread.join(20)
    assert [type(error) for error in errors] == [Unreachable]


def test_the_same_client_works_again_after_the_server_came_back(tmp_path: Path) -> None:
    port = free_port()
    with connect(f"valkey://127.0.0.1:{port}") as client:
        for attempt in range(2):
            with valkey_server(tmp_path / str(attempt), port=port):
                assert client.ping()
            with pytest.raises(CacheUnavailable):
                client.ping()


def test_a_server_without_free_connections_is_busy(tmp_path: Path) -> None:
    with valkey_server(tmp_path, "maxclients 1") as server, connect(server.url) as first:
        eventually(first.ping, "the server to forget the connection that it was probed with")
        with connect(server.url) as second, pytest.raises(ServerBusy, match="maxclients"):
            second.ping()


def test_a_full_server_refuses_to_write(client: Client) -> None:
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(ServerFull):
            client.set(b"a", b"1")
        with pytest.raises(ServerFull):
            client.pipeline().set(b"a", b"1").execute()
        assert client.get(b"a") is None
    finally:
        client.config_set("maxmemory", "0")


# --- passwords


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    with valkey_server(
        folder, f"requirepass {SECRET}", f"user reader on >{SECRET} ~emb:* +get +client"
    ) as running:
        yield running


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_password_comes_from_where_it_is_kept(
    guarded: Server, protocol: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    monkeypatch.setenv("CACHE_PASSWORD", SECRET)
    in_url = guarded.url.replace("://", f"://:{SECRET}@")
    for url, options in [
        (in_url, {}),
        (guarded.url, {"password": SECRET}),
        (guarded.url, {"password_file": file}),
        (guarded.url, {"password_env": "CACHE_PASSWORD"}),
        (f"{guarded.url}?password_file={file}", {}),
    ]:
        with connect(url, protocol=protocol, **options) as client:  # type: ignore[arg-type]
            assert client.ping()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("options", [{}, {"password": "wrong"}], ids=["none", "wrong"])
def test_a_wrong_password_is_denied(guarded: Server, protocol: Any, options: Any) -> None:
    with (
        connect(guarded.url, protocol=protocol, **options) as client,
        pytest.raises(AccessDenied) as caught,
    ):
        client.get(b"a")
    assert SECRET not in str(caught.value)


def test_a_rotated_password_file_is_read_again(guarded: Server, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("old")
    with connect(guarded.url, password_file=file) as client:
        with pytest.raises(AccessDenied):
            client.ping()
        file.write_text(SECRET)
        assert client.ping()
        client.close()
        file.unlink()
        with pytest.raises(AccessDenied, match="password file"):
            client.ping()


def test_a_user_reaches_only_what_its_acl_allows(guarded: Server) -> None:
    with connect(guarded.url, username="reader", password=SECRET) as client:
        assert client.get(b"emb:a") is None
        with pytest.raises(AccessDenied):
            client.get(b"session:a")
        with pytest.raises(AccessDenied):
            client.flushall()


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="module")
def tls_url(server: Server, authority: trustme.CA) -> Iterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    with tls_in_front_of(server.port, context) as terminator:
        yield terminator.url.replace("valkey://", "valkeys://")


def test_tls_with_a_known_authority_works(tls_url: str, ca_file: Path) -> None:
    value = bytes(3 << 20)
    with connect(tls_url, tls_ca_file=ca_file) as client:
        client.set(b"tls", value)
        assert client.get(b"tls") == value
    with connect(f"{tls_url}?tls_ca_file={ca_file}") as client:
        assert client.exists(b"tls") == 1
    with connect(tls_url.replace("127.0.0.1", "localhost"), tls_ca_file=ca_file) as client:
        assert client.unlink(b"tls") == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_unknown_authority_is_refused(tls_url: str, is_async: bool) -> None:
    with pytest.raises(Unreachable, match="tls_ca_file"):
        ping(tls_url, is_async=is_async)
    with connect(tls_url, tls_verify=False) as client:
        assert client.ping()


def test_a_certificate_for_another_name_is_refused(tls_url: str, ca_file: Path) -> None:
    with (
        connect(tls_url, tls_ca_file=ca_file, tls_server_name="other.example") as client,
        pytest.raises(Unreachable, match="tls_server_name"),
    ):
        client.ping()
    with connect(tls_url, tls_ca_file=ca_file, tls_server_name="localhost") as client:
        assert client.ping()


def test_a_client_certificate_is_shown(
    server: Server, authority: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    own = authority.issue_cert("client@example.org")
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    own.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    with tls_in_front_of(server.port, context) as terminator:
        url = terminator.url.replace("valkey://", "valkeys://")
        files: Any = {"tls_cert_file": tmp_path / "cert.pem", "tls_key_file": tmp_path / "key.pem"}
        with connect(url, tls_ca_file=ca_file, **files) as client:
            assert client.ping()
        with connect(url, tls_ca_file=ca_file) as client, pytest.raises(Unreachable):
            client.ping()


def test_plain_text_and_tls_mixed_up_are_told_apart(tls_url: str, ca_file: Path) -> None:
    with (
        connect(tls_url.replace("valkeys://", "valkey://")) as client,
        # Its alert may be lost when it closes the connection at once.
        pytest.raises((NotValkey, Unreachable), match="write valkeys://"),
    ):
        client.ping()

    def plain(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"-ERR Protocol error: unbalanced quotes in request\r\n")
        hang(connection)

    with (
        fake(plain) as server,
        connect(server.url.replace("valkey://", "valkeys://"), tls_ca_file=ca_file) as client,
        pytest.raises(Unreachable, match="write valkey://"),
    ):
        client.ping()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_tls_handshake_is_bounded(ca_file: Path, is_async: bool) -> None:
    with fake(hang) as server:
        url = server.url.replace("valkey://", "valkeys://")
        gives_up_in_time(lambda: ping(url, is_async=is_async, tls_ca_file=ca_file, deadline_s=SHORT_S))


def test_a_value_dripped_over_tls_is_cut(authority: trustme.CA, ca_file: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with fake(DRIPPING) as slow, tls_in_front_of(slow.port, context) as terminator:
        url = terminator.url.replace("valkey://", "valkeys://")
        gives_up_in_time(connect(url, tls_ca_file=ca_file, deadline_s=SHORT_S * 3, password="x").ping)


@pytest.mark.parametrize(
    "options", [{"tls_ca_file": "/does/not/exist"}, {"tls_key_file": "/k"}, {"tls_ca_file": os.devnull}]
)
def test_tls_files_that_cannot_be_used_are_a_usage_error(options: Any) -> None:
    with pytest.raises(UsageError, match=r"(?i)tls"):
        connect("valkeys://h", **options)


# --- sentinel


def test_the_primary_that_the_sentinels_name_is_used(tmp_path: Path) -> None:
    with ExitStack() as stack:
        primary = stack.enter_context(valkey_server(tmp_path / "1", "repl-diskless-sync-delay 0"))
        replica = stack.enter_context(valkey_server(tmp_path / "2", f"replicaof 127.0.0.1 {primary.port}"))
        direct = stack.enter_context(connect(replica.url))
        eventually(lambda: direct.info("replication")["master_link_status"] == "up", "the replica to follow")
        with pytest.raises(ServerReadOnly):
            direct.set(b"a", b"1")
        sentinel = stack.enter_context(
            valkey_server(
                tmp_path / "3",
                f"sentinel monitor cache 127.0.0.1 {primary.port} 1",
                "sentinel down-after-milliseconds cache 300",
                sentinel=True,
            )
        )
        watcher = stack.enter_context(connect(sentinel.url))
        eventually(
            lambda: b"slave" in str(watcher.execute_command("SENTINEL", "REPLICAS", "cache")).encode(),
            "the sentinel to see the replica",
        )
        url = f"valkey+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/cache"
        client = stack.enter_context(connect(url, deadline_s=20))

        async def before_and_after() -> None:
            async with connect_async(url, deadline_s=20) as task_client:
                await task_client.set(b"a", b"1")
                client.set(b"b", b"1")
                eventually(lambda: direct.exists(b"a", b"b") == 2, "both writes to be replicated")
                primary.stop()
                while direct.get(b"a") != b"2":
                    with suppress(CacheError):
                        await task_client.set(b"a", b"2")
                    await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(before_and_after(), START_S))
        eventually(lambda: client.set(b"b", b"2") and direct.get(b"b") == b"2", "the new primary")
        with connect(url.replace("/cache", "/other")) as other, pytest.raises(Unreachable) as caught:
            other.ping()
        assert "knows no service 'other'" in str(caught.value)


def test_a_primary_that_became_a_replica_is_left() -> None:
    def primary(set_reply: bytes, role: bytes = b"master") -> Handler:
        replies = {b"ROLE": b"*1\r\n$%d\r\n%s\r\n" % (len(role), role), b"SET": set_reply}
        return answering(lambda command: replies[command[0]])

    with (
        fake(primary(b"-READONLY You can't write against a read only replica.\r\n")) as old,
        fake(primary(b"+OK\r\n")) as new,
        fake(primary(b"+OK\r\n", role=b"slave")) as replica,
    ):
        named = iter([old, new, replica])

        def name_the_next(_: list[bytes]) -> bytes:
            port = str(next(named).port).encode()
            return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)

        with fake(answering(name_the_next)) as sentinel:
            url = sentinel.url.replace("valkey", "valkey+sentinel") + "/cache"
            with connect(url, retry=RetryPolicy(connect_attempts=1)) as client:
                with pytest.raises(ServerReadOnly):
                    client.set(b"a", b"1")
                assert client.set(b"a", b"1")
                assert client.set(b"a", b"1")
                client.close()
                with pytest.raises(Unreachable, match="no primary"):
                    client.set(b"a", b"1")


def test_sentinels_that_hang_are_passed_over(server: Server, tmp_path: Path) -> None:
    with (
        fake(hang) as hanging,
        valkey_server(
            tmp_path, f"sentinel monitor cache 127.0.0.1 {server.port} 1", sentinel=True
        ) as sentinel,
        connect(
            f"valkey+sentinel://127.0.0.1:{hanging.port},127.0.0.1:{sentinel.port}/cache",
            connect_deadline_s=2 * SHORT_S,
        ) as client,
    ):
        eventually(client.ping, "the second sentinel to be asked")


# --- cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest.fixture
def cluster_client(nodes: list[Server], request: pytest.FixtureRequest) -> Iterator[Client]:
    seeds = f"127.0.0.1:{free_port()},127.0.0.1:{nodes[0].port}"
    with connect(f"valkey+cluster://{seeds}", deadline_s=20) as connected:
        assert isinstance(connected, ClusterClient)
        yield connected
        for key in list(connected.scan_iter()):
            connected.delete(key)


KEYS = [b"key:%d" % number for number in range(30)]


def test_keys_of_all_slots_are_served(cluster_client: Client) -> None:
    assert cluster_client.mset({key: key for key in KEYS})
    assert cluster_client.mget([*KEYS, b"none"]) == [*KEYS, None]
    assert [cluster_client.get(key) for key in KEYS] == KEYS
    assert cluster_client.exists(*KEYS, KEYS[0]) == len(KEYS) + 1
    assert sorted(cluster_client.scan_iter(match=b"key:*", count=3)) == sorted(KEYS)
    assert cluster_client.unlink(*KEYS) == len(KEYS)
    assert cluster_client.ping()


def test_a_pipeline_on_a_cluster_keeps_the_order(cluster_client: Client) -> None:
    with cluster_client.pipeline(transaction=False) as pipe:
        for key in KEYS:
            pipe.set(key, key).lpush(key, b"x").get(key)
        replies = pipe.execute(raise_on_error=False)
    assert replies[2::3] == KEYS
    assert all(isinstance(reply, CommandRejected) for reply in replies[1::3])
    with (
        cluster_client.pipeline(transaction=False) as pipe,
        pytest.raises(CommandRejected, match="command 2"),
    ):
        pipe.get(KEYS[0]).lpush(KEYS[0], b"x").execute()


def test_a_transaction_on_a_cluster_needs_one_slot(cluster_client: Client) -> None:
    with cluster_client.pipeline() as pipe:
        assert pipe.set(b"{t}a", b"1").incr(b"{t}a").execute() == [True, 2]
    with cluster_client.pipeline() as pipe, pytest.raises(UsageError, match="hash tag"):
        pipe.set(b"a", b"1").set(b"b", b"1").execute()
    with cluster_client.pipeline() as pipe, pytest.raises(UsageError, match="WATCH"):
        pipe.watch(b"a")
    assert cluster_client.pipeline().execute() == []


def test_scripts_and_messages_work_on_a_cluster(cluster_client: Client) -> None:
    script = cluster_client.register_script("return redis.call('INCR', KEYS[1])")
    assert script(keys=[b"n"]) == 1
    with cluster_client.pipeline(transaction=False) as pipe:
        script(keys=[b"n"], client=pipe)
        assert pipe.execute() == [2]
    with cluster_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("c")
        pubsub.get_message(timeout=GENEROUS_S)
        cluster_client.publish("c", b"hello")
        message = pubsub.get_message(timeout=GENEROUS_S)
        assert message is not None
        assert message["data"] == b"hello"


def test_a_slot_that_moves_is_followed(cluster_client: Client, nodes: list[Server]) -> None:
    key = b"{moving}"
    with ExitStack() as stack:
        clients = {server.port: stack.enter_context(connect(server.url)) for server in nodes}
        cluster_client.set(key, b"1")
        slot = int(cluster_client.execute_command("CLUSTER KEYSLOT", key))
        ids = {port: one.execute_command("CLUSTER", "MYID") for port, one in clients.items()}
        owner = next(port for port, one in clients.items() if _serves(one, key))
        target = next(port for port in clients if port != owner)
        clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
        clients[owner].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        cluster_client.delete(key)
        assert cluster_client.set(key, b"asked")
        assert cluster_client.pipeline(transaction=False).get(key).execute() == [b"asked"]
        for one in clients.values():
            one.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        assert cluster_client.pipeline().get(key).execute() == [b"asked"]
        assert cluster_client.get(key) == b"asked"
        assert _serves(clients[target], key)


def _serves(client: Client, key: bytes) -> bool:
    try:
        client.get(key)
    except CommandRejected as error:
        return "valkey+cluster://" not in str(error)
    return True


def test_a_lost_node_is_unavailable_and_the_others_go_on(tmp_path: Path) -> None:
    with cluster(tmp_path) as servers:
        seeds = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        keys = {key: key_slot(key) < 16384 // 3 for key in KEYS[:9]}
        with connect(f"valkey+cluster://{seeds}", deadline_s=20) as client:
            client.mset({key: key for key in keys})
            # Stopped, it answers nobody, and asking it first for the map of the cluster would take all time.
            servers[0].process.send_signal(signal.SIGSTOP)
            short = client.with_deadline(2 * SHORT_S)
            for key, is_lost in keys.items():
                if is_lost:
                    gives_up_in_time(lambda key=key: short.get(key))  # type: ignore[misc]
                else:
                    assert short.get(key) == key
        for server in servers:
            server.stop()
        with connect(f"valkey+cluster://{seeds}") as client, pytest.raises(Unreachable):
            client.get(b"a")


def test_a_server_without_cluster_mode_is_no_cluster(server: Server) -> None:
    with connect(server.url.replace("valkey", "valkey+cluster")) as client:
        with pytest.raises(ClusterUnavailable, match="not enabled"):
            client.get(b"a")
        with pytest.raises(UsageError):
            client.client()


def test_a_cluster_that_hangs_does_not_outlive_the_deadline() -> None:
    with (
        fake(hang) as server,
        connect(server.url.replace("valkey", "valkey+cluster"), deadline_s=SHORT_S) as client,
    ):
        gives_up_in_time(lambda: client.get(b"a"))


# --- asyncio


async def async_calls(client: AsyncClient, call: str) -> object:
    if call == "command":
        return await client.get(b"a")
    if call == "pipeline":
        return await client.pipeline(transaction=False).get(b"a").execute()
    if call == "transaction":
        return await client.pipeline().get(b"a").execute()
    if call == "watch":
        async with client.pipeline() as pipe:
            return await pipe.watch(b"a")
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("c")
        with deadline(SHORT_S):
            return await pubsub.get_message(timeout=None)


@pytest.mark.parametrize("call", ["command", "pipeline", "transaction", "watch", "pubsub"])
@pytest.mark.parametrize("handler", [hang, DRIPPING], ids=["hanging", "dripping"])
def test_no_server_outlives_the_deadline_of_a_task(handler: Handler, call: str) -> None:
    async def ask(url: str) -> object:
        async with connect_async(url, deadline_s=SHORT_S, password="x") as client:
            return await async_calls(client, call)

    with fake(handler) as server:
        gives_up_in_time(lambda: asyncio.run(ask(server.url)))


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_async_client_speaks(server: Server, protocol: Any) -> None:
    async def talk(url: str) -> None:
        async with connect_async(url, protocol=protocol) as client:
            assert await client.set(b"a", memoryview(bytes(8)).cast("f"))
            assert await client.strlen(b"a") == 8
            async with client.pipeline() as pipe:
                replies = await pipe.get(b"a").lpush(b"a", SECRET).execute(raise_on_error=False)
            assert isinstance(replies[1], CommandRejected)
            async with client.pipeline() as pipe:
                with pytest.raises(CommandRejected, match=r"command 1 .* \(LPUSH\)") as caught:
                    await pipe.lpush(b"a", SECRET).execute()
            assert SECRET not in str(caught.value)
            async with client.client() as own:
                assert await own.client_id() == await own.client_id()
            async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe("c")
                await pubsub.get_message(timeout=GENEROUS_S)
                await client.publish("c", b"hello")
                message = await pubsub.get_message(timeout=GENEROUS_S)
                assert message is not None
                assert message["data"] == b"hello"

            async def increment(pipe: Any) -> None:
                number = int(await pipe.get(b"n") or 0)
                pipe.multi()
                pipe.set(b"n", number + 1)

            await asyncio.gather(*(client.transaction(increment, b"n") for _ in range(5)))
            assert await client.get(b"n") == b"5"
            await client.flushall()

    asyncio.run(talk(server.url))
    asyncio.run(talk(f"unix://{server.unix_path}"))


def test_the_async_client_speaks_tls(tls_url: str, ca_file: Path) -> None:
    async def talk() -> None:
        async with connect_async(tls_url, tls_ca_file=ca_file) as client:
            value = bytes(3 << 20)
            await client.set(b"tls", value)
            assert await client.getdel(b"tls") == value

    asyncio.run(talk())


def test_a_cancelled_task_leaves_no_reply_behind() -> None:
    async def ask(url: str) -> None:
        async with connect_async(url, max_connections=1) as client:
            assert await client.get(b"first") == b"first"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get(b"late"), SHORT_S)
            assert await client.get(b"next") == b"next"
            with pytest.raises(DeadlineExceeded):
                await client.with_deadline(SHORT_S).get(b"late")
            assert await client.get(b"next") == b"next"
            with pytest.raises(DeadlineExceeded):
                await client.with_deadline(SHORT_S).pipeline(False).get(b"a").get(b"late").execute()
            assert await client.get(b"next") == b"next"

    with fake(late) as server:
        asyncio.run(ask(server.url))


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_task_that_fails_between_replies_leaves_none_behind(pipelined: bool) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async def ask(url: str) -> None:
        async with connect_async(url, max_connections=1) as client:
            failing: Any = client.with_deadline(5)
            if pipelined:
                failing.set_response_callback("GET", fail)
                call = failing.pipeline(False).get(b"a").get(b"late").execute()
            else:
                failing.parse_response = fail
                call = failing.get(b"late")
            with pytest.raises(ZeroDivisionError):
                await call
            assert await client.get(b"next") == b"next"

    with fake(late) as server:
        asyncio.run(ask(server.url))


def test_a_task_cancelled_in_the_handshake_leaves_no_reply_behind() -> None:
    connections: list[socket.socket] = []

    def silent_at_first(connection: socket.socket) -> None:
        connections.append(connection)
        if len(connections) == 1:
            hang(connection)
        late(connection)

    async def ask(url: str) -> None:
        async with connect_async(url, max_connections=1, password="x") as client:
            with pytest.raises(DeadlineExceeded):
                await client.with_deadline(SHORT_S).get(b"a")
            assert await client.get(b"next") == b"next"

    with fake(silent_at_first) as server:
        asyncio.run(ask(server.url))


def test_async_tasks_wait_for_a_connection_until_the_deadline(server: Server) -> None:
    async def ask() -> None:
        async with connect_async(server.url, max_connections=2) as client:
            assert await asyncio.gather(*(client.ping() for _ in range(50))) == [True] * 50
            async with client.client(), client.client():
                with pytest.raises(DeadlineExceeded, match="max_connections"):
                    await client.with_deadline(SHORT_S).ping()
            assert await client.ping()

    asyncio.run(ask())


def test_async_reads_on_a_stale_connection_are_sent_once_more_and_writes_are_not() -> None:
    async def ask(url: str) -> None:
        async with connect_async(url) as client:
            await client.ping()
            assert await client.get(b"a") == b"PONG"
            with pytest.raises(Unreachable):
                await client.incr(b"a")

    dying = Dying(2, 4)
    with fake(answering(dying)) as server:
        asyncio.run(ask(server.url))
    assert dying.seen == [b"PING", b"GET", b"GET", b"INCRBY"]


@pytest.mark.parametrize("reply", REPLIES)
def test_error_replies_are_typed_in_tasks_too(reply: str) -> None:
    async def ask(url: str) -> None:
        async with connect_async(url) as client:
            await client.get(b"a")

    refusal = b"-" + reply.encode() + b"\r\n"
    with fake(answering(lambda _: refusal)) as server, pytest.raises(REPLIES[reply]):
        asyncio.run(ask(server.url))


def test_async_passwords_are_sent(guarded: Server) -> None:
    async def ask(**options: Any) -> object:
        async with connect_async(guarded.url, **options) as client:
            return await client.ping()

    assert asyncio.run(ask(password=SECRET))
    assert asyncio.run(ask(password=SECRET, protocol=3))
    with pytest.raises(AccessDenied):
        asyncio.run(ask(password="wrong"))


def test_there_is_no_async_client_for_a_cluster() -> None:
    with pytest.raises(UsageError, match="use connect"):
        connect_async("valkey+cluster://h")
