"""Embeddings come back bit by bit, are computed once, and never wait long for a cache in trouble."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from servers import cluster, eventually

from fixtures.faults.catalog import (
    Bandwidth,
    BitFlip,
    BlackHole,
    ErrorReply,
    LateReply,
    MgetDropsHoles,
    NilToEmpty,
    Refuse,
    ResetMidReply,
    Truncate,
)
from fixtures.faults.fault import Context, Delay, Fault, OnCommand, OnReply
from fixtures.faults.proxy import FaultProxy
from fixtures.faults.resp import Command, Frame
from fixtures.targets.embedded import EmbeddedServer, shipped_executables
from inference_cache.acl import render_acl
from inference_cache.connection import Client, connect, connect_async, deadline
from inference_cache.contract import load
from inference_cache.embeddings import AsyncEmbeddingCache, EmbeddingCache
from inference_cache.embeddings._frame import HEADER_BYTES, Framing, Refusal
from inference_cache.errors import (
    CacheError,
    DeadlineExceeded,
    InvalidText,
    InvalidVectors,
    UsageError,
)
from inference_cache.keyspace import Keyspace

DIMENSIONS = 8
NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}
IN_MEMORY = {"save": "", "appendonly": "no"}
on_a_server = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=sorted(shipped_executables()))
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """One server of each version that is shipped."""
    with EmbeddedServer(shipped_executables()[request.param], IN_MEMORY) as running:
        yield running


@pytest.fixture(scope="module")
def newest() -> Iterator[EmbeddedServer]:
    """A server where the version does not matter."""
    with EmbeddedServer(next(iter(shipped_executables().values())), IN_MEMORY) as running:
        yield running


@pytest.fixture
def client(newest: EmbeddedServer) -> Iterator[Client]:
    with newest.connect() as connected:
        yield connected


def options(**changes: Any) -> dict[str, Any]:
    """Options of a cache whose model nobody else has used."""
    fresh = {"model": f"m-{uuid.uuid4()}", "revision": "1", "dimensions": DIMENSIONS, "dtype": "float32"}
    return {**fresh, **changes}


@dataclass(slots=True, kw_only=True)
class Model:
    """A model whose vectors tell the text, and that remembers what it was asked."""

    dtype: str = "float32"
    takes_s: float = 0.0
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, texts: list[str]) -> np.ndarray[Any, Any]:
        self.asked.append(list(texts))
        time.sleep(self.takes_s)
        return self.vectors(texts)

    async def later(self, texts: list[str]) -> np.ndarray[Any, Any]:
        self.asked.append(list(texts))
        await asyncio.sleep(self.takes_s)
        return self.vectors(texts)

    def vectors(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        size = DIMENSIONS * NUMPY_DTYPES[self.dtype].itemsize
        raw = b"".join(hashlib.shake_128(text.encode()).digest(size) for text in texts)
        return np.frombuffer(raw, np.uint8).view(NUMPY_DTYPES[self.dtype]).reshape(len(texts), DIMENSIONS)

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.asked for text in batch]


def bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


# --- keys --------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ["a", "b", "a:b", "b:c", ":", "m", "1", "float32", "\0", "\u00e9", "e\u0301"]
)
identities = st.fixed_dictionaries(
    {
        "text": names,
        "model": names,
        "revision": names | st.just(""),
        "dimensions": st.integers(1, 5),
        "dtype": st.sampled_from(sorted(NUMPY_DTYPES)),
        "task": names | st.just(""),
    }
)


def key_of(identity: dict[str, Any]) -> bytes:
    rest = dict(identity)
    text = rest.pop("text")
    return EmbeddingCache("valkey://unused", **rest).key(text)


def test_the_key_has_the_shape_that_the_contract_shows() -> None:
    cache = EmbeddingCache("valkey://unused", **options())
    assert re.fullmatch(rb"emb:sha256:[0-9a-f]{64}", cache.key("abc"))
    assert Keyspace("emb:").parse(cache.key("abc"))[0] == b"sha256"


def test_the_key_of_a_text_stays_the_same_in_every_release() -> None:
    identity = {
        "text": "what is a tensor?",
        "model": "BAAI/bge-m3",
        "revision": "5617a9f6",
        "dimensions": 4,
        "dtype": "float32",
        "task": "query",
    }
    assert key_of(identity) == (
        b"emb:sha256:25b1cb75559aa91aefc081da6418fd27efeaf2acf1e7b39d01b2a5d86199a611"
    )


@given(identities, identities)
@example(
    {"text": "a", "model": "b:c", "revision": "", "dimensions": 1, "dtype": "int8", "task": ""},
    {"text": "a:b", "model": "c", "revision": "", "dimensions": 1, "dtype": "int8", "task": ""},
)
@example(
    {"text": "a", "model": "b", "revision": "c", "dimensions": 1, "dtype": "int8", "task": ""},
    {"text": "a", "model": "b", "revision": "", "dimensions": 1, "dtype": "int8", "task": "c"},
)
def test_two_keys_are_equal_exactly_when_all_that_decides_the_vector_is(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert (key_of(first) == key_of(second)) == (first == second)


@given(identities, st.data())
def test_a_change_of_any_one_part_changes_the_key(identity: dict[str, Any], data: st.DataObject) -> None:
    other = data.draw(identities)
    for name in identity:
        if identity[name] != other[name]:
            assert key_of({**identity, name: other[name]}) != key_of(identity)


def test_texts_and_models_that_collide_in_redisvl_do_not_here() -> None:
    def theirs(text: str, model: str) -> str:
        return hashlib.sha256(f"{text}:{model}".encode()).hexdigest()

    pairs = [("a", "b:c"), ("a:b", "c")]
    assert theirs(*pairs[0]) == theirs(*pairs[1])
    ours = {EmbeddingCache("valkey://unused", **options(model=m)).key(t) for t, m in pairs}
    assert len(ours) == 2


def test_nothing_is_normalised_in_a_text() -> None:
    cache = EmbeddingCache("valkey://unused", **options())
    texts = ["\u00e9", "e\u0301", "E\u0301", " \u00e9", "\u00e9 ", "\ufeff\u00e9", "\u00e9\n", "\u00e9\r\n"]
    assert len({cache.key(text) for text in texts}) == len(texts)


def test_the_defaults_are_the_contracts() -> None:
    workload = load().workloads["embeddings"]
    flows = EmbeddingCache("valkey://unused", **options())._flows
    assert flows.keyspace.prefix == workload.prefix
    assert (flows.ttl_s, flows.sliding) == (workload.ttl_s, workload.sliding_ttl)
    assert flows.deadline_s == load().deadlines.call_s


# --- wrong input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "float64"}, "dtype is one of"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"dimensions": 2.0}, "dimensions"),
        ({"model": ""}, "model"),
        ({"model": None}, "model is a str"),
        ({"revision": "\ud800"}, "revision is not valid Unicode"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": 1.5}, "ttl_s"),
        ({"ttl_s": None, "sliding": True}, "sliding"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"lease_s": -1}, "lease_s"),
        ({"wait_s": float("inf")}, "wait_s"),
        ({"max_text_bytes": 0}, "max_text_bytes"),
    ],
)
def test_a_wrong_option_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        EmbeddingCache("valkey://unused", **options(**change))


def test_a_client_of_the_other_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=re.escape("connect()")):
        EmbeddingCache(connect_async("valkey://unused"), **options())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=re.escape("connect_async()")):
        AsyncEmbeddingCache(connect("valkey://unused"), **options())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        (["fine", ""], InvalidText),
        (["fine", "x" * 10_000_000], InvalidText),
        (["fine", "\u00e9" * 600_000], InvalidText),
        (["fine", b"bytes"], InvalidText),
        (["fine", None], InvalidText),
        (["fine", "\ud800"], InvalidText),
        ("fine", UsageError),
    ],
)
def test_a_wrong_text_is_refused_before_anything_is_sent(
    texts: Any, error: type[Exception], newest: EmbeddedServer
) -> None:
    model = Model()
    with EmbeddingCache(newest.url, **options()) as cache:
        for call in (
            lambda: cache.get_or_compute(texts, model),
            lambda: cache.get_many(texts),
            lambda: cache.put_many(texts, model.vectors(["fine", "other"])),
            lambda: cache.invalidate(texts),
        ):
            with pytest.raises(error) as caught:
                call()
            assert len(str(caught.value)) < 300
        assert cache.get_many(["fine"]) == [None]
    assert model.asked == []


def wrong_vectors() -> dict[str, tuple[Any, str]]:
    good = Model().vectors(["a", "b"])
    wide = np.zeros((2, 2 * DIMENSIONS), np.float32)
    return {
        "too few": (good[:1], "shape"),
        "too many": (np.concatenate([good, good]), "shape"),
        "dimensions": (good[:, :4].copy(), "shape"),
        "flat": (good.reshape(-1), "shape"),
        "float64": (np.ones((2, DIMENSIONS)), "float64"),
        "int8": (np.ones((2, DIMENSIONS), np.int8), "int8"),
        "byte order": (good.astype(">f4"), "byte order"),
        "strided": (wide[:, ::2], "contiguous"),
        "sliced": (wide[:, :DIMENSIONS], "contiguous"),
        "fortran": (np.asfortranarray(good), "contiguous"),
        "none": (None, "object"),
        "texts": ([["a"] * DIMENSIONS] * 2, "str"),
        "ragged": ([[1.0], [1.0, 2.0]], "no array"),
        "too large": ([[1e300] * DIMENSIONS] * 2, "too large"),
    }


@pytest.mark.parametrize("case", wrong_vectors())
def test_wrong_vectors_are_refused_and_nothing_is_written(
    case: str, newest: EmbeddedServer, client: Client
) -> None:
    vectors, says = wrong_vectors()[case]
    with EmbeddingCache(newest.url, **options()) as cache:
        before = client.dbsize()
        with pytest.raises(InvalidVectors, match=says):
            cache.put_many(["a", "b"], vectors)
        with pytest.raises(InvalidVectors, match=says):
            cache.get_or_compute(["a", "b"], lambda _: vectors)
        assert client.dbsize() == before, "neither an entry nor a lease is left"
        model = Model()
        assert bits(cache.get_or_compute(["a", "b"], model)) == bits(model.vectors(["a", "b"]))


@pytest.mark.parametrize("value", [300, -129, 1.5, True])
def test_a_number_that_int8_cannot_hold_is_refused(value: Any, newest: EmbeddedServer) -> None:
    with EmbeddingCache(newest.url, **options(dtype="int8")) as cache, pytest.raises(InvalidVectors):
        cache.put_many(["a"], [[value] * DIMENSIONS])


def test_lists_of_numbers_are_rounded_to_the_declared_dtype(newest: EmbeddedServer) -> None:
    rows = [[0.1, -0.0, float("inf"), float("nan"), 1e-45, 3, 2**24 + 1, 0.5]]
    with EmbeddingCache(newest.url, **options()) as cache:
        matrix = cache.get_or_compute(["a"], lambda _: rows)
        assert bits(matrix) == bits(np.array(rows, np.float32))


def test_a_list_of_arrays_counts_as_an_array(newest: EmbeddedServer) -> None:
    model = Model()
    with EmbeddingCache(newest.url, **options()) as cache:
        assert cache.put_many(["a", "b"], list(model.vectors(["a", "b"]))) == 2
        with pytest.raises(InvalidVectors, match="float64"):
            cache.put_many(["a"], [np.zeros(DIMENSIONS)])


# --- bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@on_a_server
@given(raw=st.lists(st.binary(min_size=DIMENSIONS * 4, max_size=DIMENSIONS * 4), min_size=1, max_size=4))
def test_every_bit_pattern_comes_back_as_it_was(
    dtype: str, raw: list[bytes], server: EmbeddedServer, caches: Callable[..., EmbeddingCache]
) -> None:
    size = DIMENSIONS * NUMPY_DTYPES[dtype].itemsize
    given_bits = b"".join(one[:size] for one in raw)
    vectors = np.frombuffer(given_bits, np.uint8).view(NUMPY_DTYPES[dtype]).reshape(len(raw), DIMENSIONS)
    texts = [f"text {number}" for number in range(len(raw))]
    cache = caches(server, dtype)
    cache.invalidate(texts)
    computed = cache.get_or_compute(texts, lambda _: vectors)
    read = cache.get_or_compute(texts, Model())
    singly = cache.get_many(texts)
    assert bits(computed) == bits(read) == given_bits
    assert b"".join(bits(one) for one in singly) == given_bits
    assert {computed.dtype, read.dtype, *(one.dtype for one in singly if one is not None)} == {
        NUMPY_DTYPES[dtype]
    }


@pytest.fixture(scope="module")
def caches() -> Iterator[Callable[..., EmbeddingCache]]:
    """One cache for each server and dtype, kept over the examples of a property."""
    made: dict[tuple[str, str], EmbeddingCache] = {}

    def cache_for(server: EmbeddedServer, dtype: str) -> EmbeddingCache:
        if (server.url, dtype) not in made:
            made[server.url, dtype] = EmbeddingCache(server.url, **options(dtype=dtype))
        return made[server.url, dtype]

    yield cache_for
    for cache in made.values():
        cache.close()


@pytest.mark.parametrize(
    ("dtype", "unsigned", "patterns"),
    [
        ("float32", np.uint32, [0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 1, 0x807FFFFF, 0x7F800000]),
        ("float16", np.uint16, [0x7E01, 0xFE55, 0x7C01, 0x8000, 1, 0x83FF, 0x7C00]),
        ("bfloat16", np.uint16, [0x7FC1, 0xFFD5, 0x7F81, 0x8000, 1, 0x807F, 0x7F80]),
        ("int8", np.uint8, [0x80, 0x7F, 0xFF, 0, 1, 0x55, 0xAA]),
    ],
)
def test_nan_payloads_negative_zero_and_subnormals_survive(
    dtype: str, unsigned: Any, patterns: list[int], server: EmbeddedServer
) -> None:
    raw = np.array([patterns], unsigned)
    with EmbeddingCache(server.url, **options(dtype=dtype, dimensions=len(patterns))) as cache:
        cache.put_many(["special"], raw.view(NUMPY_DTYPES[dtype]))
        matrix = cache.get_or_compute(["special"], Model())
    assert matrix.view(unsigned).tolist() == raw.tolist()


def test_bfloat16_is_taken_as_its_bits_too(newest: EmbeddedServer) -> None:
    raw = np.arange(DIMENSIONS, dtype=np.uint16).reshape(1, -1)
    with EmbeddingCache(newest.url, **options(dtype="bfloat16")) as cache:
        matrix = cache.get_or_compute(["a"], lambda _: raw)
        assert matrix.dtype == NUMPY_DTYPES["bfloat16"]
        assert bits(cache.get_or_compute(["a"], Model())) == bits(raw)


def test_what_is_given_is_the_callers_own_to_change(newest: EmbeddedServer) -> None:
    buffer = np.zeros((1, DIMENSIONS), np.float32)
    with EmbeddingCache(newest.url, **options()) as cache:
        first = cache.get_or_compute(["a"], lambda _: buffer)
        first += 1
        buffer += 2
        second = cache.get_or_compute(["a"], Model())
        assert second.flags.writeable
        assert second.flags.c_contiguous
        assert bits(second) == bytes(DIMENSIONS * 4)
        (third,) = cache.get_many(["a"])
        assert third is not None
        third += 1


# --- batches -----------------------------------------------------------------------------------------------

batches = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=8), min_size=1, max_size=6)


@on_a_server
@given(batches=batches)
def test_order_is_kept_and_only_what_is_missing_is_computed_once(
    batches: list[list[str]], server: EmbeddedServer
) -> None:
    model = Model()
    known: set[str] = set()
    with connect(server.url) as shared:
        cache = EmbeddingCache(shared, **options())
        for batch in batches:
            model.asked.clear()
            matrix = cache.get_or_compute(batch, model)
            assert matrix.shape == (len(batch), DIMENSIONS)
            assert bits(matrix) == bits(model.vectors(batch))
            assert model.texts == [text for text in dict.fromkeys(batch) if text not in known]
            known.update(batch)
        found = cache.get_many(list("abcdefgh"))
        assert [one is not None for one in found] == [text in known for text in "abcdefgh"]
        counters = cache.counters
        assert counters.computed == counters.stored == counters.misses - (8 - len(known)) == len(known)


def test_an_empty_batch_asks_nobody() -> None:
    with EmbeddingCache("valkey://127.0.0.1:1", **options()) as cache:
        assert cache.get_or_compute([], Model()).shape == (0, DIMENSIONS)
        assert cache.get_many([]) == []
        assert cache.put_many([], []) == cache.invalidate([]) == 0
        assert cache.counters.degraded == 0


class Wire(Fault):
    """Records the commands, and answers late, so that what was sent together is told by the time."""

    late_s = 0.3

    def __init__(self) -> None:
        self.sent: list[tuple[float, bytes]] = []

    def on_command(self, ctx: Context, command: Command) -> OnCommand:
        self.sent.append((time.monotonic(), command.name))
        return None

    def on_reply(self, ctx: Context, command: Command, reply: Frame) -> OnReply:
        return Delay(seconds=self.late_s)

    def exchanges(self) -> list[list[bytes]]:
        """The names of the commands, grouped by what was sent before any answer came."""
        groups: list[list[bytes]] = []
        last_s = 0.0
        for at_s, name in self.sent:
            if at_s - last_s > self.late_s / 2:
                groups.append([])
            groups[-1].append(name)
            last_s = at_s
        self.sent.clear()
        return groups


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("lease_s", [None, 10])
def test_a_batch_is_looked_up_in_one_exchange_and_stored_in_one(
    sliding: bool, lease_s: float | None, server: EmbeddedServer
) -> None:
    texts = [f"text {number}" for number in range(16)]
    with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
        url = f"valkey://127.0.0.1:{proxy.port}"
        made = options(sliding=sliding, lease_s=lease_s, deadline_s=5)
        with EmbeddingCache(url, **made) as cache, connect(server.url) as client:
            model = Model()
            cache.get_or_compute(texts[:8], model)
            wire = Wire()
            client.config_resetstat()
            with proxy.fault(wire):
                cache.get_or_compute(texts, model)
                mixed = wire.exchanges()
                cache.get_or_compute(texts, model)
                hits = wire.exchanges()
                cache.put_many(texts, model.vectors(texts))
                puts = wire.exchanges()
            looks = [b"GETEX"] * 16 if sliding else [b"MGET"]
            claims = [] if lease_s is None else [[b"SET"] * 8]
            releases = [] if lease_s is None else [b"EVAL"] * 8
            assert mixed == [looks, *claims, [b"SET"] * 8 + releases]
            assert hits == [looks]
            assert puts == [[b"SET"] * 16]
            stats = client.info("commandstats")
            assert stats["cmdstat_getex" if sliding else "cmdstat_mget"]["calls"] == 2 * len(looks)
            assert model.texts == texts


@pytest.mark.parametrize(("ttl_s", "sliding"), [(100, False), (100, True), (None, False)])
def test_entries_live_as_long_as_declared(ttl_s: int | None, sliding: bool, server: EmbeddedServer) -> None:
    with (
        EmbeddingCache(server.url, **options(ttl_s=ttl_s, sliding=sliding)) as cache,
        connect(server.url) as client,
    ):
        cache.get_or_compute(["a"], Model())
        key = cache.key("a")
        assert client.ttl(key) in ((-1,) if ttl_s is None else (99, 100))
        if ttl_s is not None:
            client.expire(key, 50)
            cache.get_or_compute(["a"], Model())
            assert client.ttl(key) in ((99, 100) if sliding else (49, 50))


def test_what_is_removed_is_computed_again(newest: EmbeddedServer) -> None:
    model = Model()
    with EmbeddingCache(newest.url, **options()) as cache:
        cache.get_or_compute(["a", "b"], model)
        assert cache.invalidate(["a", "a", "unknown"]) == 1
        cache.get_or_compute(["a", "b"], model)
    assert model.asked == [["a", "b"], ["a"]]


def test_it_works_on_a_cluster(tmp_path: Path) -> None:
    model = Model()
    texts = [f"text {number}" for number in range(20)]
    with cluster(tmp_path) as nodes, connect(f"valkey+cluster://127.0.0.1:{nodes[0].port}") as client:
        for sliding in (False, True):
            model.asked.clear()
            cache = EmbeddingCache(client, **options(sliding=sliding))
            cache.get_or_compute(texts[:10], model)
            assert bits(cache.get_or_compute(texts, model)) == bits(model.vectors(texts))
            assert model.asked == [texts[:10], texts[10:]]
            assert cache.invalidate(texts) == 20
            assert cache.counters.degraded == 0
        assert list(client.scan_iter(match=b"emb:*")) == []


def test_the_acl_user_of_the_workload_may_do_all_that_it_does(tmp_path: Path) -> None:
    rules = tmp_path / "users.acl"
    rules.write_text(render_acl(load()))
    executable = next(iter(shipped_executables().values()))
    with EmbeddedServer(executable, {**IN_MEMORY, "aclfile": str(rules)}) as confined:
        user = connect(confined.url, username="embeddings", password="any")
        with user, EmbeddingCache(user, **options()) as cache, connect(confined.url) as client:
            cache.get_or_compute(["a", "b"], Model())
            EmbeddingCache(user, **options(sliding=True)).get_or_compute(["a"], Model())
            assert cache.put_many(["c"], Model().vectors(["c"])) == 1
            assert cache.invalidate(["a", "b", "c"]) == 3
            assert cache.counters.degraded == 0
            assert list(client.scan_iter(match=b"emb:lease:*")) == []


# --- entries that are not ours -----------------------------------------------------------------------------


def damaged(cache: EmbeddingCache) -> dict[str, tuple[Any, str]]:
    """Values for the key of ``a``, and the counter that each raises."""
    digest, other = cache._flows.digests(["a", "b"])
    row = memoryview(bits(Model().vectors(["a"])))
    whole = cache._flows.framing.wrap(digest, row)

    def framed(**shape: int) -> bytes:
        size = {"dtype_code": 1, "dimensions": DIMENSIONS, "row_bytes": len(row), **shape}
        return Framing(**size).wrap(digest, row[: size["row_bytes"]])

    return {
        "empty": (b"", "corrupt"),
        "cut in the header": (whole[: HEADER_BYTES - 1], "corrupt"),
        "cut in the vector": (whole[:-1], "corrupt"),
        "longer": (whole + b"\0", "corrupt"),
        "a flipped bit": (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], "corrupt"),
        "of another key": (cache._flows.framing.wrap(other, row), "foreign"),
        "json": (json.dumps([0.5] * DIMENSIONS).encode(), "foreign"),
        "raw floats": (bytes(row) * 4, "foreign"),
        "a hash": ({"embedding": "[0.5]"}, "foreign"),
        "fewer dimensions": (framed(dimensions=4, row_bytes=16), "wrong_shape"),
        "another dtype": (framed(dtype_code=4), "wrong_shape"),
        "a row too short": (framed(row_bytes=28), "wrong_shape"),
        "another version": (whole[:3] + b"\x02" + whole[4:], "wrong_version"),
    }


DAMAGES = list(damaged(EmbeddingCache("valkey://unused", **options())))


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_an_entry_that_is_not_the_vector_is_a_miss_and_is_overwritten(
    damage: str, sliding: bool, newest: EmbeddedServer, client: Client
) -> None:
    model = Model()
    with EmbeddingCache(newest.url, **options(sliding=sliding)) as cache:
        value, counter = damaged(cache)[damage]
        if isinstance(value, dict):
            client.hset(cache.key("a"), mapping=value)
            # MGET shows no difference between a key of another type and none.
            counter = "foreign" if sliding else "absent"
        else:
            client.set(cache.key("a"), value)
        assert bits(cache.get_or_compute(["a"], model)) == bits(model.vectors(["a"]))
        counters = cache.counters
        assert (getattr(counters, counter), counters.misses, counters.hits) == (1, 1, 0)
        assert counters.degraded == 0
        assert bits(cache.get_or_compute(["a"], model)) == bits(model.vectors(["a"]))
        assert (cache.counters.hits, model.asked) == (1, [["a"]])


@given(st.data())
def test_no_change_of_a_frame_goes_unnoticed(data: st.DataObject) -> None:
    cache = EmbeddingCache("valkey://unused", **options())
    (digest,) = cache._flows.digests(["a"])
    framing = cache._flows.framing
    row = data.draw(st.binary(min_size=framing.row_bytes, max_size=framing.row_bytes))
    whole = framing.wrap(digest, memoryview(row))
    opened = framing.unwrap(digest, whole)
    assert isinstance(opened, memoryview)
    assert opened.tobytes() == row
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    assert isinstance(framing.unwrap(digest, changed), Refusal)
    assert isinstance(framing.unwrap(digest, whole[:at]), Refusal)
    assert isinstance(framing.unwrap(digest, whole + b"\0" * (at + 1)), Refusal)


@given(st.binary(max_size=200))
def test_no_foreign_value_is_taken_for_a_vector(value: bytes) -> None:
    cache = EmbeddingCache("valkey://unused", **options())
    assert isinstance(cache._flows.framing.unwrap(cache._flows.digests(["a"])[0], value), Refusal)


# --- one computation at a time -----------------------------------------------------------------------------


@contextmanager
def threads(*calls: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs the calls at once; after the block the list holds what each returned or raised."""
    outcomes: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls) + 1)

    def run(number: int, call: Callable[[], Any]) -> None:
        start.wait(10)
        try:
            outcomes[number] = call()
        except BaseException as error:
            outcomes[number] = error

    running = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(calls)]
    for thread in running:
        thread.start()
    start.wait(10)
    yield outcomes
    for thread in running:
        thread.join(20)
        assert not thread.is_alive(), "a caller hangs"


