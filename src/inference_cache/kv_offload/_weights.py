"""Which weights a model name stands for: the name alone says too little for a cache that many share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from xxhash import xxh3_128

from inference_cache.errors import UsageError

__all__ = ["digest_of_folder", "weights_of"]

_READ_BYTES: Final = 4 * 1024 * 1024
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".json", ".model", ".py", ".jinja")
_THREADS: Final = 4


def weights_of(model: str, *, revision: str | None = None, weights_digest: str | None = None) -> str:
    """A text that is the same for the same weights only.

    In this order: what the operator declares; a digest of the folder, when ``model`` is one; the commit that
    the hub's cache on this machine has for the name and the revision.

    Raises UsageError when none of it is to be had.
    """
    if weights_digest:
        return f"declared:{weights_digest}"
    if Path(model).is_dir():
        return f"folder:{digest_of_folder(Path(model))}"
    if Path(model).is_file():
        return f"file:{_digest_of_files([(Path(model).name, Path(model))])}"
    commit = _commit_of(model, revision)
    if commit is not None:
        return f"commit:{commit}"
    if revision:
        return f"revision:{revision}"
    raise UsageError(
        f"which weights {model!r} stands for cannot be told, and other weights under the same name would "
        "make wrong blocks match; write 'revision': '<commit>' or 'weights_digest': '<text>' into the KV "
        "cache configuration"
    )


def digest_of_folder(folder: Path) -> str:
    """XXH3-128 over names and contents of the files that weights and model code are in, below the folder."""
    files = sorted(
        (str(path.relative_to(folder)), path)
        for path in folder.rglob("*")
        if path.suffix in _WEIGHTS and path.is_file()
    )
    return _digest_of_files(files)


def _digest_of_files(files: list[tuple[str, Path]]) -> str:
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = list(threads.map(_digest_of_file, (path for _, path in files)))
    whole = xxh3_128()
    for (name, _), digest in zip(files, digests, strict=True):
        whole.update(os.fsencode(name) + b"\0" + digest)
    return whole.hexdigest()


def _digest_of_file(path: Path) -> bytes:
    running = xxh3_128()
    for piece in _pieces(path):
        running.update(piece)
    return running.digest()


def _pieces(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


def _commit_of(model: str, revision: str | None) -> str | None:
    """The commit of a model in the hub's cache on this machine; None when it is not there."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError:
        return None
    try:
        path = hub.try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # not a name that the hub knows
        return None
    if not isinstance(path, str):
        return None
    parts = Path(path).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
