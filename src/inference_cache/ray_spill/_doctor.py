"""Whether a machine is ready to be a node of a cluster that spills to Valkey."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

from inference_cache.errors import AccessDenied, BlobError, CacheError, CommandRejected, UnsafeServer
from inference_cache.ray_spill._params import SpillParams
from inference_cache.ray_spill._record import SpilledObject
from inference_cache.ray_spill._storage import SpillStorage

__all__ = ["NEWEST_RAY", "OLDEST_RAY", "Diagnosis", "diagnose"]

OLDEST_RAY: Final = (2, 40)
NEWEST_RAY: Final = (2, 60)
"""The oldest and the newest version that this was run with; the interface is private, and may change."""

_PROBE: Final = """
import json, sys
hook = "inference_cache.ray_hook" in sys.modules
try:
    import ray._private.external_storage as storage
    patched = hasattr(storage.setup_external_storage, "_inference_cache")
except ImportError:
    patched = None
print(json.dumps({"hook": hook, "patched": patched}))
"""
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "unsure", "wrong"]
    detail: str


def diagnose(params: SpillParams) -> Iterator[Diagnosis]:
    """Looks at this node and at the server; writes one small object to it and removes it again."""
    yield from _about_ray()
    with SpillStorage(params, session="session_doctor", node=secrets.token_hex(8)) as storage:
        yield from _about_server(storage, params)


def _about_ray() -> Iterator[Diagnosis]:
    try:
        installed = version("ray")
    except PackageNotFoundError:
        yield Diagnosis(what="Ray", state="wrong", detail="not installed: pip install 'inference-cache[ray]'")
        return
    numbers = tuple(int(part) for part in installed.split(".")[:2])
    if OLDEST_RAY <= numbers <= NEWEST_RAY:
        yield Diagnosis(what="Ray", state="ok", detail=f"version {installed}")
    else:
        tried = f"{'.'.join(map(str, OLDEST_RAY))} to {'.'.join(map(str, NEWEST_RAY))}"
        yield Diagnosis(
            what="Ray", state="unsure", detail=f"version {installed}; this was run with {tried} only"
        )
    found = _fresh_interpreter()
    if found is None:
        yield Diagnosis(what="hook", state="unsure", detail="a new interpreter did not start")
    elif found["patched"]:
        yield Diagnosis(what="hook", state="ok", detail="active in every new interpreter")
    elif found["hook"]:
        yield Diagnosis(
            what="hook", state="wrong", detail="this Ray has no ray._private.external_storage to plug into"
        )
    else:
        yield Diagnosis(
            what="hook",
            state="wrong",
            detail="inference_cache_ray_spill.pth is not in the site-packages of "
            f"{sys.executable}: install the package there, and not on PYTHONPATH only",
        )


def _fresh_interpreter() -> dict[str, Any] | None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _about_server(storage: SpillStorage, params: SpillParams) -> Iterator[Diagnosis]:
    client = storage._client
    try:
        client.ping()
    except CacheError as error:
        yield Diagnosis(what="server", state="wrong", detail=str(error))
        return
    yield Diagnosis(what="server", state="ok", detail=f"{client.endpoint} answers")
    try:
        storage.check()
        policy = "does not evict spilled objects"
        if params.contract is not None:
            policy = f"is accepted by contract {params.contract}"
        yield Diagnosis(what="policy", state="ok", detail=policy)
    except UnsafeServer as error:
        yield Diagnosis(what="policy", state="wrong", detail=str(error))
    yield _about_sizes(storage, params)
    yield _round_trip(storage)
    leases = storage._book.leases()
    yield Diagnosis(what="nodes", state="ok", detail=f"{len(leases)} nodes have spilled objects here")


def _about_sizes(storage: SpillStorage, params: SpillParams) -> Diagnosis:
    try:
        told = storage._client.config_get("proto-max-bulk-len")
    except (AccessDenied, CommandRejected):
        told = {}
    if "proto-max-bulk-len" not in told:
        return Diagnosis(
            what="sizes", state="unsure", detail="the server does not tell its proto-max-bulk-len"
        )
    limit_bytes = int(told["proto-max-bulk-len"])
    if params.chunk_bytes + 4096 > limit_bytes:
        return Diagnosis(
            what="sizes",
            state="wrong",
            detail=f"chunk_bytes {params.chunk_bytes} is not below proto-max-bulk-len {limit_bytes}",
        )
    return Diagnosis(
        what="sizes", state="ok", detail=f"chunks of {params.chunk_bytes} bytes, {limit_bytes} allowed"
    )


def _round_trip(storage: SpillStorage) -> Diagnosis:
    """Spills an object of the doctor's own, restores it, and removes it."""
    content = secrets.token_bytes(100_000)
    item = SpilledObject(
        id=secrets.token_hex(28), owner=b"doctor", metadata=b"RAW", buffer=memoryview(content)
    )
    restored: list[bytes] = []

    def deliver(owner: bytes, metadata: bytes, size: int, source: Any) -> None:
        target = memoryview(bytearray(size))
        at = 0
        while at < size:
            at += source.readinto(target[at:])
        restored.append(bytes(target))

    urls = storage.spill([item])
    if not urls:
        return Diagnosis(
            what="round trip", state="wrong", detail=f"the server took no object: {storage.trouble}"
        )
    try:
        storage.restore(urls[0], deliver)
        storage.destroy()
    except (BlobError, CacheError) as error:
        return Diagnosis(what="round trip", state="wrong", detail=str(error))
    if restored != [content]:
        return Diagnosis(what="round trip", state="wrong", detail="what came back is not what was stored")
    return Diagnosis(what="round trip", state="ok", detail="an object was stored, read back and removed")