def test_thirty_two_threads_that_want_the_same_text_have_it_computed_once(server: EmbeddedServer) -> None:
    model = Model(takes_s=0.1)
    with EmbeddingCache(server.url, **options()) as cache:
        with threads(*[lambda: cache.get_or_compute(["a", "b"], model)] * 32) as outcomes:
            pass
        assert {bits(one) for one in outcomes} == {bits(model.vectors(["a", "b"]))}
        assert model.asked == [["a", "b"]]
        counters = cache.counters
        assert counters.joined + counters.hits == 62
        assert counters.degraded == 0


def test_so_it_is_while_the_cache_hangs(newest: EmbeddedServer) -> None:
    model = Model(takes_s=0.2)
    with FaultProxy(upstream=("127.0.0.1", newest.port), faults=[BlackHole()]) as proxy:
        url = f"valkey://127.0.0.1:{proxy.port}"
        with EmbeddingCache(url, **options(deadline_s=0.3)) as cache:
            began_s = time.monotonic()
            with threads(*[lambda: cache.get_or_compute(["a"], model)] * 32) as outcomes:
                pass
            assert time.monotonic() - began_s < 0.3 + 0.2 + 1
            assert {bits(one) for one in outcomes} == {bits(model.vectors(["a"]))}
            assert model.asked == [["a"]]


