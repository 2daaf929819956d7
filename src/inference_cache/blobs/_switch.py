"""Replacing and removing values of which some are in chunks: what is seen is seen whole, or not at all.

The keys are watched and their headers read; then one transaction does everything, or, when somebody else
changed a key meanwhile, nothing, and it begins again. So no chunk is left behind, whoever else writes and
wherever a process dies.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference_cache.blobs._frame import Damage, Header, parse_header
from inference_cache.blobs._requests import Command, get_header, set_command
from inference_cache.blobs._wire import Arg, Refusal, Reply, Wire, encode

__all__ = ["erase", "expiry", "is_wrong_type", "switch"]


def expiry(key: bytes, ttl_ms: int | None) -> Command:
    """The command that gives a key its time to live, or takes it away."""
    return (b"PERSIST", key) if ttl_ms is None else (b"PEXPIRE", key, b"%d" % ttl_ms)


def is_wrong_type(reply: Reply) -> bool:
    """Whether the key holds no string."""
    return isinstance(reply, Refusal) and reply.reply.startswith("WRONGTYPE")


def switch(
    wire: Wire,
    key: bytes,
    value: Arg,
    generation: bytes | None,
    chunk_keys: Sequence[bytes],
    ttl_ms: int | None,
) -> bool:
    """Puts a value in place, removes the chunks of the one that it replaces, and lets its own live on.

    ``value`` is a manifest, with its generation and chunk keys, or a whole value, with None and none. Returns
    whether all chunks were there. Raises what :class:`Wire` does, and Refusal.
    """
    present: list[Command] = [(b"EXISTS", *chunk_keys)] if chunk_keys else []
    while True:
        [before] = _watch(wire, [key])
        if isinstance(before, Header) and before.generation == generation:
            # An earlier try was carried out and its reply was lost.
            return wire.call([(b"UNWATCH",), *present])[-1] == len(chunk_keys)
        old = before.chunk_keys(key) if isinstance(before, Header) else []
        done = _transaction(
            wire,
            [
                *present,
                set_command(key, value, ttl_ms),
                *(expiry(chunk, ttl_ms) for chunk in chunk_keys),
                *([(b"UNLINK", *old)] if old else []),
            ],
        )
        if done is not None:
            return not present or done[0] == len(chunk_keys)


def erase(wire: Wire, keys: Sequence[bytes], only: bytes | None) -> list[int]:
    """Removes values with their chunks; with ``only`` those of that generation. Returns 1 or 0 for each key.

    Raises what :class:`Wire` does, and Refusal.
    """
    while True:
        headers = _watch(wire, keys)
        chosen = [
            (key, header)
            for key, header in zip(keys, headers, strict=True)
            if only is None or (isinstance(header, Header) and header.generation == only)
        ]
        chunks = [
            (b"UNLINK", *header.chunk_keys(key))
            for key, header in chosen
            if isinstance(header, Header) and header.chunks
        ]
        done = _transaction(wire, [*((b"UNLINK", key) for key, _ in chosen), *chunks])
        if done is not None:
            removed = dict.fromkeys(keys, 0)
            for (key, _), count in zip(chosen, done, strict=False):
                removed[key] += count if isinstance(count, int) else 0
            return [removed[key] for key in keys]


def _watch(wire: Wire, keys: Sequence[bytes]) -> list[Header | Damage]:
    """Watches keys and reads what begins them."""
    wire.send(encode([(b"WATCH", *keys), *map(get_header, keys)]))
    watched, *heads = [wire.reply() for _ in range(1 + len(keys))]
    headers: list[Header | Damage] = []
    for key, head in zip([b"", *keys], [watched, *heads], strict=True):
        if isinstance(head, Refusal) and not is_wrong_type(head):
            raise head
        headers.append(parse_header(head, key) if isinstance(head, bytes) else Damage.FOREIGN)
    return headers[1:]


def _transaction(wire: Wire, commands: Sequence[Command]) -> list[Reply] | None:
    done = wire.transaction(commands)
    for reply in done or []:
        if isinstance(reply, Refusal):
            raise reply
    return done
