"""Keys are injective, safe in patterns, and purged exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from servers import cluster, valkey_server
from valkey.crc import key_slot

from inference_cache.connection import Client, connect, remaining_s
from inference_cache.errors import CacheError, DeadlineExceeded, KeyFormatError, Unreachable, UsageError
from inference_cache.keyspace import (
    MAX_KEY_BYTES,
    Keyspace,
    PrefixProblem,
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


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Keyspace("emb"), "a prefix ends in ':', as 'emb:' does; this is 'emb'"),
        (lambda: SESSIONS.key(), "a key below 'session:' needs a part"),
        (lambda: SESSIONS.key(1.5), "a key part is bytes, str or int, not float"),  # type: ignore[arg-type]
        (
            lambda: SESSIONS.key("\ud800"),
            "a key part is not valid Unicode (surrogates not allowed): '\\ud800'",
        ),
        (lambda: SESSIONS.key(Tagged("")), "a hash tag must not be empty: the server would ignore it"),
        (
            lambda: SESSIONS.key(Tagged("a"), Tagged("b")),
            "a key has one hash tag at most: the server would ignore the second",
        ),
        (
            lambda: SESSIONS.key(b"x" * MAX_KEY_BYTES),
            "a key of 262152 bytes is longer than 262144; hash its longest part",
        ),
        (lambda: SESSIONS.parse(b"emb:a"), "b'emb:a' does not start with 'session:'"),
        (
            lambda: SESSIONS.parse(b"session:{}"),
            "b'session:{}' was not built here: no part is written as b'{}'",
        ),
        (
            lambda: SESSIONS.parse(b"session:a}"),
            "b'session:a}' was not built here: no part is written as b'a}'",
        ),
        (
            lambda: SESSIONS.parse(b"session:%41"),
            "b'session:%41' was not built here: no part is written as b'%41'",
        ),
    ],
)
def test_what_is_refused_is_named(wrong: Callable[[], object], says: str) -> None:
    with pytest.raises(KeyFormatError) as caught:
        wrong()
    assert str(caught.value) == says


def test_the_longest_key_is_built_and_parsed() -> None:
    longest = b"x" * (MAX_KEY_BYTES - len(b"session:"))
    assert SESSIONS.parse(SESSIONS.key(longest)) == (longest,)
    assert not SESSIONS.owns(SESSIONS.key(longest) + b"x")


def test_a_prefix_of_glob_characters_is_no_pattern_itself() -> None:
    assert Keyspace("we[ir]d*?\\:").pattern("a") == rb"we\[ir\]d\*\?\\:a:*"


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
    # Neither their order nor their names decide.
    for names in (("a", "b"), ("b", "a")):
        ordered = dict(zip(names, (Keyspace("vllm:kv:"), Keyspace("vllm:")), strict=True))
        assert workload_of(b"vllm:kv:x", ordered) == names[0]


def test_the_prefixes_of_the_decision_are_disjoint() -> None:
    assert check_disjoint(["vllm:kv:", "emb:", "ray:", "session:"]) == ()


GLOB = "holds a glob character, a wildcard to SCAN and to ACL rules"
BLANK = "holds a blank, a control character or something outside of ASCII"


@pytest.mark.parametrize(
    ("prefixes", "prefix", "problem", "other"),
    [
        (["a:", "a:b:"], "a:", "is the beginning of 'a:b:'", "a:b:"),
        (["a:b:", "a:"], "a:", "is the beginning of 'a:b:'", "a:b:"),
        (["b:", "a:", "c:", "a:"], "a:", "stands there twice", "a:"),
        (["", "a:"], "", "is empty: every key would start with it", None),
        (["a"], "a", "does not end in ':'", None),
        (["a*:"], "a*:", GLOB, None),
        (["a[b]:"], "a[b]:", GLOB, None),
        (["a b:"], "a b:", BLANK, None),
        (["a\n:"], "a\n:", BLANK, None),
        (["ä:"], "ä:", BLANK, None),
        (["{a}:"], "{a}:", "holds a brace, which would put all its keys into one cluster slot", None),
    ],
)
def test_prefixes_that_would_mix_workloads_are_named(
    prefixes: list[str], prefix: str, problem: str, other: str | None
) -> None:
    found = check_disjoint(prefixes)
    assert found == (PrefixProblem(prefix=prefix, problem=problem, other=other),)
    assert str(found[0]) == f"{prefix!r} {problem}"


def test_every_problem_of_every_prefix_is_told() -> None:
    problems = check_disjoint(["a *", "a *b:"])
    assert [problem.problem for problem in problems] == [
        "does not end in ':'", GLOB, BLANK, GLOB, BLANK, "is the beginning of 'a *b:'",
    ]  # fmt: skip


class Scanned:
    """A client whose SCAN names these keys, of which only some are still there to be unlinked."""

    def __init__(self, named: list[bytes], *, fails: CacheError | None = None) -> None:
        self._named = named
        self._fails = fails
        self.gone: list[bytes] = []
        self.calls: list[int] = []
        self.asked: tuple[bytes, int] | None = None

    def scan_iter(self, *, match: bytes, count: int) -> Iterator[bytes]:
        self.asked = (match, count)
        return iter(self._named)

    def unlink(self, *keys: bytes) -> int:
        assert remaining_s() is not None
        if self.gone and self._fails is not None:
            raise self._fails
        new = set(keys) - set(self.gone)
        self.gone += new
        self.calls.append(len(keys))
        return len(new)


class TestPurge:
    """What it counts and tells, without a server; that it removes is shown below with one."""

    def test_counts_what_was_named_and_what_was_there(self) -> None:
        names = [SESSIONS.key(number) for number in (1, 2, 2, 3, 1)]
        client = Scanned([b"emb:1", *names, b"emb:2"])
        report = purge(client, SESSIONS, deadline_s=20, batch=2)  # type: ignore[arg-type]
        assert (report.prefix, report.found, report.removed) == ("session:", 7, 3)
        assert sorted(client.gone) == sorted(set(names))
        assert client.calls == [1, 2, 2]
        assert client.asked == (b"session:*", 2)
        assert 0 <= report.took_s < 20

    def test_walks_in_batches_of_500_unless_told_otherwise(self) -> None:
        client = Scanned([SESSIONS.key(number) for number in range(1100)])
        purge(client, SESSIONS, deadline_s=20)  # type: ignore[arg-type]
        assert client.calls == [500, 500, 100]
        assert client.asked == (b"session:*", 500)

    def test_takes_keys_one_by_one_if_asked_to(self) -> None:
        client = Scanned([SESSIONS.key(number) for number in range(3)])
        purge(client, SESSIONS, deadline_s=20, batch=1)  # type: ignore[arg-type]
        assert client.calls == [1, 1, 1]

    def test_says_what_it_had_removed_when_time_runs_out(self) -> None:
        client = Scanned([SESSIONS.key(number) for number in range(9)], fails=DeadlineExceeded("late"))
        with pytest.raises(DeadlineExceeded) as caught:
            purge(client, SESSIONS, deadline_s=1.5, batch=4)  # type: ignore[arg-type]
        assert str(caught.value) == "the purge of 'session:' removed 4 keys and was not done after 1.5 s"

    def test_says_what_it_had_removed_when_it_fails(self) -> None:
        client = Scanned([SESSIONS.key(number) for number in range(9)], fails=Unreachable("cut"))
        with pytest.raises(Unreachable, match="cut") as caught:
            purge(client, SESSIONS, deadline_s=20, batch=4)  # type: ignore[arg-type]
        assert caught.value.__notes__ == ["the purge of 'session:' had removed 4 keys"]

    def test_needs_a_batch(self) -> None:
        with pytest.raises(UsageError, match=r"^batch is at least 1, not 0$"):
            purge(Scanned([]), SESSIONS, deadline_s=1, batch=0)  # type: ignore[arg-type]


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


def test_a_purge_walks_all_nodes_of_a_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path) as servers:
        url = f"valkey+cluster://127.0.0.1:{servers[0].port}"
        with connect(url, deadline_s=20) as client:
            for number in range(100):
                client.set(SESSIONS.key(number), b"v")
                client.set(Keyspace("emb:").key(number), b"v")
            assert purge(client, SESSIONS, deadline_s=20).removed == 100
            assert len(list(client.scan_iter())) == 100