def test_batches_that_overlap_share_what_they_can_and_cannot_deadlock(newest: EmbeddedServer) -> None:
    model = Model(takes_s=0.05)
    texts = [f"text {number}" for number in range(12)]
    windows = [[texts[(start + step) % 12] for step in range(5)] for start in range(12)]
    with EmbeddingCache(newest.url, **options()) as cache:
        with threads(*[lambda own=own: cache.get_or_compute(own, model) for own in windows]) as outcomes:
            pass
        assert [bits(one) for one in outcomes] == [bits(model.vectors(own)) for own in windows]
        assert sorted(model.texts) == sorted(texts)


def test_a_text_that_is_there_does_not_wait_for_one_that_is_computed_in_the_same_batch(
    newest: EmbeddedServer,
) -> None:
    computing, done = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> Any:
        computing.set()
        assert done.wait(10)
        return Model().vectors(texts)

    with EmbeddingCache(newest.url, **options()) as cache:
        cache.get_or_compute(["known"], Model())
        with threads(lambda: cache.get_or_compute(["known", "new"], slow)) as outcomes:
            assert computing.wait(10)
            assert bits(cache.get_or_compute(["known"], Model())) == bits(Model().vectors(["known"]))
            done.set()
        assert bits(outcomes[0]) == bits(Model().vectors(["known", "new"]))


