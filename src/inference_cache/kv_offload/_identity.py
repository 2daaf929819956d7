"""What a block's bytes depend on, and the key that says all of it.

A key is ``vllm:kv:<fingerprint>:<group>:<block hash>``, and ``...:<scope>`` behind that for a request with a
LoRA adapter or a cache salt. The fingerprint covers what is the same for all blocks of a run, the block hash
what comes before the block in its prompt, the scope what a request adds. Beside the blocks lies one readable
record, ``vllm:kv:<fingerprint>:config``: what the fingerprint stands for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

from inference_cache.errors import UsageError
from inference_cache.keyspace import Keyspace

__all__ = [
    "RECORD_PART",
    "BlockId",
    "RunIdentity",
    "block_key",
    "read_record",
    "record_key",
    "request_scope",
    "run_record",
]

FORMAT_VERSION: Final = 1
"""Of keys and records; part of the fingerprint."""
RECORD_PART: Final = "config"
_FINGERPRINT_BYTES: Final = 16
_SCOPE_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockId:
    """One block of a run: its cache group, its hash, and the scope of the request that it belongs to."""

    group: int
    digest: bytes
    """The engine's hash of the block's tokens and of everything before them."""
    scope: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """Everything that decides the bytes of a run's blocks, apart from the prompt.

    Two runs share blocks exactly when all of it is equal. A field that does not matter to an engine keeps its
    default.
    """

    model: str
    weights: str
    """Which weights: a commit, a digest of the files, or what the operator declares; never empty."""
    kv_dtype: str
    compute_dtype: str = "unknown"
    """What the model computes in; the cache may be kept in something shorter."""
    layout: str = "direct"
    """How the bytes of a block are laid out."""
    layout_version: str = "1"
    block_tokens: int
    """Tokens to a block hash."""
    blocks_per_value: int = 1
    value_bytes: int
    """Length of each stored value, padding included."""
    groups: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """For each cache group the tokens of a block and the names of its layers."""
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    prefill_context_parallel: int = 1
    decode_context_parallel: int = 1
    world_size: int = 1
    rank: int = 0
    """Which part of the block a value holds: 0 where one value holds the parts of all workers."""
    adapters: str = ""
    """Where adapters are on and cannot be told apart by request: what tells them apart."""
    engine: str = "vllm"
    options: tuple[tuple[str, str], ...] = ()
    """Anything else that changes the bytes, by name."""
    epoch: str = ""
    """Something new each time the weights may have changed under a running engine."""
    format_version: int = FORMAT_VERSION
    fingerprint: str = field(init=False, compare=False, repr=False, default="")
    """32 hexadecimal digits: SHA-256 over the names and values of all other fields, cut to 128 bits."""

    def __post_init__(self) -> None:
        for name in ("model", "weights", "kv_dtype"):
            if not getattr(self, name):
                raise UsageError(
                    f"the identity of a run needs its {name}: without it wrong blocks would match"
                )
        if self.value_bytes < 1 or self.block_tokens < 1:
            raise UsageError(
                f"a block has tokens and bytes, not {self.block_tokens} and {self.value_bytes} of them"
            )

        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).digest()[:_FINGERPRINT_BYTES]
        object.__setattr__(self, "fingerprint", digest.hex())

    def as_dict(self) -> dict[str, Any]:
        """All fields but the fingerprint, as JSON has them."""
        described: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del described["fingerprint"]
        return described

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`. Raises UsageError for anything else."""
        try:
            known = [known.name for known in fields(cls) if known.init]
            values = {name: described[name] for name in known}
            values["groups"] = tuple((int(tokens), tuple(layers)) for tokens, layers in values["groups"])
            values["options"] = tuple((str(name), str(value)) for name, value in values["options"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"this describes no run: {error}") from error


def request_scope(*, adapter: str = "", salt: str = "") -> bytes:
    """What a request adds to the keys of its blocks: empty without adapter and salt, else 16 bytes.

    ``adapter`` says which weights of the adapter, not just which name. The salt is in the block hash already;
    it stands here too so that a weak block hash cannot carry one tenant's blocks to another.
    """
    if not adapter and not salt:
        return b""
    text = json.dumps([adapter, salt])
    return hashlib.sha256(text.encode()).digest()[:_SCOPE_BYTES]


def block_key(keyspace: Keyspace, fingerprint: str, block: BlockId) -> bytes:
    """The key of one block."""
    scope = (block.scope.hex(),) if block.scope else ()
    return keyspace.key(fingerprint, block.group, block.digest.hex(), *scope)


def record_key(keyspace: Keyspace, fingerprint: str) -> bytes:
    """The key of the record beside the blocks."""
    return keyspace.key(fingerprint, RECORD_PART)


def run_record(identity: RunIdentity, *, writer: str) -> bytes:
    """The record: one JSON object for people and for ``inference-cache kv ls``."""
    return json.dumps(
        {"fingerprint": identity.fingerprint, "writer": writer, "run": identity.as_dict()},
        indent=1,
        sort_keys=True,
    ).encode()


def read_record(text: bytes) -> RunIdentity:
    """The identity in a record. Raises UsageError when it holds none, or that of another fingerprint."""
    try:
        content = json.loads(text)
        identity = RunIdentity.from_dict(content["run"])
        claimed = content["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"this is no record of a run: {error}") from error
    if claimed != identity.fingerprint:
        raise UsageError(f"the record of {claimed!r} describes the run {identity.fingerprint!r}")
    return identity
