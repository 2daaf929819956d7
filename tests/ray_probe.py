"""A blob store that tells which Ray node it was made on."""

from __future__ import annotations

from typing import Any

from inference_cache.blobs import BlobStore

__all__ = ["TellingStore"]


class TellingStore(BlobStore):
    def __init__(self, url: str, **options: Any) -> None:
        import ray

        from inference_cache.connection import connect

        super().__init__(url, **options)
        client = connect(url, deadline_s=5)
        client.sadd("nodes", ray.get_runtime_context().get_node_id())
        client.close()