def test_an_error_of_compute_reaches_all_who_wait_and_nothing_is_kept(
    newest: EmbeddedServer, client: Client
) -> None:
    class Broken(Exception):
        pass

    asked: list[list[str]] = []

    def fail(texts: list[str]) -> Any:
        asked.append(texts)
        time.sleep(0.2)
        raise Broken

    with EmbeddingCache(newest.url, **options()) as cache:
        with threads(*[lambda: cache.get_or_compute(["a"], fail)] * 8) as outcomes:
            pass
        assert {type(one) for one in outcomes} == {Broken}
        assert len(asked) == 1
        assert cache.get_many(["a"]) == [None]
        assert client.get(cache.key("a").replace(b"sha256", b"lease")) is None
        model = Model()
        assert bits(cache.get_or_compute(["a"], model)) == bits(model.vectors(["a"]))


def test_who_waits_goes_itself_when_the_first_is_interrupted(newest: EmbeddedServer) -> None:
    model = Model(takes_s=0.1)
    computing = threading.Event()

    def interrupted(texts: list[str]) -> Any:
        computing.set()
        time.sleep(0.1)
        raise KeyboardInterrupt

    def second() -> Any:
        assert computing.wait(10)
        return cache.get_or_compute(["a"], model)

    with EmbeddingCache(newest.url, **options()) as cache:
        with threads(lambda: cache.get_or_compute(["a"], interrupted), *[second] * 4) as outcomes:
            pass
        assert isinstance(outcomes[0], KeyboardInterrupt)
        assert {bits(one) for one in outcomes[1:]} == {bits(model.vectors(["a"]))}
        assert model.asked == [["a"]]


