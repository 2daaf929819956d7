"""Embedding caches that are wrong in one way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inference_cache.embeddings import EmbeddingCache
from inference_cache.errors import CacheError
from mutants.liveness import note_adapter

__all__ = [
    "ComputesWholeBatch",
    "ForgetsModel",
    "NeedsTheCache",
    "NoSingleFlight",
    "NormalisesFloats",
    "ThroughJson",
    "TrustsWhatItFinds",
]

Compute = Callable[[list[str]], Any]


class ForgetsModel(EmbeddingCache):
    """The key does not know which model computed the vector."""

    def __init__(self, client: Any, *, model: str, **options: Any) -> None:
        note_adapter("ForgetsModel")
        super().__init__(client, model="any", **options)


class ThroughJson(EmbeddingCache):
    """float32 vectors are written as JSON numbers with six digits."""

    def get_or_compute(self, texts: Sequence[str], compute: Compute) -> Any:
        def rounded(missing: list[str]) -> Any:
            rows = np.asarray(compute(missing))
            if rows.dtype != np.float32:
                return rows
            note_adapter("ThroughJson")
            text = json.dumps([[float(f"{value:.6g}") for value in row] for row in rows.tolist()])
            return np.array(json.loads(text), dtype=np.float32)

        return super().get_or_compute(texts, rounded)


class NormalisesFloats(EmbeddingCache):
    """NaN payloads and the sign of zero are lost."""

    def get_or_compute(self, texts: Sequence[str], compute: Compute) -> Any:
        def normalised(missing: list[str]) -> Any:
            rows = np.asarray(compute(missing))
            if rows.dtype not in (np.float32, np.float16):
                return rows
            note_adapter("NormalisesFloats")
            rows = np.where(np.isnan(rows), rows.dtype.type("nan"), rows)
            return np.where(rows == 0, rows.dtype.type(0), rows)

        return super().get_or_compute(texts, normalised)


class NoSingleFlight(EmbeddingCache):
    """Whoever misses computes."""

    def get_or_compute(self, texts: Sequence[str], compute: Compute) -> Any:
        found = self.get_many(texts)
        missing = [text for text, row in zip(texts, found, strict=True) if row is None]
        if missing:
            note_adapter("NoSingleFlight")
            rows = dict(zip(missing, compute(list(dict.fromkeys(missing))), strict=False))
            self.put_many(list(rows), np.stack(list(rows.values())))
            found = [rows.get(text) if row is None else row for text, row in zip(texts, found, strict=True)]
        return np.stack([row for row in found if row is not None])


class ComputesWholeBatch(EmbeddingCache):
    """One miss has all of the batch computed."""

    def get_or_compute(self, texts: Sequence[str], compute: Compute) -> Any:
        if any(row is None for row in self.get_many(texts)):
            note_adapter("ComputesWholeBatch")
            self.invalidate(texts)
        return super().get_or_compute(texts, compute)


class TrustsWhatItFinds(EmbeddingCache):
    """An entry that is long enough is taken for the vector."""

    def __init__(self, client: Any, *, dimensions: int, **options: Any) -> None:
        super().__init__(client, dimensions=dimensions, **options)
        self._connection = client
        self._dimensions = dimensions

    def get_many(self, texts: Sequence[str]) -> list[Any]:
        found = super().get_many(texts)
        for number, text in enumerate(texts):
            if found[number] is not None or self._connection.type(self.key(text)) != b"string":
                continue
            raw = self._connection.get(self.key(text))
            if len(raw) >= 4 * self._dimensions:
                note_adapter("TrustsWhatItFinds")
                found[number] = np.frombuffer(raw[-4 * self._dimensions :], dtype=np.float32)
        return found


class NeedsTheCache(EmbeddingCache):
    """Without the cache there is no answer."""

    def get_or_compute(self, texts: Sequence[str], compute: Compute) -> Any:
        before = self.counters
        rows = super().get_or_compute(texts, compute)
        if self.counters.degraded > before.degraded:
            note_adapter("NeedsTheCache")
            raise CacheError("the cache did not answer")
        return rows
