# mypy: allow-untyped-calls
# valkey-py is marked as typed, but most methods that are called and overridden here have no annotations.
"""What differs on the wire, for sync and asyncio alike: first bytes, buffers, and words of refusal."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import valkey.exceptions as vke
from valkey._parsers.encoders import Encoder as _BaseEncoder
from valkey.cluster import ClusterParser

_RESP_TYPES: Final = frozenset(b"+-:$*_#,(!=%~>|")
GREETING_BYTES: Final = 24


def require_resp(data: bytes) -> None:
    """Refuses a peer by its first byte: waiting for a line that never ends would take the whole deadline."""
    if data[0] not in _RESP_TYPES:
        raise vke.InvalidResponse(f"the first bytes of the answer are {data[:GREETING_BYTES]!r}")


class Encoder(_BaseEncoder):
    """Sends any buffer as its bytes: the stock one announces the length of a float32 view in floats."""

    def encode(self, value: Any) -> bytes | memoryview:
        if isinstance(value, (memoryview, bytearray)):
            view = memoryview(value)
            return view if view.nbytes == len(view) else view.cast("B")
        encoded: bytes | memoryview = super().encode(value)
        return encoded


class _KeepsReply:
    """Parsers keep the server's own words: valkey-py cuts the code off the error replies it knows."""

    # A single server of a cluster answers MOVED too, and the RESP3 parser would not know it otherwise.
    EXCEPTION_CLASSES = ClusterParser.EXCEPTION_CLASSES

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        error: Exception = super().parse_error(response)  # type: ignore[misc]
        error.reply = response  # type: ignore[attr-defined]
        return error


@cache
def keeping_reply(parser_class: type) -> type:
    return type(f"_{parser_class.__name__}KeepsReply", (_KeepsReply, parser_class), {})