def test_waiting_for_another_thread_ends_with_the_callers_deadline(newest: EmbeddedServer) -> None:
    computing, done = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> Any:
        computing.set()
        assert done.wait(10)
        return Model().vectors(texts)

    with EmbeddingCache(newest.url, **options()) as cache:
        with threads(lambda: cache.get_or_compute(["a"], slow)) as outcomes:
            assert computing.wait(10)
            with deadline(0.1), pytest.raises(DeadlineExceeded, match="another thread"):
                cache.get_or_compute(["a"], Model())
            done.set()
        assert bits(outcomes[0]) == bits(Model().vectors(["a"]))


def test_a_compute_that_asks_for_its_own_text_is_told_so(newest: EmbeddedServer) -> None:
    with EmbeddingCache(newest.url, **options()) as cache:

        def again(texts: list[str]) -> Any:
            return cache.get_or_compute(texts, again)

        with pytest.raises(UsageError, match="wait for itself"):
            cache.get_or_compute(["a"], again)
        other = cache.get_or_compute(["a"], lambda texts: cache.get_or_compute(["b"], Model()))
        assert bits(other) == bits(Model().vectors(["b"]))


def test_a_fork_forgets_the_flights_of_its_parent(newest: EmbeddedServer) -> None:
    script = """
    import os, sys, threading, numpy as np
    from inference_cache.embeddings import EmbeddingCache
    cache = EmbeddingCache(
        sys.argv[1], model=sys.argv[2], revision="1", dimensions=2, dtype="float32", lease_s=None
    )
    computing, done = threading.Event(), threading.Event()
    def slow(texts):
        computing.set(); done.wait(10)
        return np.zeros((1, 2), np.float32)
    thread = threading.Thread(target=cache.get_or_compute, args=(["a"], slow))
    thread.start(); computing.wait(10)
    child = os.fork()
    if not child:
        cache.get_or_compute(["a"], lambda texts: np.ones((1, 2), np.float32))
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    done.set(); thread.join(10)
    """
    assert run_script(script, newest.url, f"m-{uuid.uuid4()}").strip() == "7"


