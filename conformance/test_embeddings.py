"""EMB: embeddings come back bit by bit, are computed once, and never at the price of an answer."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.embedding_worker import WORKER
from fixtures.faults.catalog import (
    Bandwidth,
    BlackHole,
    ErrorReply,
    LateReply,
    Refuse,
    ResetMidReply,
)
from fixtures.faults.fault import Fault
from fixtures.faults.proxy import FaultProxy
from fixtures.round_trips import RoundTrips
from fixtures.servers import ServerFactory
from fixtures.spec import Evidence, Numbers, check, clause, ensure, not_proven
from fixtures.strategies import against_a_server
from fixtures.targets import Target
from fixtures.vectors import DTYPES, bits, matrix_of_bits, vectors_for
from inference_cache.contract import Contract

Implementation = Callable[[str], Any]

SHAPE = re.compile(rb"^emb:sha256:[0-9a-f]{64}$")


@pytest.fixture
def unique(rng: random.Random) -> str:
    """A model name that no other run uses: its entries are ours alone."""
    return f"conformance-{rng.randbytes(8).hex()}"


@clause("EMB-01", needs={"write"})
def test_vectors_come_back_bit_by_bit(
    target: Target, contract: Contract, implementation: Implementation, unique: str, evidence: Evidence
) -> None:
    """Any bit pattern of any dtype, NaN payloads, -0.0 and subnormals among them, is read as it was
    computed.
    """
    compared = 0
    with target.connect(deadline_s=30) as client:
        for dtype in DTYPES:
            caches = [
                implementation("embeddings")(
                    client,
                    model=unique,
                    revision="1",
                    dimensions=64,
                    dtype=dtype,
                    keyspace=target.namespace.keyspace(contract.workloads["embeddings"]),
                    ttl_s=600,
                    deadline_s=20,
                )
                for _ in range(2)
            ]

            compared += compare_bits(dtype, caches, target.examples(25))
    evidence.record(vectors_compared=compared, dtypes=", ".join(DTYPES))


def compare_bits(dtype: str, caches: list[Any], examples: int) -> int:
    """Compute through one cache and read through another, for any bits. Returns how many were compared."""
    compared = 0
    numbers = itertools.count()

    @against_a_server(max_examples=examples)
    @given(data=st.binary(min_size=64 * 4 * 3, max_size=64 * 4 * 3))
    def compare(data: bytes) -> None:
        nonlocal compared
        # New in every example, also in one that is run again.
        texts = [f"{dtype}, text {next(numbers)}" for _ in range(3)]
        wanted = matrix_of_bits(data, dtype=dtype, rows=3, dimensions=64)
        computed = caches[0].get_or_compute(texts, lambda asked: wanted)
        read = caches[1].get_many(texts)
        for text, row, first, second in zip(texts, wanted, computed, read, strict=True):
            compared += 1
            check(
                second is not None,
                expected="a vector that was just stored is found",
                observed=f"{dtype} vector of {text!r} is a miss",
            )
            check(
                bits(first) == bits(row) and bits(second) == bits(row),
                expected=f"{dtype} vectors are read with the bits that were computed",
                observed=f"{bits(row).hex()[:48]}... came back as {bits(second).hex()[:48]}...",
                evidence={"dtype": dtype},
            )

    compare()
    return compared


@clause("EMB-02")
def test_keys_tell_everything_that_changes_a_vector(
    implementation: Implementation, evidence: Evidence
) -> None:
    """Text, model, revision, dimensions, dtype and task each change the key; nothing that differs shares
    one.
    """
    seen: dict[bytes, tuple[Any, ...]] = {}

    def key(text: str, model: str, revision: str, dimensions: int, dtype: str, task: str) -> bytes:
        cache = implementation("embeddings")(
            "valkey://127.0.0.1:1",
            model=model,
            revision=revision,
            dimensions=dimensions,
            dtype=dtype,
            task=task,
        )
        try:
            return bytes(cache.key(text))
        finally:
            cache.close()

    def tell_apart(*identity: Any) -> None:
        name = key(*identity)
        check(
            SHAPE.match(name) is not None,
            expected="keys shaped emb:sha256: and 64 hexadecimal digits",
            observed=f"{name!r:.120}",
        )
        check(
            seen.setdefault(name, identity) == identity,
            expected="different text, model, revision, dimensions, dtype or task give different keys",
            observed=f"{seen[name]!r:.150} and {identity!r:.150} share {name.decode()}",
            evidence={"one": repr(seen[name])[:200], "other": repr(identity)[:200]},
        )

    # One part changed at a time, then the joins that collide where parts are glued together.
    tell_apart("text", "model", "rev", 8, "float32", "query")
    for identity in (
        ("text2", "model", "rev", 8, "float32", "query"),
        ("text", "model2", "rev", 8, "float32", "query"),
        ("text", "model", "rev2", 8, "float32", "query"),
        ("text", "model", "rev", 16, "float32", "query"),
        ("text", "model", "rev", 8, "float16", "query"),
        ("text", "model", "rev", 8, "float32", "passage"),
        ("text:model", "x", "rev", 8, "float32", "query"),
        ("text", "model:x", "rev", 8, "float32", "query"),
        ("text", "modelrev", "x", 8, "float32", "query"),
        ("text", "model", "revx", 8, "float32", "query"),
        ("\u00e9", "model", "rev", 8, "float32", "query"),
        ("e\u0301", "model", "rev", 8, "float32", "query"),
        ("text ", "model", "rev", 8, "float32", "query"),
        ("Text", "model", "rev", 8, "float32", "query"),
    ):
        tell_apart(*identity)
    words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)

    @against_a_server(max_examples=150)
    @given(
        text=words,
        model=words,
        revision=words,
        dimensions=st.integers(1, 4096),
        dtype=st.sampled_from(DTYPES),
        task=words,
    )
    def generated(text: str, model: str, revision: str, dimensions: int, dtype: str, task: str) -> None:
        tell_apart(text, model, revision, dimensions, dtype, task)

    generated()
    evidence.record(identities_compared=len(seen))


@pytest.mark.cost_s(4)
@clause("EMB-03", needs={"write"})
def test_a_new_text_is_computed_once_in_a_process(
    target: Target, contract: Contract, implementation: Implementation, unique: str, evidence: Evidence
) -> None:
    """Sixteen threads that want the same new text at once get it from one computation."""
    computed: list[str] = []

    def slow(texts: list[str]) -> Any:
        computed.extend(texts)
        time.sleep(0.2)
        return vectors_for(texts, dimensions=16)

    with target.connect(deadline_s=30) as client:
        cache = implementation("embeddings")(
            client,
            model=unique,
            revision="1",
            dimensions=16,
            dtype="float32",
            keyspace=target.namespace.keyspace(contract.workloads["embeddings"]),
            ttl_s=600,
            deadline_s=10,
        )
        barrier = threading.Barrier(16)
        results: list[bytes] = []

        def ask() -> None:
            barrier.wait()
            results.append(bits(cache.get_or_compute(["the one text"], slow)[0]))

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    right = bits(vectors_for(["the one text"], dimensions=16)[0])
    numbers: Numbers = {"threads": 16, "computed": len(computed), "answers": len(results)}
    evidence.record(**numbers)
    check(
        len(results) == 16 and all(result == right for result in results),
        expected="all sixteen threads get the vector",
        observed=f"{sum(result == right for result in results)} did",
        evidence=numbers,
    )
    check(
        len(computed) == 1,
        expected="one computation for sixteen threads that ask at once",
        observed=f"{len(computed)} computations",
        evidence=numbers,
    )


@pytest.mark.cost_s(4)
@clause("EMB-03", needs={"write", "config"})
def test_a_new_text_is_computed_at_most_once_in_each_process(
    servers: ServerFactory, request: pytest.FixtureRequest, unique: str, evidence: Evidence
) -> None:
    """Three processes with eight threads each ask for the same new texts: no process computes one twice."""
    server = servers.scaled()
    path = next(
        (
            item.partition("=")[2]
            for item in request.config.getoption("inference_cache_option_implementation")
            if item.startswith("embeddings=")
        ),
        "inference_cache.embeddings:EmbeddingCache",
    )
    start_at = time.time() + 2.5
    settings = json.dumps({"url": server.login_url(), "model": unique, "start_at": start_at, "path": path})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(3)
    ]
    for process in processes:
        # Not on the command line, where anybody could read the password.
        assert process.stdin is not None
        process.stdin.write(settings)
        process.stdin.close()
        process.stdin = None
    reports = []
    for process in processes:
        output, problems = process.communicate(timeout=60)
        if process.returncode != 0:
            raise RuntimeError(f"a worker process failed: {problems[-800:]}")
        reports.append(json.loads(output))
    most = max(max(report["computed"].values()) for report in reports)
    total = sum(sum(report["computed"].values()) for report in reports)
    wrong = sum(report["wrong"] for report in reports)
    numbers: Numbers = {
        "processes": 3,
        "threads_in_each": 8,
        "texts": 4,
        "most_computations_of_a_text_in_a_process": most,
        "computations_in_all": total,
        "wrong_answers": wrong,
    }
    evidence.record(**numbers)
    check(wrong == 0, expected="every answer is right", observed=f"{wrong} were not", evidence=numbers)
    check(
        most <= 1,
        expected="no process computes a text more than once",
        observed=f"one computed a text {most} times",
        evidence=numbers,
    )


@clause("EMB-04", needs={"write", "net"})
def test_a_batch_keeps_order_and_computes_only_what_is_missing(
    servers: ServerFactory, implementation: Implementation, unique: str, evidence: Evidence
) -> None:
    """Hits and misses in any mixture: rows in the order asked, each missing text computed once, one exchange
    to look up and one to store.
    """
    server = servers.scaled()
    trips = RoundTrips()
    batches, worst_lookup, worst_mixed = 0, 0, 0
    with (
        FaultProxy(upstream=("127.0.0.1", server.port), faults=[trips]) as proxy,
        # Processes do not share work here, so that leases take no part in the count.
        implementation("embeddings")(
            server.login_url(proxy.port),
            model=unique,
            revision="1",
            dimensions=8,
            dtype="float32",
            ttl_s=600,
            deadline_s=10,
            lease_s=None,
        ) as cache,
    ):
        cached: set[str] = set()

        @against_a_server(max_examples=40)
        @given(texts=st.lists(st.integers(0, 30).map(str), min_size=1, max_size=12))
        def ask(texts: list[str]) -> None:
            nonlocal batches, worst_lookup, worst_mixed
            asked: list[str] = []

            def compute(missing: list[str]) -> Any:
                asked.extend(missing)
                return vectors_for(missing, dimensions=8)

            missing = {text for text in texts if text not in cached}
            trips.reset()
            rows = cache.get_or_compute(texts, compute)
            exchanges = trips.exchanges
            cached.update(texts)
            batches += 1
            if missing:
                worst_mixed = max(worst_mixed, exchanges)
            else:
                worst_lookup = max(worst_lookup, exchanges)
            check(
                [bits(row) for row in rows] == [bits(row) for row in vectors_for(texts, dimensions=8)],
                expected="a row for each text, in the order of the texts",
                observed=f"{texts} came back in another order or with other values",
            )
            check(
                sorted(asked) == sorted(missing),
                expected="exactly the missing texts are computed, each once",
                observed=f"missing were {sorted(missing)}, computed were {sorted(asked)}",
            )
            check(
                exchanges == (2 if missing else 1),
                expected="one exchange to look up a batch and one more to store what was missing",
                observed=f"{exchanges} exchanges for {len(texts)} texts, {len(missing)} of them missing: "
                f"{dict(trips.commands)}",
                evidence={"exchanges": exchanges, "texts": len(texts), "missing": len(missing)},
            )

        ask()
    evidence.record(batches=batches, exchanges_when_all_hit=worst_lookup, exchanges_with_misses=worst_mixed)


@clause("EMB-05", needs={"write", "config"})
def test_a_damaged_entry_is_a_miss(
    servers: ServerFactory,
    implementation: Implementation,
    unique: str,
    rng: random.Random,
    evidence: Evidence,
) -> None:
    """Whatever stands under the key that is not this text's vector is computed anew, and put right."""
    server = servers.scaled()
    tried: list[str] = []
    with server.connect(deadline_s=30) as client:
        cache = implementation("embeddings")(
            client, model=unique, revision="1", dimensions=32, dtype="float32", ttl_s=600, deadline_s=10
        )
        texts = ["victim", "other"]
        wanted = vectors_for(texts, dimensions=32)
        cache.put_many(texts, wanted)
        key, other = cache.key("victim"), cache.key("other")
        whole, foreign = client.get(key) or b"", client.get(other) or b""
        if len(whole) < 32 * 4:
            not_proven("entries are not single values that can be damaged")
        damages: dict[str, bytes] = {
            "empty": b"",
            "one byte": whole[:1],
            "cut by one": whole[:-1],
            "cut by half": whole[: len(whole) // 2],
            "one byte more": whole + b"\0",
            "twice": whole * 2,
            "of another text": foreign,
            "zeros": bytes(len(whole)),
            "raw vector": bits(wanted[0]),
            "text": b"[0.1, 0.2]",
        }
        for number in range(40):
            at = rng.randrange(len(whole)) if number >= 8 else number * (len(whole) - 1) // 7
            flipped = bytearray(whole)
            flipped[at] ^= 1 << rng.randrange(8)
            damages[f"bit in byte {at}"] = bytes(flipped)
        for name, value in damages.items():
            client.set(key, value)
            tried.append(name)
            judge_damage(cache, name, wanted[0])
        client.delete(key)
        client.rpush(key, b"a list")
        judge_damage(cache, "a list", wanted[0])
    evidence.record(damages_tried=len(tried) + 1)


def judge_damage(cache: Any, name: str, wanted: Any) -> None:
    """A damaged entry must be a miss, be computed, and be right for the next reader."""
    computed: list[str] = []

    def compute(texts: list[str]) -> Any:
        computed.extend(texts)
        return vectors_for(texts, dimensions=32)

    found = cache.get_many(["victim"])[0]
    check(
        found is None,
        expected="a damaged entry is a miss",
        observed=f"an entry that is damaged ({name}) was returned as a vector",
        evidence={"damage": name},
    )
    row = cache.get_or_compute(["victim"], compute)[0]
    check(
        computed == ["victim"] and bits(row) == bits(wanted),
        expected="the vector is computed anew",
        observed=f"with a damaged entry ({name}) {len(computed)} were computed, and the answer was "
        f"{'right' if bits(row) == bits(wanted) else 'wrong'}",
        evidence={"damage": name},
    )


@pytest.mark.cost_s(6)
@clause("EMB-06", needs={"net"})
def test_without_the_cache_vectors_are_computed_in_time(
    servers: ServerFactory, implementation: Implementation, unique: str, evidence: Evidence
) -> None:
    """With each fault between client and server the right vectors come back within the deadline and the
    computation.
    """
    server = servers.scaled()
    deadline_s = 0.4
    # Scheduling on a busy machine; a cache that waits for the server misses it by seconds.
    slack_s = 1.0
    faults: dict[str, Fault] = {
        "refusing": Refuse(how="listen"),
        "resetting at once": Refuse(how="accept"),
        "hanging": BlackHole(),
        "one byte a second": Bandwidth(bytes_per_s=1),
        "reset in mid-reply": ResetMidReply(after_bytes=3, commands="all"),
        "late": LateReply(seconds=2, commands="all"),
        "LOADING": ErrorReply(code="LOADING", message="loading the dataset in memory"),
        "OOM": ErrorReply(code="OOM", message="command not allowed when used memory > 'maxmemory'"),
        "READONLY": ErrorReply(code="READONLY", message="You can't write against a read only replica."),
        "NOAUTH": ErrorReply(code="NOAUTH", message="Authentication required."),
        "too many clients": ErrorReply(message="max number of clients reached", at_connect=True),
    }
    slowest = 0.0
    with FaultProxy(upstream=("127.0.0.1", server.port)) as proxy:
        for name, fault in faults.items():
            with implementation("embeddings")(
                server.login_url(proxy.port),
                model=unique,
                revision=name,
                dimensions=8,
                dtype="float32",
                ttl_s=600,
                deadline_s=deadline_s,
            ) as cache:
                texts = ["a", "b", "a"]
                with proxy.fault(fault):
                    began = time.monotonic()
                    try:
                        rows = cache.get_or_compute(texts, lambda missing: vectors_for(missing, dimensions=8))
                        answer = [bits(row) for row in rows]
                    except Exception as error:
                        check(
                            False,
                            expected="vectors are computed when the cache does not answer",
                            observed=f"with the server {name}: {type(error).__name__}: {error}",
                            evidence={"fault": name},
                        )
                    took = time.monotonic() - began
                slowest = max(slowest, took)
                evidence.record(**{f"answer_with_server_{name.replace(' ', '_')}_s": round(took, 3)})
                ensure(fault.acted > 0, f"the fault {name!r} never acted")
                check(
                    answer == [bits(row) for row in vectors_for(texts, dimensions=8)],
                    expected="the right vectors",
                    observed=f"with the server {name} others came back",
                    evidence={"fault": name},
                )
                check(
                    took <= deadline_s + slack_s,
                    expected=f"an answer within the deadline of {deadline_s:g} s and {slack_s:g} s for the "
                    "machine",
                    observed=f"with the server {name} it took {took:.2f} s",
                    evidence={"fault": name, "took_s": round(took, 3)},
                )
    evidence.record(faults=len(faults), slowest_answer_s=round(slowest, 3))
