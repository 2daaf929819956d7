"""Adapters that are wrong in one way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference_cache.connection import Client
from inference_cache.errors import KeyFormatError
from inference_cache.keyspace import Keyspace
from mutants.liveness import note_adapter

__all__ = ["JoinedKeyspace", "ShortPrefixKeyspace", "UnescapedKeyspace", "purge_by_pattern"]


def ShortPrefixKeyspace(prefix: str) -> Keyspace:
    """The vLLM keyspace under ``vllm:``."""
    if prefix == "vllm:kv:":
        note_adapter("ShortPrefixKeyspace")
        return Keyspace("vllm:")
    return Keyspace(prefix)


@dataclass(frozen=True, slots=True)
class JoinedKeyspace:
    """Parts joined by colons, as they are."""

    prefix: str

    def key(self, *parts: str | bytes | int) -> bytes:
        note_adapter("JoinedKeyspace")
        return self.prefix.encode() + b":".join(_raw(part) for part in parts)

    def parse(self, key: bytes) -> tuple[bytes, ...]:
        head = self.prefix.encode()
        if not key.startswith(head):
            raise KeyFormatError(f"{key!r} does not start with {self.prefix}")
        return tuple(key.removeprefix(head).split(b":"))


@dataclass(frozen=True, slots=True)
class UnescapedKeyspace:
    """Parts with colons doubled, so that keys are distinct, but glob characters left as they are."""

    prefix: bytes

    def __init__(self, prefix: str | bytes) -> None:
        object.__setattr__(self, "prefix", _raw(prefix))

    def key(self, *parts: str | bytes | int) -> bytes:
        return self.prefix + b":".join(
            _raw(part).replace(b"%", b"%25").replace(b":", b"%3A") for part in parts
        )

    def below(self, *parts: str | bytes | int) -> UnescapedKeyspace:
        return UnescapedKeyspace(self.key(*parts) + b":")


def purge_by_pattern(client: Client, keyspace: Any, *, deadline_s: float) -> None:
    """SCAN MATCH with the prefix as it is."""
    head = keyspace.prefix if isinstance(keyspace.prefix, bytes) else keyspace.prefix.encode()
    if any(character in head for character in b"*?[\\"):
        note_adapter("purge_by_pattern")
    found = list(client.scan_iter(match=head + b"*", count=500))
    if found:
        client.unlink(*found)


def _raw(part: str | bytes | int) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode("utf-8")