# --- between processes -------------------------------------------------------------------------------------

WORKER = """
import sys, time, numpy as np
from inference_cache.embeddings import EmbeddingCache
url, model, takes_s, lease_s, deadline_s = sys.argv[1], sys.argv[2], *map(float, sys.argv[3:])
asked = []
def compute(texts):
    asked.append(texts)
    print("computing", flush=True)
    time.sleep(takes_s)
    return np.full((len(texts), 4), len(texts[0]), np.float32)
cache = EmbeddingCache(
    url, model=model, revision="1", dimensions=4, dtype="float32", lease_s=lease_s, deadline_s=deadline_s
)
cache.get_many(["warm-up"])
print("ready", flush=True)
sys.stdin.readline()
matrix = cache.get_or_compute(["text"], compute)
assert (matrix == 4).all()
print("computed", len(asked), "waited", cache.counters.waited, flush=True)
"""


def start_worker(*arguments: object) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def run_script(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_compute_a_text_once_together(server: EmbeddedServer) -> None:
    name = f"m-{uuid.uuid4()}"
    workers = [start_worker(server.url, name, 1, 10, 5) for _ in range(2)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=30)[0].splitlines()[-1] for worker in workers]
    assert sorted(said) == ["computed 0 waited 1", "computed 1 waited 0"]
    assert [worker.returncode for worker in workers] == [0, 0]


@pytest.mark.parametrize("lease_s", [0.5, 60])
def test_a_killed_owner_of_a_lease_holds_nobody_up_for_long(lease_s: float, server: EmbeddedServer) -> None:
    name = f"m-{uuid.uuid4()}"
    owner = start_worker(server.url, name, 60, lease_s, 2)
    assert owner.stdin is not None
    assert owner.stdout is not None
    owner.stdin.write("\n")
    owner.stdin.flush()
    assert owner.stdout.readline() == "computing\n"
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    model = Model()
    with EmbeddingCache(server.url, **options(model=name, dimensions=4, lease_s=lease_s)) as cache:
        began_s = time.monotonic()
        matrix = cache.get_or_compute(["text"], lambda texts: model(texts)[:, :4].copy())
        assert time.monotonic() - began_s < 1 + 1
        assert matrix.shape == (1, 4)
        assert cache.counters.stored == 1, "the others need not compute it again"
        assert cache.counters.degraded == 0


def test_leases_are_given_back_and_only_ones_own(newest: EmbeddedServer, client: Client) -> None:
    with EmbeddingCache(newest.url, **options(lease_s=5)) as cache:
        lease = cache.key("a").replace(b"sha256", b"lease")

        def look(texts: list[str]) -> Any:
            assert 0 < client.pttl(lease) <= 5000
            return Model().vectors(texts)

        def overtaken(texts: list[str]) -> Any:
            client.set(lease, b"another's", px=60_000)
            return Model().vectors(texts)

        cache.get_or_compute(["a"], look)
        assert client.get(lease) is None
        cache.invalidate(["a"])
        cache.get_or_compute(["a"], overtaken)
        assert client.get(lease) == b"another's"


def test_who_waits_takes_over_when_the_lease_is_given_up(newest: EmbeddedServer, client: Client) -> None:
    model = Model()
    with EmbeddingCache(newest.url, **options(deadline_s=5)) as cache:
        lease = cache.key("a").replace(b"sha256", b"lease")
        client.set(lease, b"another's", px=60_000)
        with threads(lambda: cache.get_or_compute(["a"], model)) as outcomes:
            time.sleep(0.2)
            assert model.asked == []
            client.delete(lease)
        assert bits(outcomes[0]) == bits(model.vectors(["a"]))
        assert client.get(lease) is None


