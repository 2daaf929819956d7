"""Keys and URLs: ``ray:<session>:<node>:<object>``, and what Ray is told of them.

Beside the objects there are, as long as a node has some, a hash of their ids,
``ray:<session>:<node>:index``, and one hash for all nodes, ``ray:nodes``. Both go with the last object.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs

from inference_cache.errors import UsageError
from inference_cache.keyspace import Keyspace

__all__ = ["SpillNames", "SpillUrl", "parse_url"]

_INDEX: Final = "index"
_NODES: Final = "nodes"
_SWEEPER: Final = "sweeper"
_FORBIDDEN: Final = "?&="
"""What separates the parts of a URL for Ray."""


class SpillNames:
    """The names of one node of one session, below ``keyspace``."""

    def __init__(self, keyspace: Keyspace, *, session: str, node: str) -> None:
        for what, text in (("session", session), ("node", node)):
            if not text or any(character in _FORBIDDEN for character in text):
                raise UsageError(f"the {what} {text!r} must have a name without any of {_FORBIDDEN}")
        self.keyspace = keyspace
        self.session = session
        self.node = node
        self.objects = keyspace.below(session, node)
        self.index = self.objects.key(_INDEX)
        self.nodes = keyspace.key(_NODES)
        self.sweeper = keyspace.key(_SWEEPER)
        self.member = self.objects.prefix.removeprefix(keyspace.prefix).rstrip(":").encode()
        """This node's field in the hash of nodes."""

    def key(self, object_id: str) -> bytes:
        """The key of an object of this node."""
        return self.objects.key(object_id)

    def url(self, key: bytes, size_bytes: int, *, owner: bytes = b"") -> bytes:
        """What Ray keeps to find the record of ``size_bytes`` again: one object a key, so the offset is 0.

        With the owner's address, it can be told where the record is lost, and the address with it.
        """
        url = b"%b?offset=0&size=%d" % (key, size_bytes)
        return url + b"&owner=" + base64.urlsafe_b64encode(owner).rstrip(b"=") if owner else url

    def of_member(self, member: bytes) -> SpillNames:
        """The names of the node with that field.

        Raises:
            KeyFormatError: it is no field that this class makes.
        """
        session, node = self.keyspace.parse(self.keyspace.prefix.encode() + member)
        return SpillNames(self.keyspace, session=session.decode(), node=node.decode())

    def object_of(self, key: bytes) -> tuple[SpillNames, str] | None:
        """The node and the id that a key belongs to, whoever's; None for a key that is no object's."""
        parts = self.keyspace.parse(key) if self.keyspace.owns(key) else ()
        if len(parts) != 3 or parts[2] == _INDEX.encode():
            return None
        session, node, object_id = (part.decode("utf-8", "replace") for part in parts)
        return SpillNames(self.keyspace, session=session, node=node), object_id


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillUrl:
    """What a URL of :meth:`SpillNames.url` says."""

    key: bytes
    offset: int
    size_bytes: int
    owner: bytes = b""
    """The owner's address, a serialized ``ray.rpc.Address``; empty when it is not told."""


def parse_url(url: str | bytes) -> SpillUrl:
    """Reads a URL of :meth:`SpillNames.url`.

    Raises:
        UsageError: it is no such URL.
    """
    text = url.decode() if isinstance(url, bytes) else url
    key, _, query = text.partition("?")
    fields = parse_qs(query)
    try:
        owner = fields.get("owner", [""])[0]
        return SpillUrl(
            key=key.encode(),
            offset=int(fields["offset"][0]),
            size_bytes=int(fields["size"][0]),
            owner=base64.urlsafe_b64decode(owner + "=" * (-len(owner) % 4)),
        )
    except (KeyError, ValueError, binascii.Error):
        raise UsageError(f"{text!r:.200} is not the URL of a spilled object: key?offset=0&size=N") from None
