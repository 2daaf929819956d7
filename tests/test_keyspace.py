"""Keys are injective, safe in patterns, and purged exactly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from servers import cluster, valkey_server
from valkey.crc import key_slot

from inference_cache.connection import Client, connect
from inference_cache.errors import DeadlineExceeded, KeyFormatError, UsageError
from inference_cache.keyspace import (
    MAX_KEY_BYTES,
    Keyspace,
    Tagged,
    check_disjoint,
    purge,
    workload_of,
)

EVERY_BYTE = bytes(range(256))
SESSIONS = Keyspace("session:")

nasty = st.sampled_from(
    [b"", b":", b"%", b"%3A", b"{}", b"{a}", b"*", b"[a-z]", b"\\", b"\r\n", b"\0", b"session:", EVERY_BYTE]
)
part = nasty | st.binary(max_size=40)
parts = st.lists(part, min_size=1, max_size=5).map(tuple)


@st.composite
def tagged_parts(draw: st.DrawFn) -> tuple[bytes, ...]:
    """Parts of which one may be a hash tag."""
    chosen = list(draw(parts))
    if draw(st.booleans()):
        index = draw(st.integers(0, len(chosen) - 1))
        chosen[index] = Tagged(chosen[index] or b"x")
    return tuple(chosen)


def shape(chosen: tuple[bytes, ...]) -> list[tuple[bytes, bool]]:
    return [(bytes(one), isinstance(one, Tagged)) for one in chosen]


@pytest.mark.parametrize(
    ("prefix", "chosen", "key"),
    [
        ("vllm:kv:", ("layer0", "tok123"), b"vllm:kv:layer0:tok123"),
        ("emb:", ("sha256", "abc123"), b"emb:sha256:abc123"),
        ("ray:", ("actor", "xyz"), b"ray:actor:xyz"),
        ("session:", ("user", 123), b"session:user:123"),
        (
            "vllm:kv:",
            ("meta-llama/Llama-3@main", "dtype=bf16"),
            b"vllm:kv:meta-llama/Llama-3@main:dtype=bf16",
        ),
    ],
)
def test_keys_of_the_decision_are_written_as_it_writes_them(
    prefix: str, chosen: tuple[str | int, ...], key: bytes
) -> None:
    assert Keyspace(prefix).key(*chosen) == key


@given(tagged_parts())
@example((EVERY_BYTE,))
@example((b"", b""))
def test_parsing_undoes_building(chosen: tuple[bytes, ...]) -> None:
    parsed = SESSIONS.parse(SESSIONS.key(*chosen))
    assert shape(parsed) == shape(chosen)


@given(tagged_parts(), tagged_parts())
@example((b"a:b", b"c"), (b"a", b"b:c"))
@example((b"ab",), (b"ab".hex().encode(),))
@example((b"",), (b"", b""))
@example((b"a",), (Tagged(b"a"),))
@example((b"{a}",), (Tagged(b"a"),))
@example((b"%3A",), (b":",))
def test_different_parts_give_different_keys(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    assert (SESSIONS.key(*one) == SESSIONS.key(*other)) == (shape(one) == shape(other))


@given(st.binary(max_size=30) | st.text("%3Aa{}:", max_size=12).map(str.encode))
@example(b"%3a")
@example(b"%41")
@example(b"%")
@example(b"{}")
@example(b"{a}:{b}")
@example(b"a b")
def test_only_canonical_keys_are_parsed(tail: bytes) -> None:
    key = b"session:" + tail
    try:
        chosen = SESSIONS.parse(key)
    except KeyFormatError:
        assert not SESSIONS.owns(key)
    else:
        assert SESSIONS.key(*chosen) == key
        assert SESSIONS.owns(key)


@given(parts)
def test_keys_are_printable_and_hold_no_glob_character_or_brace(chosen: tuple[bytes, ...]) -> None:
    key = SESSIONS.key(*chosen)
    assert not set(key) & set(b"*?[]\\^{} ")
    assert all(0x21 <= byte <= 0x7E for byte in key)


def test_str_int_and_bytes_of_the_same_text_are_the_same_part() -> None:
    assert SESSIONS.key("1") == SESSIONS.key(1) == SESSIONS.key(b"1")
    assert SESSIONS.key("ü") == SESSIONS.key("ü".encode())
    assert SESSIONS.key(-5) == b"session:-5"


@given(part.map(lambda raw: raw or b"x"), parts, parts)
def test_keys_with_the_same_tag_share_a_cluster_slot(
    tag: bytes, one: tuple[bytes, ...], other: tuple[bytes, ...]
) -> None:
    keys = [SESSIONS.key(Tagged(tag), *chosen) for chosen in (one, other)]
    assert key_slot(keys[0]) == key_slot(keys[1])


def test_a_part_full_of_braces_makes_no_tag() -> None:
    slots = {key_slot(SESSIONS.key("{same}", number)) for number in range(50)}
    assert len(slots) > 10


@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param((), id="no part"),
        pytest.param(("\ud800",), id="lone surrogate"),
        pytest.param((True,), id="bool"),
        pytest.param((1.5,), id="float"),
        pytest.param((None,), id="None"),
        pytest.param((Tagged("a"), Tagged("b")), id="two tags"),
        pytest.param((Tagged(""),), id="empty tag"),
        pytest.param((b"x" * MAX_KEY_BYTES,), id="too long"),
    ],
)
def test_what_a_key_cannot_hold_is_refused(chosen: tuple[object, ...]) -> None:
    with pytest.raises(KeyFormatError):
        SESSIONS.key(*chosen)  # type: ignore[arg-type]


def test_names_of_64_kib_of_any_bytes_are_held() -> None:
    name = EVERY_BYTE * 256
    assert SESSIONS.parse(SESSIONS.key(name)) == (name,)


@pytest.mark.parametrize("key", [b"emb:a", b"session", b"", b"session:" + b"x" * MAX_KEY_BYTES])
def test_keys_of_others_are_not_parsed(key: bytes) -> None:
    with pytest.raises(KeyFormatError):
        SESSIONS.parse(key)


@pytest.mark.parametrize("prefix", ["", "emb", "emb: ", "\ud800:"])
def test_a_prefix_without_its_colon_is_refused(prefix: str) -> None:
    with pytest.raises(KeyFormatError):
        Keyspace(prefix)


def test_a_keyspace_below_another_nests_and_keeps_one_tag() -> None:
    run = SESSIONS.below("conformance", "run*1")
    assert run.key("a") == SESSIONS.key("conformance", "run*1", "a")
    assert SESSIONS.below() is SESSIONS
    with pytest.raises(KeyFormatError):
        SESSIONS.below(Tagged("a")).key(Tagged("b"))


@given(parts, st.lists(part, min_size=1, max_size=3).map(tuple), parts)
def test_a_pattern_selects_what_lies_below_and_nothing_else(
    above: tuple[bytes, ...], below: tuple[bytes, ...], other: tuple[bytes, ...]
) -> None:
    # No character in it has a meaning but the last one, so Python's globs agree with the server's here.
    pattern = SESSIONS.pattern(*above)
    assert set(pattern) & set(b"*?[\\") == set(b"*")
    key = SESSIONS.key(*other)
    assert fnmatchcase(SESSIONS.key(*above, *below).decode(), pattern.decode())
    assert fnmatchcase(key.decode(), pattern.decode()) == (
        len(other) > len(above) and other[: len(above)] == above
    )


def test_the_workload_of_a_key_is_the_one_with_the_longest_prefix() -> None:
    spaces = {"all": Keyspace("vllm:"), "kv": Keyspace("vllm:kv:"), "emb": Keyspace("emb:")}
    assert workload_of(b"vllm:kv:x", spaces) == "kv"
    assert workload_of(b"vllm:other", spaces) == "all"
    assert workload_of(b"mlcache:x", spaces) is None
    assert workload_of(b"", {}) is None


def test_the_prefixes_of_the_decision_are_disjoint() -> None:
    assert check_disjoint(["vllm:kv:", "emb:", "ray:", "session:"]) == ()


@pytest.mark.parametrize(
    ("prefixes", "problem"),
    [
        (["a:", "a:b:"], "is the beginning of 'a:b:'"),
        (["a:b:", "a:"], "is the beginning of 'a:b:'"),
        (["a:", "a:"], "stands there twice"),
        ([""], "is empty"),
        (["a"], "does not end in ':'"),
        (["a*:"], "glob"),
        (["a[b]:"], "glob"),
        (["a b:"], "blank"),
        (["a\n:"], "control"),
        (["ä:"], "ASCII"),
        (["{a}:"], "brace"),
    ],
)
def test_prefixes_that_would_mix_workloads_are_named(prefixes: list[str], problem: str) -> None:
    assert any(problem in str(found) for found in check_disjoint(prefixes))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with (
        valkey_server(tmp_path_factory.mktemp("keyspace")) as server,
        connect(server.url, deadline_s=20) as connected,
    ):
        yield connected


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "client" in request.fixturenames:
        request.getfixturevalue("client").flushdb()


@pytest.mark.parametrize("prefix", ["session:", "we[ir]d*?\\:", "a^-b:"])
def test_a_purge_removes_all_of_a_keyspace_and_nothing_else(client: Client, prefix: str) -> None:
    space = Keyspace(prefix)
    own = [space.key(number, EVERY_BYTE) for number in range(200)] + [prefix.encode() + b"{}\0\r\n"]
    foreign = [b"sessio:x", b"session", b"Session:x", b"weir:x", b"wei\\:x", b"xsession:1", b"ab:1", b"\0"]
    for key in own + foreign:
        client.set(key, b"v")
    report = purge(client, space, deadline_s=20, batch=7)
    assert report.removed == len(own)
    assert report.found >= len(own)
    assert sorted(client.scan_iter(count=1000)) == sorted(foreign)


@pytest.mark.parametrize("user", [b"*", b"?", b"[a-z]", b"\\", b"a:b", b"{u}", b"", EVERY_BYTE])
def test_a_purge_below_an_id_leaves_the_other_ids_alone(client: Client, user: bytes) -> None:
    others = [b"a", b"b", b"**", b"x:y", b"a:b:c", b"{u", EVERY_BYTE[:255]]
    for one in [user, *others]:
        client.set(SESSIONS.key(one, "turns"), b"v")
    assert purge(client, SESSIONS.below(user), deadline_s=20).removed == 1
    assert client.exists(*(SESSIONS.key(one, "turns") for one in others)) == len(others)


def test_a_purge_ends_under_writers_and_takes_every_key_that_was_there(client: Client) -> None:
    before = [SESSIONS.key("old", number) for number in range(1000)]
    for key in before:
        client.set(key, b"v")
    stop, started = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            client.set(SESSIONS.key("new", number), b"v")
            client.set(Keyspace("emb:").key(number), b"v")
            number += 1
            started.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert started.wait(20)
        report = purge(client, SESSIONS, deadline_s=20, batch=10)
    finally:
        stop.set()
        writer.join(20)
    assert report.removed >= len(before)
    assert client.exists(*before) == 0
    embeddings = sorted(client.scan_iter(match=b"emb:*", count=1000))
    assert embeddings == sorted(Keyspace("emb:").key(number) for number in range(len(embeddings)))


def test_a_purge_uses_neither_keys_nor_flush(client: Client) -> None:
    client.set(SESSIONS.key("a"), b"v")
    client.config_resetstat()
    purge(client, SESSIONS, deadline_s=20)
    used = set(client.info("commandstats"))
    assert used == {"cmdstat_config|resetstat", "cmdstat_scan", "cmdstat_unlink"}


def test_a_purge_that_takes_too_long_says_how_much_it_removed(client: Client) -> None:
    for number in range(50):
        client.set(SESSIONS.key(number), b"v")
    unlink, removed = client.unlink, 0

    def slow(*names: bytes) -> int:
        nonlocal removed
        count = unlink(*names)
        removed += count
        client.execute_command("CLIENT", "PAUSE", 300)
        return count

    client.unlink = slow  # type: ignore[method-assign,assignment]
    try:
        with pytest.raises(DeadlineExceeded) as caught:
            purge(client, SESSIONS, deadline_s=0.1, batch=10)
    finally:
        client.unlink = unlink  # type: ignore[method-assign]
    assert removed > 0
    assert f"removed {removed} keys" in str(caught.value)


def test_a_purge_deletes_no_key_of_others_even_if_scan_names_it(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, foreign = SESSIONS.key("a"), b"emb:a"
    client.mset({own: b"v", foreign: b"v"})
    monkeypatch.setattr(client, "scan_iter", lambda **_: iter([foreign, own, foreign]))
    assert purge(client, SESSIONS, deadline_s=20, batch=1).removed == 1
    assert client.exists(foreign) == 1


def test_a_purge_needs_a_batch(client: Client) -> None:
    with pytest.raises(UsageError):
        purge(client, SESSIONS, deadline_s=1, batch=0)


def test_a_purge_walks_all_nodes_of_a_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path) as servers:
        url = f"valkey+cluster://127.0.0.1:{servers[0].port}"
        with connect(url, deadline_s=20) as client:
            for number in range(100):
                client.set(SESSIONS.key(number), b"v")
                client.set(Keyspace("emb:").key(number), b"v")
            assert purge(client, SESSIONS, deadline_s=20).removed == 100
            assert len(list(client.scan_iter())) == 100