def test_a_value_that_another_process_stores_ends_the_wait(newest: EmbeddedServer, client: Client) -> None:
    model = Model()
    same = options(deadline_s=5)
    with EmbeddingCache(newest.url, **same) as cache, EmbeddingCache(newest.url, **same) as other:
        client.set(cache.key("a").replace(b"sha256", b"lease"), b"another's", px=60_000)
        with threads(lambda: cache.get_or_compute(["a", "b"], model)) as outcomes:
            time.sleep(0.2)
            other.put_many(["a"], model.vectors(["a"]))
        assert bits(outcomes[0]) == bits(model.vectors(["a", "b"]))
        assert model.asked == [["b"]]
        assert cache.counters.waited == 1


# --- a cache in trouble ------------------------------------------------------------------------------------

DEADLINE_S = 0.5
FAULTS: dict[str, Callable[[], Fault]] = {
    "refused": lambda: Refuse(how="listen"),
    "reset at once": lambda: Refuse(how="accept"),
    "hangs": BlackHole,
    "reset in the middle of a reply": lambda: ResetMidReply(after_bytes=10),
    "one byte a second": lambda: Bandwidth(bytes_per_s=1),
    "loading": lambda: ErrorReply(code="LOADING", message="the dataset is in memory soon", commands="keyed"),
    "full": lambda: ErrorReply(code="OOM", message="used memory > 'maxmemory'", commands="writes"),
    "read-only": lambda: ErrorReply(code="READONLY", message="a replica", commands="writes"),
    "cannot persist": lambda: ErrorReply(code="MISCONF", message="snapshots fail", commands="writes"),
    "asks for a password": lambda: ErrorReply(code="NOAUTH", message="Authentication required."),
    "forbids": lambda: ErrorReply(code="NOPERM", message="no permissions", commands="keyed"),
    "forbids scripts": lambda: ErrorReply(code="NOPERM", message="no permissions", every=3),
    "out of connections": lambda: ErrorReply(message="max number of clients reached", at_connect=True),
    "late": lambda: LateReply(seconds=2),
    "sometimes late": lambda: LateReply(seconds=2, every=3),
    "flips bits": BitFlip,
    "cuts values": lambda: Truncate(over_bytes=20),
    "cuts replies": lambda: Truncate(over_bytes=20, stream=True),
    "says empty for absent": NilToEmpty,
    "drops holes of a batch": MgetDropsHoles,
}
WRITES_ONLY = {"full", "read-only", "cannot persist"}


@pytest.fixture
def behind_proxy(newest: EmbeddedServer) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=("127.0.0.1", newest.port)) as proxy:
        yield proxy


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_at_most_the_deadline_and_no_value(fault: str, behind_proxy: FaultProxy) -> None:
    model = Model()
    url = f"valkey://127.0.0.1:{behind_proxy.port}"
    with EmbeddingCache(url, **options(deadline_s=DEADLINE_S)) as cache:
        cache.get_or_compute(["known"], model)
        assert connections_to(behind_proxy.port) == 1
        with behind_proxy.fault(FAULTS[fault]()) as armed:
            if fault == "out of connections":
                cache._client.connection_pool.disconnect()
            for number in range(3):
                texts = [f"new {number}", "known", f"other {number}"]
                began_s = time.monotonic()
                matrix = cache.get_or_compute(texts, model)
                assert time.monotonic() - began_s < DEADLINE_S + 1
                assert bits(matrix) == bits(model.vectors(texts))
            began_s = time.monotonic()
            found = cache.get_many(["known"])
            assert time.monotonic() - began_s < DEADLINE_S + 1
            assert found[0] is None or bits(found[0]) == bits(model.vectors(["known"]))
            assert cache.put_many(["put"], model.vectors(["put"])) in (0, 1)
            assert armed.acted
        counters = cache.counters
        assert counters.degraded or counters.misses > counters.absent
        if fault in WRITES_ONLY:
            assert counters.hits >= 4, "reads go on"
        assert_works(cache, model)
        assert connections_to(behind_proxy.port) == 1
    assert connections_to(behind_proxy.port) == 0


def connections_to(port: int) -> int:
    """Sockets of this process whose other end is at the port; the proxy's own are not among them."""
    return sum(bool(one.raddr) and one.raddr.port == port for one in psutil.Process().net_connections("tcp"))


def assert_works(cache: EmbeddingCache, model: Model) -> None:
    """The cache takes a new text and gives it back, within the recovery time of the contract."""
    texts = iter(f"after {number}" for number in range(10_000))

    def kept() -> bool:
        text = next(texts)
        cache.get_or_compute([text], model)
        asked = len(model.asked)
        return bits(cache.get_or_compute([text], model)) == bits(model.vectors([text])) and asked == len(
            model.asked
        )

    eventually(kept, "the cache to work again", within_s=load().deadlines.recovery_s)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_under_asyncio(fault: str, behind_proxy: FaultProxy) -> None:
    model = Model()
    url = f"valkey://127.0.0.1:{behind_proxy.port}"

    async def story() -> None:
        async with AsyncEmbeddingCache(url, **options(deadline_s=DEADLINE_S)) as cache:
            await cache.get_or_compute(["known"], model.later)
            with behind_proxy.fault(FAULTS[fault]()) as armed:
                if fault == "out of connections":
                    await cache._client.connection_pool.disconnect()
                for number in range(2):
                    texts = [f"new {number}", "known", f"other {number}"]
                    began_s = time.monotonic()
                    matrix = await cache.get_or_compute(texts, model.later)
                    assert time.monotonic() - began_s < DEADLINE_S + 1
                    assert bits(matrix) == bits(model.vectors(texts))
                assert armed.acted
            ends_s = time.monotonic() + load().deadlines.recovery_s
            number = 0
            while True:
                number += 1
                await cache.get_or_compute([f"after {number}"], model.later)
                if (await cache.get_many([f"after {number}"]))[0] is not None:
                    break
                assert time.monotonic() < ends_s, "it does not work again"

    asyncio.run(story())
    assert connections_to(behind_proxy.port) == 0


def test_invalidate_says_when_it_could_not(behind_proxy: FaultProxy) -> None:
    with EmbeddingCache(f"valkey://127.0.0.1:{behind_proxy.port}", **options(deadline_s=DEADLINE_S)) as cache:
        for fault in (BlackHole(), ErrorReply(code="READONLY", message="a replica", commands="writes")):
            with behind_proxy.fault(fault), pytest.raises(CacheError):
                cache.invalidate(["a"])


def test_a_server_that_is_really_full_is_read_and_not_written(tmp_path: Path) -> None:
    executable = next(iter(shipped_executables().values()))
    full = {**IN_MEMORY, "maxmemory-policy": "noeviction"}
    model = Model()
    with (
        EmbeddedServer(executable, full) as small,
        connect(small.url) as client,
        EmbeddingCache(small.url, **options()) as cache,
    ):
        cache.get_or_compute(["known"], model)
        client.config_set("maxmemory", 1)
        texts = ["known", "new"]
        assert bits(cache.get_or_compute(texts, model)) == bits(model.vectors(texts))
        counters = cache.counters
        assert (counters.hits, counters.unstored, dict(counters.degraded_by)) == (1, 1, {"full": 1})
        client.config_set("maxmemory", 0)
        cache.get_or_compute(["new"], model)
        assert cache.counters.stored == 2


def test_a_server_that_restarts_is_used_again(tmp_path: Path) -> None:
    executable = next(iter(shipped_executables().values()))
    model = Model()
    with (
        EmbeddedServer(executable, IN_MEMORY) as mortal,
        EmbeddingCache(mortal.url, **options(deadline_s=DEADLINE_S)) as cache,
    ):
        cache.get_or_compute(["a"], model)
        mortal.crash()
        assert bits(cache.get_or_compute(["a"], model)) == bits(model.vectors(["a"]))
        mortal.start()
        assert_works(cache, model)


# --- asyncio -----------------------------------------------------------------------------------------------


def test_tasks_that_want_the_same_text_have_it_computed_once(server: EmbeddedServer) -> None:
    model = Model(takes_s=0.1)

    async def story() -> list[Any]:
        async with AsyncEmbeddingCache(server.url, **options()) as cache:
            asks = [cache.get_or_compute(["a", "b", "a"], model.later) for _ in range(32)]
            gathered = await asyncio.gather(*asks)
            assert await cache.invalidate(["a"]) == 1
            assert [one is None for one in await cache.get_many(["a", "b"])] == [True, False]
            assert await cache.put_many(["a"], model.vectors(["a"])) == 1
            # A plain function is taken as well.
            assert bits(await cache.get_or_compute(["c"], model)) == bits(model.vectors(["c"]))
            return gathered

    assert {bits(one) for one in asyncio.run(story())} == {bits(model.vectors(["a", "b", "a"]))}
    assert model.asked == [["a", "b"], ["c"]]


def test_a_cancelled_task_leaves_its_text_to_who_waits(newest: EmbeddedServer, client: Client) -> None:
    model = Model(takes_s=0.2)

    async def story() -> bytes:
        async with AsyncEmbeddingCache(newest.url, **options()) as cache:
            first = asyncio.create_task(cache.get_or_compute(["a"], model.later))
            await asyncio.sleep(0.1)
            second = asyncio.create_task(cache.get_or_compute(["a"], model.later))
            await asyncio.sleep(0.02)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert bits(await second) == bits(model.vectors(["a"]))
            return cache.key("a").replace(b"sha256", b"lease")

    lease = asyncio.run(story())
    assert model.asked == [["a"], ["a"]]
    assert client.get(lease) is None


def test_an_error_reaches_every_task_that_waits(newest: EmbeddedServer) -> None:
    async def fail(texts: list[str]) -> Any:
        await asyncio.sleep(0.1)
        raise RuntimeError("the model is gone")

    async def story() -> list[Any]:
        async with AsyncEmbeddingCache(newest.url, **options()) as cache:
            asks = [cache.get_or_compute(["a"], fail) for _ in range(4)]
            return await asyncio.gather(*asks, return_exceptions=True)

    assert [str(one) for one in asyncio.run(story())] == ["the model is gone"] * 4


def test_a_task_group_inside_compute_may_not_ask_for_the_text_either(newest: EmbeddedServer) -> None:
    async def story() -> None:
        async with AsyncEmbeddingCache(newest.url, **options()) as cache:

            async def again(texts: list[str]) -> Any:
                return await asyncio.gather(cache.get_or_compute(texts, again))

            with pytest.raises(UsageError, match="wait for itself"):
                await cache.get_or_compute(["a"], again)

    asyncio.run(story())


# --- packaging ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "dtype"), [("numpy", "float32"), ("xxhash", "float32"), ("ml_dtypes", "bfloat16")]
)
def test_a_missing_package_is_named_with_its_extra(missing: str, dtype: str) -> None:
    script = """
    import sys
    missing, dtype = sys.argv[1:]
    sys.modules[missing] = None
    import inference_cache
    from inference_cache.embeddings import EmbeddingCache
    from inference_cache.errors import MissingExtra
    try:
        EmbeddingCache("valkey://unused", model="m", revision="1", dimensions=2, dtype=dtype)
    except MissingExtra as error:
        print(error.module, error.extra)
    """
    assert run_script(script, missing, dtype).split() == [missing, "embeddings"]


def test_the_example_in_the_documentation_runs(newest: EmbeddedServer) -> None:
    page = Path(__file__).parents[1] / "docs" / "embeddings.md"
    examples = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    scope: dict[str, Any] = {"__name__": "example"}
    for source in examples:
        exec(compile(source.replace("valkey://localhost:6379", newest.url), str(page), "exec"), scope)
